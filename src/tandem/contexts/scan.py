"""Contexts of a whole stream by a parallel scan, held against the sequential loop; or by the loop itself."""

import math
import time

import torch

from tandem.contexts.gated import gated_contexts
from tandem.contexts.kept import Contexts
from tandem.contexts.segments import residual_contexts
from tandem.contexts.stream import Stream
from tandem.contexts.task import Task, precise_block
from tandem.group import ALONE, Group
from tandem.model import GatedContextBlock, TandemForCausalLM
from tandem.records import ScanRecord
from tandem.settings import ContextSettings


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
    (The loop's are always held.) Each process of the `group` computes a part of them, where they are held or
    checked; every one has all.

    With `method="scan"` and `burn_in="auto"` the burn-in is measured, then doubled until the contexts agree
    with the loop, and at every join, to the tolerance. Raises ScanError when the contexts differ
    from the sequential loop by more than `tolerance`, when the segments do not join to within it, or when
    the block does not forget at all. The contexts of a gated block need no burn-in; what is recorded as one
    is how fast it forgets.
    """
    task = Task(model, precise_block(model), stream, settings, group, time.perf_counter())
    if settings.method == "loop" or len(stream) <= settings.segment_length:
        contexts = Contexts.of(task.loop(len(stream)).to(model.dtype))
        return contexts, task.record("loop", 1, 0, (0.0, 0.0), len(stream))
    hold = group.agrees(held_in_memory(model, len(stream), settings, hold_bytes), model.device)
    if isinstance(model.context_block, GatedContextBlock):
        return gated_contexts(task, hold)
    return residual_contexts(task, hold)


def held_in_memory(
    model: TandemForCausalLM, tokens: int, settings: ContextSettings, hold_bytes: float
) -> bool:
    """Whether `compute_contexts` of so many tokens holds them in memory."""
    if settings.method == "loop" or settings.keep == "memory":
        return True
    size = tokens * model.config.context_dim * model.dtype.itemsize
    return settings.keep == "auto" and size <= hold_bytes
