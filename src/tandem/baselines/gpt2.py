"""The GPT-2 baseline: transformers' own class (Radford et al. 2019), small and trained from scratch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tandem.baselines.windows import WindowBaseline
from tandem.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn


class Gpt2Baseline(WindowBaseline):
    """A GPT-2; its width is a multiple of the number of heads."""

    title = "GPT-2"
    description = "GPT-2 (transformer)"
    section = "baselines.gpt2"
    memory_settings = ("baselines.gpt2.batch_windows", "baselines.gpt2.window", "baselines.max_parameters")

    def widths(self, settings: Settings, max_parameters: int) -> range:
        """From width 1 of each head on; the matrices of one layer alone have 12 width² parameters."""
        heads = settings.baselines.gpt2.heads
        return range(heads, max(heads, math.isqrt(max_parameters // 12)) + 1, heads)

    def parameter_count(self, settings: Settings, vocab_size: int, width: int) -> int:
        own, norm = settings.baselines.gpt2, 2 * width
        attention = 3 * width * width + 3 * width + width * width + width
        mlp = 8 * width * width + 5 * width
        return (vocab_size + own.window) * width + own.layers * (2 * norm + attention + mlp) + norm

    def build(self, settings: Settings, vocab_size: int, width: int) -> nn.Module:
        """Without its head, with transformers' own initial weights, N(0, 0.02)."""
        from transformers import GPT2Config, GPT2Model

        own = settings.baselines.gpt2
        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=own.window,
            n_embd=width,
            n_layer=own.layers,
            n_head=own.heads,
            resid_pdrop=own.dropout,
            embd_pdrop=own.dropout,
            attn_pdrop=own.dropout,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        return GPT2Model(config)

    def embedding(self, model: Any) -> Tensor:
        weight: Tensor = model.wte.weight
        return weight

    def window(self, model: Any) -> int:
        size: int = model.config.n_positions
        return size

    def read_windows(self, model: Any, ids: Tensor) -> Tensor:
        hidden: Tensor = model(input_ids=ids).last_hidden_state
        return hidden
