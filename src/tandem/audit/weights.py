"""Checks of the weights: what was frozen, what was trained, and whose phase 1 it is."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from tandem.audit.parts import Start, part_prints, parts_of
from tandem.audit.plain import linear_rate
from tandem.audit.subject import SAME_WEIGHT, Subject
from tandem.records import Check, Parameters, PartRecord
from tandem.settings import Phase2Settings, Settings

FURTHER = 2.0
"""An element may move so many times the learning rate in a step: with a changing gradient, AdamW's may."""


def weight_checks(subject: Subject) -> Iterator[Check]:
    """`frozen`, `trained`, `phase1` and `parameters` of one run."""
    yield _frozen(subject)
    yield _trained(subject)
    yield _phase1(subject)
    yield _parameters(subject)


def _may_change(subject: Subject, part: str) -> bool:
    """Whether any phase of this run was to train the part."""
    if part.startswith("token_block"):
        return True
    if subject.record.kind == "tandem" and _left_by_phase1(subject, part):
        return True
    return part in ("embedding", "lm_head") and subject.prepared.settings.embeddings.trained


def _left_by_phase1(subject: Subject, part: str) -> bool:
    """Whether the part is one that phase 1 trains and leaves to phase 2; the head is the embedding."""
    child = "embedding" if part == "lm_head" else part.split(".")[0]
    return child in subject.objective.parts


def _frozen(subject: Subject) -> Check:
    looked_at = "weights that no phase may change, against those the run started from; hashes of each phase"
    now = subject.parts
    moved = [part for part in now if not _may_change(subject, part) and not subject.unmoved(part)]
    phases = _phases(subject)
    moved += [
        f"{record.part} (in {phase})"
        for phase, parts in phases.items()
        for record in parts
        if record.before != record.after and not record.trained
    ]
    # What phase 1 left is what phase 2 found, and what phase 2 left is what was saved.
    after = {record.part: record.after for record in phases.get("phase 1", ())}
    for record in phases.get("phase 2", ()):
        left = _left_by_phase1(subject, record.part)
        if left and after.get(record.part, record.before) != record.before:
            moved.append(f"{record.part} (between the phases)")
        if record.after != now.get(record.part):
            moved.append(f"{record.part} (after phase 2)")
    if moved:
        return _check("frozen", looked_at, f"changed: {', '.join(dict.fromkeys(moved))}", "fail")
    count = sum(not _may_change(subject, part) for part in now)
    return _check("frozen", looked_at, f"{count} parts unchanged", "pass")


def _trained(subject: Subject) -> Check:
    looked_at = "every part that a phase trains: did a gradient reach it, and did it change"
    phases = _phases(subject)
    wrong = []
    for phase, parts in phases.items():
        for record in parts:
            if phase == "phase 2" and _kept_start(subject):
                if record.before != record.after:
                    wrong.append(f"{record.part} changed in phase 2, whose start was kept")
            elif record.trained and record.before == record.after:
                wrong.append(f"{record.part} did not change in {phase}")
            if record.trained and not record.gradient:
                wrong.append(f"no gradient reached all of {record.part} in {phase}")
            elif not record.trained and record.gradient:
                wrong.append(f"a gradient reached {record.part} in {phase}")
        expected = {part for part in subject.parts if _trains(subject, phase, part)}
        if phase == "phase 1" and subject.objective.parts:
            expected |= {name for name, _ in parts_of(subject.heads)}
        said = {record.part for record in parts if record.trained}
        if expected != said:
            wrong.append(f"{phase} was to train {_names(expected)}, and trained {_names(said)}")
    unchanged = [
        part
        for part in subject.parts
        if _may_change(subject, part)
        and not (_kept_start(subject) and part.startswith("token_block"))
        and subject.unmoved(part, 0.0)
    ]
    if record_phase2 := subject.record.phase2:
        wrong += [
            f"{part.part} did not start from the weights of seed {subject.seed}"
            for part in record_phase2.parts
            if part.part.startswith(("token_block", "emb"))
            and not (_left_by_phase1(subject, part.part) and subject.record.kind == "tandem")
            and not _starts_as(subject, part, subject.initial_start[part.part])
        ]
    wrong += [f"{part} is as it was before training" for part in unchanged]
    wrong += _distances(subject)
    count = sum(record.trained for parts in phases.values() for record in parts)
    return _check(
        "trained",
        looked_at,
        "; ".join(dict.fromkeys(wrong)) or f"{count} parts trained",
        "fail" if wrong else "pass",
    )


