"""The grid of runs: every configuration with every seed, phase 1 shared, interrupted work taken up again."""

import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import torch

from tandem.errors import RunDirError, TandemError
from tandem.experiment.artefacts import load_phase1, phase1_path, save_model, save_phase1
from tandem.experiment.machine import PeakMemory, environment
from tandem.experiment.pipeline import (
    Prepared,
    TrainedContexts,
    count_parameters,
    phase1_fingerprint,
    prepare,
    train_contexts,
    train_tokens,
)
from tandem.experiment.run_dir import check_disk, keep_record, make_folder, only_process, open_run_dir
from tandem.model import TandemForCausalLM
from tandem.records import Phase2Record, RunRecord, read_records
from tandem.settings import Configuration, Settings
from tandem.training.progress import OnTick, Tick


class Watcher(Protocol):
    """Whoever follows an experiment while it runs."""

    def preparing(self, what: str) -> None:
        """Text, tokens or embeddings are being made."""

    def planned(self, run_dir: Path, runs: list[str], finished: int) -> None:
        """The runs of the grid, and how many of them were finished before."""

    def run_started(self, run: str) -> None:
        """One run begins."""

    def tick(self, tick: Tick) -> None:
        """Progress of the current run."""

    def run_finished(self, record: RunRecord) -> None:
        """One run was recorded, finished or failed."""


class Unwatched:
    """A Watcher that shows nothing."""

    def preparing(self, what: str) -> None:
        """Shows nothing."""

    def planned(self, run_dir: Path, runs: list[str], finished: int) -> None:
        """Shows nothing."""

    def run_started(self, run: str) -> None:
        """Shows nothing."""

    def tick(self, tick: Tick) -> None:
        """Shows nothing."""

    def run_finished(self, record: RunRecord) -> None:
        """Shows nothing."""


def run_name(configuration: Configuration, seed: int) -> str:
    """Such as C2T1-seed0."""
    return f"{configuration.name}-seed{seed}"


def run_experiment(settings: Settings, watcher: Watcher) -> tuple[Path, list[RunRecord]]:
    """Run what is not yet finished of the grid; returns the run directory and the records of all its runs.

    A run that fails is recorded with its reason, and the others go on. Raises DataError or SettingsError
    for input that no run could use, RunDirError for a run directory that cannot be used.
    """
    use_threads(settings)
    if settings.output:
        make_folder(Path(settings.output))  # an unwritable place is said before the work, not after
    prepared = prepare(settings, watcher.preparing)
    run_dir = open_run_dir(settings, prepared)
    with only_process(run_dir):
        return run_dir, _run_grid(prepared, run_dir, watcher)


def _run_grid(prepared: Prepared, run_dir: Path, watcher: Watcher) -> list[RunRecord]:
    settings = prepared.settings
    records = {record.run: record for record in read_records(run_dir)}
    grid = [(configuration, seed) for seed in settings.seeds for configuration in settings.grid]
    names = [run_name(*cell) for cell in grid]
    finished = {name for name in names if name in records and records[name].status == "finished"}
    watcher.planned(run_dir, names, len(finished))
    check_disk(run_dir, prepared, len(grid) - len(finished))

    for seed in settings.seeds:
        for context_layers in dict.fromkeys(c.context_layers for c in settings.grid):
            siblings = [c for c in settings.grid if c.context_layers == context_layers]
            pending = [c for c in siblings if run_name(c, seed) not in finished]
            if not pending:
                continue
            unpaid = not any(
                record.phase1_computed_here
                and (record.context_layers, record.seed) == (context_layers, seed)
                and record.status == "finished"
                for record in records.values()
            )
            group = _Group(prepared, run_dir, context_layers, seed, unpaid)
            for configuration in pending:
                record = group.run(configuration, watcher)
                keep_record(run_dir, record)
                records[record.run] = record
                watcher.run_finished(record)
    return [records[name] for name in names]


