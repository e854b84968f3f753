"""The grid of runs: every configuration with every seed, phase 1 shared, interrupted work taken up again."""

import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from tandem.advice import advice
from tandem.baselines import BASELINES
from tandem.claims import try_lock
from tandem.errors import (
    RunDirError,
    TandemError,
    UnsavedError,
    is_out_of_memory,
    is_out_of_storage,
    out_of_memory,
    storage_reason,
)
from tandem.experiment.artefacts import (
    model_damage,
    model_record,
    phase1_path,
    save_baseline,
    save_model,
    save_or_rescue,
)
from tandem.experiment.baseline import baseline_fingerprint, measured_against, run_baseline
from tandem.experiment.card import CARD, model_card, write_card
from tandem.experiment.contexts import check_disk_for_contexts
from tandem.experiment.estimate import Estimate, estimated
from tandem.experiment.executors import Executor, executor_of, helped
from tandem.experiment.grid import RunSpec, claims, plan
from tandem.experiment.machine import PeakMemory
from tandem.experiment.one_run import TIMING, kept_phase1, make_record, new_record, set_up_process
from tandem.experiment.pipeline import (
    TrainedContexts,
    train_tokens,
    untrained_contexts,
)
from tandem.experiment.prepared import TrainingInputs, in_precision, prepare_variants
from tandem.experiment.resuming import PHASE1, checkpoint_of
from tandem.experiment.run_dir import (
    check_disk,
    check_output,
    check_same,
    check_writable,
    keep_record,
    open_run_dir,
    run_dir_of,
)
from tandem.objectives import OBJECTIVES
from tandem.records import MADE_AGAIN, RunRecord, read_records, records_path
from tandem.settings import Settings, load_extensions
from tandem.stopping import until_saved
from tandem.training.checkpoint import Checkpoint
from tandem.training.progress import Watcher
from tandem.training.snapshots import Snapshots

WAIT_S = 1.0
"""Seconds between two looks at what other workers have done."""


def run_experiment(
    settings: Settings, watcher: Watcher, executor: Executor | None = None
) -> tuple[Path, list[RunRecord]]:
    """Run what is not yet finished of the grid; returns the run directory and the records of all its runs.

    A run that fails is recorded with its reason, and the others go on. Further workers run on `executor`;
    none: on the one that the settings name. Raises DataError or SettingsError for input that no run could
    use, or an executor that is not there. Raises RunDirError for a run directory that cannot be used.
    """
    executor = executor or executor_of(settings)  # what it lacks is said before the work, too
    set_up_process(settings)
    if settings.output:
        check_output(Path(settings.output), "run directory", settings.data)
        check_writable(Path(settings.output))  # said before the work, not after
    prepared = prepare_variants(settings, watcher.preparing)
    specs = plan(settings)
    first = next(iter(prepared.values()))
    run_dir = run_dir_of(settings, first.corpus)
    if not read_records(run_dir, watcher.preparing):  # a refusal leaves nothing behind
        _check_room(run_dir, prepared, specs)
    precision = open_run_dir(run_dir, settings, first.corpus, specs, first.precision)
    if precision != first.precision:
        watcher.preparing(f"training in {precision}, as this experiment was begun")
        prepared = in_precision(prepared, precision)
    with helped(executor, settings, run_dir, help_experiment, watcher.preparing):
        return run_dir, _Grid(prepared, specs, run_dir, watcher).work()


def estimate_experiment(settings: Settings, watcher: Watcher) -> Estimate:
    """What `run_experiment` would take from its beginning; it prepares text and tokens, and runs nothing.

    Raises as that does for its text, settings and place.
    """
    if settings.output:
        check_output(Path(settings.output), "run directory", settings.data)
    set_up_process(settings)
    prepared = prepare_variants(settings, watcher.preparing)
    watcher.preparing(TIMING)
    return estimated(prepared, settings, plan(settings))


def help_experiment(settings: Settings, run_dir: Path) -> None:
    """Work on an experiment that another process has begun, and watches, until nothing is left to do.

    Raises as `run_experiment`; RunDirError also where this machine has another text.
    """
    load_extensions()
    set_up_process(settings)
    prepared = prepare_variants(settings, lambda _: None)
    manifest = check_same(run_dir, settings, next(iter(prepared.values())).corpus)
    if manifest is not None:
        prepared = in_precision(prepared, manifest.precision)
    _Grid(prepared, plan(settings), run_dir, Watcher()).work()


def _check_room(run_dir: Path, variants: dict[str | None, TrainingInputs], specs: list[RunSpec]) -> None:
    """RunDirError or DataError where the disk has no room for what these runs save, or for contexts."""
    check_disk(run_dir, variants, specs)
    for variant in {spec.variant for spec in specs if spec.configuration is not None}:
        check_disk_for_contexts(variants[variant])


