"""What an experiment will take, before it is run: each kind of work is begun, timed for a moment, and scaled.

Text and tokens are prepared as for the run itself. Trainings that may end early are counted to their limit.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict

from tandem.contexts import PIECE_TOKENS, compute_contexts, held_in_memory, measure_memory
from tandem.experiment.baseline import measured_against, run_baseline
from tandem.experiment.cells import Cell, claims
from tandem.experiment.contexts import bytes_on_disk, kept_outside_memory, room_in_memory
from tandem.experiment.machine import PeakMemory
from tandem.experiment.pipeline import train_contexts
from tandem.experiment.prepared import Prepared, new_model, streams
from tandem.experiment.run_dir import disk_needed
from tandem.metrics import effective_rank, score_stream
from tandem.model import TandemForCausalLM
from tandem.settings import Configuration, Settings
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import OnTick, Tick

MOMENT_S = 2.0
"""How long each kind of work is timed, and at least so many of its steps."""
LEAST_TICKS = 4
TRIAL_BATCHES = 12
"""Batches of phase 2 in the part of the text on which contexts, scores and phase 2 are timed."""


class Part(BaseModel):
    """One kind of work: how often it will be done, and how long it takes once."""

    model_config = ConfigDict(frozen=True)
    what: str
    times: int
    seconds_s: float


class Estimate(BaseModel):
    """What an experiment will take on this machine, beside nothing else.

    seconds_s       until all runs are made, by all workers; the audit and the report come on top
    memory_bytes    of the largest worker, at its peak: of the device on CUDA, else of the process
    disk_bytes      of what is saved
    passing_bytes   of contexts that all workers keep on disk while they train, and then no more
    """

    model_config = ConfigDict(frozen=True)
    runs: int
    seconds_s: float
    memory_bytes: int | None
    disk_bytes: int
    passing_bytes: int
    parts: tuple[Part, ...]


class _Enough(Exception):
    """The work has been watched for long enough."""


class _Watch:
    """Stops a training after a moment, and tells what all of it would take."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._ticks: list[tuple[float, float]] = []  # when, and what was done by then
        self._limit = 1

    def __call__(self, tick: Tick) -> None:
        now = time.perf_counter()
        self._limit = tick.limit
        self._ticks.append((now, tick.done))
        if len(self._ticks) >= LEAST_TICKS and now - self._began > MOMENT_S:
            raise _Enough

    def seconds(self) -> float:
        """Of the whole training, to its limit. The first step, which also sets up, is left out."""
        ticks = [(when, done) for when, done in self._ticks if done < 1] or self._ticks
        (first, before), (last, after) = ticks[0], ticks[-1]
        if len(ticks) < 2 or after <= before:
            return (ticks[-1][0] - self._began) * self._limit / ticks[-1][1]
        return (last - first) / (after - before) * self._limit


def _seconds_of(train: Callable[[OnTick], object]) -> float:
    """Of a whole training that tells a watcher how far it is, by its first moments."""
    watch = _Watch()
    with contextlib.suppress(_Enough):
        train(watch)
    return watch.seconds()


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def estimated(variants: Mapping[str | None, Prepared], settings: Settings, cells: list[Cell]) -> Estimate:
    """What these runs of an experiment will take, or the training of a single one.

    Raises what they would raise at their start.
    """
    reference = measured_against(variants.values())
    memory = PeakMemory(reference.device)
    parts: list[Part] = []
    held, passing = 0, 0
    for group in _alike(cells):
        first, configuration = group[0], group[0].configuration
        prepared = reference if configuration is None else variants[first.variant]
        if configuration is None:
            seconds = _baseline_seconds(prepared, first)
            parts.append(Part(what=first.label, times=len(group), seconds_s=seconds))
        else:
            trial = _Trial(prepared, configuration.context_layers)
            parts += trial.parts(group)
            held, passing = max(held, trial.held_bytes), max(passing, trial.passing_bytes)
    peak = memory.read()
    total = sum(part.times * part.seconds_s for part in parts)
    workers = min(settings.workers, max(1, len(claims(cells))))
    return Estimate(
        runs=len(cells),
        seconds_s=total / workers,
        memory_bytes=None if peak is None else peak + held,
        disk_bytes=disk_needed(variants, cells),
        passing_bytes=workers * passing,
        parts=tuple(parts),
    )


def _alike(cells: list[Cell]) -> list[list[Cell]]:
    """Runs that differ in their seed or token depth alone."""
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        depth = cell.configuration and cell.configuration.context_layers
        key = (cell.kind, cell.variant, depth, cell.label if depth is None else None)
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def _baseline_seconds(prepared: Prepared, cell: Cell) -> float:
    if cell.seed is None:  # an n-gram, whose cost is that of counting: so much a token
        corpus, share = prepared.corpus, min(1.0, PIECE_TOKENS / len(prepared.corpus.train))
        train, validation = (
            replace(split, ids=split.ids[: max(2, round(share * len(split)))])
            for split in (corpus.train, corpus.validation)
        )
        part = replace(prepared, corpus=replace(corpus, train=train, validation=validation))
        return _timed(lambda: run_baseline(part, cell, lambda _: None)) / share
    seconds = _seconds_of(lambda on_tick: run_baseline(prepared, cell, on_tick))
    # Scoring reads the validation text after every epoch, forwards only: about a third of training on it.
    return seconds * (1 + len(prepared.corpus.validation) / len(prepared.corpus.train) / 3)


