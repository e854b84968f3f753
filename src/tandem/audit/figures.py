"""Checks of the figures: what the record says, recomputed from the saved model and the data."""

import copy
import math
from collections.abc import Iterator

import numpy as np

from tandem.audit.explain import explain_nll
from tandem.audit.inputs import AuditInputs
from tandem.audit.reference import block_losses
from tandem.audit.subject import INEXACT, Subject
from tandem.metrics import by_document, perplexity
from tandem.records import Check, RunRecord, TrainingRecord, ValidationRecord
from tandem.settings import Configuration

NLL_TOLERANCE = 1e-4
"""Nats per token by which a recomputed mean may differ; single precision over many tokens stays below it."""
STARTING_NLL = 2e-3
"""The same of the start of phase 2 on training text, whose contexts may be rounded."""
TRAIN_MARGIN = 0.2
"""Nats per token by which the training text may score worse than the mean over the epoch said."""
GAP = 0.25
"""Nats outside the range of gaps that the baselines show, beyond which there is a warning."""
GAP_TOKENS = 500
"""The gap of a shorter validation text tells more of the text than of the model."""


def figure_checks(subject: Subject, gaps: dict[str, float]) -> Iterator[Check]:
    """`counts`, `perplexity`, `training` and `gap` of one run; `gaps` in nats, of each baseline.

    A quick audit leaves out the scores of single epochs.
    """
    yield counts_check(subject.prepared, subject.record)
    if subject.exact:
        yield _perplexity(subject)
    else:
        yield Check(name="perplexity", looked_at="validation figures", figure=INEXACT, status="skip")
    train_nll, error = _train_nll(subject)
    yield _training(subject, train_nll, error)
    yield gap_check(subject.record, train_nll, gaps)


def counts_check(prepared: AuditInputs, record: RunRecord) -> Check:
    """`counts` of any run, baselines included."""
    said, counted = record.data, prepared.data_record(record.seed)
    # Embeddings counted on another processor differ in their last digits; `frozen` compares them as numbers.
    wrong = [
        f"{name} {getattr(said, name)} (counted {getattr(counted, name)})"
        for name in type(said).model_fields
        if getattr(said, name) != getattr(counted, name) and name != "embeddings_fingerprint"
    ]
    scored = len(prepared.corpus.validation) - 1
    validation = record.validation
    assert validation is not None
    if validation.tokens is not None and validation.tokens != scored:
        wrong.append(f"validation scored {validation.tokens} of {scored} tokens")
    if validation.documents is not None:
        tokens, _ = validation.documents.unpack()
        right, _ = by_document(np.zeros(scored), prepared.corpus.validation.document_starts)
        if not np.array_equal(tokens, right):
            wrong.append(f"its {len(tokens)} documents hold {int(tokens.sum())} of {scored} scored tokens")
    name = record.configuration
    if record.is_tandem:
        sizes = (record.embed_dim, record.context_dim)
        assert record.context_layers is not None
        assert record.token_layers is not None
        depths = Configuration(record.context_layers, record.token_layers).name
        control = None if record.kind == "tandem" else record.kind
        name = "-".join(part for part in (record.variant, depths, control) if part is not None)
        model = prepared.settings.model
        if sizes != (model.embed_dim, model.context_dim):
            wrong.append(f"embed_dim and context_dim {sizes}")
    run = name if record.seed is None else f"{name}-seed{record.seed}"
    if (name, run) != (record.configuration, record.run):
        wrong.append(f"{record.run} of {record.configuration} is really {run}")
    return Check(
        name="counts",
        looked_at="recorded documents, tokens, bytes and fingerprints, against the data read again",
        figure="; ".join(wrong)
        or f"{counted.train_tokens:,} training and {counted.validation_tokens:,} validation tokens",
        status="fail" if wrong else "pass",
    )


