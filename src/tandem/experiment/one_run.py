"""One run: its phase 1, kept for others or taken from there, and its record."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tandem.errors import (
    is_out_of_storage,
    storage_reason,
)
from tandem.experiment.artefacts import (
    load_phase1,
    phase1_fingerprint,
    phase1_snapshots,
    save_phase1,
)
from tandem.experiment.baseline import baseline_fingerprint
from tandem.experiment.executors import threads_each
from tandem.experiment.grid import RunSpec
from tandem.experiment.machine import PeakMemory, environment, keep_freed_memory
from tandem.experiment.pipeline import (
    TrainedContexts,
    TrainedTokens,
    count_parameters,
    phase1_state,
    train_contexts,
)
from tandem.experiment.prepared import TrainingInputs
from tandem.metrics import validation_record
from tandem.objectives import OBJECTIVES
from tandem.records import RunRecord
from tandem.settings import Settings
from tandem.stopping import until_saved
from tandem.text.places import source_folder
from tandem.training.checkpoint import Checkpoint
from tandem.training.progress import Watcher

TIMING = "timing a moment of each kind of work"
"""What an estimate does, for people."""


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


def kept_phase1(
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
    return new_record(
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


def new_record(prepared: TrainingInputs, spec: RunSpec, **results: Any) -> RunRecord:
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
