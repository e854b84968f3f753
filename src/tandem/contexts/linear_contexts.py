"""Contexts by the exact scan of linear layers: shared among processes, and held against the loop."""

import math

import torch
from torch import Tensor

from tandem.advice import advice
from tandem.contexts.context_store import PIECE_TOKENS, Contexts, one_by_one
from tandem.contexts.job import ContextJob
from tandem.contexts.linear import LinearScan, cut_for
from tandem.errors import ScanError
from tandem.group import ALONE, Group
from tandem.model import sequential_contexts
from tandem.records import ScanRecord

PROBE_STREAMS = 8
"""Few: no context that is trained on depends on how fast a block forgets; the audit reads twice as far."""
PROBE_TOKENS = 128
"""Read at once."""
CHECKED_PLACES = 32
"""Of the stream, at which its contexts are held against the loop."""


def linear_contexts(job: ContextJob, hold: bool) -> tuple[Contexts, ScanRecord]:
    """Contexts by the exact scan, held against the loop at several places.

    Raises ScanError where they differ by more than the tolerance.
    """
    model, stream, settings = job.model, job.stream, job.settings
    group, shared, join_error = job.group, False, 0.0
    if hold:
        states = torch.empty(
            1 + len(stream), model.config.context_dim, dtype=model.dtype, device=model.device
        )
        if group.size > 1:
            join_error = _fill_shares(job, states)
            shared = join_error <= settings.tolerance
        if not shared:
            LinearScan(model, stream).fill(states)
            join_error = 0.0
        contexts = Contexts.of(states[1:])
    else:
        contexts = Contexts(len(stream), None, one_by_one(LinearScan(model, stream).read))
    runs = _checked_runs(job, contexts, group if shared else ALONE)
    # The first process does the one, the last one the other: sharing either out brought nothing (LOG.md).
    loop_error = _loop_error(job, contexts, runs) if group.rank == 0 else 0.0
    forgets = _memory(job) if group.rank == group.size - 1 else 0.0
    loop_error, forgets = (
        float(group.largest(torch.tensor(value, device=model.device))) for value in (loop_error, forgets)
    )
    if not loop_error <= settings.tolerance:
        raise ScanError(
            f"the scan's contexts differ from the sequential loop by {loop_error:.2g}, more than the "
            f"tolerance {settings.tolerance:.2g}"
            + advice(("use {}", "contexts.method loop"), ("raise {}", "contexts.tolerance"))
        )
    segments = -(-len(stream) // cut_for(model.device).segment)
    # One that does not forget is to be read from the start of the stream, wherever it is to be recomputed.
    burn_in = int(min(forgets, len(stream)))
    errors = (loop_error, join_error)
    return contexts, job.record("linear", segments, burn_in, errors, len(runs.unique()), hold)


def _fill_shares(job: ContextJob, states: Tensor) -> float:
    """Contexts before and after all tokens into states [1 + T, C]; and how well they join.

    Each process computes its share. It starts from zero, so many tokens earlier that it should forget that.
    """
    model, stream, group = job.model, job.stream, job.group
    share = group.share(len(stream))
    start = None
    if share.start > 0:
        earlier = stream.part(max(0, share.start - _burn_in(job)), share.start)
        start = LinearScan(model, earlier).read(len(earlier) - 1, len(earlier))[0]
    own = LinearScan(model, stream.part(share.start, share.stop), start)
    own.fill(states[share.start : 1 + share.stop])
    group.complete(states[1:])
    # The state before its share has been overwritten by the one with which the share before it ends.
    join_error = states.new_zeros(()) if start is None else (start - states[share.start]).abs().max()
    return float(group.largest(join_error))


def _burn_in(job: ContextJob) -> int:
    """Tokens that should make the highest layer forget, by what a layer keeps at most of states within -1..1.

    A layer begins to forget when the one below has.
    """
    logs = [math.log(layer.most_kept) for layer in job.model.context_block.layers]
    return max(1, math.ceil(len(logs) * math.log(job.settings.tolerance / 8) / max(logs)))


def _checked_runs(job: ContextJob, contexts: Contexts, group: Group) -> Tensor:
    """Positions [B, n] of the stream, n that follow on each other, where its contexts are checked.

    One run is at the start of the stream and one at its end. Up to half of all runs go across edges between
    two chunks. The others are spread evenly, across edges between two segments, or between two segments of
    segments if a chunk has those. No two overlap. Edges count from the start of each process's share. A
    stream that is less than three times as long as what is to be checked is checked as a whole.
    """
    cut = cut_for(job.model.device)
    # Where contexts are not held, only as far as one piece of them: what is read further on costs all before.
    reach = len(contexts) if contexts.in_memory else min(len(contexts), PIECE_TOKENS)
    tokens = -(-max(job.settings.check_tokens, 4 * cut.segment) // CHECKED_PLACES)
    parts = 3 * CHECKED_PLACES
    if parts * tokens > reach:
        tokens = -(-reach // CHECKED_PLACES)
        everywhere = sorted({min(first, reach - tokens) for first in range(0, reach, tokens)})
        return torch.tensor(everywhere)[:, None] + torch.arange(tokens)

    starts = [0, reach - tokens]

    def add(edge: int) -> bool:
        start = edge - tokens // 2
        free = len(starts) < CHECKED_PLACES and all(abs(start - other) >= tokens for other in starts)
        starts.extend([start] * free)
        return free

    origins = [Group(rank, group.size).share(len(contexts)).start for rank in range(group.size)]
    ends = [*origins[1:], reach]
    chunks = [
        edge
        for position, end in zip(origins, ends, strict=True)
        for edge in range(position, min(end, reach), cut.chunk)
    ]
    for edge in chunks[1 :: max(1, -(-(len(chunks) - 1) // (CHECKED_PLACES // 2)))]:
        add(edge)
    for part in (part for first in (1, 2, 3) for part in range(first, parts, 3)):
        position = reach * part // parts
        origin = max(start for start in origins if start <= position)
        seam = position - (position - origin) % cut.outer + cut.segment * cut.nested
        add(seam) or add(position - (position - origin) % cut.segment) or add(position)
    return torch.tensor(sorted(starts))[:, None] + torch.arange(tokens)


def _loop_error(job: ContextJob, contexts: Contexts, runs: Tensor) -> float:
    """The largest difference between the contexts and the loop's, at positions `runs` [B, n].

    The loop runs over all of them side by side: from zero at the start of the stream, elsewhere from the
    scan's own context before the run. What is right from each token to the next is right everywhere.
    """
    stream, cut = job.stream, cut_for(job.model.device)
    runs = runs.to(stream.ids.device)
    befores, afters = [], []
    for run in runs:
        # Read as training reads them: those computed again begin at a state that was kept within the stream,
        # so what follows on an edge between chunks is read from the state that was kept there. Elsewhere so
        # much is read around them that segments of segments are made, if they are anywhere.
        first, last = int(run[0]), int(run[-1]) + 1
        edge = -(-first // cut.chunk) * cut.chunk
        if not contexts.in_memory and first < edge < last:
            read, around = [(first, edge), (edge, last)], 0
        else:
            read, around = [(first, last)], cut.outer if cut.nested and not contexts.in_memory else 0
        parts = [
            contexts.window(max(0, begin - around), min(end + around, len(stream))).before_and_after(
                run[begin - first : end - first], None
            )
            for begin, end in read
        ]
        befores.append(parts[0][0][0])
        afters.append(torch.cat([after for _, after in parts]))
    precise = next(job.block.parameters()).dtype
    exact = sequential_contexts(
        job.block,
        job.model.embed(stream.ids[runs]).to(precise),
        torch.stack(befores).to(precise),
        None if stream.resets is None else stream.resets[runs],
    )[1]
    return float((torch.stack(afters) - exact).abs().max())


def _memory(job: ContextJob) -> float:
    """Tokens after which the block has forgotten; in its own precision, which is enough to tell."""
    model, stream = job.model, job.stream
    block = model.context_block

    def read(contexts: Tensor, positions: Tensor) -> Tensor:
        reset_mask = None if stream.resets is None else stream.resets[positions]
        return block.unroll(model.embed(stream.ids[positions]), contexts, reset_mask)[1]

    return job.tokens_to_forget(PROBE_STREAMS, PROBE_TOKENS, next(block.parameters()), read)
