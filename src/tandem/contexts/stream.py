"""A token stream on the device, as both phases read it."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tandem.model import TandemForCausalLM


@dataclass(frozen=True)
class Stream:
    """Tokens of one split, in order.

    ids        [T] int64
    restart    [T] bool, where the context is zeroed before the token is read; none if it never is
    """

    ids: Tensor
    restart: Tensor | None

    @classmethod
    def of(cls, model: TandemForCausalLM, ids: np.ndarray | Tensor) -> "Stream":
        """The stream of `ids` on the model's device, restarting where the model's boundary says so."""
        on_device = torch.as_tensor(np.asarray(ids, dtype=np.int64)).to(model.device)
        return cls(on_device, model.restarts(on_device))

    def __len__(self) -> int:
        return len(self.ids)

    def windows(self, tokens: int, length: int) -> "Stream":
        """So many tokens in windows of `length` or a little less, spread evenly over the stream."""
        count = -(-tokens // length)
        edges = [tokens * window // count for window in range(count + 1)]
        space = len(self) - tokens
        at = torch.cat(
            [
                torch.arange(first, last) + (space * window // max(1, count - 1))
                for window, (first, last) in enumerate(pairwise(edges))
            ]
        ).to(self.ids.device)
        return Stream(self.ids[at], None if self.restart is None else self.restart[at])

    def first(self, tokens: int) -> "Stream":
        """The stream's first so many tokens."""
        return Stream(self.ids[:tokens], None if self.restart is None else self.restart[:tokens])
