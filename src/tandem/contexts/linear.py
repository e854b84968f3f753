"""The exact parallel scan: a recurrence that is linear in the state needs no burn-in.

It reads blocks whose layers are like GatedLayer, one layer after the other. The stream is cut into chunks,
and a chunk into segments that run side by side, twice. The first pass starts every segment from zero, and
computes the product of its forget gates. A true start would have added itself times that product to the end.
So one short recurrence over the segments, in segments itself where there are many, gives every true start.
The second pass runs from there (Blelloch 1990, "Prefix sums and their applications", on blocks).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.contexts.stream import Distinct, Stream
from tandem.model import TandemForCausalLM
from tandem.model.cell_gated import GatedLayer, run_recurrence
from tandem.stopping import stop_between_parts

TABLE_REPEATS = 4
"""What layers read of a token is tabulated on streams with so many times more tokens than distinct ones."""


@dataclass(frozen=True)
class Cut:
    """Tokens of a chunk, whose gates are held at once beside the result, and of each of its segments."""

    chunk: int
    segment: int

    def __post_init__(self) -> None:
        assert self.chunk % self.outer == 0

    @property
    def nested(self) -> bool:
        """Whether a chunk's segments are so many that they are cut into segments themselves."""
        return self.segment > 1 and self.chunk > self.segment**2

    @property
    def outer(self) -> int:
        """Tokens of a segment of segments where there are any, else of a segment."""
        return self.segment**2 if self.nested else self.segment


ON_CPU = Cut(2048, 64)  # gates should stay in its cache
ON_GPU = Cut(32_768, 32)
"""Not measured. A chunk's recurrence is 224 operations a layer, each of which takes microseconds to start.

Two chunks make a piece of contexts that are computed again, so an edge between them is checked there too.
"""
STATES = 512
"""Tokens between two states that are kept, where chunks are multiples of it: phase 2's blocks are as long."""


def cut_for(device: torch.device) -> Cut:
    """How a stream is cut on this device."""
    return ON_CPU if device.type == "cpu" else ON_GPU


