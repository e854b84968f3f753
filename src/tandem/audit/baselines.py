"""Checks of baselines: some are fitted again; of the others only the record is there."""

import numpy as np

from tandem.baselines import Fitted
from tandem.experiment.prepared import TrainingInputs
from tandem.metrics import perplexity, validation_record
from tandem.records import Check, RunRecord


def refit_check(fitted: Fitted, prepared: TrainingInputs, record: RunRecord) -> Check:
    """`perplexity` of a model that was fitted and scored anew, as `fitted`."""
    said = record.validation
    assert said is not None
    right = validation_record(fitted.score, prepared.corpus.validation)
    wrong = [
        f"{name} {getattr(said, name):.4f}, recomputed {getattr(right, name):.4f}"
        for name in ("nll_nats", "perplexity", "accuracy", "bits_per_byte")
        if not np.isclose(getattr(said, name), getattr(right, name), rtol=1e-5)
    ]
    if said.documents is not None and right.documents is not None:
        ours, theirs = right.documents.unpack()[1], said.documents.unpack()[1]
        if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-3):
            wrong.append("some of its documents have another NLL")
    return Check(
        name="perplexity",
        looked_at="the model, fitted to the training text and scored again",
        figure="; ".join(wrong) or f"PPL {right.perplexity:.2f}",
        status="fail" if wrong else "pass",
    )


def consistency_check(record: RunRecord) -> Check:
    """`consistency`: a record's figures against each other, where no model is kept to recompute them from."""
    said = record.validation
    assert said is not None
    wrong = []
    if not np.isclose(said.perplexity, perplexity(said.nll_nats), rtol=1e-6):
        wrong.append(f"PPL {said.perplexity:.2f} is not exp of its NLL, {perplexity(said.nll_nats):.2f}")
    if said.documents is not None:
        tokens, nll = said.documents.unpack()
        mean = float(nll.sum() / max(int(tokens.sum()), 1))
        if not abs(mean - said.nll_nats) <= 1e-4:
            wrong.append(f"its documents have the mean NLL {mean:.4f}, it says {said.nll_nats:.4f}")
    if record.trained is not None:
        best = min(epoch.validation_nll_nats for epoch in record.trained.history)
        if best != said.nll_nats:
            wrong.append(f"the lowest NLL of its history is {best:.4f}, it says {said.nll_nats:.4f}")
    return Check(
        name="consistency",
        looked_at="the record's own figures against each other",
        figure="; ".join(wrong) or f"PPL {said.perplexity:.2f}",
        status="fail" if wrong else "pass",
    )
