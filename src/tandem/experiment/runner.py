"""The grid of runs: every configuration with every seed, phase 1 shared, interrupted work taken up again."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

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
    finished_model,
    load_phase1,
    model_damage,
    model_record,
    phase1_fingerprint,
    phase1_path,
    phase1_snapshots,
    save_baseline,
    save_model,
    save_or_rescue,
    save_phase1,
)
from tandem.experiment.baseline import baseline_fingerprint, measured_against, run_baseline
from tandem.experiment.card import CARD, model_card, write_card
from tandem.experiment.contexts import check_disk_for_contexts
from tandem.experiment.estimate import Estimate, estimated
from tandem.experiment.executors import Executor, executor_of, helped, threads_each
from tandem.experiment.grid import RunSpec, claims, plan, tandem_run
from tandem.experiment.machine import PeakMemory, choose_device, environment, keep_freed_memory
from tandem.experiment.pipeline import (
    TrainedContexts,
    TrainedTokens,
    count_parameters,
    phase1_state,
    train_contexts,
    train_tokens,
    untrained_contexts,
)
from tandem.experiment.prepared import TrainingInputs, in_precision, prepare, prepare_variants
from tandem.experiment.resuming import PHASE1, check_same_training, checkpoint_of, remove_checkpoints
from tandem.experiment.run_dir import (
    alone_in,
    check_disk,
    check_output,
    check_same,
    check_writable,
    keep_record,
    open_run_dir,
    run_dir_of,
)
from tandem.folders import CHECKPOINTS
from tandem.group import process_group
from tandem.metrics import validation_record
from tandem.objectives import OBJECTIVES
from tandem.records import MADE_AGAIN, RunRecord, read_records, records_path
from tandem.settings import Configuration, Settings, load_extensions
from tandem.stopping import until_saved
from tandem.text.places import source_folder
from tandem.training.checkpoint import Checkpoint
from tandem.training.progress import Watcher
from tandem.training.snapshots import Snapshots

WAIT_S = 1.0
"""Seconds between two looks at what other workers have done."""
TIMING = "timing a moment of each kind of work"


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


def estimate_one(
    settings: Settings, configuration: Configuration, seed: int, folder: Path, watcher: Watcher
) -> Estimate:
    """What `train_one` would take. Raises as that does at its start, where it would refuse the folder too."""
    check_output(folder, "model folder", settings.data)
    set_up_process(settings)
    settings = OBJECTIVES[settings.recipe].for_one_run(settings, configuration.token_layers)
    prepared, spec = prepare(settings, watcher.preparing), tandem_run(configuration, seed)
    finished_model(folder, prepared, spec.name)
    check_disk_for_contexts(prepared)
    watcher.preparing(TIMING)
    return estimated({None: prepared}, settings, [spec])


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
                record = _record(prepared, spec, status="finished", peak_memory_bytes=peak, **results)
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
        return _phase1(path, prepared, context_layers, seed, self._watcher, checkpoint)


def _phase1(
    path: Path,
    prepared: TrainingInputs,
    context_layers: int,
    seed: int,
    watcher: Watcher,
    checkpoint: Checkpoint,
    needed: bool = True,
) -> TrainedContexts:
    """A phase 1 with its contexts: kept in `path`, or trained now and kept there.

    Where it is not `needed` again, a file that cannot be written is said, and no error.
    """
    inputs = phase1_fingerprint(prepared, context_layers, seed)
    objective, group = OBJECTIVES[prepared.settings.recipe], prepared.execution.group
    saved = load_phase1(path, inputs, objective)
    if saved is None and path.exists():
        watcher.preparing(f"{path} is damaged, or of other inputs; phase 1 is computed again")
    if not group.agrees(saved is not None, prepared.device):
        saved = None
    with until_saved():
        trained = train_contexts(prepared, context_layers, seed, watcher.tick, saved, checkpoint)
        if saved is not None:
            return replace(trained, snapshots=phase1_snapshots(path))
        assert trained.phase1 is not None
        if not group.leads:
            return trained
        state = phase1_state(trained.model, objective) | trained.heads.state_dict()
        try:
            save_phase1(path, state, trained.phase1, inputs, trained.snapshots)
        except Exception as error:
            if needed or not is_out_of_storage(error):
                raise
            watcher.preparing(f"cannot write phase 1 to {path} ({storage_reason(error)}); training goes on")
        else:
            checkpoint.remove()
    return trained


def _withdrawn(prepared: TrainingInputs, spec: RunSpec, failure: str) -> RunRecord:
    """The record of a run that counts no more."""
    return _record(prepared, spec, status="failed", failure=failure, seconds_spent_s=0.0, seconds_alone_s=0.0)


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
    return _record(
        prepared, spec, status="failed", failure=reason, seconds_spent_s=seconds, seconds_alone_s=seconds
    )


def make_record(
    prepared: TrainingInputs,
    spec: RunSpec,
    contexts: TrainedContexts,
    trained: TrainedTokens,
    phase1_computed_here: bool,
    memory: PeakMemory,
) -> RunRecord:
    """The record of a finished run of a Tandem model; phase 1's time is spent by the run that computed it."""
    phase2 = trained.phase2.training
    alone = contexts.seconds_s + phase2.seconds_s
    return _record(
        prepared,
        spec,
        status="finished",
        parameters=count_parameters(trained.model, prepared.settings, contexts.phase1 is not None),
        phase1=contexts.phase1,
        phase1_computed_here=phase1_computed_here,
        contexts=contexts.contexts,
        phase2=phase2,
        validation=validation_record(trained.phase2.validation, prepared.corpus.validation),
        seconds_spent_s=alone if phase1_computed_here else phase2.seconds_s,
        seconds_alone_s=alone,
        peak_memory_bytes=memory.read(),
    )


