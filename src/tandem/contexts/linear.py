"""The exact parallel scan of gated blocks: their recurrence is linear in the state, so nothing is burnt in.

The stream is cut into segments that run side by side from a zero state. What a segment would have made of
another start is that start times the product of all that it keeps, so one short pass over the segments
gives every true start, and one multiplication and addition an element all states (Blelloch 1990, "Prefix
sums and their applications", on blocks). Layer after layer, since the gates of a layer read the states of
the layer below.
"""

import torch
from torch import Tensor

from tandem.contexts.stream import Stream
from tandem.model import GatedContextBlock, TandemForCausalLM, linear_recurrence

TOKENS_AT_ONCE = 16_384
"""Tokens whose gates and states are held at once beside the result: bounds memory, changes nothing else."""


def linear_contexts(model: TandemForCausalLM, stream: Stream, segment_length: int) -> Tensor:
    """Contexts after every token of the stream, [T, C], of a model with a gated block, in its precision."""
    block = model.context_block
    assert isinstance(block, GatedContextBlock)
    total = len(stream)
    contexts = torch.empty(total, block.context_dim, dtype=model.dtype, device=model.device)
    state = contexts.new_zeros(block.context_dim)
    at_once = max(1, TOKENS_AT_ONCE // segment_length) * segment_length
    for first in range(0, total, at_once):
        positions = slice(first, min(first + at_once, total))
        restart = None if stream.restart is None else stream.restart[positions]
        embeds = model.embed(stream.ids[positions])
        contexts[positions] = _chunk(block, embeds, restart, state, segment_length)
        state = contexts[positions.stop - 1]
    return contexts


def _chunk(
    block: GatedContextBlock, embeds: Tensor, restart: Tensor | None, start: Tensor, segment_length: int
) -> Tensor:
    """Contexts [n, C] of n consecutive tokens, embeds [n, E], after the state `start` [C]."""
    states: list[Tensor] = []
    read = embeds
    for layer, before_all in zip(block.layers, start.chunk(len(block.layers)), strict=True):
        keep, add = layer.gates(read)
        if restart is not None:
            keep = keep.masked_fill(restart[:, None], 0.0)
        after = _recurrence(keep, add, before_all, segment_length)
        before = torch.cat((before_all[None], after[:-1]))
        if restart is not None:
            before = before.masked_fill(restart[:, None], 0.0)
        states.append(after)
        read = torch.cat((embeds, before, after), dim=-1)
    return torch.cat(states, dim=-1)


def _recurrence(keep: Tensor, add: Tensor, start: Tensor, segment_length: int) -> Tensor:
    """h_t = keep_t ⊙ h_{t-1} + add_t for t = 0..n-1 from h_{-1} = start [w]; keep and add [n, w]."""
    length = len(keep)
    segments = -(-length // segment_length)
    padding = segments * segment_length - length
    # [segment_length, S, w]: the step within a segment first, as the recurrence runs over it.
    keep, add = (
        torch.nn.functional.pad(part, (0, 0, 0, padding))
        .unflatten(0, (segments, segment_length))
        .transpose(0, 1)
        for part in (keep, add)
    )
    zero = torch.zeros_like(keep[0])
    local = linear_recurrence(keep, add, zero)
    kept = linear_recurrence(keep, torch.zeros_like(keep), zero + 1)
    starts = linear_recurrence(kept[-1], local[-1], start)  # what each segment ends with
    starts = torch.cat((start[None], starts[:-1]))
    return torch.addcmul(local, kept, starts).transpose(0, 1).flatten(0, 1)[:length]
