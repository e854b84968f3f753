"""Contexts of a whole stream: held in memory, kept on disk, or computed again each time they are read."""

import itertools
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tandem.contexts.stream import ResetMask, apply_resets

PIECE_TOKENS = 65_536
"""About so many tokens' contexts are computed at once where they are not held."""

Runs = Sequence[tuple[int, int]]
"""Parts of a stream, ascending and apart: the tokens first..last-1 of each."""

Read = Callable[[Runs], Tensor]
"""Contexts after the tokens of these runs of a stream, one run after the other: runs → [n, C]."""


def one_by_one(read: Callable[[int, int], Tensor]) -> Read:
    """A reader of runs from one of tokens first..last-1."""

    def read_all(runs: Runs) -> Tensor:
        if len(runs) == 1:
            return read(*runs[0])
        found, row = torch.empty(0), 0
        for first, last in runs:  # into one tensor from the start, which takes half of the memory
            part = read(first, last)
            if row == 0:
                found = part.new_empty(sum(end - begin for begin, end in runs), part.shape[1])
            found[row : row + len(part)] = part
            row += len(part)
        return found

    return read_all


@dataclass(frozen=True)
class Window:
    """Contexts of runs of consecutive tokens of a stream.

    contexts    [n, C] of one run after the other, each with the context before its first token; at the start
                of the stream there is none.
    firsts      [R] position of the first token of each run, ascending.
    shifts      [R] what is to be added to a position for its row.
    """

    contexts: Tensor
    firsts: Tensor
    shifts: Tensor

    def before_and_after(self, positions: Tensor, reset_mask: ResetMask | None) -> tuple[Tensor, Tensor]:
        """Contexts before and after the tokens at `positions` [n] of the stream, both [n, C].

        What comes before is zero at the start of the stream, and where `reset_mask` [T] is true.
        """
        run = 0 if len(self.firsts) == 1 else torch.searchsorted(self.firsts, positions, right=True) - 1
        row = positions + self.shifts[run]
        # Position 0 takes index -1, put right here.
        before = self.contexts[row - 1].masked_fill_((positions == 0)[:, None], 0.0)
        return apply_resets(before, reset_mask, positions), self.contexts[row]


class Contexts:
    """Contexts after every token of a stream, as [T, C] would hold them.

    `read` gives any part of them where they are not `held` [T, C].
    """

    def __init__(self, tokens: int, in_memory: Tensor | None, read: Read) -> None:
        self._tokens, self._held = tokens, in_memory
        self._read: Read = torch.no_grad()(read)

    @classmethod
    def of(cls, contexts: Tensor) -> "Contexts":
        """Those held in contexts [T, C]."""
        return cls(len(contexts), contexts, one_by_one(lambda first, last: contexts[first:last]))

    def __len__(self) -> int:
        return self._tokens

    @property
    def in_memory(self) -> bool:
        """Whether they are in memory, all of them."""
        return self._held is not None

    def window(self, first: int, last: int) -> Window:
        """Those of the tokens first..last-1; held ones are not copied."""
        return self.windows([(first, last)])

    def windows(self, runs: Runs) -> Window:
        """Those of several runs of tokens, read as one where they touch; held ones are not copied."""
        if self._held is not None:
            start = torch.zeros(1, dtype=torch.int64, device=self._held.device)
            return Window(self._held, start, start)
        apart: list[tuple[int, int]] = []
        for first, last in runs:
            begin = apart.pop()[0] if apart and apart[-1][1] == first else first
            apart.append((begin, last))
        read = [(max(0, first - 1), last) for first, last in apart]
        contexts = self._read(read)
        rows = itertools.accumulate((last - begin for begin, last in read), initial=0)
        shifts = [row - begin for row, (begin, _) in zip(rows, read, strict=False)]
        firsts = torch.tensor([first for first, _ in apart], device=contexts.device)
        return Window(contexts, firsts, torch.tensor(shifts, device=contexts.device))

    def pieces(self, size: int = PIECE_TOKENS) -> Iterator[tuple[int, Tensor]]:
        """All of them in order, [n, C] at a time, each with the position of its first."""
        for first in range(0, self._tokens, size):
            yield first, self._read([(first, min(first + size, self._tokens))])

    def at(self, positions: Tensor) -> Tensor:
        """Those at ascending positions [n], as [n, C]."""
        if self._held is not None:
            return self._held[positions]
        # Into one tensor from the start: small parts that are kept, each cut from the memory of a piece that
        # was freed, would keep the rest of it from being used again; 10,000 contexts took 24 GB (LOG.md).
        found = torch.empty(0)
        for first, piece in self.pieces():
            if first == 0:
                found = piece.new_empty(len(positions), piece.shape[1])
            inside = (positions >= first) & (positions < first + len(piece))
            found[inside] = piece[positions[inside] - first]
        return found

    def whole(self) -> Tensor:
        """[T, C], in memory."""
        return self._read([(0, self._tokens)])

    def on_disk(self, folder: Path) -> tuple["Contexts", float]:
        """The same, rounded to bf16, in a file of `folder` without a name, which goes when they do.

        Also the largest difference that rounding makes. Raises OSError where the file cannot be written.
        """
        file, rounding = tempfile.TemporaryFile(dir=folder), 0.0  # noqa: SIM115
        first = self._read([(0, 1)])
        width, device, dtype = first.shape[1], first.device, first.dtype
        for _, piece in self.pieces():
            rounded = piece.bfloat16()
            rounding = max(rounding, float((rounded.to(piece.dtype) - piece).abs().max()))
            rounded.cpu().view(torch.int16).numpy().tofile(file)
        file.flush()

        def read(first: int, last: int) -> Tensor:
            # Mapped anew each time: pages of a lasting map would count as this process's memory.
            offset, shape = 2 * first * width, (last - first, width)
            mapped = np.memmap(file, np.int16, "r+", offset, shape)
            return torch.from_numpy(mapped).view(torch.bfloat16).to(device, dtype)

        again = Contexts(len(self), None, one_by_one(read))
        weakref.finalize(again, file.close)
        return again, rounding
