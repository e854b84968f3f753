"""What every cell is: a ContextBlock, of which `forward`, one step of its recurrence, is enough.

Shape letters: B batch, T tokens, C context_dim, E embed_dim, U distinct tokens, n any number.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .configuration_tandem import TandemConfig

Drop = Callable[[Tensor], Tensor]
"""Dropout, in training."""


class ContextBlock(nn.Module, ABC):
    """Folds token after token into one context vector; a subclass is a cell, and defines the recurrence.

    A subclass defines `forward`. Every other method works for any cell, and may be replaced by a faster one.

    context_dim     C.
    layers          one module for each of the configuration's `context_layers`; records speak of each.
    scan            how contexts of a whole text are computed: a name in tandem.contexts.scan.SCANS.
                    "segments" suits every cell that forgets, "linear" needs layers like GatedLayer.
    context_norm    whether token layers normalise a context before they read it.
    """

    scan: ClassVar[str] = "segments"
    context_norm: ClassVar[bool] = True

    def __init__(self, config: TandemConfig, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.context_dim = config.context_dim
        self.layers: Any = nn.ModuleList(layers)

    @classmethod
    def check_config(cls, config: TandemConfig) -> None:
        """Raises ValueError for a configuration that the cell cannot have.

        The sentence begins with a field and its value, such as "context_dim=9 cannot be …".
        """

    @abstractmethod
    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """One step: context [..., C] before the token, token_embeds [..., E] → context after it."""

    def unroll(
        self,
        token_embeds: Tensor,
        start: Tensor | None = None,
        reset_mask: Tensor | None = None,
        frozen: Tensor | None = None,
        drop: Drop | None = None,  # noqa: ARG002 (for cells with something to drop within a step)
    ) -> tuple[Tensor, Tensor]:
        """Contexts before and after every token; arguments and result as in `sequential_contexts`.

        `drop` is applied to what a layer reads of the layer below, [B, T, n].
        """
        return sequential_contexts(self, token_embeds, start, reset_mask, frozen)

    def initialize(self, module: nn.Module) -> None:
        """Set own initial weights of one module of this block, after the common ones were drawn.

        Called for every module.
        """

    def loop_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        """`forward`, bit for bit, as a function for loops over many tokens.

        It may read the weights once, so they must stay the same tensors. A cell may give one that calls no
        modules, where all of them are `plain`: on a CPU, calling them takes most of a small step.
        """
        return self

    def token_steps(self, token_embeds: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """One step, for tokens given as rows of token_embeds [U, E]: contexts [n, C], rows [n] → [n, C].

        What depends on the token alone may be computed here, once.
        """
        step = self.loop_step()
        return lambda context, rows: step(context, token_embeds.index_select(0, rows))


def plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of this very kind and has no hooks, so that calling it computes `kind.forward`."""
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks)


def sequential_contexts(
    context_block: ContextBlock,
    token_embeds: Tensor,
    start: Tensor | None = None,
    reset_mask: Tensor | None = None,
    frozen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Contexts by their definition, token after token: the ground truth of every faster way.

    token_embeds [B, T, E]; start [B, C] context before the first token (none: zero); reset_mask [B, T] bool,
    where the context is zeroed before the token is read; frozen [B, T] bool, where the token is passed over
    and the context stays as it was (padding).
    Returns previous and current contexts, both [B, T, C]: before and after each token.
    """
    context = token_embeds.new_zeros(len(token_embeds), context_block.context_dim) if start is None else start
    if reset_mask is not None and frozen is not None:
        reset_mask = reset_mask & ~frozen

    compiling = torch.compiler.is_compiling()
    read = context_block if compiling else context_block.loop_step()

    def step(context: Tensor, embeds: Tensor, masks: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if "reset" in masks:
            context = context.masked_fill(masks["reset"][:, None], 0.0)
        after = read(context, embeds)
        return context, torch.where(masks["frozen"][:, None], context, after) if "frozen" in masks else after

    masks = {name: mask for name, mask in (("reset", reset_mask), ("frozen", frozen)) if mask is not None}
    if compiling:
        inputs = token_embeds.transpose(0, 1), {name: mask.t() for name, mask in masks.items()}
        previous, current = scanned(lambda context, now: step(context, *now), context, inputs)
        return previous.transpose(0, 1), current.transpose(0, 1)
    pairs = []
    for t, embeds in enumerate(token_embeds.unbind(1)):
        pairs.append(step(context, embeds, {name: mask[:, t] for name, mask in masks.items()}))
        context = pairs[-1][1]
    before, after = zip(*pairs, strict=True)
    return torch.stack(before, dim=1), torch.stack(after, dim=1)


def scanned(
    step: Callable[[Tensor, Any], tuple[Tensor, Tensor]], state: Tensor, inputs: Any
) -> tuple[Tensor, Tensor]:
    """States before and after every step, [T, ...] each, as one operation of a graph, whatever T is.

    `step` gives both for a state and what each of `inputs` [T, ...] is in that step. The loop in Python would
    stand in a graph once for each token.
    """
    from torch._higher_order_ops.scan import scan  # not public yet; imported by whoever compiles or exports

    def body(state: Tensor, now: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        before, after = step(state, now)
        return after.contiguous(), (before.clone(), after.clone())

    before, after = scan(body, state.contiguous(), inputs)[1]
    return before, after


__all__ = ["ContextBlock", "Drop", "plain", "scanned", "sequential_contexts"]
