"""The segment-parallel scan: sequential contexts of a whole stream in about one pass of work.

The stream is cut into S segments that run side by side, each from a zero state with a burn-in: it first
reads the tokens before it, until what the block remembers of anything earlier is below the tolerance (SPEC
section 6). How far that is depends on the block and is measured, twice: at every join of two segments, where
the state that left the first must equal the state with which the second starts; and against the sequential
loop on the first tokens of the stream.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.contexts.kept import PIECE_TOKENS, Contexts
from tandem.contexts.linear import LinearScan, chunk_tokens
from tandem.contexts.stream import Stream
from tandem.errors import ScanError
from tandem.group import ALONE, Group
from tandem.model import (
    AnyContextBlock,
    ContextBlock,
    GatedContextBlock,
    TandemForCausalLM,
    sequential_contexts,
)
from tandem.model.modeling_tandem import ContextLayer, GatedLayer
from tandem.records import ScanRecord
from tandem.settings import ContextSettings

PROBE_STREAMS = 32
FEW_STREAMS = 8
"""Where how fast a block forgets is told, but nothing depends on it."""
LONGEST_BURN_IN = 4096
CHECKED_PLACES = 8
"""Of a gated block's stream, at which its contexts are held against the loop."""


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
    began = time.perf_counter()
    block = precise_block(model)
    task = _Task(model, block, stream, settings, group, began)
    if settings.method == "loop" or len(stream) <= settings.segment_length:
        contexts = Contexts.of(_loop(model, block, stream).to(model.dtype))
        return contexts, task.record(Segments(len(stream), 1, 0), 0.0, 0.0, len(stream))
    hold = group.agrees(held_in_memory(model, len(stream), settings, hold_bytes), model.device)
    return _linear(task, hold) if isinstance(block, GatedContextBlock) else _segmented(task, block, hold)


def held_in_memory(
    model: TandemForCausalLM, tokens: int, settings: ContextSettings, hold_bytes: float
) -> bool:
    """Whether `compute_contexts` of so many tokens holds them in memory."""
    if settings.method == "loop" or settings.keep == "memory":
        return True
    size = tokens * model.config.context_dim * model.dtype.itemsize
    return settings.keep == "auto" and size <= hold_bytes


@dataclass(frozen=True)
class Segments:
    """How a stream is cut: `count` segments of `length` tokens, each after `burn_in` tokens."""

    length: int
    count: int
    burn_in: int


@dataclass(frozen=True)
class _Task:
    """Whose contexts of what are asked for, how, and by which processes.

    block    the model's ContextBlock, in double precision where the device has it
    began    the clock's time then
    """

    model: TandemForCausalLM
    block: AnyContextBlock
    stream: Stream
    settings: ContextSettings
    group: Group
    began: float

    def record(
        self,
        segments: Segments,
        loop_error: float,
        join_error: float,
        checked: int,
        method: Literal["scan", "linear"] = "scan",
        hold: bool = True,
    ) -> ScanRecord:
        """What is kept of how they were made."""
        return ScanRecord(
            method="loop" if segments.count == 1 else method,
            tokens=len(self.stream),
            kept="memory" if hold else "recompute",
            segments=segments.count,
            burn_in=segments.burn_in,
            loop_error=loop_error,
            join_error=join_error,
            checked_tokens=checked,
            tolerance=self.settings.tolerance,
            seconds_s=time.perf_counter() - self.began,
        )


