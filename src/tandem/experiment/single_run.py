"""One configuration with one seed, trained into a model folder."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tandem.advice import advice
from tandem.errors import (
    RunDirError,
    TandemError,
)
from tandem.experiment.artefacts import (
    finished_model,
    model_damage,
    save_model,
    save_or_rescue,
)
from tandem.experiment.contexts import check_disk_for_contexts
from tandem.experiment.estimate import Estimate, estimated
from tandem.experiment.grid import tandem_run
from tandem.experiment.machine import PeakMemory, choose_device
from tandem.experiment.one_run import TIMING, kept_phase1, make_record, set_up_process
from tandem.experiment.pipeline import (
    train_tokens,
)
from tandem.experiment.prepared import prepare
from tandem.experiment.resuming import PHASE1, check_same_training, checkpoint_of, remove_checkpoints
from tandem.experiment.run_dir import (
    alone_in,
    check_disk,
    check_output,
    check_writable,
)
from tandem.folders import CHECKPOINTS
from tandem.group import process_group
from tandem.objectives import OBJECTIVES
from tandem.records import RunRecord
from tandem.settings import Configuration, Settings
from tandem.stopping import until_saved
from tandem.training.progress import Watcher


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
        contexts = kept_phase1(
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