def _distances(subject: Subject) -> Iterator[str]:
    """Tensors that a phase left where they were, or moved further than its learning rates can.

    AdamW moves an element by about the learning rate in a step, and by decay towards zero. A tensor that both
    phases trained is not looked at.
    """
    record, settings = subject.record, subject.prepared.settings
    assert record.phase2 is not None
    count, moved = len(subject.prepared.corpus.train) - 1, settings.embeddings.trained
    saved = subject.model.named_weights()
    saved.pop("lm_head.weight", None)  # the embedding
    if record.phase2.best_epoch > 0:
        own = settings.phase2
        rates = _phase2_rates(own, count, record.phase2.best_epoch)
        trained = {name: saved[name] for name in saved if name.startswith("token_block.")}
        yield from _too_far(trained, subject.initial.named_weights(), rates, own.weight_decay, "phase 2")
    if record.phase1 is not None and settings.recipe in PHASE1_RATES and not moved:
        rates, decay = PHASE1_RATES[settings.recipe](settings, count, record.phase1)
        parts = tuple(f"{part}." for part in subject.objective.parts)
        trained = {name: saved[name] for name in saved if name.startswith(parts)}
        yield from _too_far(trained, subject.phase1_start.named_weights(), rates, decay, "phase 1")


def _too_far(
    saved: Mapping[str, Tensor], start: Mapping[str, Tensor], rates: float, decay: float, phase: str
) -> Iterator[str]:
    """Of tensors by name; `rates` is the sum of the learning rates of all steps."""
    for name, weights in saved.items():
        distance = float((weights.double() - start[name].double()).norm())
        limit = FURTHER * rates * math.sqrt(weights.numel())
        limit += rates * decay * float(start[name].double().norm())
        if distance == 0:
            yield f"{name} is as it was before {phase}"
        elif distance > limit:
            yield f"{name} moved by {distance:.3g} in {phase}, and its learning rates allow {limit:.3g}"