class _Group:
    """Runs of one context depth and seed: phase 1 and contexts are made when the first of them needs them."""

    def __init__(
        self, prepared: Prepared, run_dir: Path, context_layers: int, seed: int, unpaid: bool
    ) -> None:
        self._prepared = prepared
        self._run_dir = run_dir
        self._context_layers = context_layers
        self._seed = seed
        self._unpaid = unpaid  # no finished run has phase 1's time on its account yet
        self._shared: TrainedContexts | None = None

    def run(self, configuration: Configuration, watcher: Watcher) -> RunRecord:
        """One run, to its record; it does not raise for what only concerns this run."""
        name = run_name(configuration, self._seed)
        watcher.run_started(name)
        memory, began = PeakMemory(self._prepared.device), time.perf_counter()
        shared = None
        try:
            shared = self._phase1(watcher.tick)
            model, phase2 = train_tokens(self._prepared, shared, configuration, self._seed, watcher.tick)
            record = make_record(
                self._prepared, configuration, self._seed, model, shared, phase2, self._unpaid, memory
            )
            if self._prepared.settings.save_models:
                tokenizer = self._prepared.corpus.tokenizer
                folder = self._run_dir / "models" / name
                save_model(folder, model, tokenizer, self._prepared.settings, record)
        except OSError as error:
            # No run that follows could be kept either.
            raise RunDirError(
                f"cannot keep {name} in {self._run_dir} ({error.strerror or error}); everything recorded "
                "before is kept; mend that and give the same command again to continue"
            ) from None
        except Exception as error:
            return self._failed(configuration, error, time.perf_counter() - began)
        self._unpaid = False
        return record

    def _phase1(self, on_tick: OnTick) -> TrainedContexts:
        if self._shared is None:
            path = phase1_path(self._run_dir, self._context_layers, self._seed)
            inputs = phase1_fingerprint(self._prepared, self._context_layers, self._seed)
            saved = load_phase1(path, inputs)
            self._shared = train_contexts(self._prepared, self._context_layers, self._seed, on_tick, saved)
            if saved is None:
                save_phase1(path, self._shared.model, self._shared.phase1, inputs)
        return self._shared

    def _failed(self, configuration: Configuration, error: Exception, seconds: float) -> RunRecord:
        """A failed run's record; what is not a known kind of failure leaves its traceback in a file."""
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        name = run_name(configuration, self._seed)
        if not isinstance(error, TandemError):
            path = self._run_dir / "failures" / f"{name}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(traceback.format_exception(error)), "utf-8")
            reason = f"{type(error).__name__}: {reason} (see {path.relative_to(self._run_dir)})"
        return _record(
            self._prepared,
            configuration,
            self._seed,
            status="failed",
            failure=reason,
            seconds_spent_s=seconds,
            seconds_alone_s=seconds,
        )


def make_record(
    prepared: Prepared,
    configuration: Configuration,
    seed: int,
    model: TandemForCausalLM,
    shared: TrainedContexts,
    phase2: Phase2Record,
    phase1_computed_here: bool,
    memory: PeakMemory,
) -> RunRecord:
    """The record of a finished run; phase 1's time is spent by the one run that computed it."""
    alone = shared.seconds_s + phase2.seconds_s
    return _record(
        prepared,
        configuration,
        seed,
        status="finished",
        parameters=count_parameters(model, prepared.settings.embeddings.trained),
        phase1=shared.phase1,
        phase1_computed_here=phase1_computed_here,
        contexts=shared.contexts,
        phase2=phase2,
        seconds_spent_s=alone if phase1_computed_here else phase2.seconds_s,
        seconds_alone_s=alone,
        peak_memory_bytes=memory.read(),
    )


def _record(prepared: Prepared, configuration: Configuration, seed: int, **values: object) -> RunRecord:
    settings = prepared.settings
    return RunRecord.model_validate(
        {
            "run": run_name(configuration, seed),
            "experiment": settings.name,
            "configuration": configuration.name,
            "context_layers": configuration.context_layers,
            "token_layers": configuration.token_layers,
            "embed_dim": settings.model.embed_dim,
            "context_dim": settings.model.context_dim,
            "seed": seed,
            "settings_fingerprint": settings.fingerprint(),
            "data": prepared.data_record(),
            "environment": environment(prepared.device),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **values,
        }
    )


def train_one(
    settings: Settings, configuration: Configuration, seed: int, folder: Path, watcher: Watcher
) -> RunRecord:
    """Train one configuration with one seed into a model folder. Raises whatever stops it."""
    use_threads(settings)
    make_folder(folder)
    prepared = prepare(settings, watcher.preparing)
    watcher.planned(folder, [run_name(configuration, seed)], 0)
    check_disk(folder, prepared, 1)
    watcher.run_started(run_name(configuration, seed))
    memory = PeakMemory(prepared.device)
    shared = train_contexts(prepared, configuration.context_layers, seed, watcher.tick)
    model, phase2 = train_tokens(prepared, shared, configuration, seed, watcher.tick)
    record = make_record(prepared, configuration, seed, model, shared, phase2, True, memory)
    save_model(folder, model, prepared.corpus.tokenizer, settings, record)
    watcher.run_finished(record)
    return record


def use_threads(settings: Settings) -> None:
    """As many CPU threads as the settings name; none: torch's own choice."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
