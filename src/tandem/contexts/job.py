"""What every way to compute contexts starts from, and how soon a block forgets."""

import copy
import math
import time
from collections.abc import Callable
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
from tandem.stopping import stop_between_parts

LONGEST_BURN_IN = 4096
"""Tokens within which a block has to forget."""
MARGIN = 1.5
"""Times the tokens after which a block has forgotten at a few places: the worst of all is slower (LOG.md)."""
LOOP_TOKENS = 4096
"""Tokens between two looks at whether a signal asked to stop."""


@dataclass(frozen=True)
class ContextJob:
    """Whose contexts of what are asked for, how, and by which processes.

    block    the model's ContextBlock, in double precision where the device has it.
    began    the clock's time then.
    """

    model: TandemForCausalLM
    block: ContextBlock
    stream: Stream
    settings: ContextSettings
    group: Group
    began: float

    def loop(self, tokens: int) -> Tensor:
        """Contexts [n, C] after the first `tokens` by the sequential loop, in the precision of the block."""
        parts: list[Tensor] = []
        for begin in range(0, tokens, LOOP_TOKENS):
            stop_between_parts()
            part = self.stream.part(begin, min(begin + LOOP_TOKENS, tokens))
            embeds = self.model.embed(part.ids[:]).to(next(self.block.parameters()).dtype)
            reset_mask = None if part.resets is None else part.resets[:][None]
            before = parts[-1][-1:] if parts else None
            parts.append(sequential_contexts(self.block, embeds[None], before, reset_mask)[1][0])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

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
            storage="memory" if hold else "recompute",
            rounding=0.0,
            segments=segments,
            burn_in=burn_in,
            loop_error=errors[0],
            join_error=errors[1],
            checked_tokens=checked,
            tolerance=self.settings.tolerance,
            seconds_s=time.perf_counter() - self.began,
        )

    def tokens_to_forget(
        self, places: int, tokens: int, like: Tensor, read: Callable[[Tensor, Tensor], Tensor]
    ) -> float:
        """Tokens after which a block has forgotten its start, with a margin. Infinite beyond LONGEST_BURN_IN.

        Read from zero and from a random start, at `places` spread over the stream, contexts must come within
        a quarter of the tolerance. read(starts [n, C], positions [n, tokens]) gives the contexts after the
        last few of these tokens, [n, few, C]. Starts are like `like`.
        """
        length, width = len(self.stream), self.block.context_dim
        places = min(places, length)
        begins = torch.linspace(0, length - 1, places + 1, device=self.model.device)[:-1].long()
        generator = torch.Generator().manual_seed(0)
        random = F.layer_norm(torch.randn(places, width, generator=generator), (width,)).to(like)
        starts = torch.cat((torch.zeros_like(random), random))
        for first in range(0, LONGEST_BURN_IN, tokens):
            positions = (begins + first)[:, None] + torch.arange(tokens, device=begins.device)
            contexts = read(starts, (positions % length).repeat(2, 1))
            from_zero, from_random = contexts.chunk(2)
            apart = (from_zero - from_random).abs().amax(dim=(0, -1))
            if (forgotten := apart <= self.settings.tolerance / 4).any():
                unseen = tokens - len(forgotten)
                return MARGIN * (first + unseen + 1 + int(forgotten.int().argmax()))
            starts = contexts[:, -1]
        return math.inf


def precise_block(model: TandemForCausalLM) -> ContextBlock:
    """The model's ContextBlock in double precision; a plain copy where the device has none."""
    block = copy.deepcopy(model.context_block)
    return block if model.device.type == "mps" else block.double()