class LinearScan:
    """Contexts of a stream, in the model's precision: any part of it, once it was read.

    States are kept all along, so that a part is computed from the last of them before it.
    `start` [C] is the context before the first token; none is zero.
    """

    def __init__(self, model: TandemForCausalLM, stream: Stream, start: Tensor | None = None) -> None:
        block = model.context_block
        self._model, self._stream, self._cut = model, stream, cut_for(model.device)
        self._layers = list(block.layers)
        self._distinct = Distinct(stream.ids, model.config.vocab_size)
        self._tables: list[Tensor] | None = None
        if len(stream) >= TABLE_REPEATS * len(self._distinct):
            self._tables = self._read_tokens(self._distinct.ids)
        self._every = STATES if self._cut.chunk % STATES == 0 else self._cut.chunk
        # Before every so many tokens; `_reached` of them are there. One tensor: a small one for each, between
        # the large ones that come and go, would keep their memory from being used again (LOG.md).
        self._states = torch.zeros(
            1 + len(stream) // self._every, block.context_dim, dtype=model.dtype, device=model.device
        )
        if start is not None:
            self._states[0] = start
        self._reached = 1

    def _read_tokens(self, ids: Tensor) -> list[Tensor]:
        """What each layer's gates read of tokens [n] alone, W_e·e + b [n, 2·width] a layer."""
        embeds = self._model.embed(ids)
        width = embeds.shape[1]
        return [F.linear(embeds, layer.linear.weight[:, :width], layer.linear.bias) for layer in self._layers]

    def _from_tokens(self, first: int, last: int) -> list[Tensor]:
        """The same of the tokens first..last-1, in tensors of their own."""
        ids = self._stream.ids[first:last]
        if self._tables is None:
            return self._read_tokens(ids)
        rows = self._distinct.rows(ids)
        # Not table[rows], which took four times as long on a CPU (LOG.md).
        return [table.index_select(0, rows) for table in self._tables]

    def read(self, first: int, last: int) -> Tensor:
        """Contexts after the tokens first..last-1, [n, C]."""
        state = (first + 1) // self._every  # the context after `first` may be a kept state
        while self._reached <= state:
            begin = (self._reached - 1) * self._every
            self.read(begin, begin + self._cut.chunk)
        last, origin = min(last, len(self._stream)), state * self._every
        states = self._states.new_empty(1 + last - origin, self._states.shape[1])
        self._fill(origin, states)
        return states[1 + first - origin :]

    def fill(self, states: Tensor) -> None:
        """The contexts before the first token and after each into states [1 + T, C]."""
        self._fill(0, states)

    def _fill(self, origin: int, states: Tensor) -> None:
        """The same of n tokens from `origin` on, before which a state is kept, into states [1 + n, C]."""
        length, every = self._cut.chunk, self._every
        states[0] = self._states[origin // every]
        for offset in range(0, len(states) - 1, length):
            stop_between_parts()
            gates = states[offset : offset + length + 1]
            begin, end = origin + offset, origin + offset + len(gates) - 1
            reset_mask = None if self._stream.resets is None else self._stream.resets[begin:end]
            _fill_chunk(gates, self._layers, self._from_tokens(begin, end), reset_mask, self._cut.segment)
            if begin < self._reached * every <= end:
                new = slice(self._reached, end // every + 1)
                self._states[new] = gates[new.start * every - begin :: every]
                self._reached = new.stop


def _fill_chunk(
    states: Tensor,
    layers: list[GatedLayer],
    from_tokens: list[Tensor],
    reset_mask: Tensor | None,
    segment_length: int,
) -> None:
    """Contexts after n tokens into states [1 + n, C], from the first one. `from_tokens` is overwritten."""
    fresh = None if reset_mask is None else reset_mask.nonzero()[:, 0]
    below: Tensor | None = None
    for layer, gates, own in zip(layers, from_tokens, states.chunk(len(layers), dim=-1), strict=True):
        if below is not None:
            _add_from_below(gates, below, fresh, *layer.linear.weight[:, -2 * layer.width :].chunk(2, dim=1))
        keep, add = layer.gates_(gates)
        if fresh is not None:
            keep.index_fill_(0, fresh, 0.0)
        _recurrence(keep, add, own, segment_length)
        below = own


def _add_from_below(
    gates: Tensor, states: Tensor, fresh: Tensor | None, before: Tensor, after: Tensor
) -> None:
    """What gates read of the layer below, W_b·h_{t-1} + W_a·h_t for t = 1..n, added to made [n, m], in place.

    states [1 + n, w] are h_0..h_n; before [m, w] is W_b, after [m, w] W_a. In the rows `fresh` h_{t-1} is
    taken as zero, up to rounding. Two tokens need three products instead of four: with x = h_t and
    y = h_{t+1}, of which t is odd,

        W_b·h_{t-1} + W_a·x,   W_b·x + W_a·y = (W_b + W_a)·(x + y) - W_b·y - W_a·x

    where W_b·h_{t-1} is W_b·y of the two tokens before (a fast FIR algorithm: Parhi 1999, "VLSI Digital
    Signal Processing Systems", section 9.2).
    """
    even = len(gates) // 2 * 2
    x, y = states[1 : 1 + even : 2], states[2 : 2 + even : 2]
    by_after, by_before = x @ after.t(), states[: 1 + even : 2] @ before.t()
    gates[:even:2].add_(by_after).add_(by_before[:-1])
    gates[1:even:2].addmm_(x + y, (before + after).t()).sub_(by_after).sub_(by_before[1:])
    if even < len(gates):
        gates[even:] += by_before[-1] + states[-1:] @ after.t()
    if fresh is not None:
        gates.index_add_(0, fresh, states[fresh] @ before.t(), alpha=-1)


def _recurrence(keep: Tensor, add: Tensor, states: Tensor, segment_length: int) -> None:
    """h_t = keep_t ⊙ h_{t-1} + add_t for t = 1..n from h_0, in states [1 + n, w]; keep and add [n, w]."""
    count = len(keep) // segment_length if len(keep) > segment_length > 1 else 0
    whole = count * segment_length
    if count > 0:
        shape = (count, segment_length)
        keeps, adds, after = (
            part.unflatten(0, shape).unbind(1) for part in (keep[:whole], add[:whole], states[1 : 1 + whole])
        )
        run_recurrence(keeps, adds, _starts(keeps, adds, states[0]), after)
    run_recurrence(keep[whole:], add[whole:], states[whole], states[1 + whole :])


def _starts(keeps: tuple[Tensor, ...], adds: tuple[Tensor, ...], start: Tensor) -> Tensor:
    """What each of S segments starts with, [S, w], from `start` [w] and each step's keep and add [S, w]."""
    end, product = adds[0], keeps[0]
    for keep, add in zip(keeps[1:], adds[1:], strict=True):
        end, product = torch.addcmul(add, keep, end), product * keep
    states = end.new_empty(1 + len(end), end.shape[1])
    states[0] = start
    _recurrence(product, end, states, len(keeps))
    return states[:-1]
