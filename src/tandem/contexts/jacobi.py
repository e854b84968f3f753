"""The Jacobi sweep: every position at once reads the previous iteration's context of its predecessor."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tandem.contexts.stream import AnyRestarts
from tandem.model import AnyContextBlock


def previous_contexts(contexts: Tensor, at: Tensor, restart: AnyRestarts | None) -> Tensor:
    """Contexts before the tokens at positions `at` [n], as [n, C], from those after each token, [T, C].

    Position 0 reads the last position's context (SPEC section 3); a position where `restart` [T] is true
    reads zero.
    """
    before = contexts[at - 1]  # position 0 takes index -1, the last
    return before if restart is None else before.masked_fill(restart[at][:, None], 0.0)


def jacobi_sweep(
    context_block: AnyContextBlock,
    contexts: Tensor,
    token_embeds: Callable[[slice], Tensor],
    restart: AnyRestarts | None = None,
    batch: int | None = None,
    noise: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """One sweep over all positions, from the contexts [T, C] of the last iteration.

    Yields, batch after batch of consecutive positions (none: all at once), the positions and their new
    contexts [n, C] with their graph. token_embeds(positions) gives e_t there, [n, E]; `noise`, of the shape
    of what a batch reads, is added to it. With fixed weights and without noise, k sweeps from any start give
    the contexts of a k-token memory (SPEC section 6).
    """
    length = len(contexts)
    for start in range(0, length, batch or length):
        positions = slice(start, min(start + (batch or length), length))
        at = torch.arange(positions.start, positions.stop, device=contexts.device)
        read = previous_contexts(contexts, at, restart)
        if noise is not None:
            read = read + noise(read)
        yield positions, context_block(read, token_embeds(positions))
