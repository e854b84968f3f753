"""One baseline, on the tokens of the experiment, to what a record says of it."""

from collections.abc import Iterable
from typing import Any

from tandem.baselines import Fitted, Task, fit_gpt2, fit_lstm, fit_ngram
from tandem.experiment.cells import Cell
from tandem.experiment.prepared import Prepared, total_parameters
from tandem.metrics import validation_record
from tandem.records import Parameters
from tandem.training.progress import OnTick


def run_baseline(prepared: Prepared, cell: Cell, on_tick: OnTick) -> dict[str, Any]:
    """Train and score the baseline of `cell`; returns the fields of its record that hold results.

    Raises NonFiniteLossError, or SettingsError where the parameters allowed are too few.
    """
    fitted = _fit(prepared, cell, on_tick)
    total = fitted.embedding_parameters + fitted.other_parameters
    return {
        "parameters": Parameters(
            embedding=fitted.embedding_parameters,
            other=fitted.other_parameters,
            total=total,
            trained_phase1=0,
            trained_phase2=total,
        ),
        "training": fitted.training,
        "validation": validation_record(fitted.score, prepared.corpus.validation),
        "seconds_spent_s": fitted.seconds_s,
        "seconds_alone_s": fitted.seconds_s,
    }


def measured_against(prepared: Iterable[Prepared]) -> Prepared:
    """The variant whose sizes the LSTM and the GPT-2 are given: the one with most parameters, so that no
    variant has more than they do."""
    return max(prepared, key=_smallest)


def parameters_allowed(prepared: Prepared) -> int:
    """Of the LSTM and the GPT-2: what the settings say, else as many as the smallest configuration has."""
    allowed = prepared.settings.baselines.max_parameters
    return _smallest(prepared) if allowed is None else allowed


def _smallest(prepared: Prepared) -> int:
    return min(total_parameters(prepared, configuration) for configuration in prepared.settings.grid)


def baseline_fingerprint(prepared: Prepared, kind: str) -> str | None:
    """Of a baseline's own settings, and of how many parameters it may have."""
    return prepared.settings.baselines.fingerprint(kind, parameters_allowed(prepared))


def _fit(prepared: Prepared, cell: Cell, on_tick: OnTick) -> Fitted:
    settings, corpus = prepared.settings, prepared.corpus
    task = Task(corpus.train.ids, corpus.validation.ids, corpus.vocab_size)
    if cell.kind in ("kneser-ney", "bigram", "unigram"):
        return fit_ngram(cell.kind, task, settings.baselines.order)
    assert cell.seed is not None  # the others are drawn at random
    allowed, chunk = parameters_allowed(prepared), settings.phase2.chunk_positions
    if cell.kind == "lstm":
        return fit_lstm(
            task, settings.model.embed_dim, allowed, settings.baselines.lstm, cell.seed, prepared.device,
            chunk, on_tick, prepared.execution,
        )  # fmt: skip
    if cell.kind == "gpt2":
        return fit_gpt2(
            task, allowed, settings.baselines.gpt2, cell.seed, prepared.device,
            chunk, on_tick, prepared.execution,
        )  # fmt: skip
    raise ValueError(f"{cell.kind} is not a baseline of its own")