def _segmented(task: _Task, block: ContextBlock, hold: bool) -> tuple[Contexts, ScanRecord]:
    """A residual block's contexts by segments with a burn-in, held against the loop and at every join."""
    model, stream, settings = task.model, task.stream, task.settings
    length = settings.segment_length
    tables = _Tables(model, block, stream)
    automatic = settings.burn_in == "auto"
    burn_in = measure_burn_in(tables, task) if settings.burn_in == "auto" else settings.burn_in
    # At least three joins lie within the part that the loop checks.
    sample = stream.first(max(settings.check_tokens, 4 * length))
    exact = _loop(model, block, sample)
    while True:
        segments = Segments(length, -(-len(stream) // length), burn_in)
        made, loop_error, join_error = _checked_scan(tables, segments, exact, hold, task.group)
        exact_enough = loop_error <= settings.tolerance and join_error <= settings.tolerance
        # Not a number in either is not exact enough, and no longer burn-in would mend it.
        undefined = math.isnan(loop_error + join_error)
        if exact_enough or undefined or not automatic or burn_in >= LONGEST_BURN_IN:
            break
        burn_in *= 2
        made = None

    if not exact_enough:
        worst = math.nan if undefined else max(loop_error, join_error)
        raise ScanError(
            f"the scan's contexts differ from the sequential loop by {worst:.2g}, more than the tolerance "
            f"{settings.tolerance:.2g}: a burn-in of {burn_in} tokens is too short for this ContextBlock; "
            "give a longer --contexts.burn-in (or auto), or --contexts.method loop"
        )

    def read(first: int, last: int) -> Tensor:
        begin = first // length
        again = tables.empty(segments, -(-last // length) - begin)
        _scan(tables, segments, begin, again)
        return again.flatten(0, 1)[first - begin * length : last - begin * length]

    contexts = Contexts(len(stream), None, read) if made is None else Contexts.of(made)
    return contexts, task.record(segments, loop_error, join_error, len(sample), hold=contexts.held)


def _linear(task: _Task, hold: bool) -> tuple[Contexts, ScanRecord]:
    """A gated block's contexts by the exact scan, held against the loop at several places."""
    model, stream, settings = task.model, task.stream, task.settings
    length = settings.segment_length
    group, shared, join_error = task.group, False, 0.0
    if hold:
        states = torch.empty(
            1 + len(stream), model.config.context_dim, dtype=model.dtype, device=model.device
        )
        if group.size > 1:
            join_error = _fill_shares(task, states)
            shared = join_error <= settings.tolerance
        if not shared:
            LinearScan(model, stream, length).fill(states)
            join_error = 0.0
        contexts = Contexts.of(states[1:])
    else:
        contexts = Contexts(len(stream), None, LinearScan(model, stream, length).read)
    runs = _checked_runs(task, contexts, group if shared else ALONE)
    # The first process does the one, the last one the other: sharing either out brought nothing (LOG.md).
    loop_error = _linear_check(task, contexts, runs) if group.rank == 0 else 0.0
    forgets = _linear_memory(task) if group.rank == group.size - 1 else 0.0
    loop_error, forgets = (
        float(group.largest(torch.tensor(value, device=model.device))) for value in (loop_error, forgets)
    )
    if not loop_error <= settings.tolerance:
        raise ScanError(
            f"the scan's contexts differ from the sequential loop by {loop_error:.2g}, more than the "
            f"tolerance {settings.tolerance:.2g}; use --contexts.method loop, or raise --contexts.tolerance"
        )
    # One that does not forget is to be read from the start of the stream, wherever it is to be recomputed.
    segments = Segments(length, -(-len(stream) // length), int(min(forgets, len(stream))))
    return contexts, task.record(segments, loop_error, join_error, len(runs.unique()), "linear", hold)


def _fill_shares(task: _Task, states: Tensor) -> float:
    """A gated block's contexts before and after all tokens into states [1 + T, C]; and how well they join.

    Each process computes its share. It starts from a zero state, as many tokens earlier as should make it
    forget that: states lie within -1..1, what a layer keeps is bounded, and it begins to forget when the one
    below has. Whether that was enough, the joins tell.
    """
    stream, settings, group = task.stream, task.settings, task.group
    layers = len(task.model.context_block.layers)
    burn_in = max(1, math.ceil(layers * math.log(settings.tolerance / 8) / math.log(GatedLayer.most_kept)))
    share = group.share(len(stream))
    start = None
    if share.start > 0:
        earlier = stream.part(max(0, share.start - burn_in), share.start)
        read = LinearScan(task.model, earlier, settings.segment_length).read(len(earlier) - 1, len(earlier))
        start = read[0]
    own = LinearScan(task.model, stream.part(share.start, share.stop), settings.segment_length, start)
    own.fill(states[share.start : 1 + share.stop])
    group.complete(states[1:])
    # The state before its share has been overwritten by the one with which the share before it ends.
    join_error = states.new_zeros(()) if start is None else (start - states[share.start]).abs().max()
    return float(group.largest(join_error))


def _checked_runs(task: _Task, contexts: Contexts, group: Group) -> Tensor:
    """Positions [B, n] of a gated block's stream, n that follow on each other, where it is checked.

    At the start of the stream, at its end, and across edges between two segments, or two chunks, which count
    from the start of each process's share. All of a stream that is no longer than what is to be checked.
    """
    length, chunk = task.settings.segment_length, chunk_tokens(task.settings.segment_length)
    # Where contexts are not held, only as far as one piece of them: what is read further on costs all before.
    reach = len(contexts) if contexts.held else min(len(contexts), PIECE_TOKENS)
    tokens = -(-max(task.settings.check_tokens, 4 * length) // CHECKED_PLACES)
    if CHECKED_PLACES * tokens >= reach:
        return torch.arange(reach)[None]
    origins = [Group(rank, group.size).share(len(contexts)).start for rank in range(group.size)]
    starts = {0, reach - tokens}
    for number in range(1, CHECKED_PLACES - 1):
        at = (reach - tokens) * number // (CHECKED_PLACES - 1)
        origin = max(start for start in origins if start <= at)
        unit = chunk if number % 2 == 1 and at - origin >= chunk else length
        edge = origin + (at - origin) // unit * unit
        starts.add(max(0, edge - tokens // 2))
    return torch.tensor(sorted(starts))[:, None] + torch.arange(tokens)


def _linear_check(task: _Task, contexts: Contexts, runs: Tensor) -> float:
    """The largest difference between a gated block's contexts and the loop's, at positions `runs` [B, n].

    The loop runs over all of them side by side: from zero at the start of the stream, elsewhere from the
    scan's own context before the run. No burn-in could hide an error from it: what is right from each token
    to the next, and at the start, is right everywhere.
    """
    model, stream = task.model, task.stream
    runs = runs.to(stream.ids.device)
    befores, afters = [], []
    for run in runs:
        before, after = contexts.window(int(run[0]), int(run[-1]) + 1).around(run, None)
        befores.append(before[0])
        afters.append(after)
    precise = next(task.block.parameters()).dtype
    exact = sequential_contexts(
        task.block,
        model.embed(stream.ids[runs]).to(precise),
        torch.stack(befores).to(precise),
        None if stream.restart is None else stream.restart[runs],
    )[1]
    return float((torch.stack(afters) - exact).abs().max())


def _linear_memory(task: _Task) -> float:
    """Tokens after which a gated block has forgotten; in its own precision, which is enough to tell."""
    model, stream = task.model, task.stream

    def step(context: Tensor, positions: Tensor) -> Tensor:
        if stream.restart is not None:
            context = context.masked_fill(stream.restart[positions][:, None], 0.0)
        return model.context_block(context, model.embed(stream.ids[positions]))

    return tokens_until_forgotten(step, model.context_block, task, FEW_STREAMS)


class _Tables:
    """What a block adds for each distinct token, computed once: table[l] = W_e·e + b, [U, C].

    row    [V] of a token in the tables

    Every ContextLayer reads the same e_t, so its part of the product depends on the token id only.
    """

    def __init__(self, model: TandemForCausalLM, block: ContextBlock, stream: Stream) -> None:
        distinct = stream.ids.counts(model.config.vocab_size).nonzero()[:, 0]
        self.row = torch.zeros(model.config.vocab_size, dtype=torch.int64, device=distinct.device)
        self.row[distinct] = torch.arange(len(distinct), device=distinct.device)
        embeds = model.embed(distinct)
        self.stream = stream
        self.context_dim, self._dtype = block.context_dim, model.dtype
        self.layers = []
        for layer in block.layers:
            assert isinstance(layer, ContextLayer)
            weight = layer.linear.weight
            embeds = embeds.to(weight.dtype)
            table = F.linear(embeds, weight[:, self.context_dim :], layer.linear.bias)
            self.layers.append((weight[:, : self.context_dim].t(), table, layer.norm))

    def empty(self, segments: Segments, count: int) -> Tensor:
        """Room for the contexts of `count` segments, [count, length, C], in the model's precision."""
        return torch.empty(
            count, segments.length, self.context_dim, dtype=self._dtype, device=self.row.device
        )

    def step(self, context: Tensor, positions: Tensor) -> Tensor:
        """Contexts [S, C] after reading the tokens at `positions` [S]; negative positions are the first."""
        positions = positions.clamp(min=0)
        if self.stream.restart is not None:
            context = context.masked_fill(self.stream.restart[positions][:, None], 0.0)
        tokens = self.row[self.stream.ids[positions]]
        for weight, table, norm in self.layers:
            added = torch.addmm(table[tokens], context, weight)
            context = norm(context + F.gelu(added))
        return context


def _checked_scan(
    tables: _Tables, segments: Segments, exact: Tensor, hold: bool, group: Group
) -> tuple[Tensor | None, float, float]:
    """Contexts [T, C] by segments, if they are to be held, and their largest differences: from the loop's
    contexts `exact` [n, C] of the first tokens, and at any join of two segments."""
    checked = -(-len(exact) // segments.length)
    at_once = segments.count if hold else max(checked, PIECE_TOKENS // segments.length)
    loop_error, join_error = 0.0, 0.0
    end = None
    for first in range(0, segments.count, at_once):
        count = min(at_once, segments.count - first)
        share = group.share(count)
        contexts = tables.empty(segments, count if hold else share.stop - share.start)
        # Those that the loop checks, in the precision of the scan.
        sample = exact[(first + share.start) * segments.length : (first + share.stop) * segments.length]
        precise = sample.new_empty(-(-len(sample) // segments.length), segments.length, tables.context_dim)
        own = _scan(tables, segments, first + share.start, contexts[share] if hold else contexts, precise)
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
    errors = (float(group.largest(exact.new_tensor(error))) for error in (loop_error, join_error))
    loop_error, join_error = errors
    return contexts.flatten(0, 1)[: len(tables.stream)] if hold else None, loop_error, join_error


def _larger(error: float, differences: Tensor) -> float:
    """The largest so far; not a number once any was not one."""
    found = float(differences.abs().max())
    return found if math.isnan(found) or found > error else error


def _scan(
    tables: _Tables, segments: Segments, first: int, contexts: Tensor, precise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Contexts of consecutive segments, of which `first` is the number of the first, into [S, length, C].

    Those of the first P of them also into `precise` [P, length, C], in the precision of the scan. Returns
    what each starts and ends with, both [S, C], in that precision too. Past the end of the stream the last
    token is read again.
    """
    total = len(tables.stream)
    starts = torch.arange(first, first + len(contexts), device=tables.row.device) * segments.length
    context = tables.layers[0][1].new_zeros(len(starts), tables.context_dim)
    entry = context
    for step in range(-segments.burn_in, segments.length):
        if step == 0:
            entry = context  # what each segment starts with: must equal what its predecessor ends with
        positions = (starts + step).clamp(max=total - 1)
        if step <= 0:
            context = context.masked_fill((positions <= 0)[:, None], 0.0)  # the stream itself starts at zero
        context = tables.step(context, positions)
        if step >= 0:
            contexts[:, step] = context
            if precise is not None:
                precise[:, step] = context[: len(precise)]
    return entry, context


def measure_burn_in(tables: _Tables, task: _Task) -> int:
    """The burn-in that a block's scan needs on this stream. Raises ScanError where it does not forget."""
    tokens = tokens_until_forgotten(tables.step, task.block, task, PROBE_STREAMS)
    longest = float(task.group.largest(torch.tensor(tokens, device=task.model.device)))
    if longest == math.inf:
        raise ScanError(
            f"the ContextBlock does not forget its start within {LONGEST_BURN_IN} tokens, so its contexts "
            "cannot be computed in segments; use --contexts.method loop, or smaller --model.weight-init-std"
        )
    return int(longest)


def tokens_until_forgotten(
    step: Callable[[Tensor, Tensor], Tensor], block: AnyContextBlock, task: _Task, streams: int
) -> float:
    """Tokens after which two streams that differ only in their start agree to a quarter of the tolerance.

    step(contexts [n, C], positions [n]) reads one token of the task's stream each. Read at `streams` places
    spread over the stream, from a zero and from a random start, both over the same tokens; a quarter more
    than the slowest place needed. Infinite if LONGEST_BURN_IN tokens are not enough.
    """
    length, like = len(task.stream), next(block.parameters())
    places = min(streams, length)
    starts = torch.linspace(0, length - 1, places + 1, device=like.device)[:-1].long()
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(places, block.context_dim, generator=generator).to(like)
    pair = torch.cat((torch.zeros_like(other), F.layer_norm(other, (block.context_dim,))))
    for count in range(1, LONGEST_BURN_IN + 1):
        positions = (starts + count - 1) % length
        pair = step(pair, positions.repeat(2))
        zero, other = pair.chunk(2)
        if count % 8 == 0 and float((zero - other).abs().max()) <= task.settings.tolerance / 4:
            return float(count * 5 // 4)
    return math.inf


def precise_block(model: TandemForCausalLM) -> AnyContextBlock:
    """The model's ContextBlock in double precision; a plain copy where the device has none."""
    block = copy.deepcopy(model.context_block)
    return block if model.device.type == "mps" else block.double()


def _loop(model: TandemForCausalLM, block: AnyContextBlock, stream: Stream) -> Tensor:
    """Contexts [T, C] by the sequential loop, in the precision of `block`."""
    embeds = model.embed(stream.ids[:]).to(next(block.parameters()).dtype)
    restart = None if stream.restart is None else stream.restart[:][None]
    return sequential_contexts(block, embeds[None], restart=restart)[1][0]