def _phase2_rates(own: Phase2Settings, count: int, epochs: int) -> float:
    epoch_steps = math.ceil(count / own.batch_positions)
    steps, steps_made = own.max_epochs * epoch_steps, epochs * epoch_steps
    if own.schedule == "constant":
        return own.lr * steps_made
    return own.lr * sum(linear_rate(done, steps, min(50, steps // 10)) for done in range(steps_made))


def _prediction_rates(settings: Settings, count: int, _record: Any) -> tuple[float, float]:
    own = settings.prediction
    epoch_steps = math.ceil(math.ceil(count / min(own.streams, count)) / own.window)
    steps = own.max_epochs * epoch_steps
    rates = own.lr * sum(linear_rate(done, steps, min(100, steps // 10)) for done in range(steps))
    return rates, own.decay_per_epoch / (own.lr * epoch_steps)


def _dispersion_rates(settings: Settings, _count: int, record: Any) -> tuple[float, float]:
    return settings.phase1.lr * (record.iterations - 1), 0.0


PHASE1_RATES: dict[str, Callable[[Settings, int, Any], tuple[float, float]]] = {
    "original": _dispersion_rates,
    "predictive": _prediction_rates,
}
"""By recipe: of settings, positions and record the sum of all learning rates, and the decay."""


def _kept_start(subject: Subject) -> bool:
    """Whether phase 2 ended with the weights it started from, since no epoch made them better."""
    phase2 = subject.record.phase2
    return phase2 is not None and phase2.best_epoch == 0


def _trains(subject: Subject, phase: str, part: str) -> bool:
    if phase == "phase 1":
        return _left_by_phase1(subject, part)
    return part.startswith("token_block") or (
        part in ("embedding", "lm_head") and subject.prepared.settings.embeddings.trained
    )


def _phase1(subject: Subject) -> Check:
    looked_at = "phase 1: start and result, against this depth and seed and the saved ContextBlock"
    record = subject.record
    if record.phase1 is None:
        same = all(subject.unmoved(part) for part in subject.parts if part.startswith("context_block"))
        said = "the control's ContextBlock has the weights it started with"
        return _check(
            "phase1", looked_at, said if same else "the control was trained", "pass" if same else "fail"
        )
    ours = [part for part in record.phase1.parts if _left_by_phase1(subject, part.part)]
    drawn = [part for part in record.phase1.parts if part.trained]
    wrong = []
    if not all(_starts_as(subject, part, subject.phase1_parts[part.part]) for part in drawn):
        wrong.append(f"it did not start from the weights of seed {subject.seed}{_of_sibling(subject, ours)}")
    moved = "embedding" if subject.prepared.settings.embeddings.trained else None
    if any(part.after != subject.parts[part.part] for part in ours if part.part != moved):
        wrong.append("its result is not what was saved")
    settings, tokens = subject.prepared.settings, len(subject.prepared.corpus.train)
    wrong += subject.objective.audit(record.phase1, settings, tokens)
    wrong += _head(subject)
    said = (
        f"from the weights of seed {subject.seed} to those that were saved, {record.phase1.tokens:,} tokens"
    )
    return _check("phase1", looked_at, "; ".join(wrong) or said, "fail" if wrong else "pass")


def _starts_as(subject: Subject, part: PartRecord, wanted: Start) -> bool:
    """Whether a phase found a part as it was to: every weight, where the same instructions draw them here.

    Elsewhere some weights, to SAME_WEIGHT. An embedding that was counted is compared by its own check.
    """
    if part.before == wanted.fingerprint:
        return True
    counted = (
        part.part in ("embedding", "lm_head") and subject.prepared.settings.embeddings.source == "spectral"
    )
    near = all(abs(a - b) <= SAME_WEIGHT for a, b in zip(part.start, wanted.weights, strict=True))
    return near and (counted or not subject.drawn_alike)


def _head(subject: Subject) -> list[str]:
    """Whether the token layers that phase 2 started from are those that phase 1 ended with."""
    record, head = subject.record, subject.phase1_head
    if subject.prepared.settings.phase2.start != "phase1" or record.phase1 is None:
        return []
    if head is None:
        return ["phase 2 started from its token layers, and the model folder does not hold them"]
    found, (prefix,) = part_prints(head), (f"{name}." for name in head)
    said = {part.part: part.after for part in record.phase1.parts if part.part.startswith(prefix)}
    return [f"its {name} is not what phase 2 started from" for name in said if found.get(name) != said[name]]


def _of_sibling(subject: Subject, ours: list[PartRecord]) -> str:
    """The other seed of the experiment whose phase 1 this is, if it is one's."""
    for sibling in subject.siblings:
        if sibling.seed == subject.seed or sibling.phase1 is None:
            continue
        theirs = {part.part: part.after for part in sibling.phase1.parts}
        if all(theirs.get(part.part) == part.after for part in ours):
            return f"; the phase 1 of {sibling.run} has the same result"
    return ""


def _parameters(subject: Subject) -> Check:
    looked_at = "recorded parameter counts, against the saved model and the parts that really changed"
    said = subject.record.parameters
    assert said is not None
    counted = _counted(subject)
    wrong = [
        f"{name} {getattr(said, name):,} (counted {getattr(counted, name):,})"
        for name in Parameters.model_fields
        if getattr(said, name) != getattr(counted, name)
    ]
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts_of(subject.model)}
    sizes["lm_head"] -= sizes["embedding"]  # the head is the embedding, and counts its bias only
    for phase, parts in _phases(subject).items():
        # The heads of phase 1 are no part of the model.
        changed = sum(sizes.get(r.part, 0) for r in parts if r.before != r.after)
        trained = said.trained_phase1 if phase == "phase 1" else said.trained_phase2
        if changed != (0 if phase == "phase 2" and _kept_start(subject) else trained):
            wrong.append(f"{phase} is said to train {trained:,} and changed {changed:,}")
    return _check(
        "parameters", looked_at, "; ".join(wrong) or f"{counted.total:,} in all", "fail" if wrong else "pass"
    )


def _counted(subject: Subject) -> Parameters:
    """Parameters of the saved model by part, and those of the parts that each phase is to train."""
    children = dict(subject.model.model.named_children())
    names = ("embedding", "embed_norm", "context_block", "token_block")
    counts = {name: sum(p.numel() for p in children[name].parameters()) for name in names}
    bias = subject.model.lm_head.bias
    counts["head"] = 0 if bias is None else bias.numel()  # the head's matrix is the embedding
    by_phase1 = subject.objective.parts if subject.record.kind == "tandem" else ()
    moving = counts["embedding"] if subject.prepared.settings.embeddings.trained else 0
    return Parameters(
        **counts,
        total=sum(counts.values()),
        trained_phase1=sum(counts["head" if part == "lm_head" else part] for part in by_phase1),
        trained_phase2=counts["token_block"] + moving,
    )


def _phases(subject: Subject) -> dict[str, tuple[PartRecord, ...]]:
    record = subject.record
    phases = {"phase 1": record.phase1, "phase 2": record.phase2}
    return {name: phase.parts for name, phase in phases.items() if phase is not None and phase.parts}


def _names(parts: set[str]) -> str:
    return ", ".join(sorted(parts)) or "nothing"


def _check(name: str, looked_at: str, figure: str, status: str) -> Check:
    return Check.model_validate({"name": name, "looked_at": looked_at, "figure": figure, "status": status})
