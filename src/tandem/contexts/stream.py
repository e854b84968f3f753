"""A token stream on the device, as both phases read it."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tandem.model import TandemForCausalLM

Positions = Tensor | slice
"""Positions of a stream: indices of any shape, or a range."""
COUNTED_TOKENS = 1 << 20
"""Tokens that are counted at once; bounds memory."""
NAMED = 8
"""Documents that a message names at most."""


class Tokens:
    """Token ids [T], kept as small as they were stored; what is read of them is int64.

    On a CPU they stay memory-mapped where they were; a GPU holds a copy of 2 or 4 bytes a token.
    """

    def __init__(self, ids: npt.NDArray[np.integer[Any]] | Tensor, device: torch.device) -> None:
        self._unsigned = isinstance(ids, np.ndarray) and ids.dtype == np.uint16
        if isinstance(ids, np.ndarray):
            # Not every device has unsigned types, so these bits are read as signed ones and mended after.
            ids = torch.from_numpy(ids.view(np.int16) if self._unsigned else ids)
        self._stored = ids.to(device)

    @property
    def device(self) -> torch.device:
        """Where they are, and where positions are to be."""
        return self._stored.device

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, positions: Positions) -> Tensor:
        """Ids at `positions`, int64 and of its shape."""
        ids = self._stored[positions].long()
        return ids & 0xFFFF if self._unsigned else ids

    def part(self, first: int, last: int) -> "Tokens":
        """Those at first..last-1; nothing is copied."""
        part = object.__new__(Tokens)
        part._unsigned, part._stored = self._unsigned, self._stored[first:last]
        return part

    def counts(self, vocab_size: int) -> Tensor:
        """How often each token of the vocabulary occurs, [V] int64."""
        counts = torch.zeros(vocab_size, dtype=torch.int64, device=self.device)
        for start in range(0, len(self), COUNTED_TOKENS):
            counts += torch.bincount(self[start : start + COUNTED_TOKENS], minlength=vocab_size)
        return counts


class Distinct:
    """The distinct tokens of a stream, ascending, ids [U]: for what depends on a token's id alone."""

    def __init__(self, ids: Tokens, vocab_size: int) -> None:
        self.ids = ids.counts(vocab_size).nonzero()[:, 0]
        self._row = torch.zeros(vocab_size, dtype=torch.int64, device=ids.device)
        self._row[self.ids] = torch.arange(len(self.ids), device=ids.device)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Tensor) -> Tensor:
        """Where in `ids` each of these stands, of their shape; they must be tokens of the stream."""
        return self._row[ids]


@dataclass(frozen=True)
class Resets:
    """Where a context is zeroed before a token is read: at every `token`. Indexed as the tokens are."""

    ids: Tokens
    token: int

    def __getitem__(self, positions: Positions) -> Tensor:
        """Bool, of the shape of `positions`."""
        return self.ids[positions] == self.token


ResetMask = Resets | Tensor
"""Of a stream, or as a [T] bool tensor."""


def apply_resets(contexts: Tensor, reset_mask: ResetMask | None, positions: Positions) -> Tensor:
    """What tokens at `positions` [n] read of the contexts before them [n, C]: zero where they restart."""
    return contexts if reset_mask is None else contexts.masked_fill(reset_mask[positions][:, None], 0.0)


@dataclass(frozen=True)
class Stream:
    """Tokens of one split, in order.

    ids                [T].
    reset_token        the context is zeroed before each such token is read; none if it never is.
    document_starts    [D] ascending, position of each document's first token; none where they are not known.
    """

    ids: Tokens
    reset_token: int | None
    document_starts: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        model: TandemForCausalLM,
        ids: npt.NDArray[np.integer[Any]] | Tensor,
        document_starts: npt.NDArray[np.int64] | None = None,
    ) -> "Stream":
        """The stream of `ids` on the model's device, with resets where the model's boundary says so."""
        mark = model.config.bos_token_id if model.config.boundary == "reset" else None
        return cls(Tokens(ids, model.device), mark, document_starts)

    @property
    def resets(self) -> Resets | None:
        """Where the context is zeroed, [T]."""
        return None if self.reset_token is None else Resets(self.ids, self.reset_token)

    def __len__(self) -> int:
        return len(self.ids)

    def read_at(self, positions: Tensor) -> str:
        """Which documents these positions lie in, for a message that goes on so; empty if that is not known.

        Their numbers count from 1, in the order in which the split has them.
        """
        if self.document_starts is None or not len(positions):
            return ""
        found = np.searchsorted(self.document_starts, positions.flatten().cpu().numpy(), side="right")
        numbers = np.unique(found).tolist()
        if len(numbers) == 1:
            return f", which read document {numbers[0]:,}"
        *first, last = (f"{number:,}" for number in numbers[:NAMED])
        if len(numbers) > NAMED:
            first, last = [*first, last], f"{len(numbers) - NAMED:,} more"
        return f", which read documents {', '.join(first)} and {last}"

    def window_positions(self, tokens: int, length: int) -> Tensor:
        """So many positions in windows of `length`, the last one shorter, spread evenly over the stream."""
        edges = [*range(0, tokens, length), tokens]
        space, last_window = len(self) - tokens, max(1, len(edges) - 2)
        starts = [space * window // last_window for window in range(len(edges) - 1)]
        windows = [torch.arange(*edge) + start for edge, start in zip(pairwise(edges), starts, strict=True)]
        return torch.cat(windows).to(self.ids.device)

    def windows(self, tokens: int, length: int) -> "Stream":
        """The tokens at `window_positions`, as a stream of their own."""
        positions = self.window_positions(tokens, length)
        return Stream(Tokens(self.ids[positions], self.ids.device), self.reset_token)

    def first(self, tokens: int) -> "Stream":
        """The stream's first so many tokens."""
        return self.part(0, tokens)

    def part(self, first: int, last: int) -> "Stream":
        """Its tokens first..last-1, as a stream of their own."""
        return Stream(self.ids.part(first, last), self.reset_token)
