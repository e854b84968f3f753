"""The steps that a training kept whole, and how each is held against the same step taken plainly."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tandem.audit.plain import PlainStep
from tandem.checksums import check_file, check_tensors, checksum_beside, read_checksums
from tandem.errors import DamageError


@dataclass(frozen=True)
class Tolerance:
    """How far a recomputed step may be from the recorded one; what is computed in bf16 may be further.

    loss      nats.
    norm      of the gradient, a share of it.
    update    distance of the two updates of one tensor, a share of the plain one.
    """

    loss: float = 1e-4
    norm: float = 1e-3
    update: float = 0.01


ROUNDED = Tolerance(loss=0.01, norm=0.02, update=1.0)
"""Of training in bf16, or on contexts that were rounded; AdamW's first steps turn with a gradient's sign."""
ROUNDING = 1e-7
"""Of a weight in single precision, a share of it."""
EXPLAINS = 0.2
"""A cause is named where no more than this share of the discrepancy is left with it."""


@dataclass(frozen=True)
class KeptStep:
    """A step as training left it: numbers, and tensors by kind (`before`, `exp_avg`, `read`) and name."""

    epoch: int
    step: int
    loss: float
    gradient_norm: float
    lr: float
    steps_before: int
    tensors: Mapping[str, Tensor]
    seconds_s: float | None = None

    @property
    def where(self) -> str:
        """For people."""
        return f"step {self.step} of epoch {self.epoch}"

    def of(self, kind: str) -> dict[str, Tensor]:
        """Tensors of a kind, such as `before`, by the rest of their names."""
        return {n.partition("/")[2]: t for n, t in self.tensors.items() if n.startswith(f"{kind}/")}


def read_steps(path: Path) -> list[KeptStep]:
    """The kept steps in a file, each once, in the order they were made; none where none were kept.

    Raises ValueError for a file that cannot be read, or that is gone or another one than was kept.
    """
    try:
        check_file(path, read_checksums(path.parent).get(path.name) or checksum_beside(path))
        if not path.exists():
            return []
        check_tensors(path)
        with safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["steps"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        found = [
            KeptStep(
                values["epoch"],
                values["step"],
                values["loss"],
                values["gradient_norm"],
                values["lr"],
                values["steps_before"],
                {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{label}/")},
                values.get("seconds_s"),
            )
            for label, values in numbers.items()
            if values["same_as"] == label
        ]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, DamageError) as error:
        raise ValueError(f"{path.name} cannot be read ({type(error).__name__}: {error})") from None
    return sorted(found, key=lambda step: (step.epoch, step.step))


def unexplained(path: Path, timed: bool = False) -> list[str]:
    """Where weights changed between the steps of a file, or an epoch's number of steps is not the others'.

    Where training was given seconds, its last epoch may have fewer.
    """
    with safe_open(path, "pt") as file:
        epochs = json.loads(file.metadata()["epochs"])
    wrong = [
        f"epoch {epoch['epoch']} had {epoch['steps']} steps, epoch 1 had {epochs[0]['steps']}"
        for epoch in epochs
        if epoch["steps"] != epochs[0]["steps"]
        and not (timed and epoch is epochs[-1] and epoch["steps"] < epochs[0]["steps"])
    ]
    for one, other in pairwise(epochs):
        if one.get("after") != other["before"]:
            between = f"the last step of epoch {one['epoch']} and the first one of epoch {other['epoch']}"
            wrong.append(f"weights changed between {between}")
    return wrong


@dataclass(frozen=True)
class EpochMeans:
    """Of the steps of one epoch, from their sums; none of files that were written before there were any.

    loss              each step counts alike.
    gradient_norm     before clipping.
    last_loss         of its last step alone.
    """

    epoch: int
    steps: int
    loss: float
    gradient_norm: float
    last_loss: float

    def over(self, count: int, size: float) -> float:
        """The mean loss over `count` positions, `size` in each step but the last one."""
        rest = count - size * (self.steps - 1)
        return ((self.loss * self.steps - self.last_loss) * size + self.last_loss * rest) / count


def epoch_means(path: Path) -> list[EpochMeans]:
    """Of each epoch in a file of kept steps that counted them."""
    with safe_open(path, "pt") as file:
        epochs = json.loads(file.metadata()["epochs"])
    return [
        EpochMeans(e["epoch"], n, e["losses"] / n, e["gradient_norms"] / n, e["last_loss"])
        for e in epochs
        if "losses" in e and (n := e["steps"])
    ]


def differences(step: KeptStep, plain: PlainStep, tolerance: Tolerance) -> Iterator[str]:
    """What of a kept step is not as the plain one has it, each by its kind."""
    where = step.where
    if step.steps_before != plain.done:
        yield f"{step.steps_before} steps were made before {where}, the settings say {plain.done}"
    if plain.positions is not None and not torch.equal(step.of("read")["positions"].long(), plain.positions):
        yield f"{where} read other positions than the settings and the seed say"
        return
    if not math.isclose(step.lr, plain.lr, rel_tol=1e-6, abs_tol=1e-12):
        yield f"the learning rate of {where} was {step.lr:.6g}, the settings say {plain.lr:.6g}"
    if not abs(step.loss - plain.loss) <= tolerance.loss:
        yield (
            f"the loss of {where} was {step.loss:.4f}, by the settings {plain.loss:.4f}: what it read, its "
            "targets, dropout or softmax were others"
        )
    norm = plain.gradient_norm
    if not abs(step.gradient_norm - norm) <= tolerance.norm * norm + 1e-7:
        yield f"the gradient of {where} was {step.gradient_norm:.5g} long, by the settings {norm:.5g}"
    yield from _updates(step, plain, tolerance)


def _updates(step: KeptStep, plain: PlainStep, tolerance: Tolerance) -> Iterator[str]:
    """The worst tensor whose weights after the step are others, with what explains it."""
    before, after = step.of("before"), step.of("after")
    if missing := sorted(set(plain.gradients) ^ set(before)):
        yield f"{step.where} trained other parameters than the settings say, such as {missing[0]}"
        return
    off = _distances(step, plain)
    worst = max(off, key=lambda name: off[name])
    if off[worst] <= tolerance.update:
        return
    moved = float((after[worst].double() - before[worst].double()).norm())
    reason = _explained(step, plain, off[worst])
    yield (
        f"{worst} moved by {moved:.3g} in {step.where}, and otherwise than the settings say "
        f"(off by {off[worst]:.0%}){reason}"
    )


def _distances(step: KeptStep, plain: PlainStep, clipping: bool = True) -> dict[str, float]:
    """Of each parameter the distance of its weights after the step from the plain ones, as a share of how far
    these moved."""
    before, after = step.of("before"), step.of("after")
    first, second, rows = step.of("exp_avg"), step.of("exp_avg_sq"), step.of("rows")
    norm = plain.gradient_norm
    scale = plain.max_norm / norm if clipping and norm > plain.max_norm else 1.0
    found = {}
    for name, weights in before.items():
        gradient = plain.gradients[name]
        if gradient is None:
            gradient = torch.zeros_like(weights)
        elif name in rows:
            gradient = gradient.cpu()[rows[name]]
        moments = (first[name], second[name]) if name in first else None
        wanted = plain.update(weights, moments, gradient.cpu() * scale)
        moved, size = float((wanted - weights.double()).norm()), float(weights.double().norm())
        distance = float((after[name].double() - wanted).norm()) - ROUNDING * size
        found[name] = max(0.0, distance) / max(moved, ROUNDING * size, 1e-12)
    return found


def _explained(step: KeptStep, plain: PlainStep, off: float) -> str:
    """Why the weights are others, where one change of the plain step gives almost all of it."""
    tries = {
        "its gradient was not clipped": (plain, False),
        "its matrices did not decay": (replace(plain, decay=0.0), True),
        f"with the learning rate {step.lr:.4g} it would be right": (replace(plain, lr=step.lr), True),
        "AdamW's state was of another step": (replace(plain, done=0), True),
        "its betas were those of torch": (replace(plain, betas=(0.9, 0.999)), True),
    }
    for why, (other, clipping) in tries.items():
        if max(_distances(step, other, clipping).values()) <= EXPLAINS * off:
            return f": {why}"
    return ""
