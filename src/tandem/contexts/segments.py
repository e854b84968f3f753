"""The segment-parallel scan, of any block that forgets: sequential contexts in about one pass of work.

The stream is cut into S segments that run side by side. Each starts from a zero state with a burn-in: it
first reads the tokens before it, until the block has forgotten anything earlier (SPEC section 6).

How many tokens that takes depends on the block. The result is checked twice. At every join, the state at the
end of one segment must equal the state at the start of the next. And on the first tokens of the stream, the
contexts must equal those of the sequential loop.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.advice import advice
from tandem.contexts.context_store import PIECE_TOKENS, Contexts, Runs
from tandem.contexts.job import LONGEST_BURN_IN, ContextJob
from tandem.contexts.stream import Distinct, apply_resets
from tandem.errors import ScanError
from tandem.records import ScanRecord

PROBE_STREAMS, PROBE_TOKENS = 32, 8
"""Places at which the burn-in is measured, and tokens read between two looks at it."""


@dataclass(frozen=True)
class Segments:
    """How a stream is cut: `count` segments of `length` tokens, each after `burn_in` tokens."""

    length: int
    count: int
    burn_in: int


def segment_contexts(job: ContextJob, hold: bool) -> tuple[Contexts, ScanRecord]:
    """Contexts by segments with a burn-in, held against the loop and at every join.

    Raises ScanError where they differ by more than the tolerance.
    """
    stream, settings = job.stream, job.settings
    length = settings.segment_length
    steps = _Steps(job)
    burn_in = _measured_burn_in(steps, job) if settings.burn_in == "auto" else settings.burn_in
    # At least three joins lie within the part that the loop checks.
    checked = min(len(stream), max(settings.check_tokens, 4 * length))
    exact = job.loop(checked)
    while True:
        segments = Segments(length, -(-len(stream) // length), burn_in)
        computed, errors = _checked_scan(steps, segments, exact, hold, job)
        # Not a number in either is not exact enough, and no longer burn-in would mend it.
        worst = math.nan if math.isnan(sum(errors)) else max(errors)
        if not worst > settings.tolerance or settings.burn_in != "auto" or burn_in >= LONGEST_BURN_IN:
            break
        burn_in *= 2
        computed = None

    if not worst <= settings.tolerance:
        raise ScanError(
            f"the scan's contexts differ from the sequential loop by {worst:.2g}, more than the tolerance "
            f"{settings.tolerance:.2g}: a burn-in of {burn_in} tokens is too short for this ContextBlock"
            + advice(
                ("give a longer {} (or auto)", "contexts.burn_in"),
                ("use {}", "contexts.method loop"),
            )
        )

    def read(runs: Runs) -> Tensor:
        cut = [(first // length, -(-last // length)) for first, last in runs]
        numbers = torch.cat([torch.arange(begin, end) for begin, end in cut]).to(stream.ids.device)
        again = steps.empty(segments, len(numbers))
        _scan(steps, segments, numbers, again)
        rows = itertools.accumulate((end - begin for begin, end in cut), initial=0)
        parts = [
            again[row : row + end - begin].flatten(0, 1)[first - begin * length : last - begin * length]
            for row, (begin, end), (first, last) in zip(rows, cut, runs, strict=False)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    contexts = Contexts(len(stream), None, read) if computed is None else Contexts.of(computed)
    return contexts, job.record("scan", segments.count, burn_in, errors, checked, contexts.in_memory)


class _Steps:
    """Steps of a block for many places of the stream at once, in the precision of the block."""

    def __init__(self, job: ContextJob) -> None:
        model, block = job.model, job.block
        self.stream = job.stream
        self._distinct = Distinct(self.stream.ids, model.config.vocab_size)
        embeds = model.embed(self._distinct.ids).to(next(block.parameters()).dtype)
        self._step = block.token_steps(embeds)
        self._zero, self._dtype = embeds.new_zeros(block.context_dim), model.dtype

    def start(self, count: int) -> Tensor:
        """Contexts of the empty stream, [count, C]."""
        return self._zero.expand(count, -1)

    def empty(self, segments: Segments, count: int) -> Tensor:
        """Room for the contexts of `count` segments, [count, length, C], in the model's precision."""
        return self._zero.new_empty(count, segments.length, len(self._zero), dtype=self._dtype)

    def step(self, context: Tensor, positions: Tensor) -> Tensor:
        """Contexts [S, C] after reading the tokens at `positions` [S]; negative positions are the first."""
        positions = positions.clamp(min=0)
        context = apply_resets(context, self.stream.resets, positions)
        return self._step(context, self._distinct.rows(self.stream.ids[positions]))


