"""What every way to compute contexts starts from, and how soon a block forgets."""

import copy
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.contexts.stream import Stream
from tandem.group import Group
from tandem.model import ContextBlock, TandemForCausalLM, sequential_contexts
from tandem.records import ScanRecord
from tandem.settings import ContextSettings

LONGEST_BURN_IN = 4096
"""Tokens within which a block has to forget."""
MARGIN = 1.5
"""Times the tokens after which a block has forgotten at a few places: the worst of all is a little slower.

With 1.25, a trained block missed the tolerance by 0.6% at the worst of 390 joins, and all was scanned twice
(LOG.md).
"""


@dataclass(frozen=True)
class ContextJob:
    """Whose contexts of what are asked for, how, and by which processes.

    block    the model's ContextBlock, in double precision where the device has it
    began    the clock's time then
    """

    model: TandemForCausalLM
    block: ContextBlock
    stream: Stream
    settings: ContextSettings
    group: Group
    began: float

    def loop(self, tokens: int) -> Tensor:
        """Contexts [n, C] after the first `tokens` by the sequential loop, in the precision of the block."""
        first = self.stream.first(tokens)
        embeds = self.model.embed(first.ids[:]).to(next(self.block.parameters()).dtype)
        reset_mask = None if first.restart is None else first.restart[:][None]
        return sequential_contexts(self.block, embeds[None], reset_mask=reset_mask)[1][0]

    def record(
        self,
        method: Literal["scan", "linear", "loop"],
        segments: int,
        burn_in: int,
        errors: tuple[float, float],
        checked: int,
        hold: bool = True,
    ) -> ScanRecord:
        """What is kept of how they were made: `errors` against the loop, and at joins."""
        return ScanRecord(
            method=method,
            tokens=len(self.stream),
            kept="memory" if hold else "recompute",
            segments=segments,
            burn_in=burn_in,
            loop_error=errors[0],
            join_error=errors[1],
            checked_tokens=checked,
            tolerance=self.settings.tolerance,
            seconds_s=time.perf_counter() - self.began,
        )

    def probes(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Where to measure how soon a block forgets: places [n] spread over the stream, and starts [2n, C].

        Of the two starts of each place, zero and random, the random ones come second; they are like `like`.
        """
        length = len(self.stream)
        count = min(count, length)
        places = torch.linspace(0, length - 1, count + 1, device=self.model.device)[:-1].long()
        generator = torch.Generator().manual_seed(0)
        width = self.block.context_dim
        random = F.layer_norm(torch.randn(count, width, generator=generator), (width,)).to(like)
        return places, torch.cat((torch.zeros_like(random), random))

    def agree(self, pair: Tensor) -> Tensor:
        """Whether contexts [2n, …, C] of both starts are a quarter of the tolerance apart at most, […]."""
        zero, random = pair.chunk(2)
        return (zero - random).abs().amax(dim=(0, -1)) <= self.settings.tolerance / 4


def precise_block(model: TandemForCausalLM) -> ContextBlock:
    """The model's ContextBlock in double precision; a plain copy where the device has none."""
    block = copy.deepcopy(model.context_block)
    return block if model.device.type == "mps" else block.double()
