"""The transformer baseline: a small decoder as they are built today, trained from scratch.

RMSNorm before every part (Zhang & Sennrich 2019, arXiv:1910.07467), rotary positions (Su et al. 2021,
arXiv:2104.09864), normalised queries and keys (Henry et al. 2020, arXiv:2010.04245), a squared ReLU (So et
al. 2021, arXiv:2109.08668), one embedding for input and output, and no biases.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tandem.baselines.windows import WindowBaseline
from tandem.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

BASE = 10_000.0
"""Of the rotary wave lengths: they grow from 2π tokens to almost so many times that."""


class TransformerBaseline(WindowBaseline):
    """A decoder; its width is an even multiple of the number of heads."""

    title = "Transformer"
    description = "transformer of today (rotary, RMSNorm, squared ReLU)"
    section = "baselines.transformer"
    memory_settings = (
        "baselines.transformer.batch_windows",
        "baselines.transformer.window",
        "baselines.max_parameters",
    )

    def widths(self, settings: Settings, max_parameters: int) -> range:
        """From width 2 of each head on; the matrices of one layer alone have 12 width² parameters."""
        least = 2 * settings.baselines.transformer.heads
        return range(least, max(least, math.isqrt(max_parameters // 12)) + 1, least)

    def parameter_count(self, settings: Settings, vocab_size: int, width: int) -> int:
        own = settings.baselines.transformer
        layer = 12 * width * width + 2 * width + 2 * (width // own.heads)
        return vocab_size * width + own.layers * layer + width

    def build(self, settings: Settings, vocab_size: int, width: int) -> nn.ModuleDict:
        """Its modules, which `read_windows` puts together. What ends a part starts at zero."""
        from torch import nn

        own = settings.baselines.transformer

        def matrix(rows: int, columns: int, scale: float = 1.0) -> nn.Linear:
            linear = nn.Linear(columns, rows, bias=False)
            nn.init.normal_(linear.weight, std=scale * columns**-0.5)
            return linear

        def layer() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "attention_norm": nn.RMSNorm(width),
                    "attention": matrix(3 * width, width),
                    "query_norm": nn.RMSNorm(width // own.heads),
                    "key_norm": nn.RMSNorm(width // own.heads),
                    "attention_out": matrix(width, width, 0.0),
                    "mlp_norm": nn.RMSNorm(width),
                    "mlp": matrix(4 * width, width),
                    "mlp_out": matrix(width, 4 * width, 0.0),
                }
            )

        embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(embedding.weight, std=0.02)
        layers, norm = nn.ModuleList(layer() for _ in range(own.layers)), nn.RMSNorm(width)
        model = nn.ModuleDict({"embedding": embedding, "layers": layers, "norm": norm})
        model["dropout"] = nn.Dropout(own.dropout)
        cos, sin = rotary_waves(own.window, width // own.heads)
        model.register_buffer("cos", cos, persistent=False)
        model.register_buffer("sin", sin, persistent=False)
        return model

    def embedding(self, model: Any) -> Tensor:
        weight: Tensor = model["embedding"].weight
        return weight

    def window(self, model: Any) -> int:
        return len(model.cos)

    def read_windows(self, model: Any, ids: Tensor) -> Tensor:
        from torch.nn import functional as F

        drop, (batch, length) = model["dropout"], ids.shape
        cos, sin = model.cos[:length], model.sin[:length]
        hidden = drop(F.rms_norm(model["embedding"](ids), (self.embedding(model).shape[1],)))
        for layer in model["layers"]:
            size = layer["query_norm"].weight.shape[0]
            # [3, B, heads, t, size]
            parts = layer["attention"](layer["attention_norm"](hidden))
            query, key, value = parts.view(batch, length, 3, -1, size).permute(2, 0, 3, 1, 4)
            query = rotated(layer["query_norm"](query.float()), cos, sin).to(value.dtype)
            key = rotated(layer["key_norm"](key.float()), cos, sin).to(value.dtype)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            hidden = hidden + drop(layer["attention_out"](mixed.transpose(1, 2).flatten(2)))
            active = layer["mlp"](layer["mlp_norm"](hidden)).relu().square()
            hidden = hidden + drop(layer["mlp_out"](active))
        result: Tensor = drop(model["norm"](hidden))
        return result


def rotary_waves(length: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [length, size / 2] of what each position turns each pair of elements by."""
    import torch

    rates = BASE ** (-torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), rates)
    return angles.cos(), angles.sin()


def rotated(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """values [..., t, size], where the first half of the elements and the second are pairs, each turned."""
    import torch

    one, other = values.chunk(2, dim=-1)
    return torch.cat((one * cos - other * sin, one * sin + other * cos), dim=-1)
