"""The Jacobi sweep: every position at once reads the previous iteration's context of its predecessor."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tandem.contexts.stream import Positions, ResetMask, apply_resets
from tandem.model import ContextBlock


def previous_contexts(
    contexts: Tensor, positions: Positions, reset_mask: ResetMask | None, lead: Tensor | None = None
) -> Tensor:
    """Contexts before the tokens at `positions` [n], as [n, C], from those after each token, [T, C].

    Position 0 of a range reads `lead` [C], or the last position's context (SPEC section 3), as position 0 of
    indices does. Zero where `reset_mask` [T].
    """
    if isinstance(positions, slice):
        first = positions.start
        start = contexts[first - 1] if first > 0 or lead is None else lead  # -1 is the last one
        before = torch.cat((start[None], contexts[first : positions.stop - 1]))
    else:
        before = contexts[positions - 1]
    return apply_resets(before, reset_mask, positions)


def jacobi_read(
    contexts: Tensor,
    positions: slice,
    reset_mask: ResetMask | None = None,
    noise: Callable[[Tensor], Tensor] | None = None,
    lead: Tensor | None = None,
) -> Tensor:
    """What a sweep reads at some positions, [n, C]; arguments as of the two other functions."""
    read = previous_contexts(contexts, positions, reset_mask, lead)
    return read if noise is None else read.add_(noise(read))


def jacobi_sweep(
    context_block: ContextBlock,
    contexts: Tensor,
    token_embeds: Callable[[slice], Tensor],
    reset_mask: ResetMask | None = None,
    batch: int | None = None,
    noise: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """One sweep over all positions, from the contexts [T, C] of the last iteration.

    Yields the positions of each batch (none: all at once) and their new contexts [n, C] with their graph.
    token_embeds(positions) gives e_t there, [n, E]. `noise` of what a batch reads, [n, C], is added to it.
    Without noise, k sweeps from any start give the contexts of a k-token memory (SPEC section 6).
    """
    length = len(contexts)
    for start in range(0, length, batch or length):
        positions = slice(start, min(start + (batch or length), length))
        read = jacobi_read(contexts, positions, reset_mask, noise)
        yield positions, context_block(read, token_embeds(positions))
