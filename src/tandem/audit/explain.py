"""When a figure does not recompute: which known mistake gives exactly the recorded one.

An explanation is not proof; but a mistake that reproduces a figure to four digits is where to look first.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tandem.audit.reference import block_losses, contexts_at
from tandem.audit.subject import ComputedContexts, Subject
from tandem.metrics import by_document
from tandem.records import ValidationRecord

Losses = npt.NDArray[np.float32]
UNEXPLAINED = 0.2
"""Share of the discrepancy that may be left with a mistake that is named."""
CLOSE_NATS = 5e-4
"""A mistake explains a recorded NLL that it gives to within this."""


def explain_nll(subject: Subject, said: ValidationRecord) -> str | None:
    """The mistake that gives the recorded validation NLL; none if no known one does.

    Compared are the mean, and the NLL of the median document: a mistake may be made in two ways that differ
    in how they treat the ends of the text.
    """
    found = [(_distance(subject, losses, said), why) for why, losses in _mistakes(subject)]
    found += [(abs(nll - said.nll_nats), why) for why, nll in _averages(subject)]
    distance, why = min(found)
    off = abs(float(subject.validation_losses[0].mean(dtype=np.float64)) - said.nll_nats)
    return why if distance <= min(CLOSE_NATS, UNEXPLAINED * off) else None


def _distance(subject: Subject, losses: Losses, said: ValidationRecord) -> float:
    """Nats per token between what a mistake gives and what was recorded."""
    distance = abs(float(losses.mean(dtype=np.float64)) - said.nll_nats)
    if said.documents is not None:
        tokens, recorded = said.documents.unpack()
        counted, sums = by_document(losses, subject.prepared.corpus.validation.document_starts)
        if np.array_equal(tokens, counted) and len(tokens) > 2:
            distance = min(distance, float(np.median(np.abs(sums - recorded) / np.maximum(tokens, 1))))
    return distance


def _mistakes(subject: Subject) -> Iterator[tuple[str, Losses]]:
    """Each mistake in what is read or scored, and the losses that it gives."""
    model, block = subject.model, subject.validation
    zero = torch.zeros_like(block.current)
    late, early = block.previous, _shifted(block.current, -1)
    contexts = {
        "contexts that are all zero give it": (zero, zero),
        "a last token layer that reads the previous context gives it": (block.previous, late),
        "contexts of one token before give it": (_shifted(block.previous, 1), late),
        "contexts of one token after (look-ahead) give it": (block.current, early),
        "a first token layer that reads the current context gives it": (block.current, block.current),
    }
    unlike = {why: read for why, read in contexts.items() if _differs(subject, read)}
    for why, (previous, current) in unlike.items():
        yield why, block_losses(model, block, previous, current)[0]
    for ahead, why in (
        (0, "scoring the current token gives it"),
        (2, "scoring the token after next gives it"),
    ):
        yield why, block_losses(model, block, ahead=ahead)[0]
    if subject.record.kind == "tandem":
        stale = replace(subject, model=subject.initial, contexts=ComputedContexts()).validation
        yield (
            "contexts of the ContextBlock before phase 1 give it",
            block_losses(model, block, stale.previous, stale.current)[0],
        )


def _differs(subject: Subject, read: tuple[Tensor, Tensor]) -> bool:
    """Whether contexts are other ones, to a TokenBlock that may read the current context only."""
    only_current = subject.configuration.token_layers == 1
    right = (subject.validation.previous, subject.validation.current)
    pairs = list(zip(read, right, strict=True))[1 if only_current else 0 :]
    return any(not torch.equal(a, b) for a, b in pairs)


def _averages(subject: Subject) -> Iterator[tuple[str, float]]:
    """Each mistake in how right losses are averaged, and the mean it gives."""
    losses = subject.validation_losses[0].astype(np.float64)
    settings = subject.prepared.settings.phase2
    for size in (settings.chunk_positions, settings.batch_positions):
        batches = [losses[start : start + size] for start in range(0, len(losses), size)]
        if len(batches) > 1:
            whole = losses[: -len(batches[-1])]
            yield f"dropping the last partial batch of {size} gives it", float(whole.mean())
            means = [float(batch.mean()) for batch in batches]
            yield f"averaging over batches of {size} instead of tokens gives it", float(np.mean(means))


def explain_contexts(subject: Subject, split: str, positions: Tensor, recorded: Tensor, right: Tensor) -> str:
    """What the kept contexts [N, C] at positions `at` are instead of the right ones, in words."""
    length = len(subject.ids(split))
    if not bool(recorded.any()):
        return "they are all zero"
    beside = torch.stack((positions - 1, positions + 1))
    neighbours = _contexts_at(subject, split, beside.clamp(0, length - 1).flatten()).view(2, *recorded.shape)
    for number, whose in enumerate(("the token before", "the token after")):
        inside = (beside[number] >= 0) & (beside[number] < length)
        if _agree(recorded[inside], neighbours[number][inside]):
            return f"they are those of {whose}"
    if _agree(recorded, _contexts_at(subject, split, positions, initial=True)):
        return "they are those of the ContextBlock before phase 1 (stale)"
    difference = recorded - right
    spread = float(difference.std())
    if float(difference.mean(0).abs().max()) < 4 * spread / math.sqrt(len(difference)):
        return f"they differ as by noise of standard deviation {spread:.1g}"
    return f"they differ by {spread:.2g} (standard deviation)"


def _contexts_at(subject: Subject, split: str, positions: Tensor, initial: bool = False) -> Tensor:
    model = subject.initial if initial else subject.model
    return contexts_at(model, subject.ids(split), positions, 2 * subject.warm_up)[1].cpu()


def _agree(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-3)


def _shifted(contexts: Tensor, by: int) -> Tensor:
    """Contexts [T, C] moved by so many positions, zeros moved in."""
    moved = contexts.roll(by, 0)
    moved[:by] = 0.0 if by > 0 else moved[:by]
    if by < 0:
        moved[by:] = 0.0
    return moved