def _record(prepared: TrainingInputs, spec: RunSpec, **results: Any) -> RunRecord:
    settings, depths = prepared.settings, spec.configuration
    return RunRecord(
        run=spec.name,
        experiment=settings.name,
        folder=str(source_folder()),
        kind=spec.kind,
        recipe=settings.recipe if depths else None,
        variant=spec.variant,
        configuration=spec.label,
        context_layers=depths.context_layers if depths else None,
        token_layers=depths.token_layers if depths else None,
        embed_dim=settings.model.embed_dim if depths else None,
        context_dim=settings.model.context_dim if depths else None,
        seed=spec.seed,
        settings_fingerprint=settings.fingerprint(),
        baseline_fingerprint=baseline_fingerprint(prepared, spec.kind),
        data=prepared.data_record(spec.seed),
        environment=environment(prepared.device, prepared.execution.bfloat16),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        **results,
    )


def train_one(
    settings: Settings,
    configuration: Configuration,
    seed: int,
    folder: Path,
    watcher: Watcher,
    force_new: bool = False,
) -> RunRecord:
    """Train one configuration with one seed into a model folder. Raises whatever stops it.

    What a stopped training left there is continued, and of a finished one the record is returned; with
    `force_new` both are trained anew. Processes that `torchrun` started train it together; each returns the
    record, and the first one saves. Phase 1 then trains what this configuration needs of it only.
    """
    check_output(folder, "model folder", settings.data)
    set_up_process(settings)
    settings = OBJECTIVES[settings.recipe].for_one_run(settings, configuration.token_layers)
    with process_group(choose_device(settings.device)) as group, ExitStack() as claim:
        if group.leads:
            check_writable(folder)  # said before the work, not after
        else:
            watcher = Watcher()
        prepared = prepare(settings, watcher.preparing)
        prepared = replace(prepared, execution=replace(prepared.execution, group=group))
        spec = tandem_run(configuration, seed)
        watcher.planned(folder, [spec.name], 0)
        refused: TandemError | None = None
        phases = [
            checkpoint_of(folder, training, prepared, seed, watcher.preparing)
            for training in (f"{PHASE1}-{spec.name}", spec.name)
        ]
        if group.leads:
            try:
                claim.enter_context(alone_in(folder))
                finished_model(folder, prepared, spec.name)
                if force_new:
                    remove_checkpoints(folder)
                check_same_training(folder, *phases)
                check_disk(folder, {None: prepared}, [spec])
                check_disk_for_contexts(prepared)
            except TandemError as error:
                refused = error
        if not group.agrees(refused is None, prepared.device):  # all leave, not the first one alone
            raise refused or RunDirError(f"{folder} cannot take the model; the first process says why")
        finished = None if force_new else finished_model(folder, prepared, spec.name)
        if finished is not None and (damage := model_damage(folder)):
            watcher.preparing(f"{folder} is not what was saved ({damage}); it is trained again")
            finished = None
        if group.agrees(finished is not None, prepared.device) and finished is not None:
            if group.leads:  # they are left where it was killed once the model was saved
                remove_checkpoints(folder)
            watcher.preparing(f"{folder} is finished{advice(('train it anew with {}', 'force_new'))}")
            return finished
        watcher.run_started(spec.name)
        memory = PeakMemory(prepared.device)
        path = folder / CHECKPOINTS / f"{PHASE1}.safetensors"
        contexts = _phase1(
            path, prepared, configuration.context_layers, seed, watcher, phases[0], needed=False
        )
        with until_saved():
            trained = train_tokens(prepared, contexts, configuration, seed, watcher.tick, phases[1])
            record = make_record(prepared, spec, contexts, trained, True, memory)
            if not group.leads:
                return record
            save_or_rescue(
                folder,
                lambda place: save_model(place, trained, prepared, record, contexts.snapshots),
                "; move that folder to where there is room",
                advice("make room and train again", ("give another {}", "output")),
            )
            remove_checkpoints(folder)
        watcher.run_finished(record)
        return record


def set_up_process(settings: Settings) -> None:
    """As many CPU threads as the settings name (none: torch's own choice), which take denormals as zero.

    A softmax over a large vocabulary makes many numbers below 1e-38, with which some processors calculate
    many times more slowly. It holds for threads that are started later, so it comes before all work. Memory
    that a step frees is kept for the next one.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)
    if (threads := threads_each(settings)) is not None:
        torch.set_num_threads(threads)
