"""The cell `gated`: a gated linear recurrence, whose contexts an exact parallel scan computes.

Shape letters: B batch, T tokens, C context_dim, E embed_dim.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cell_tandem import ContextBlock, Drop, plain, scanned
from .configuration_tandem import TandemConfig

Advance = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""keep, add and the state at the start → states before and after each token."""


class GatedLayer(nn.Module):
    """h' = f⊙h + (1 − f)⊙tanh(z), with f = (1 − 1/128)·σ(y) and [y; z] = W·u + b.

    u is e_t, and above the first layer [e_t; the layer below before the token; the same after it]. Neither f
    nor z depends on h, so the recurrence is linear in h. Over a whole stream only its cheap part is
    sequential: one multiplication and one addition an element (Martin & Cundy 2018, arXiv:1709.04057;
    Bradbury et al. 2017, arXiv:1611.01576; Feng et al. 2024, arXiv:2410.01201). The bound on f makes every
    block forget: after n tokens at most (1 − 1/128)ⁿ of a state is left.

    The layer computes what is kept of its state and what is added to it; the block keeps the state.
    """

    most_kept = 1 - 1 / 128

    def __init__(self, width: int, embed_dim: int, below: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(embed_dim + 2 * below, 2 * width)

    def forward(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """u [..., E or more] → what of the state is kept, f, and what is added to it, both [..., width]."""
        return self.gates(self.linear(read))

    def gates(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """The same from W·u + b [..., 2·width]."""
        if torch.is_autocast_enabled(product.device.type):
            product = product.float()  # what is kept of a state is nearer to 1 than half precision can tell
        forget, write = product.chunk(2, dim=-1)
        keep = self.most_kept * forget.sigmoid()
        return keep, (1 - keep) * write.tanh()

    def gates_(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """As `gates`, in the memory of `product`, without gradients, and up to rounding."""
        forget, write = product.chunk(2, dim=-1)
        keep = forget.sigmoid_().mul_(self.most_kept)
        write.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, which takes several times as long on a CPU (LOG.md)
        return keep, write.addcmul_(write, keep, value=-1)

    @torch.no_grad()
    def spread_memory(self) -> None:
        """Forget gates that start with time constants from about one token to fifty, evenly in log odds."""
        self.linear.bias[: self.width] = torch.linspace(-2.0, 4.0, self.width)


class GatedContextBlock(ContextBlock):
    """`context_layers` GatedLayers, each with an equal part of the context vector as its state.

    A layer reads the token embedding and the states of the layer below, before and after the token.
    """

    scan = "linear"
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any
    """Both are set by transformers."""

    def __init__(self, config: TandemConfig) -> None:
        depth, embed_dim = config.depths[0], config.embed_dim
        width = config.context_dim // depth
        super().__init__(
            config, (GatedLayer(width, embed_dim, width if number else 0) for number in range(depth))
        )

    @classmethod
    def check_config(cls, config: TandemConfig) -> None:
        """Raises ValueError where layers do not share `context_dim` evenly."""
        size, depth = config.context_dim, config.depths[0]
        if size % depth:
            raise ValueError(f"context_dim={size} cannot be shared evenly by {depth} gated layers")

    def initialize(self, module: nn.Module) -> None:
        """As of ContextBlock: a layer's forget gates start with their spread of time constants."""
        for layer in self.layers:
            if layer.linear is module:
                layer.spread_memory()

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """One step: context [..., C] before the token, token_embeds [..., E] → context after it."""

        def step(keep: Tensor, add: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return state, torch.addcmul(add, keep, state)

        return torch.cat(self._through_layers(token_embeds, context, step)[1], dim=-1)

    def loop_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        """As of ContextBlock."""
        layers = list(self.layers)
        if not plain(self, GatedContextBlock) or (self.gradient_checkpointing and self.training):
            return self
        if not all(plain(layer, GatedLayer) and plain(layer.linear, nn.Linear) for layer in layers):
            return self
        parts = [(layer.linear.weight, layer.linear.bias, layer.gates) for layer in layers]

        def step(context: Tensor, token_embeds: Tensor) -> Tensor:
            below: tuple[Tensor, ...] = ()
            current = []
            for (weight, bias, gates), state in zip(parts, context.chunk(len(parts), dim=-1), strict=True):
                read = torch.cat((token_embeds, *below), dim=-1) if below else token_embeds
                keep, add = gates(F.linear(read, weight, bias))
                current.append(torch.addcmul(add, keep, state))
                below = state, current[-1]
            return torch.cat(current, dim=-1)

        return step

    def unroll(
        self,
        token_embeds: Tensor,
        start: Tensor | None = None,
        reset_mask: Tensor | None = None,
        frozen: Tensor | None = None,
        drop: Drop | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As of ContextBlock: layer after layer, all tokens of a layer at once."""
        embeds = token_embeds.transpose(0, 1)  # [T, B, E], as the recurrence runs
        if start is None:
            start = embeds.new_zeros(embeds.shape[1], self.context_dim)
        reset_mask = None if reset_mask is None else reset_mask.t()[..., None]
        frozen = None if frozen is None else frozen.t()[..., None]
        if reset_mask is not None and frozen is not None:
            reset_mask = reset_mask & ~frozen

        def run(keep: Tensor, add: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            if reset_mask is not None:
                keep = keep.masked_fill(reset_mask, 0.0)
            if frozen is not None:
                keep, add = keep.masked_fill(frozen, 1.0), add.masked_fill(frozen, 0.0)
            after = linear_recurrence(keep, add, state)
            before = torch.cat((state[None], after[:-1]))
            return before if reset_mask is None else before.masked_fill(reset_mask, 0.0), after

        previous, current = self._through_layers(embeds, start, run, drop)
        return torch.cat(previous, dim=-1).transpose(0, 1), torch.cat(current, dim=-1).transpose(0, 1)

    def _through_layers(
        self, embeds: Tensor, context: Tensor, advance: Advance, drop: Drop | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """States before and after, of each layer from the lowest; `drop` as of `unroll`."""
        previous: list[Tensor] = []
        current: list[Tensor] = []
        below: tuple[Tensor, ...] = ()
        for layer, state in zip(self.layers, context.chunk(len(self.layers), dim=-1), strict=True):
            read = torch.cat((embeds, *below), dim=-1) if below else embeds
            if self.gradient_checkpointing and self.training:
                keep, add = self._gradient_checkpointing_func(layer, read)
            else:
                keep, add = layer(read)
            below = before, after = advance(keep, add, state)
            previous.append(before)
            current.append(after)
            if drop is not None:  # after the last layer, too: what is drawn later depends on it
                below = (drop(torch.cat(below, dim=-1).transpose(0, 1)).transpose(0, 1),)
        return previous, current


def run_recurrence(
    keeps: Iterable[Tensor], adds: Iterable[Tensor], state: Tensor, states: Iterable[Tensor]
) -> None:
    """h_t = keep_t ⊙ h_{t-1} + add_t from h_{-1} = state, step by step into states: all [..., n]."""
    for keep, add, out in zip(keeps, adds, states, strict=True):
        state = torch.addcmul(add, keep, state, out=out)


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: Tensor, add: Tensor, start: Tensor) -> Tensor:
        states = torch.empty_like(add)
        run_recurrence(keep, add, start, states)
        ctx.save_for_backward(keep, states, start)
        return states

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep, states, start = ctx.saved_tensors
        (gradient,) = upstream
        add_grad = torch.empty_like(states)
        flowing = torch.zeros_like(start)
        for t in range(len(states) - 1, -1, -1):
            # What reaches the state after token t: its own gradient, and that of all later states.
            torch.add(gradient[t], flowing, out=add_grad[t])
            flowing = add_grad[t] * keep[t]
        before = torch.cat((start[None], states[:-1]))
        return add_grad * before, add_grad, flowing


def linear_recurrence(keep: Tensor, add: Tensor, start: Tensor) -> Tensor:
    """h_t = keep_t ⊙ h_{t-1} + add_t from h_{-1} = start, with gradients for all three.

    keep and add [T, ..., n], start [..., n] → [T, ..., n].
    """
    if torch.compiler.is_compiling():
        return scanned(lambda state, now: (state, torch.addcmul(now[1], now[0], state)), start, (keep, add))[
            1
        ]
    return _LinearRecurrence.apply(keep, add, start)


__all__ = ["GatedContextBlock", "GatedLayer", "linear_recurrence", "run_recurrence"]
