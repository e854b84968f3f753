"""Checks of the contexts that training and validation read."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tandem.audit.explain import explain_contexts
from tandem.audit.subject import INEXACT, Subject
from tandem.contexts import ContextsSample
from tandem.metrics import effective_rank
from tandem.records import Check
from tandem.records.audit import Status

# Limits of `distribution`, beyond which it warns: the texts of the two splits differ, and so may their
# contexts. Whether they are the right ones is known from `contexts`, token by token.
NORM = 0.2
"""Relative difference of the mean length of a context."""
SHIFT = 0.5
"""Root mean square, over dimensions, of the difference of means in standard deviations."""
SPREAD = 0.3
"""Root mean square, over dimensions, of the difference of log standard deviations."""
RANK = 0.15
"""Difference of effective rank, on equally many positions, as a share of the larger."""
ZERO = 0.01
"""Difference of the shares of zero vectors."""
LEAST = 500
"""On fewer validation contexts than this, moments tell more of the text than of the contexts."""


def context_checks(subject: Subject) -> Iterator[Check]:
    """`contexts` and `distribution` of one run."""
    looked_at = "a sample of the contexts that were read"
    if subject.sample is None:
        figure = "the model folder holds no sample of contexts that can be read"
        yield Check(name="contexts", looked_at=looked_at, figure=figure, status="fail")
        return
    if subject.exact:
        yield _recomputed(subject, subject.sample)
    else:
        yield Check(name="contexts", looked_at=looked_at, figure=INEXACT, status="skip")
    yield _distribution(subject.sample, len(subject.validation))


def _recomputed(subject: Subject, sample: ContextsSample) -> Check:
    tolerance = 10 * subject.prepared.settings.contexts.tolerance
    if subject.record.contexts is not None:
        tolerance += subject.record.contexts.train.rounding
    largest, wrong, count = 0.0, [], 0
    for split in ("train", "validation"):
        positions, recorded = getattr(sample, f"{split}_at"), getattr(sample, split)
        ids = subject.ids(split)
        if len(positions) == 0 or int(positions.max()) >= len(ids):
            wrong.append(f"{split}: the sample is of a longer text")
            continue
        right = subject.contexts_at(split, positions)[1].cpu()
        difference = float((recorded - right).abs().max())
        largest = max(largest, difference)
        count += len(positions)
        if not difference <= tolerance:
            wrong.append(f"{split}: {explain_contexts(subject, split, positions, recorded, right)}")
    return Check(
        name="contexts",
        looked_at=f"{count} contexts that were read, against the recurrence recomputed token by token",
        figure=f"largest difference {largest:.2g} (limit {tolerance:.2g})"
        + (": " + "; ".join(wrong) if wrong else ""),
        status="fail" if wrong else "pass",
    )


def _distribution(sample: ContextsSample, count: int) -> Check:
    train_std, validation_std = (std.clamp(min=1e-6) for std in (sample.train_std, sample.validation_std))
    norm = abs(float(sample.validation_norm) / max(float(sample.train_norm), 1e-9) - 1)
    shift = _rms((sample.validation_mean - sample.train_mean) / train_std)
    spread = _rms((validation_std / train_std).log())
    zero = abs(float(sample.validation_zero) - float(sample.train_zero))
    ranks = [_rank(contexts) for contexts in _equally_many(sample.train, sample.validation)]
    rank = abs(ranks[0] - ranks[1]) / max(*ranks, 1e-9)
    found = {
        "length": (norm, NORM),
        "zero vectors": (zero, ZERO),
        "means": (shift, SHIFT),
        "deviations": (spread, SPREAD),
        "effective rank": (rank, RANK),
    }
    status: Status = "pass"
    if not all(bool(torch.isfinite(contexts).all()) for contexts in (sample.train, sample.validation)):
        status = "fail"
    elif count < LEAST:
        status = "skip"
    elif any(not value <= limit for value, limit in found.values()):
        status = "warn"
    shown = ", ".join(f"{name} {value:.3g}" for name, (value, _) in found.items())
    limits = ", ".join(f"{limit:g}" for _, limit in found.values())
    if status == "skip":
        limits += f"; {count} validation contexts are too few to tell"
    return Check(
        name="distribution",
        looked_at="training against validation contexts: lengths, moments by dimension, rank, zero vectors",
        figure=f"differences: {shown} (limits {limits})",
        status=status,
    )


def _rms(values: Tensor) -> float:
    value = float(values.square().mean().sqrt())
    return value if math.isfinite(value) else math.inf


def _equally_many(train: Tensor, validation: Tensor) -> tuple[Tensor, Tensor]:
    """Equally many rows of both, from the end, where they are spread over the whole text."""
    count = min(len(train), len(validation))
    return train[-count:], validation[-count:]


def _rank(contexts: Tensor) -> float:
    if not bool(torch.isfinite(contexts).all()) or not bool(contexts.any()):
        return 0.0
    return effective_rank(contexts)
