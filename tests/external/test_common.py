"""Transformers' own common tests, for both cells and both boundaries.

They are no part of its package: a checkout of its repository, of the version that is installed, is given by
TRANSFORMERS_CHECKOUT. Run `TRANSFORMERS_CHECKOUT=… pytest -n 0 tests/external/test_common.py`.
"""

import os
import sys
import unittest
import warnings
from typing import Any

import pytest
import torch

if "TRANSFORMERS_CHECKOUT" not in os.environ:
    pytest.skip("TRANSFORMERS_CHECKOUT names no checkout of transformers", allow_module_level=True)
sys.path.insert(0, os.environ["TRANSFORMERS_CHECKOUT"])

with warnings.catch_warnings():  # it has marks of its own
    warnings.simplefilter("ignore")
    from tests.generation.test_utils import GenerationTesterMixin
    from tests.test_modeling_common import ModelTesterMixin, ids_tensor

from transformers.cache_utils import Cache
from transformers.models.auto import modeling_auto

from tandem import (
    TandemCache,
    TandemConfig,
    TandemForCausalLM,
    TandemForSequenceClassification,
    TandemForTokenClassification,
    TandemModel,
)

EMBEDS = "embeddings do not tell where documents start"
# That checkpointing changes no gradient is tested in tests/test_transformers.py.
LAYER = "the blocks checkpoint; transformers' layer class is not used, as its import loads all auto classes"
BY_DESIGN = {
    "every": {
        "test_gradient_checkpointing_enable_disable": LAYER,
        "test_training_gradient_checkpointing": LAYER,
        "test_training_gradient_checkpointing_use_reentrant_false": LAYER,
        "test_training_gradient_checkpointing_use_reentrant_true": LAYER,
    },
    "reset": {
        "test_model_forward_default_config_values": "a reset needs the token that starts a document",
        "test_inputs_embeds": EMBEDS,
        "test_inputs_embeds_matches_input_ids": EMBEDS,
        "test_generate_continue_from_inputs_embeds": EMBEDS,
        "test_generate_from_random_inputs_embeds": EMBEDS,
        "test_generate_from_inputs_embeds_0_greedy": EMBEDS,
        "test_generate_from_inputs_embeds_1_beam_search": EMBEDS,
    },
}
"""Tests that a model cannot pass, by its boundary, with the reason."""

# The tests tell classes apart by lists that models within the package stand in.
for _names, _kind in (
    (modeling_auto.MODEL_MAPPING_NAMES, TandemModel),
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, TandemForCausalLM),
    (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, TandemForSequenceClassification),
    (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, TandemForTokenClassification),
):
    _names["tandem"] = _kind.__name__


class SmallModel:
    """What the mixins ask: a small model, and inputs for it."""

    batch_size, seq_length, vocab_size = 3, 7, 99
    hidden_size, num_hidden_layers, num_labels = 16, 2, 3
    is_training = True

    def __init__(self, parent: unittest.TestCase, cell: str, boundary: str) -> None:
        self.parent, self.cell, self.boundary = parent, cell, boundary

    def get_config(self) -> TandemConfig:
        return TandemConfig(
            vocab_size=self.vocab_size,
            embed_dim=self.hidden_size,
            context_dim=12,
            context_layers=2,
            token_layers=self.num_hidden_layers,
            cell=self.cell,
            boundary=self.boundary,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[TandemConfig, dict[str, Any]]:
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 3
        return self.get_config(), {"input_ids": ids, "attention_mask": ids.new_ones(ids.shape)}


def suite(cell: str, boundary: str) -> type:
    class Common(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):  # type: ignore[misc]
        all_model_classes = (
            TandemModel,
            TandemForCausalLM,
            TandemForSequenceClassification,
            TandemForTokenClassification,
        )
        all_generative_model_classes = (TandemForCausalLM,)
        has_attentions = False

        def setUp(self) -> None:
            reasons = BY_DESIGN["every"] | BY_DESIGN.get(boundary, {})
            if self._testMethodName in reasons:
                self.skipTest(reasons[self._testMethodName])
            self.model_tester = SmallModel(self, cell, boundary)

        def test_left_padding_compatibility(self) -> None:
            """Only models with attention are tried otherwise; this one passes padding over, too."""
            self.has_attentions = True
            super().test_left_padding_compatibility()

        # A TandemCache has one context, of all layers and tokens, where others have keys and values of each.
        def _check_past_key_values_for_generate(
            self, batch_size: int, past_key_values: Cache, seq_length: int, config: TandemConfig
        ) -> None:
            assert isinstance(past_key_values, TandemCache)
            assert past_key_values.context is not None
            assert past_key_values.context.shape == (batch_size, config.context_dim)
            assert past_key_values.get_seq_length() == seq_length

        def _check_caches_are_equal(self, cache: Cache, other: Cache) -> None:
            assert isinstance(cache, TandemCache)
            assert isinstance(other, TandemCache)
            torch.testing.assert_close(cache.context, other.context)
            assert cache.get_seq_length() == other.get_seq_length()

    Common.__name__ = Common.__qualname__ = f"Test{cell.title()}{boundary.title()}"
    return pytest.mark.filterwarnings("ignore")(Common)


for _cell in ("residual", "gated"):
    for _boundary in ("carry", "reset"):
        _suite = suite(_cell, _boundary)
        globals()[_suite.__name__] = _suite
del _suite
