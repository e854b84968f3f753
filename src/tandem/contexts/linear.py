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

TOKENS_AT_ONCE = 4096
"""Tokens whose gates and states are held at once beside the result: they should stay in a CPU's cache."""


class LinearScan:
    """Contexts of a stream by a model with a gated block, in its precision: any part of it, once it was read.

    The states between chunks are kept, so that a part is computed from the chunk in which it begins.
    """

    def __init__(self, model: TandemForCausalLM, stream: Stream, segment_length: int) -> None:
        block = model.context_block
        assert isinstance(block, GatedContextBlock)
        self._model, self._block, self._stream, self._segment_length = model, block, stream, segment_length
        self._at_once = max(1, TOKENS_AT_ONCE // segment_length) * segment_length
        # Before each chunk; as many as have been reached.
        self._states = [torch.zeros(block.context_dim, dtype=model.dtype, device=model.device)]

    def reach(self, token: int) -> None:
        """Make sure that the state before the chunk of this token is there."""
        while len(self._states) <= token // self._at_once:
            chunk = len(self._states) - 1
            self.read(chunk * self._at_once, (chunk + 1) * self._at_once)

    def read(self, first: int, last: int) -> Tensor:
        """Contexts after the tokens first..last-1, [n, C]."""
        self.reach(first)
        last = min(last, len(self._stream))
        contexts = torch.empty(
            last - first, self._block.context_dim, dtype=self._model.dtype, device=self._model.device
        )
        for chunk in range(first // self._at_once, -(-last // self._at_once)):
            begin = chunk * self._at_once
            end = min(begin + self._at_once, last)
            restart = None if self._stream.restart is None else self._stream.restart[begin:end]
            embeds = self._model.embed(self._stream.ids[begin:end])
            made = _chunk(self._block, embeds, restart, self._states[chunk], self._segment_length)
            if len(self._states) == chunk + 1 and end == begin + self._at_once:
                self._states.append(made[-1].clone())
            contexts[max(begin, first) - first : end - first] = made[max(begin, first) - begin :]
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
