"""What an experiment will take, before it is run: the work of its runs is begun, watched, and stopped.

Text and tokens are prepared, and contexts computed, as for the run itself. Of a large text, a part stands for
the whole where work and memory grow with it. Trainings that may end early are counted to their limit.
"""

import time
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict
from torch import nn

from tandem.contexts import PIECE_TOKENS, held_in_memory
from tandem.experiment.baseline import measured_against, run_baseline
from tandem.experiment.contexts import bytes_on_disk, kept_outside_memory, room_in_memory
from tandem.experiment.grid import RunSpec, claims
from tandem.experiment.machine import PeakMemory
from tandem.experiment.pipeline import (
    TrainedContexts,
    new_heads,
    score_head,
    train_contexts,
    train_tokens,
    untrained_contexts,
)
from tandem.experiment.prepared import TrainingInputs
from tandem.experiment.run_dir import disk_needed
from tandem.objectives import OBJECTIVES
from tandem.settings import Settings
from tandem.tokens.store import TokenStream
from tandem.training.progress import OnTick, Tick, silent

MOMENT_S = 2.0
"""Seconds for which a training is watched at least."""
LEAST_TICKS = 3
"""Steps for which it is watched at least."""
PART_TOKENS, PART_BATCHES = PIECE_TOKENS // 8, 4
"""Phase 2 is watched on a part of the text: at least so many tokens, and so many batches."""
SWEPT_TOKENS = PIECE_TOKENS
"""Tokens that stand for all where a single step of phase 1 reads more than that."""
CONTEXT_TOKENS = 3 * PIECE_TOKENS
"""Tokens whose contexts stand for all of a longer text's."""
ENDLESS = 1 << 20
"""Epochs of a training that the watch stops."""


class CostItem(BaseModel):
    """One kind of work: how often it will be done, and how long it takes once."""

    model_config = ConfigDict(frozen=True)
    what: str
    times: int
    seconds_s: float


class Estimate(BaseModel):
    """What an experiment will take on this machine, beside nothing else.

    seconds_s             until all runs are made, by all workers; the audit and the report come on top.
    memory_bytes          of one worker, the largest, at its peak: of the device on CUDA, else of the process.
    disk_bytes            of what is saved.
    context_disk_bytes    of contexts that all workers together keep on disk while they train.
    """

    model_config = ConfigDict(frozen=True)
    runs: int
    workers: int
    seconds_s: float
    memory_bytes: int | None
    disk_bytes: int
    context_disk_bytes: int
    parts: tuple[CostItem, ...]


@dataclass(frozen=True)
class _Work:
    """What runs that share their contexts take once, for one seed.

    seconds_s     by kind of work.
    more_bytes    of memory beyond what was seen while they were begun.
    disk_bytes    of contexts.
    """

    seconds_s: Mapping[str, float]
    more_bytes: int = 0
    disk_bytes: int = 0


def estimated(
    variants: Mapping[str | None, TrainingInputs], settings: Settings, specs: list[RunSpec]
) -> Estimate:
    """What these runs of an experiment will take, or the training of a single one.

    Raises what they would raise in their first steps.
    """
    reference = measured_against(variants.values())
    memory = PeakMemory(reference.device)
    seeds = list(dict.fromkeys(spec.seed for spec in specs if spec.seed is not None))
    parts, more_bytes, disk_bytes = [], 0, 0
    for runs in claims([spec for spec in specs if spec.seed in (None, *seeds[:1])]).values():
        first = runs[0]
        if first.configuration is None:
            work = _work_of_baseline(reference, first)
        else:
            work = _work_of_models(variants[first.variant], runs)
        times = 1 if first.seed is None else len(seeds)
        parts += [CostItem(what=what, times=times, seconds_s=each) for what, each in work.seconds_s.items()]
        more_bytes, disk_bytes = max(more_bytes, work.more_bytes), max(disk_bytes, work.disk_bytes)
    peak = memory.read()
    workers = min(settings.workers, max(1, len(claims(specs))))
    return Estimate(
        runs=len(specs),
        workers=workers,
        seconds_s=sum(part.times * part.seconds_s for part in parts) / workers,
        memory_bytes=None if peak is None else peak + more_bytes,
        disk_bytes=disk_needed(variants, specs),
        context_disk_bytes=workers * disk_bytes,
        parts=tuple(parts),
    )


