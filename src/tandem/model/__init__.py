"""The model as Hugging Face classes; the files beside this one travel with saved models.

They load on first use: transformers must be able to import the configuration while it is itself imported.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tandem.model.cache_tandem import TandemCache
    from tandem.model.configuration_tandem import TandemConfig
    from tandem.model.modeling_tandem import (
        AnyContextBlock,
        ContextBlock,
        GatedContextBlock,
        TandemForCausalLM,
        TokenBlock,
        sequential_contexts,
    )

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


def __getattr__(name: str) -> Any:
    if name == "TandemConfig":
        from tandem.model import configuration_tandem

        return getattr(configuration_tandem, name)
    if name in __all__:
        from tandem.model import modeling_tandem

        return getattr(modeling_tandem, name)
    raise AttributeError(f"module 'tandem.model' has no attribute '{name}'")
