"""Contexts of a whole stream by a parallel scan, held against the sequential loop; or by the loop itself."""

import math
import time

import torch

from tandem.contexts.context_store import Contexts
from tandem.contexts.job import ContextJob, precise_block
from tandem.contexts.linear_contexts import linear_contexts
from tandem.contexts.segments import segment_contexts
from tandem.contexts.stream import Stream
from tandem.group import ALONE, Group
from tandem.model import TandemForCausalLM
from tandem.records import ScanRecord
from tandem.settings import ContextSettings

SCANS = {"segments": segment_contexts, "linear": linear_contexts}
"""By the names that a ContextBlock gives as its `scan`: contexts of a job, held or not, and how exact."""


@torch.no_grad()
def compute_contexts(
    model: TandemForCausalLM,
    stream: Stream,
    settings: ContextSettings,
    hold_bytes: float = math.inf,
    group: Group = ALONE,
) -> tuple[Contexts, ScanRecord]:
    """Contexts after every token of the stream, and how exact they are.

    They are held in memory where `settings.keep` says so, and with `auto` where they take no more than
    `hold_bytes`. Otherwise they are computed again whenever they are read, and the model must stay as it is.
    The loop's are always held. The processes of the `group` share the work, and every one has all contexts.

    With `burn_in="auto"` the burn-in is measured, then doubled until the contexts agree with the loop and at
    every join. The linear scan needs none; what is recorded is how fast the block forgets. Raises ScanError
    where contexts differ by more than `tolerance`, or the block of a segment scan does not forget at all.
    """
    job = ContextJob(model, precise_block(model), stream, settings, group, time.perf_counter())
    if settings.method == "loop" or len(stream) <= settings.segment_length:
        contexts = Contexts.of(job.loop(len(stream)).to(model.dtype))
        return contexts, job.record("loop", 1, 0, (0.0, 0.0), len(stream))
    hold = group.agrees(held_in_memory(model, len(stream), settings, hold_bytes), model.device)
    return SCANS[model.context_block.scan](job, hold)


def held_in_memory(
    model: TandemForCausalLM, tokens: int, settings: ContextSettings, hold_bytes: float
) -> bool:
    """Whether `compute_contexts` of so many tokens holds them in memory."""
    if settings.method == "loop" or settings.keep == "memory":
        return True
    size = tokens * model.config.context_dim * model.dtype.itemsize
    return settings.keep == "auto" and size <= hold_bytes