def _checked_scan(
    steps: _Steps, segments: Segments, exact: Tensor, hold: bool, job: ContextJob
) -> tuple[Tensor | None, tuple[float, float]]:
    """Contexts [T, C] by segments, if they are to be held, and their largest differences: from the loop's
    contexts `exact` [n, C] of the first tokens, and at any join of two segments."""
    group = job.group
    checked = -(-len(exact) // segments.length)
    at_once = segments.count if hold else max(checked, PIECE_TOKENS // segments.length)
    loop_error, join_error = 0.0, 0.0
    end = None
    for first in range(0, segments.count, at_once):
        count = min(at_once, segments.count - first)
        share = group.share(count)
        contexts = steps.empty(segments, count if hold else share.stop - share.start)
        # Those that the loop checks, in the precision of the scan.
        sample = exact[(first + share.start) * segments.length : (first + share.stop) * segments.length]
        precise = sample.new_empty(-(-len(sample) // segments.length), segments.length, sample.shape[1])
        numbers = torch.arange(first + share.start, first + share.stop, device=contexts.device)
        own = _scan(steps, segments, numbers, contexts[share] if hold else contexts, precise)
        if len(sample) > 0:
            loop_error = _larger(loop_error, precise.flatten(0, 1)[: len(sample)] - sample)
        if hold:
            group.complete(contexts)
        entry, ends = (group.joined(part, count) for part in own)
        ends = ends if end is None else torch.cat((end[None], ends))
        joins = (ends[:-1] - entry[-len(ends) + 1 :]) if len(ends) > 1 else ends.new_zeros(1)
        join_error = _larger(join_error, joins)
        end = ends[-1]
    # All processes go on in the same way, though each may round a little differently.
    loop_error, join_error = (
        float(group.largest(exact.new_tensor(error))) for error in (loop_error, join_error)
    )
    computed = contexts.flatten(0, 1)[: len(steps.stream)] if hold else None
    return computed, (loop_error, join_error)


def _larger(error: float, differences: Tensor) -> float:
    """The largest so far; not a number once any was not one."""
    found = float(differences.abs().max())
    return found if math.isnan(found) or found > error else error


def _scan(
    steps: _Steps, segments: Segments, numbers: Tensor, contexts: Tensor, precise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Contexts of the segments of these numbers [S] into [S, length, C].

    Those of the first P of them also into `precise` [P, length, C], in the precision of the scan. Returns
    what each starts and ends with, both [S, C], in that precision too. Past the end of the stream the last
    token is read again.
    """
    total = len(steps.stream)
    starts = numbers * segments.length
    entry = context = steps.start(len(starts))
    for step in range(-segments.burn_in, segments.length):
        if step == 0:
            entry = context  # what each segment starts with: must equal what its predecessor ends with
        positions = (starts + step).clamp(max=total - 1)
        if step <= 0:
            context = context.masked_fill((positions <= 0)[:, None], 0.0)  # the stream itself starts at zero
        context = steps.step(context, positions)
        if step >= 0:
            contexts[:, step] = context
            if precise is not None:
                precise[:, step] = context[: len(precise)]
    return entry, context


def _measured_burn_in(steps: _Steps, job: ContextJob) -> int:
    """The burn-in that a block's scan needs on this stream. Raises ScanError where it does not forget."""

    def read(contexts: Tensor, positions: Tensor) -> Tensor:
        for column in positions.unbind(1):
            contexts = steps.step(contexts, column)
        return contexts[:, None]

    needed = job.tokens_to_forget(PROBE_STREAMS, PROBE_TOKENS, next(job.block.parameters()), read)
    longest = float(job.group.largest(torch.tensor(needed, device=job.model.device)))
    if longest == math.inf:
        raise ScanError(
            f"the ContextBlock does not forget its start within {LONGEST_BURN_IN} tokens, so its contexts "
            "cannot be computed in segments"
            + advice(("use {}", "contexts.method loop"), ("lower {}", "model.weight_init_std"))
        )
    return int(longest)