def _perplexity(subject: Subject) -> Check:
    said = subject.record.validation
    assert said is not None
    losses, right = subject.validation_losses
    nll = float(losses.mean(dtype=np.float64))
    accuracy = float(right.mean())
    text = subject.prepared.corpus.validation
    bits = (float(losses.sum(dtype=np.float64)) / math.log(2) + 8 * text.lost.bytes) / text.scored_bytes
    wrong = []
    if not abs(said.nll_nats - nll) <= NLL_TOLERANCE:
        why = explain_nll(subject, said)
        wrong.append(
            f"NLL {said.nll_nats:.4f}, recomputed {nll:.4f}" + (f" ({why})" if why else " (no known mistake)")
        )
    if not math.isclose(said.perplexity, perplexity(said.nll_nats), rel_tol=1e-6):
        wrong.append(
            f"PPL {said.perplexity:.2f} is not exp of its NLL, {perplexity(said.nll_nats):.2f}"
            + _mean_of_perplexities(subject, said)
        )
    # Two logits may tie within rounding, and then either may be the arg-max.
    if abs(said.accuracy - accuracy) > 1e-4 + 2 / len(right):
        wrong.append(f"accuracy {said.accuracy:.4f}, recomputed {accuracy:.4f}")
    if not abs(said.bits_per_byte - bits) <= NLL_TOLERANCE * max(1.0, bits):
        wrong.append(f"bits per byte {said.bits_per_byte:.4f}, recomputed {bits:.4f}")
    wrong += _documents(subject, said)
    return Check(
        name="perplexity",
        looked_at="validation NLL, PPL, accuracy, bits per byte and every document's NLL, recomputed plainly",
        figure="; ".join(wrong)
        or f"PPL {perplexity(nll):.2f}, NLL within {abs(said.nll_nats - nll):.1g} nats",
        status="fail" if wrong else "pass",
    )


def _mean_of_perplexities(subject: Subject, said: ValidationRecord) -> str:
    """Whether the recorded PPL is a mean of the PPL of batches."""
    losses = subject.validation_losses[0].astype(np.float64)
    settings = subject.prepared.settings.phase2
    for size in (settings.chunk_positions, settings.batch_positions):
        batches = [losses[start : start + size] for start in range(0, len(losses), size)]
        for mean in (
            float(np.mean([perplexity(float(batch.mean())) for batch in batches])),
            perplexity(float(np.mean([batch.mean() for batch in batches]))),
        ):
            if len(batches) > 1 and math.isclose(mean, said.perplexity, rel_tol=1e-3):
                return f"; averaging over batches of {size} instead of tokens gives it"
    return ""


def _documents(subject: Subject, said: ValidationRecord) -> list[str]:
    if said.documents is None:
        return []
    tokens, recorded = said.documents.unpack()
    losses, starts = subject.validation_losses[0], subject.prepared.corpus.validation.document_starts
    ends = [*starts[1:].tolist(), len(losses) + 1]
    # The first token of the stream is not scored; token t has loss t - 1.
    sums = np.array(
        [
            losses[max(start - 1, 0) : end - 1].sum(dtype=np.float64)
            for start, end in zip(starts.tolist(), ends, strict=True)
        ]
    )
    if len(sums) != len(recorded):
        return [f"{len(recorded)} documents instead of {len(sums)}"]
    off = np.abs(sums - recorded) > NLL_TOLERANCE * np.maximum(tokens, 1) * 10 + 1e-3
    return [f"{int(off.sum())} of {len(sums)} documents have another NLL"] if off.any() else []


def _train_nll(subject: Subject) -> tuple[float, float]:
    """Training NLL of the saved model on a part of the training text, nats per token, and its error."""
    losses = np.concatenate([block_losses(subject.model, block)[0] for block in subject.training])
    return float(losses.mean(dtype=np.float64)), float(losses.std(dtype=np.float64)) / math.sqrt(len(losses))


def _training(subject: Subject, nll: float, error: float) -> Check:
    record = subject.record.phase2
    assert record is not None
    limit = record.train_nll_nats + TRAIN_MARGIN + 4 * error
    figure = f"final NLL {nll:.3f}, in its best epoch {record.train_nll_nats:.3f} nats (limit {limit:.3f})"
    if subject.quick:
        figure += "; not checked: a quick audit leaves out the scores of single epochs"
    wrong = [*_history(record), *(_epoch_scores(subject) if subject.exact and not subject.quick else ())]
    every = len(subject.prepared.corpus.train) - 1
    for epoch in record.history[0 if record.history[0].epoch else 1 :]:
        if epoch.positions != every:
            wrong.append(f"epoch {epoch.epoch} predicted {epoch.positions} tokens instead of {every}")
        elif epoch.position_sum != every * (every - 1) // 2:
            wrong.append(f"epoch {epoch.epoch} predicted some tokens twice and others never")
    status = "pass"
    settings = subject.prepared.settings.phase2
    if settings.negatives is not None:
        # Losses over a sample of the vocabulary are lower than over all of it, by an amount nobody knows.
        figure = (
            f"final NLL {nll:.3f}; in training it was over a sample of the vocabulary"
            + figure.partition(f"(limit {limit:.3f})")[2]
        )
    elif not nll <= limit:
        # In order, an epoch's mean tells of the text that was just read, and the end of it of the whole text.
        status = "fail" if settings.shuffle else "warn"
    return Check.model_validate(
        {
            "name": "training",
            "looked_at": "the saved model's training NLL; the history",
            "figure": "; ".join([*wrong, figure]),
            "status": "fail" if wrong else status,
        }
    )