@dataclass
class _Trial:
    """The work of all runs with one variant and context depth, timed on a model that is thrown away.

    held_bytes, passing_bytes      of contexts, in memory and on disk
    train_again_s, validation_again_s    to compute a split's contexts once more, where they are not kept
    """

    prepared: Prepared
    context_layers: int
    held_bytes: int = 0
    passing_bytes: int = 0
    train_again_s: float = 0.0
    validation_again_s: float = 0.0

    def parts(self, cells: list[Cell]) -> list[Part]:
        """What these runs will take: what they share for each seed, and phase 2 for each run."""
        prepared, settings = self.prepared, self.prepared.settings
        name = "" if cells[0].variant is None else f"{cells[0].variant}, "
        name += "untrained, " if cells[0].kind == "untrained" else ""
        configuration = Configuration(self.context_layers)
        seed, seeds = settings.seeds[0], len({cell.seed for cell in cells})
        depth = f"C{self.context_layers}"
        model = new_model(prepared, configuration, seed)
        found = []
        if cells[0].kind == "tandem":
            found.append(Part(what=f"{name}{depth}, phase 1", times=seeds, seconds_s=self._phase1(seed)))
        contexts, score, split = self._contexts(model, len(settings.prediction.head_layers))
        found.append(Part(what=f"{name}{depth}, contexts and scores", times=seeds, seconds_s=contexts))
        for made, runs in Counter(cell.configuration for cell in cells if cell.configuration).items():
            # Where phase 2 starts from phase 1's token layers, these are scored on both splits first.
            epochs = settings.phase2.max_epochs
            scores = epochs + (2 if settings.phase2.start == "phase1" else 0)
            seconds = self._phase2(made, split, seed) + score * scores
            seconds += (epochs + 1) * self.train_again_s  # and for the sample that the audit reads
            found.append(Part(what=f"{name}{made.name}, phase 2", times=runs, seconds_s=seconds))
        return found

    def _phase1(self, seed: int) -> float:
        prepared, settings, share = self.prepared, self.prepared.settings, 1.0
        if settings.recipe == "seed":  # an iteration on a long text is more than a moment
            whole = settings.phase1.tokens_per_step or len(prepared.corpus.train)
            few = min(whole, 4 * settings.phase1.batch_positions)
            phase1 = settings.phase1.model_copy(update={"tokens_per_step": few})
            prepared = replace(prepared, settings=settings.model_copy(update={"phase1": phase1}))
            share = few / min(whole, len(prepared.corpus.train))
        return (
            _seconds_of(lambda on_tick: train_contexts(prepared, self.context_layers, seed, on_tick)) / share
        )

    def _contexts(self, model: TandemForCausalLM, heads: int) -> tuple[float, float, Split]:
        """Seconds of both splits' contexts with what is measured on them, and of one validation score; and
        the beginning of the training text with its contexts."""
        settings, (train, validation) = self.prepared.settings, streams(self.prepared, model)
        size = min(len(train), max(PIECE_TOKENS // 8, TRIAL_BATCHES * settings.phase2.batch_positions))
        whole = len(train) + len(validation)

        def scan(tokens: int) -> float:
            return _timed(lambda: compute_contexts(model, train.first(tokens), settings.contexts))

        scan(size // 4)  # what is done once in a process
        few, many = scan(size // 4), scan(size)
        a_token = max(0.0, many - few) / (size - size // 4)  # checks of a fixed size are in both
        begun = train.first(size)
        contexts, _ = compute_contexts(model, begun, settings.contexts)
        split = Split(begun, contexts)
        if held_in_memory(model, len(train), settings.contexts, room_in_memory(model, settings)):
            self.held_bytes = whole * model.config.context_dim * model.dtype.itemsize
        else:
            self.validation_again_s = a_token * len(validation)
            if kept_outside_memory(model, len(train), settings) == "disk":
                self.passing_bytes = bytes_on_disk(model, len(train))
            else:
                self.train_again_s = a_token * len(train)
        ranked = min(len(contexts), settings.phase1.rank_positions)
        rank = _timed(lambda: effective_rank(contexts, ranked)) * settings.phase1.rank_positions / ranked
        some = begun.first(min(size, 4 * settings.phase2.chunk_positions))
        chunk = settings.phase2.chunk_positions
        score = _timed(lambda: score_stream(model, some, contexts, chunk)) / (len(some) - 1) * len(validation)
        score += self.validation_again_s
        seconds = 2 * few + a_token * (whole - size // 2) + 2 * rank
        seconds += self.train_again_s + self.validation_again_s  # their rank is measured on all of the text
        seconds += _timed(lambda: measure_memory(model, validation))
        return seconds + (heads * score if settings.recipe == "predictive" else 0.0), score, split

    def _phase2(self, configuration: Configuration, split: Split, seed: int) -> float:
        prepared, settings = self.prepared, self.prepared.settings
        model = new_model(prepared, configuration, seed)
        tiny = Split(split.stream.first(2), split.contexts)  # its score costs nothing
        seconds = _seconds_of(
            lambda on_tick: train_token_block(model, split, tiny, settings.phase2, seed, on_tick=on_tick)
        )
        return seconds * (len(prepared.corpus.train) - 1) / (len(split.stream) - 1)
