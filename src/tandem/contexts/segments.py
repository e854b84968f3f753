"""The segment-parallel scan, of any block that forgets: sequential contexts in about one pass of work.

The stream is cut into S segments that run side by side. Each starts from a zero state with a burn-in: it
first reads the tokens before it, until the block has forgotten anything earlier (SPEC section 6).

The result is checked twice. At every join, the state at the end of one segment must equal the state at the
start of the next. On the first tokens of the stream, the contexts must equal those of the sequential loop.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tandem.advice import advice
from tandem.contexts.context_store import PIECE_TOKENS, Contexts, Runs
from tandem.contexts.job import LONGEST_BURN_IN, ContextJob
from tandem.contexts.stream import Distinct
from tandem.errors import ScanError
from tandem.records import ScanRecord
from tandem.stopping import stop_between_parts

READ = 1 << 16
"""Positions whose tokens are looked up at once."""
PROBE_STREAMS, PROBE_TOKENS = 32, 8
"""Places at which the burn-in is measured, and tokens read between two looks at it."""


def segment_contexts(job: ContextJob, hold: bool) -> tuple[Contexts, ScanRecord]:
    """Contexts by segments with a burn-in, held against the loop and at every join.

    Raises ScanError where they differ by more than the tolerance.
    """
    stream, settings = job.stream, job.settings
    scan = SegmentScan(job)
    # At least three joins lie within the part that the loop checks.
    checked = min(len(stream), max(settings.check_tokens, 4 * settings.segment_length))
    exact = job.loop(checked)
    while True:
        computed, errors = scan.check(exact, hold)
        # Not a number in either is not exact enough, and no longer burn-in would mend it.
        worst = math.nan if math.isnan(sum(errors)) else max(errors)
        if not worst > settings.tolerance or settings.burn_in != "auto" or scan.burn_in >= LONGEST_BURN_IN:
            break
        scan.burn_in *= 2
        computed = None

    if not worst <= settings.tolerance:
        raise ScanError(
            f"the scan's contexts differ from the sequential loop by {worst:.2g}, more than the tolerance "
            f"{settings.tolerance:.2g}: a burn-in of {scan.burn_in} tokens is too short for this ContextBlock"
            + advice(
                ("give a longer {} (or auto)", "contexts.burn_in"),
                ("use {}", "contexts.method loop"),
            )
        )
    contexts = Contexts(len(stream), None, scan.read) if computed is None else Contexts.of(computed)
    return contexts, job.record("scan", scan.count, scan.burn_in, errors, checked, contexts.in_memory)


class SegmentScan:
    """A scan of one stream, in the precision of the block: `count` segments, each after `burn_in` tokens."""

    def __init__(self, job: ContextJob) -> None:
        """The burn-in is given or measured. Raises ScanError for a block that does not forget."""
        model, block = job.model, job.block
        self._job, self._stream, self._length = job, job.stream, job.settings.segment_length
        self._distinct = Distinct(self._stream.ids, model.config.vocab_size)
        embeds = model.embed(self._distinct.ids).to(next(block.parameters()).dtype)
        self._read_token = block.token_steps(embeds)
        self._zero = embeds.new_zeros(block.context_dim)
        self.count = -(-len(self._stream) // self._length)
        self.burn_in = self._measured_burn_in() if job.settings.burn_in == "auto" else job.settings.burn_in

    def read(self, runs: Runs) -> Tensor:
        """Contexts after the tokens of these runs, in whole segments of which what is too much is cut off."""
        length = self._length
        cut = [(first // length, -(-last // length)) for first, last in runs]
        numbers = torch.cat([torch.arange(begin, end) for begin, end in cut]).to(self._zero.device)
        contexts = self._empty(len(numbers))
        self.scan(numbers, contexts)
        rows = itertools.accumulate((end - begin for begin, end in cut), initial=0)
        parts = [
            contexts[row : row + end - begin].flatten(0, 1)[first - begin * length : last - begin * length]
            for row, (begin, end), (first, last) in zip(rows, cut, runs, strict=False)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def check(self, exact: Tensor, hold: bool) -> tuple[Tensor | None, tuple[float, float]]:
        """Contexts [T, C], if they are to be held, and how exact they are.

        That is their largest difference from the loop's contexts of the first tokens, `exact` [n, C], and at
        any join of two segments.
        """
        group, length = self._job.group, self._length
        at_once = self.count if hold else max(-(-len(exact) // length), PIECE_TOKENS // length)
        loop_error, join_error = 0.0, 0.0
        end = None
        for first in range(0, self.count, at_once):
            count = min(at_once, self.count - first)
            share = group.share(count)
            contexts = self._empty(count if hold else share.stop - share.start)
            # Those that the loop checks, in the precision of the scan.
            sample = exact[(first + share.start) * length : (first + share.stop) * length]
            precise = sample.new_empty(-(-len(sample) // length), length, sample.shape[1])
            numbers = torch.arange(first + share.start, first + share.stop, device=contexts.device)
            own = self.scan(numbers, contexts[share] if hold else contexts, precise)
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
        computed = contexts.flatten(0, 1)[: len(self._stream)] if hold else None
        return computed, (loop_error, join_error)

    def scan(self, numbers: Tensor, contexts: Tensor, precise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Contexts of the segments of these numbers [S] into [S, length, C].

        Those of the first P of them also into `precise` [P, length, C], in the precision of the scan. Returns
        what each starts and ends with, both [S, C], in that precision too. Past the end of the stream the
        last token is read again.
        """
        starts, last = numbers * self._length, len(self._stream) - 1
        entry = context = self._zero.expand(len(starts), -1)
        many = max(1, READ // len(starts))
        for first in range(-self.burn_in, self._length, many):
            steps = torch.arange(first, min(first + many, self._length), device=starts.device)
            positions = (starts + steps[:, None]).clamp(max=last)
            # The stream starts at zero; before it, the first token is read.
            zeroed = positions[: 1 - first] <= 0 if first <= 0 else None
            read = self._contexts(context, positions.clamp(min=0), zeroed)
            for step, after in enumerate(read, first):
                stop_between_parts()
                context = after
                if step < 0:
                    entry = after  # what each segment starts with: must equal what its predecessor ends with
                    continue
                contexts[:, step] = after
                if precise is not None:
                    precise[:, step] = after[: len(precise)]
        return entry, context

    def _empty(self, count: int) -> Tensor:
        """Room for the contexts of `count` segments, [count, length, C], in the model's precision."""
        return self._zero.new_empty(count, self._length, len(self._zero), dtype=self._job.model.dtype)

    def _contexts(self, context: Tensor, positions: Tensor, zeroed: Tensor | None = None) -> Iterator[Tensor]:
        """Contexts [S, C] after each step, whose tokens are at `positions` [n, S], from `context` on.

        A token reads zero where `zeroed`, of the first few steps, and where it restarts the context.
        """
        if (resets := self._stream.resets) is not None:
            restarts = resets[positions]
            if zeroed is not None:
                restarts[: len(zeroed)] |= zeroed
            zeroed = restarts
        steps = 0 if zeroed is None else len(zeroed)
        for number, rows in enumerate(self._distinct.rows(self._stream.ids[positions])):
            if zeroed is not None and number < steps:
                context = context.masked_fill(zeroed[number][:, None], 0.0)
            context = self._read_token(context, rows)
            yield context

    def _measured_burn_in(self) -> int:
        job = self._job

        def read(contexts: Tensor, positions: Tensor) -> Tensor:
            *_, after = self._contexts(contexts, positions.t())
            return after[:, None]

        needed = job.tokens_to_forget(PROBE_STREAMS, PROBE_TOKENS, self._zero, read)
        longest = float(job.group.largest(torch.tensor(needed, device=job.model.device)))
        if longest == math.inf:
            raise ScanError(
                f"the ContextBlock does not forget its start within {LONGEST_BURN_IN} tokens, so its "
                "contexts cannot be computed in segments"
                + advice(("use {}", "contexts.method loop"), ("lower {}", "model.weight_init_std"))
            )
        return int(longest)


def _larger(error: float, differences: Tensor) -> float:
    """The largest so far; not a number once any was not one."""
    found = float(differences.abs().max())
    return found if math.isnan(found) or found > error else error