def _work_of_models(prepared: TrainingInputs, runs: list[RunSpec]) -> _Work:
    """Phase 1 is begun, contexts are computed, and phase 2 of each run is begun on a part of the text."""
    settings, spec = prepared.settings, runs[0]
    assert spec.configuration is not None
    assert spec.seed is not None
    layers, seed, trained = spec.configuration.context_layers, spec.seed, spec.kind == "tandem"
    name = "".join(f"{part}, " for part in (spec.variant, None if trained else spec.kind) if part)
    tokens, width = len(prepared.corpus.train), settings.model.context_dim
    seconds: dict[str, float] = {}
    heads, swept = nn.ModuleDict(), 0
    if trained:
        swept = OBJECTIVES[settings.recipe].swept_tokens(settings, tokens)
        some = _part(prepared, SWEPT_TOKENS) if swept > SWEPT_TOKENS else prepared
        times = max(1.0, swept / SWEPT_TOKENS)
        seconds_s = times * seconds_of(partial(train_contexts, some, layers, seed))
        seconds[f"{name}C{layers}, phase 1"] = seconds_s
        heads = new_heads(prepared, layers, seed)
    contexts, contexts_s = _timed_contexts(prepared, layers, seed)

    # All contexts stay in memory, if they are held there, while phase 2 is begun on a few.
    storage = _storage(prepared, contexts)
    keep = settings.contexts.model_copy(update={"keep": storage})
    phase2 = settings.phase2.model_copy(update={"max_epochs": ENDLESS, "patience": ENDLESS})
    whole = replace(prepared, settings=settings.model_copy(update={"contexts": keep, "phase2": phase2}))
    part = _part(whole, max(PART_TOKENS, PART_BATCHES * phase2.batch_positions))
    times = len(prepared.corpus.train) / len(part.corpus.train)
    begun = replace(untrained_contexts(part, layers, seed), heads=heads)
    began = time.perf_counter()
    for head in heads.values():
        score_head(part, begun, head)
    scores_s = time.perf_counter() - began
    seconds[f"{name}C{layers}, contexts and scores"] = contexts_s + times * scores_s
    _Watch(epochs=1).follow(partial(train_tokens, part, begun, spec.configuration, seed))  # to warm up
    for configuration in (run.configuration for run in runs if run.configuration):
        watch = _Watch(epochs=3)
        watch.follow(partial(train_tokens, part, begun, configuration, seed))
        epochs_s = watch.epochs_s(settings.phase2.max_epochs)
        seconds[f"{name}{configuration.name}, phase 2"] = times * epochs_s

    number = width * contexts.model.dtype.itemsize
    both = (tokens + len(prepared.corpus.validation)) * number
    # What was begun on a part holds less than all of the text: a sweep's contexts and the ones before it.
    unseen = 2 * max(0, swept - SWEPT_TOKENS) * number
    if storage == "memory":
        unseen = max(unseen, (tokens - len(contexts.train.stream)) * number)
    return _Work(
        seconds,
        # A trained embedding: all contexts are computed anew, beside those before and those of phase 1.
        more_bytes=unseen + (2 * both if settings.embeddings.trained else 0),
        disk_bytes=bytes_on_disk(tokens, width) if storage == "disk" else 0,
    )


def _timed_contexts(prepared: TrainingInputs, layers: int, seed: int) -> tuple[TrainedContexts, float]:
    """Contexts of both splits, and the seconds that they take; of a part of a long text, and of the whole."""
    tokens = len(prepared.corpus.train)
    long = tokens > CONTEXT_TOKENS
    began = time.perf_counter()
    contexts = untrained_contexts(_part(prepared, CONTEXT_TOKENS) if long else prepared, layers, seed)
    seconds_s = time.perf_counter() - began
    # In proportion, which is a little too much for what is the same for any text. The difference of two parts
    # would be exact, but on a busy machine it may be nothing.
    return contexts, seconds_s * max(1.0, tokens / CONTEXT_TOKENS)