def _epoch_scores(subject: Subject) -> Iterator[str]:
    """Whether the history has the scores of the start that counts as an epoch, and of the epochs whose last
    weights were kept."""
    record, settings = subject.record.phase2, subject.prepared.settings
    assert record is not None
    if settings.embeddings.trained:  # the contexts of those epochs are gone
        return
    history = {epoch.epoch: epoch for epoch in record.history}
    epoch_steps = math.ceil((len(subject.ids("train")) - 1) / settings.phase2.batch_positions)
    blocks = {} if 0 not in history else {0: subject.initial.token_block}
    for step in subject.phase2_steps:
        after = step.of("after")
        if step.step == epoch_steps and step.epoch in history and not step.of("rows"):
            blocks[step.epoch] = copy.deepcopy(subject.model.token_block)
            own = {name.removeprefix("token_block."): weights for name, weights in after.items()}
            blocks[step.epoch].load_state_dict(own, strict=False)
    for epoch, block in blocks.items():
        losses, right = subject.losses_of(block)
        nll, accuracy = float(losses.mean(dtype=np.float64)), float(right.mean())
        said = history[epoch]
        if not abs(said.validation_nll_nats - nll) <= NLL_TOLERANCE * max(1.0, nll):
            yield f"validation NLL of epoch {epoch} {said.validation_nll_nats:.4f}, recomputed {nll:.4f}"
        if abs(said.validation_accuracy - accuracy) > 1e-4 + 2 / len(right):
            yield f"accuracy of epoch {epoch} {said.validation_accuracy:.4f}, recomputed {accuracy:.4f}"
    if 0 in history and not abs(history[0].train_nll_nats - subject.starting_nll) <= STARTING_NLL:
        yield (
            f"training NLL of epoch 0 {history[0].train_nll_nats:.4f}, recomputed {subject.starting_nll:.4f}"
        )


def _history(record: TrainingRecord) -> list[str]:
    """What contradicts itself in a record of training."""
    wrong = []
    best = min(record.history, key=lambda epoch: epoch.validation_nll_nats)
    if (record.best_epoch, record.epochs) != (best.epoch, record.history[-1].epoch):
        wrong.append(
            f"best epoch {record.best_epoch} of {record.epochs}, in its history {best.epoch} of "
            f"{record.history[-1].epoch}"
        )
    if record.train_nll_nats != best.train_nll_nats:
        wrong.append(f"training NLL {record.train_nll_nats:.4f}, in its history {best.train_nll_nats:.4f}")
    if not math.isclose(record.train_perplexity, perplexity(record.train_nll_nats), rel_tol=1e-6):
        wrong.append("the training PPL is not exp of its NLL")
    return wrong


def gap_check(record: RunRecord, train_nll: float, gaps: dict[str, float]) -> Check:
    """Whether validation NLL less training NLL lies in the range that the baselines show.

    The training NLL is that of the finished model: the mean over an epoch in which it still learned a lot
    may exceed the validation NLL at its end.
    """
    looked_at = "validation NLL less the saved model's training NLL, against the range of it in " + ", ".join(
        sorted(gaps)
    )
    assert record.validation is not None
    gap = record.validation.nll_nats - train_nll
    low, high = min(gaps.values()), max(gaps.values())
    outside = max(low - gap, gap - high, 0.0)
    status = "fail" if not math.isfinite(gap) else "warn" if outside > GAP else "pass"
    figure = f"{gap:.3f} nats; baselines {low:.3f} to {high:.3f}"
    if record.data.validation_tokens < GAP_TOKENS:
        status, figure = "skip", f"{figure}; {record.data.validation_tokens} validation tokens are too few"
    return Check.model_validate({"name": "gap", "looked_at": looked_at, "figure": figure, "status": status})
