"""The Jacobi sweep: every position at once reads the previous iteration's context of its predecessor."""

from collections.abc import Callable, Iterator

from torch import Tensor

from tandem.model.modeling_tandem import ContextBlock


def previous_contexts(contexts: Tensor, restart: Tensor | None, wrap: bool) -> Tensor:
    """Context before each token, [T, C], from the contexts after each token, [T, C].

    Position 0 reads the last position's context with `wrap` (as in phase 1), otherwise zero, the start of
    the stream; a position where `restart` is true reads zero.
    """
    before = contexts.roll(1, dims=0)
    if not wrap:
        before[0] = 0.0
    if restart is not None:
        before.masked_fill_(restart[:, None], 0.0)
    return before


def jacobi_sweep(
    context_block: ContextBlock,
    contexts: Tensor,
    token_embeds: Callable[[slice], Tensor],
    restart: Tensor | None = None,
    batch: int | None = None,
    noise: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """One sweep over all positions, from the contexts [T, C] of the last iteration.

    Yields, batch after batch of consecutive positions (none: all at once), the positions and their new
    contexts [n, C] with their graph. token_embeds(positions) gives e_t there, [n, E]; `noise`, of the shape
    of what a batch reads, is added to it. With fixed weights and without noise, k sweeps from any start give
    the contexts of a k-token memory (SPEC section 6).
    """
    before = previous_contexts(contexts, restart, wrap=True)
    length = len(contexts)
    for start in range(0, length, batch or length):
        positions = slice(start, min(start + (batch or length), length))
        read = before[positions]
        if noise is not None:
            read = read + noise(read)
        yield positions, context_block(read, token_embeds(positions))
