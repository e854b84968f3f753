"""The Jacobi sweep: every position at once reads the previous iteration's context of its predecessor."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tandem.contexts.stream import ResetMask, apply_resets
from tandem.model import ContextBlock


def previous_contexts(
    contexts: Tensor, positions: Tensor, reset_mask: ResetMask | None, lead: Tensor | None = None
) -> Tensor:
    """Contexts before the tokens at `positions` [n], as [n, C], from those after each token, [T, C].

    Position 0 reads `lead` [C], or the last position's context (SPEC section 3). Zero where `reset_mask` [T].
    """
    before = contexts[positions - 1]  # position 0 takes index -1, the last
    if lead is not None:
        before = torch.where((positions == 0)[:, None], lead, before)
    return apply_resets(before, reset_mask, positions)


def jacobi_update(
    context_block: ContextBlock,
    contexts: Tensor,
    positions: slice,
    token_embeds: Callable[[slice], Tensor],
    reset_mask: ResetMask | None = None,
    noise: Callable[[Tensor], Tensor] | None = None,
    lead: Tensor | None = None,
) -> Tensor:
    """New contexts [n, C] of some positions, with their graph; arguments as of `jacobi_sweep`."""
    indices = torch.arange(positions.start, positions.stop, device=contexts.device)
    read = previous_contexts(contexts, indices, reset_mask, lead)
    if noise is not None:
        read = read + noise(read)
    return context_block(read, token_embeds(positions))


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
        yield positions, jacobi_update(context_block, contexts, positions, token_embeds, reset_mask, noise)
