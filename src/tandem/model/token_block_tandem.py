"""The TokenBlock: the context and the current token in, the state that predicts the next token out.

Shape letters: C context_dim, E embed_dim.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cell_tandem import Drop
from .cells_tandem import CELLS
from .configuration_tandem import TandemConfig


class TokenLayer(nn.Module):
    """x' = LayerNorm(x + GELU(W·[c; x] + b)), W: E×(C+E); without a context W·x, W: E×E.

    `context_norm` is a LayerNorm of c before that, or none, as the cell says. With `projection` it is
    P·GELU(…), P: E×E, as in a transformer's feed-forward layer (Vaswani et al. 2017): GELU alone hardly takes
    anything away from x.
    """

    def __init__(
        self,
        context_dim: int,
        embed_dim: int,
        layer_norm_eps: float = 1e-5,
        context_norm: bool = False,
        projection: bool = False,
    ) -> None:
        super().__init__()
        self.context_norm = nn.LayerNorm(context_dim, eps=layer_norm_eps) if context_norm else None
        self.linear = nn.Linear(context_dim + embed_dim, embed_dim)
        self.projection = nn.Linear(embed_dim, embed_dim, bias=False) if projection else None
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)

    def forward(self, context: Tensor | None, x: Tensor, drop: Drop | None = None) -> Tensor:
        """context [..., C] or none, x [..., E] → [..., E]; `drop` is applied to the context, in training."""
        read = x
        if context is not None:
            context = context if self.context_norm is None else self.context_norm(context)
            read = torch.cat((context if drop is None else drop(context), x), dim=-1)
        change = F.gelu(self.linear(read))
        return self.norm(x + (change if self.projection is None else self.projection(change)))


class TokenBlock(nn.Module):
    """`token_layers` TokenLayers; which context each one reads is `reads` (the original's "G" plan).

    The last layer reads the current context; with two or more layers, the first reads the previous one;
    those between read none.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any
    """Both are set by transformers."""

    def __init__(self, config: TandemConfig) -> None:
        super().__init__()
        depth, norm = config.depths[1], CELLS[config.cell]().context_norm
        self.reads: tuple[str | None, ...] = tuple(
            "current" if i == depth - 1 else "previous" if i == 0 else None for i in range(depth)
        )
        self.layers = nn.ModuleList(
            TokenLayer(
                config.context_dim if reads else 0,
                config.embed_dim,
                config.layer_norm_eps,
                context_norm=reads is not None and norm,
                projection=config.token_projection,
            )
            for reads in self.reads
        )

    def forward(
        self,
        previous_context: Tensor,
        current_context: Tensor,
        token_embeds: Tensor,
        drop: Drop | None = None,
    ) -> Tensor:
        """Contexts [..., C] before and after the token, token_embeds [..., E] → [..., E].

        `drop` is applied to the context that a layer reads (dropout, in training).
        """
        contexts = {"previous": previous_context, "current": current_context, None: None}
        x = token_embeds
        for layer, reads in zip(self.layers, self.reads, strict=True):
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer, contexts[reads], x, drop)
            else:
                x = layer(contexts[reads], x, drop)
        return x


__all__ = ["TokenBlock", "TokenLayer"]
