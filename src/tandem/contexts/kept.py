"""Contexts of a whole stream: held in memory, kept on disk, or computed again each time they are read."""

import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tandem.contexts.stream import AnyRestarts, restarted

PIECE_TOKENS = 65_536
"""About so many tokens' contexts are computed at once where they are not held."""

Read = Callable[[int, int], Tensor]
"""Contexts after the tokens first..last-1 of a stream: (first, last) → [n, C]."""


@dataclass(frozen=True)
class Window:
    """Contexts of consecutive tokens, positions first..first+n-1 of a stream.

    lead        [C] context before the first of them
    contexts    [n, C] contexts after each
    """

    first: int
    lead: Tensor
    contexts: Tensor

    def around(self, at: Tensor, restart: AnyRestarts | None) -> tuple[Tensor, Tensor]:
        """Contexts before and after the tokens at positions `at` [n] of the stream, both [n, C].

        What comes before is zero where `restart` [T] is true.
        """
        local = at - self.first
        before = self.contexts[local - 1]  # position 0 takes index -1, put right below
        before = torch.where((local == 0)[:, None], self.lead, before)
        return restarted(before, restart, at), self.contexts[local]


class Contexts:
    """Contexts after every token of a stream, as [T, C] would hold them.

    `read` gives any part of them where they are not `held` [T, C].
    """

    def __init__(self, tokens: int, held: Tensor | None, read: Read) -> None:
        self._tokens, self._held = tokens, held
        self._read: Read = torch.no_grad()(read)

    @classmethod
    def of(cls, contexts: Tensor) -> "Contexts":
        """Those held in contexts [T, C]."""
        return cls(len(contexts), contexts, lambda first, last: contexts[first:last])

    def __len__(self) -> int:
        return self._tokens

    @property
    def held(self) -> bool:
        """Whether they are in memory, all of them."""
        return self._held is not None

    def window(self, first: int, last: int) -> Window:
        """Those of the tokens first..last-1; held ones are not copied."""
        if self._held is not None:
            return Window(0, torch.zeros_like(self._held[0]), self._held)
        begin = max(0, first - 1)
        contexts = self._read(begin, last)
        if first == 0:
            return Window(0, torch.zeros_like(contexts[0]), contexts)
        return Window(first, contexts[0], contexts[1:])

    def pieces(self, size: int = PIECE_TOKENS) -> Iterator[Tensor]:
        """All of them in order, [n, C] at a time."""
        for first in range(0, self._tokens, size):
            yield self._read(first, min(first + size, self._tokens))

    def at(self, positions: Tensor) -> Tensor:
        """Those at ascending positions [n], as [n, C]."""
        if self._held is not None:
            return self._held[positions]
        # Into one tensor from the start: small parts that are kept, each cut from the memory of a piece that
        # was freed, would keep the rest of it from being used again; 10,000 contexts took 24 GB (LOG.md).
        found, first = torch.empty(0), 0
        for piece in self.pieces():
            if first == 0:
                found = piece.new_empty(len(positions), piece.shape[1])
            inside = (positions >= first) & (positions < first + len(piece))
            found[inside] = piece[positions[inside] - first]
            first += len(piece)
        return found

    def whole(self) -> Tensor:
        """[T, C], in memory."""
        return self._read(0, self._tokens)

    def on_disk(self, folder: Path) -> tuple["Contexts", float]:
        """The same, rounded to bf16, in a file of `folder` without a name, which goes when they do.

        Also the largest difference that rounding makes. Raises OSError where the file cannot be written.
        """
        file, rounding = tempfile.TemporaryFile(dir=folder), 0.0  # noqa: SIM115
        first = self._read(0, 1)
        width, device, dtype = first.shape[1], first.device, first.dtype
        for piece in self.pieces():
            rounded = piece.bfloat16()
            rounding = max(rounding, float((rounded.to(piece.dtype) - piece).abs().max()))
            rounded.cpu().view(torch.int16).numpy().tofile(file)
        file.flush()

        def read(first: int, last: int) -> Tensor:
            # Mapped anew each time: pages of a lasting map would count as this process's memory.
            offset, shape = 2 * first * width, (last - first, width)
            mapped = np.memmap(file, np.int16, "r+", offset, shape)
            return torch.from_numpy(mapped).view(torch.bfloat16).to(device, dtype)

        kept = Contexts(len(self), None, read)
        weakref.finalize(kept, file.close)
        return kept, rounding
