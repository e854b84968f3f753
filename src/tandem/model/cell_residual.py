"""The cell `residual`, the original's (SPEC section 1).

Shape letters: C context_dim, E embed_dim, U distinct tokens, n any number.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cell_tandem import ContextBlock, plain
from .configuration_tandem import TandemConfig


class ResidualLayer(nn.Module):
    """c' = LayerNorm(c + GELU(W·[c; e] + b)), W: C×(C+E)."""

    def __init__(self, context_dim: int, embed_dim: int, layer_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.linear = nn.Linear(context_dim + embed_dim, context_dim)
        self.norm = nn.LayerNorm(context_dim, eps=layer_norm_eps)

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """context [..., C], token_embeds [..., E] → [..., C]."""
        return self.update(context, self.linear(torch.cat((context, token_embeds), dim=-1)))

    def update(self, context: Tensor, product: Tensor) -> Tensor:
        """c' [..., C] from c and W·[c; e] + b."""
        return self.norm(context + F.gelu(product))

    def loop_update(self) -> Callable[[Tensor, Tensor], Tensor]:
        """`update`, bit for bit, as a function for loops over many tokens; see ContextBlock.loop_step."""
        if not plain(self, ResidualLayer) or not plain(self.norm, nn.LayerNorm):
            return self.update
        shape, eps = self.norm.normalized_shape, self.norm.eps
        weight, bias = self.norm.weight, self.norm.bias
        return lambda context, product: torch.layer_norm(context + F.gelu(product), shape, weight, bias, eps)


class ResidualContextBlock(ContextBlock):
    """`context_layers` ResidualLayers in a row; each one reads the same token embedding."""

    context_norm = False  # contexts come out of a LayerNorm

    def __init__(self, config: TandemConfig) -> None:
        sizes = (config.context_dim, config.embed_dim, config.layer_norm_eps)
        super().__init__(config, (ResidualLayer(*sizes) for _ in range(config.depths[0])))

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """One step: context [..., C] before the token, token_embeds [..., E] → context after it."""
        for layer in self.layers:
            context = layer(context, token_embeds)
        return context

    def loop_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        """As of ContextBlock."""
        layers = list(self.layers)
        if not plain(self, ResidualContextBlock) or not all(plain(one.linear, nn.Linear) for one in layers):
            return self
        parts = [(layer.linear.weight, layer.linear.bias, layer.loop_update()) for layer in layers]

        def step(context: Tensor, token_embeds: Tensor) -> Tensor:
            for weight, bias, update in parts:
                context = update(context, F.linear(torch.cat((context, token_embeds), dim=-1), weight, bias))
            return context

        return step if all(plain(layer, ResidualLayer) for layer in layers) else self

    def token_steps(self, token_embeds: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """As of ContextBlock. A token's part of each product, W_e·e + b, is in a table [U, C]."""
        tables = []
        for layer in self.layers:
            of_context, of_token = layer.linear.weight.split((self.context_dim, token_embeds.shape[1]), dim=1)
            table = F.linear(token_embeds, of_token, layer.linear.bias)
            tables.append((layer.loop_update(), of_context.t(), table))

        def step(context: Tensor, rows: Tensor) -> Tensor:
            for update, weight, table in tables:
                # Not index_select, whose gradient takes as long as the product.
                of_token = torch.embedding(table, rows)
                # Autocast leaves a product into a buffer as it is.
                add = torch.addmm if torch.is_autocast_enabled(context.device.type) else Tensor.addmm_
                context = update(context, add(of_token, context, weight))
            return context

        return step


__all__ = ["ResidualContextBlock", "ResidualLayer"]
