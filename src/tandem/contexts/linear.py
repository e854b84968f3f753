"""The exact parallel scan of gated blocks: their recurrence is linear in the state, so nothing is burnt in.

The stream is cut into segments that run side by side from a zero state. What a segment would have made of
another start is that start times the product of all that it keeps, so one short pass over the segments
gives every true start, and one multiplication and addition an element all states (Blelloch 1990, "Prefix
sums and their applications", on blocks). Layer after layer, since the gates of a layer read the states of
the layer below.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.contexts.stream import Stream
from tandem.model import GatedContextBlock, TandemForCausalLM, linear_recurrence
from tandem.model.modeling_tandem import GatedLayer

TOKENS_AT_ONCE = 4096
"""Tokens whose gates and states are held at once beside the result: they should stay in a CPU's cache."""
TABLE_REPEATS = 4
"""What layers read of a token is tabulated on streams with so many times more tokens than distinct ones."""


class _FromTokens:
    """What each layer's gates read of the token embedding, W_e·e + b [n, 2·width] a layer.

    It depends on the token alone, so on a long stream it is computed once for each distinct token.
    """

    def __init__(self, model: TandemForCausalLM, layers: list[GatedLayer], stream: Stream) -> None:
        self._model, self._layers, self._stream = model, layers, stream
        distinct = stream.ids.counts(model.config.vocab_size).nonzero()[:, 0]
        self._tables: list[Tensor] | None = None
        if len(stream) >= TABLE_REPEATS * len(distinct):
            self._row = torch.zeros(model.config.vocab_size, dtype=torch.int64, device=distinct.device)
            self._row[distinct] = torch.arange(len(distinct), device=distinct.device)
            self._tables = self._made(distinct)

    def of(self, first: int, last: int) -> list[Tensor]:
        """Of the tokens first..last-1, by layer."""
        ids = self._stream.ids[first:last]
        if self._tables is None:
            return self._made(ids)
        rows = self._row[ids]
        return [table[rows] for table in self._tables]

    def _made(self, ids: Tensor) -> list[Tensor]:
        embeds = self._model.embed(ids)
        width = embeds.shape[1]
        return [F.linear(embeds, layer.weight[:, :width], layer.bias) for layer in self._layers]


def chunk_tokens(segment_length: int) -> int:
    """Tokens that are computed at once: whole segments."""
    return max(1, TOKENS_AT_ONCE // segment_length) * segment_length


class LinearScan:
    """Contexts of a stream by a model with a gated block, in its precision: any part of it, once it was read.

    The states between chunks are kept, so that a part is computed from the chunk in which it begins.
    `start` [C] is the context before the first token; none is zero.
    """

    def __init__(
        self, model: TandemForCausalLM, stream: Stream, segment_length: int, start: Tensor | None = None
    ) -> None:
        block = model.context_block
        assert isinstance(block, GatedContextBlock)
        self._stream, self._segment_length = stream, segment_length
        self._chunk = chunk_tokens(segment_length)
        self._layers = [cast(GatedLayer, layer) for layer in block.layers]
        self._from_tokens = _FromTokens(model, self._layers, stream)
        # Before each chunk, of which `_reached` are there. One tensor: a small one for each, between the
        # large ones that come and go, would keep their memory from being used again (LOG.md).
        self._states = torch.zeros(
            1 + len(stream) // self._chunk, block.context_dim, dtype=model.dtype, device=model.device
        )
        if start is not None:
            self._states[0] = start
        self._reached = 1

    def reach(self, token: int) -> None:
        """Make sure that the state before the chunk of this token is there."""
        while self._reached <= token // self._chunk:
            chunk = self._reached - 1
            self.read(chunk * self._chunk, (chunk + 1) * self._chunk)

    def read(self, first: int, last: int) -> Tensor:
        """Contexts after the tokens first..last-1, [n, C]."""
        self.reach(first)
        last = min(last, len(self._stream))
        origin = first // self._chunk * self._chunk
        states = self._states.new_empty(1 + last - origin, self._states.shape[1])
        self._fill(origin, states)
        return states[1 + first - origin :]

    def fill(self, states: Tensor) -> None:
        """The contexts before the first token and after each into states [1 + T, C]."""
        self._fill(0, states)

    def _fill(self, origin: int, states: Tensor) -> None:
        """The same of n tokens from `origin` on, where a reached chunk begins, into states [1 + n, C]."""
        states[0] = self._states[origin // self._chunk]
        for offset in range(0, len(states) - 1, self._chunk):
            made = states[offset : offset + self._chunk + 1]
            begin, end = origin + offset, origin + offset + len(made) - 1
            restart = None if self._stream.restart is None else self._stream.restart[begin:end]
            _fill_chunk(made, self._layers, self._from_tokens.of(begin, end), restart, self._segment_length)
            following = end // self._chunk
            if self._reached == following and end % self._chunk == 0:
                self._states[self._reached] = made[-1]
                self._reached += 1


def _fill_chunk(
    states: Tensor,
    layers: list[GatedLayer],
    from_tokens: list[Tensor],
    restart: Tensor | None,
    segment_length: int,
) -> None:
    """The contexts after n consecutive tokens into states [1 + n, C], whose first is that before them.

    `from_tokens` as of _FromTokens; it is overwritten.
    """
    below: tuple[Tensor, ...] = ()
    for layer, given, own in zip(layers, from_tokens, states.chunk(len(layers), dim=-1), strict=True):
        if below:
            for part, weight in zip(below, layer.weight[:, -2 * layer.width :].chunk(2, dim=1), strict=True):
                given.addmm_(part, weight.t())
        keep, add = layer.activated(given)
        if restart is not None:
            keep = keep.masked_fill(restart[:, None], 0.0)
        _recurrence(keep, add, own, segment_length)
        before = own[:-1]
        if restart is not None:
            before = before.masked_fill(restart[:, None], 0.0)
        below = (before, own[1:])


def _recurrence(keep: Tensor, add: Tensor, states: Tensor, segment_length: int) -> None:
    """h_t = keep_t ⊙ h_{t-1} + add_t for t = 1..n from h_0, in states [1 + n, w]; keep and add [n, w]."""
    length = len(keep)
    segments = -(-length // segment_length)
    if padding := segments * segment_length - length:
        keep, add = (F.pad(part, (0, 0, 0, padding)) for part in (keep, add))
    # [segment_length, S, w]: the step within a segment first, as the recurrence runs over it.
    keep, add = (part.unflatten(0, (segments, segment_length)).transpose(0, 1) for part in (keep, add))
    zero = torch.zeros_like(keep[0])
    local = linear_recurrence(keep, add, zero)
    kept = linear_recurrence(keep, torch.zeros_like(keep), zero + 1)
    ends = linear_recurrence(kept[-1], local[-1], states[0])
    starts = torch.cat((states[:1], ends[:-1]))
    whole = length // segment_length
    into = states[1 : 1 + whole * segment_length].unflatten(0, (whole, segment_length)).transpose(0, 1)
    torch.addcmul(local[:, :whole], kept[:, :whole], starts[:whole], out=into)
    if padding:
        rest = segment_length - padding
        states[1 + length - rest :] = torch.addcmul(local[:rest, -1], kept[:rest, -1], starts[-1])