def _storage(prepared: TrainingInputs, contexts: TrainedContexts) -> Literal["memory", "disk", "recompute"]:
    """Where the contexts of the training text will be, of which those of a part may be there."""
    tokens, settings, model = len(prepared.corpus.train), prepared.settings, contexts.model
    if tokens == len(contexts.train.stream):
        return contexts.contexts.train.storage
    if held_in_memory(model, tokens, settings.contexts, room_in_memory(model, settings)):
        return "memory"
    return kept_outside_memory(model, tokens, settings)


def _work_of_baseline(prepared: TrainingInputs, spec: RunSpec) -> _Work:
    """A network is begun; an n-gram model counts a part of the text, which is all that it costs."""
    corpus, kind = prepared.corpus, spec.kind
    if spec.seed is not None:
        seconds = seconds_of(partial(run_baseline, prepared, kind, spec.seed))
        seconds *= 1 + len(prepared.settings.baselines.learning_rates)
        # Scoring reads the validation text after every epoch, forwards only: about a third of training on it.
        return _Work({spec.label: seconds * (1 + len(corpus.validation) / len(corpus.train) / 3)})
    part, half = _part(prepared, PIECE_TOKENS), _part(prepared, PIECE_TOKENS // 2)
    whole, many, few = (len(one.corpus.train) for one in (prepared, part, half))
    began = time.perf_counter()
    run_baseline(part, kind, None, silent)
    seconds = (time.perf_counter() - began) * whole / many
    fewer, more = (allocated(partial(run_baseline, one, kind, None, silent)) for one in (half, part))
    more_bytes = (more - fewer) * (whole - many) // max(1, many - few)
    return _Work({spec.label: seconds}, 0 if prepared.device.type == "cuda" else max(0, more_bytes))


def _part(prepared: TrainingInputs, tokens: int) -> TrainingInputs:
    """The same with about so many tokens of the training text, and as large a part of the validation text."""
    corpus = prepared.corpus

    def beginning(split: TokenStream) -> TokenStream:
        many = min(len(split), max(2, len(split) * tokens // len(corpus.train)))
        return replace(split, ids=split.ids[:many])

    train, validation = beginning(corpus.train), beginning(corpus.validation)
    return replace(prepared, corpus=replace(corpus, train=train, validation=validation))


class _Enough(Exception):
    """The training has been watched for long enough."""


class _Watch:
    """Stops a training after a moment, and after so many epochs, and tells what all of it would take."""

    def __init__(self, epochs: int = 0) -> None:
        self._epochs, self._limit = epochs, 1
        self._began = time.perf_counter()
        self._ticks: list[tuple[float, float]] = []  # when, and what was done by then

    def __call__(self, tick: Tick) -> None:
        now = time.perf_counter()
        self._limit = tick.limit
        self._ticks.append((now, tick.done))
        long = len(self._ticks) >= LEAST_TICKS and now - self._began > MOMENT_S
        if long and tick.done >= self._epochs:
            raise _Enough

    def follow(self, train: Callable[[OnTick], object]) -> None:
        """Begin a training, and stop it."""
        with suppress(_Enough):
            train(self)

    def seconds(self) -> float:
        """Of the whole training, to its limit. The first step, which also sets up, is left out."""
        ticks = [(when, done) for when, done in self._ticks if done < 1] or self._ticks
        (first, before), (last, after) = ticks[0], ticks[-1]
        if len(ticks) < 2 or after <= before:
            return (ticks[-1][0] - self._began) * self._limit / ticks[-1][1]
        return (last - first) / (after - before) * self._limit

    def epochs_s(self, count: int) -> float:
        """Of so many epochs with their scores. What is done once is done by the end of the second."""
        ends = {done: when for when, done in self._ticks if done == int(done)}
        last = max(ends)
        return ends[2] - self._began + (count - 2) * (ends[last] - ends[2]) / (last - 2)


def seconds_of(train: Callable[[OnTick], object]) -> float:
    """Of a whole training that tells a watcher how far it is, by its first moments."""
    watch = _Watch()
    watch.follow(train)
    return watch.seconds()


def allocated(work: Callable[[], object]) -> int:
    """Bytes of Python and numpy at the peak of the work, which takes longer for being watched."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
