"""The model as Hugging Face classes; the two files beside this one travel with saved models."""

from transformers import AutoConfig, AutoModelForCausalLM

from tandem.model.configuration_tandem import TandemConfig
from tandem.model.modeling_tandem import (
    AnyContextBlock,
    ContextBlock,
    GatedContextBlock,
    TandemCache,
    TandemForCausalLM,
    TokenBlock,
    sequential_contexts,
)

AutoConfig.register("tandem", TandemConfig)
AutoModelForCausalLM.register(TandemConfig, TandemForCausalLM)
# Saved folders carry these two files, so that they load with `trust_remote_code` where Tandem is absent.
TandemConfig.register_for_auto_class()
TandemForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "AnyContextBlock",
    "ContextBlock",
    "GatedContextBlock",
    "TandemCache",
    "TandemConfig",
    "TandemForCausalLM",
    "TokenBlock",
    "sequential_contexts",
]