class _Grid:
    """The runs of an experiment, made by this worker and by others."""

    def __init__(
        self,
        variants: dict[str | None, TrainingInputs],
        specs: list[RunSpec],
        run_dir: Path,
        watcher: Watcher,
    ) -> None:
        reference = measured_against(variants.values())
        self._prepared = {
            spec.name: reference if spec.configuration is None else variants[spec.variant] for spec in specs
        }
        self._variants, self._specs, self._run_dir, self._watcher = variants, specs, run_dir, watcher
        self._records = {record.run: record for record in read_records(run_dir)}
        self._check_records()
        # What failed before is tried again; what fails from now on is not.
        self._to_try_again = {r.run for r in self._records.values() if r.status == "failed"}
        self._without_model = dict(self._damaged_models())
        self._to_try_again |= set(self._without_model)
        pending = self._pending()
        watcher.planned(run_dir, [spec.name for spec in specs], len(specs) - len(pending))
        _check_room(run_dir, variants, pending)

    def work(self) -> list[RunRecord]:
        """Make what nobody else makes, until nothing is left; returns the records of all runs."""
        told = False
        while pending := self._pending():
            busy = [self._work_on(claim) for claim in claims(pending)]
            self._read_records()
            if any(busy):
                continue
            if not told:
                self._watcher.preparing(f"waiting for other workers, who have {len(pending)} runs")
                told = True
            time.sleep(WAIT_S)
        records = [self._records[spec.name] for spec in self._specs]
        self._write_cards([record for record in records if record.is_tandem and record.validation])
        return records

    def _write_cards(self, records: list[RunRecord]) -> None:
        """Once all seeds are there, the cards of models tell what they have together."""
        for record in records:
            settings = self._prepared[record.run].settings
            others = [o for o in records if o.configuration == record.configuration and o.run != record.run]
            if (folder := self._run_dir / "models" / record.run).is_dir() and settings.save_models and others:
                try:
                    write_card(folder, model_card(record, settings.model.cell, others))
                except OSError as error:
                    raise RunDirError(
                        f"cannot write {CARD} to {folder} ({error.strerror or error}); everything recorded "
                        "is kept; make room and give the same command again"
                    ) from None

    def _pending(self) -> list[RunSpec]:
        """Runs that are still to be made.

        Of an experiment's own settings the run directory makes sure; a variant or a baseline may change.
        """

        def settled(spec: RunSpec) -> bool:
            record, prepared = self._records.get(spec.name), self._prepared[spec.name]
            if record is None:
                return False
            if spec.name in self._to_try_again or record.status == "failed":
                return spec.name not in self._to_try_again
            if spec.variant is not None and record.settings_fingerprint != prepared.settings.fingerprint():
                return False
            return record.baseline_fingerprint == baseline_fingerprint(prepared, spec.kind)

        return [spec for spec in self._specs if not settled(spec)]

    def _check_records(self) -> None:
        """Raises RunDirError for a record that another experiment made; tells of models without a record."""
        for spec in self._specs:
            prepared, place = self._prepared[spec.name], self._run_dir / "models" / spec.name
            if (record := self._records.get(spec.name)) is None:
                if (lost := model_record(place)) is not None and lost.run == spec.name:
                    self._watcher.preparing(
                        f"{records_path(self._run_dir)} has no record of {spec.name}, whose model is in "
                        f"{place}; the run is made again"
                    )
            elif spec.variant is None and spec.configuration is not None:  # others may change
                if record.data.tokens_fingerprint == prepared.corpus.fingerprint:
                    continue
                raise RunDirError(
                    f"{records_path(self._run_dir)} is not of this experiment: its {spec.name} was made "
                    "with other text or tokens" + advice("restore it", ("give another {}", "output"))
                )

    def _damaged_models(self) -> Iterator[tuple[str, str]]:
        """Finished runs that are made again, as what was saved of their models is damaged or gone."""
        for spec in self._specs:
            record, folder = self._records.get(spec.name), self._run_dir / "models" / spec.name
            saved = spec.configuration is not None or BASELINES[spec.kind].sized
            if record is None or record.status == "failed" or not saved:
                continue
            if self._prepared[spec.name].settings.save_models and (damage := model_damage(folder)):
                self._watcher.preparing(
                    f"{folder} is not what was saved ({damage}); {spec.name} is made again"
                )
                yield spec.name, damage

    def _work_on(self, claim: str) -> bool:
        """Make the runs of one claim that are still to be made; false where another worker has it."""
        with try_lock(self._run_dir, claim) as mine:
            if not mine:
                return False
            self._read_records()  # another worker may have had the claim, and made these runs, until now
            specs = claims(self._pending()).get(claim, [])
            get_contexts = cache(self._contexts_of)  # the runs of a claim share them
            for spec in specs:
                checkpoint = self._checkpoint(spec.name, self._prepared[spec.name], spec.seed, spec.kind)
                with until_saved():
                    record = self._run(spec, get_contexts, checkpoint)
                    # Else the audit would find a run that was made twice.
                    if damage := self._without_model.pop(spec.name, None):
                        failure = f"{MADE_AGAIN}: {damage}"
                        keep_record(self._run_dir, _withdrawn(self._prepared[spec.name], spec, failure))
                    keep_record(self._run_dir, record)
                    if record.status == "finished":  # what failed goes on from there when it is tried again
                        checkpoint.remove()
                self._add(record)
        return True

    def _read_records(self) -> None:
        """Take over what other workers have recorded."""
        for record in read_records(self._run_dir):
            if record != self._records.get(record.run):
                self._add(record)

    def _add(self, record: RunRecord) -> None:
        self._records[record.run] = record
        self._to_try_again.discard(record.run)
        if record.run in self._prepared:
            self._watcher.run_finished(record)

    def _checkpoint(
        self, training: str, prepared: TrainingInputs, seed: int | None, kind: str = "tandem"
    ) -> Checkpoint:
        return checkpoint_of(self._run_dir, training, prepared, seed, self._watcher.preparing, kind)

    def _run(
        self, spec: RunSpec, get_contexts: Callable[..., TrainedContexts], checkpoint: Checkpoint
    ) -> RunRecord:
        """One run, to its record; it does not raise for what only concerns this run."""
        prepared, watcher = self._prepared[spec.name], self._watcher
        watcher.run_started(spec.name)
        memory, began = PeakMemory(prepared.device), time.perf_counter()
        try:
            if spec.configuration is None:
                snapshots = Snapshots()
                results, weights = run_baseline(
                    prepared, spec.kind, spec.seed, watcher.tick, snapshots, checkpoint
                )
                peak = memory.read()
                record = new_record(prepared, spec, status="finished", peak_memory_bytes=peak, **results)
                if prepared.settings.save_models and weights is not None:
                    save_baseline(self._run_dir / "models" / spec.name, weights, snapshots, record)
                return record
            assert spec.seed is not None
            shared_by = (spec.kind, spec.variant, spec.configuration.context_layers, spec.seed)
            contexts = get_contexts(*shared_by)
            trained = train_tokens(
                prepared, contexts, spec.configuration, spec.seed, watcher.tick, checkpoint
            )
            paid = any(
                record.phase1_computed_here
                and record.run != spec.name
                and record.status == "finished"
                and record.settings_fingerprint == prepared.settings.fingerprint()
                and (record.kind, record.variant, record.context_layers, record.seed) == shared_by
                for record in self._records.values()
            )
            record = make_record(prepared, spec, contexts, trained, not paid, memory)
            if prepared.settings.save_models:
                again = (
                    "; everything recorded before is kept; make room, or mend the place, and give the same "
                    "command again to continue"
                )
                place = self._run_dir / "models" / spec.name
                save_or_rescue(
                    place, lambda folder: save_model(folder, trained, prepared, record), again, again
                )
            return record
        except UnsavedError:  # no run that follows could be kept either
            raise
        except Exception as error:
            if is_out_of_storage(error):  # no run that follows could be kept either
                raise RunDirError(
                    f"cannot keep {spec.name} in {self._run_dir} ({storage_reason(error)}); everything "
                    "recorded before is kept; make room, or mend the place, and give the same command again "
                    "to continue"
                ) from None
            return _failed(prepared, self._run_dir, spec, error, time.perf_counter() - began)

    def _contexts_of(self, kind: str, variant: str | None, context_layers: int, seed: int) -> TrainedContexts:
        """Contexts with or without phase 1, which is taken from the run directory where it is there.

        Raises NonFiniteLossError or ScanError.
        """
        prepared = self._variants[variant]
        if kind in BASELINES:  # the control of phase 1
            return untrained_contexts(prepared, context_layers, seed)
        path = phase1_path(self._run_dir, variant, context_layers, seed)
        checkpoint = self._checkpoint(f"{PHASE1}-{path.stem}", prepared, seed)
        return kept_phase1(path, prepared, context_layers, seed, self._watcher, checkpoint)


def _withdrawn(prepared: TrainingInputs, spec: RunSpec, failure: str) -> RunRecord:
    """The record of a run that counts no more."""
    return new_record(
        prepared, spec, status="failed", failure=failure, seconds_spent_s=0.0, seconds_alone_s=0.0
    )


def _failed(
    prepared: TrainingInputs, run_dir: Path, spec: RunSpec, error: Exception, seconds: float
) -> RunRecord:
    """A failed run's record; what is not a known kind of failure leaves its traceback in a file."""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    if is_out_of_memory(error):
        model = BASELINES[spec.kind] if spec.configuration is None else OBJECTIVES[prepared.settings.recipe]
        reason = out_of_memory(error, *model.memory_settings)
    elif not isinstance(error, TandemError):
        path = run_dir / "failures" / f"{spec.name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), "utf-8")
        reason = f"{type(error).__name__}: {reason} (see {path.relative_to(run_dir)})"
    return new_record(
        prepared, spec, status="failed", failure=reason, seconds_spent_s=seconds, seconds_alone_s=seconds
    )
