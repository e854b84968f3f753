"""One baseline, on the tokens of the experiment, to what a record says of it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from tandem.baselines import BASELINES, BaselineInputs
from tandem.experiment.prepared import TrainingInputs, total_parameters
from tandem.fingerprint import fingerprint
from tandem.metrics import validation_record
from tandem.records import Parameters
from tandem.training.checkpoint import Checkpoint
from tandem.training.progress import OnTick, silent
from tandem.training.snapshots import Snapshots


def run_baseline(
    prepared: TrainingInputs,
    kind: str,
    seed: int | None,
    on_tick: OnTick,
    snapshots: Snapshots | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[dict[str, Any], Mapping[str, Tensor] | None]:
    """Train and score a baseline; returns the fields of its record that hold results, and its weights.

    An n-gram model has no weights. A few steps are kept in `snapshots`; what `checkpoint` has is continued.
    Raises NonFiniteLossError, or SettingsError where the parameters allowed are too few.
    """
    inputs = replace(
        baseline_inputs(prepared, seed, on_tick),
        snapshots=Snapshots() if snapshots is None else snapshots,
        checkpoint=checkpoint or Checkpoint(),
    )
    fitted = BASELINES[kind].fit(inputs)
    total = fitted.embedding_parameters + fitted.other_parameters
    search_s = sum(trial.seconds_s for trial in fitted.training.search) if fitted.training else 0.0
    results = {
        "parameters": Parameters(
            embedding=fitted.embedding_parameters,
            other=fitted.other_parameters,
            total=total,
            trained_phase1=0,
            trained_phase2=total,
        ),
        "training": fitted.training,
        "validation": validation_record(fitted.score, prepared.corpus.validation),
        "seconds_spent_s": fitted.seconds_s + search_s,
        "seconds_alone_s": fitted.seconds_s,
    }
    return results, fitted.weights


def baseline_inputs(prepared: TrainingInputs, seed: int | None, on_tick: OnTick = silent) -> BaselineInputs:
    """What the baselines of an experiment are fitted with."""
    corpus = prepared.corpus
    return BaselineInputs(
        corpus.train.ids,
        corpus.validation.ids,
        corpus.vocab_size,
        prepared.settings,
        parameters_allowed(prepared),
        seed,
        prepared.device,
        prepared.execution,
        on_tick,
    )


def measured_against(prepared: Iterable[TrainingInputs]) -> TrainingInputs:
    """The variant whose sizes the baselines are given: no other one has more parameters."""
    return max(prepared, key=_smallest)


def parameters_allowed(prepared: TrainingInputs) -> int:
    """Of sized baselines: what the settings say, else as many as the smallest configuration has."""
    allowed = prepared.settings.baselines.max_parameters
    return _smallest(prepared) if allowed is None else allowed


def _smallest(prepared: TrainingInputs) -> int:
    return min(total_parameters(prepared, configuration) for configuration in prepared.settings.grid)


def baseline_fingerprint(prepared: TrainingInputs, kind: str) -> str | None:
    """Of what a baseline's result depends on beside text and tokens; none where that is nothing."""
    baseline = BASELINES.get(kind)  # none: a configuration that is compared
    own = baseline and baseline.depends_on(prepared.settings, parameters_allowed(prepared))
    return fingerprint("baseline", kind, own) if own else None
