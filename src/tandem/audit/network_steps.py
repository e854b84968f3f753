"""The kept steps of a baseline's training, made again plainly from the settings and the seed."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tandem.audit.networks import Ids, PlainNetwork, State, TokenBatch, tokens_at
from tandem.audit.plain import PlainStep
from tandem.audit.steps import KeptStep
from tandem.records import TrainingRecord

BUDGET_BYTES = 16 << 20
"""Of all kept steps together; of a network whose step takes over four times as much there is none."""
SAME_WEIGHT = 1e-4
"""Weights drawn from one seed on two processors differ by less."""
TOLERANCE, ON_A_GPU, IN_BFLOAT16 = 1e-4, 5e-3, 0.05
"""Relative differences of gradients and of changes of weights; of losses a tenth. GPUs use TF32 in LSTMs."""
EXPLAINS = 0.1
"""Of a difference so much may be left where a cause is named."""
SAME_AVERAGE = 1e-5
"""Averages of weights computed in two ways differ by less."""
BETAS = (0.9, 0.999)
"""AdamW's."""
ROUNDING = 2.4e-7
"""Of a weight in single precision, over a step."""


def start_findings(network: PlainNetwork, first: KeptStep) -> Iterator[str]:
    """What is wrong with the weights and random draws before step 1; the network is as the seed draws it."""
    before, exact = first.of("before"), True
    for name, weight in network.module.named_parameters():
        wanted = _rows(first, name, weight.detach())
        if name not in before or before[name].shape != wanted.shape:
            yield f"{name} has another shape"
            return
        off = float((before[name] - wanted).abs().max())
        exact &= off == 0
        if not off <= SAME_WEIGHT:
            yield f"{name} was not as the seed draws it (by {off:.2g})"
    state = first.tensors["read/random"]
    if exact and state.shape == network.random_state.shape and not torch.equal(state, network.random_state):
        yield "dropout was not drawn from the seed"


@dataclass(frozen=True)
class _Left:
    """What a step left for the next one: its clipped gradients, its state."""

    number: int
    gradients: Mapping[str, Tensor]
    state: State | None


@dataclass
class Replay:
    """Makes kept steps again.

    train       [T] the training text.
    bfloat16    whether that training multiplied in bf16.
    limit       TOLERANCE or another of these, by device and precision.
    draws       whether random draws here are those of the device that it was trained on.
    notes       what could not be looked at, and why.
    """

    network: PlainNetwork
    train: Ids
    seed: int
    bfloat16: bool
    limit: float
    draws: bool
    notes: list[str] = field(default_factory=list)
    _left: _Left | None = None

    def findings(
        self, steps: Sequence[KeptStep], training: TrainingRecord, weights: Mapping[str, Tensor]
    ) -> list[str]:
        """What is wrong with these steps, in order; each kind of finding once, with its cause where known."""
        found = list(self._places(steps, training, weights))
        for step in steps:
            found += self._step(step)
        alike: dict[str, list[str]] = {}
        for fault in found:  # they differ in their numbers
            alike.setdefault(re.sub(r"[\d.]+", "", fault), []).append(fault)
        more = (f" (and {len(faults) - 1} more like this)" if faults[1:] else "" for faults in alike.values())
        return [faults[0] + rest for faults, rest in zip(alike.values(), more, strict=True)]

    def _places(
        self, steps: Sequence[KeptStep], training: TrainingRecord, weights: Mapping[str, Tensor]
    ) -> Iterator[str]:
        """Whether these are the steps of the settings; whether the best one led to these weights."""
        best_epoch = training.best_epoch
        end, epochs = self.network.epoch_size(len(self.train))[0], self.network.own.max_epochs
        last = end
        if self.network.limit_s is not None and training.steps is not None:
            epochs, last = training.epochs, training.steps - (training.epochs - 1) * end
            if not 1 <= last <= end:
                yield f"{training.steps} steps are not those of {epochs} epochs, of {end} steps each"
                return

        def end_of(epoch: int) -> tuple[int, int]:
            return epoch, last if epoch == epochs else end

        # Which are kept, the most important first.
        second = (1, 2) if end_of(1)[1] > 1 else (2, 1)
        several = [second] if end_of(1)[1] > 1 or epochs > 1 else []
        wanted = [end_of(epochs), end_of(best_epoch), (1, 1), *several, end_of(1)]
        sizes = [sum(part.nbytes for part in step.tensors.values()) for step in steps]
        size = max([4 * sum(weight.nbytes for weight in weights.values()), *sizes])
        there = {(step.epoch, step.step): step for step in steps}
        if not steps and size <= 4 * BUDGET_BYTES:
            yield "none of them is kept"
            return
        for epoch, step in wanted[: max(size <= 4 * BUDGET_BYTES, BUDGET_BYTES // size)]:
            if (epoch, step) not in there:
                yield f"training did not come to step {step} of epoch {epoch}, as the settings say"
        if steps and (epochs, last) < (steps[-1].epoch, steps[-1].step):
            yield f"training came to {steps[-1].where}, by the settings to step {last} of epoch {epochs}"
        yield from self._times(steps, training)
        if (best := there.get(end_of(best_epoch))) is not None:
            losses = [epoch.validation_nll_nats for epoch in training.history]
            before = self.network.unaveraged(losses[: best_epoch - 1])
            averaged = 0 if before is None else (best_epoch - 1 - before) * end + best.step
            after = _averaged(best, averaged) if averaged else best.of("after")
            if other := [
                name
                for name in after
                if not torch.allclose(
                    after[name], _rows(best, name, weights[name]), rtol=0, atol=SAME_AVERAGE * bool(averaged)
                )
            ]:
                mean = f" on the average of {averaged} steps" if averaged else ""
                yield f"the saved weights are not those after {best.where}, the best one{mean} ({other[0]})"

    def _times(self, steps: Sequence[KeptStep], training: TrainingRecord) -> Iterator[str]:
        """Where training is given seconds, whether each step has some that its epoch had."""
        if self.network.limit_s is None:
            return
        ends = {0: 0.0, **{epoch.epoch: epoch.seconds_s for epoch in training.history}}
        for step in steps:
            first, last = ends.get(step.epoch - 1, math.inf), ends.get(step.epoch, 0.0)
            if step.seconds_s is None or not first <= step.seconds_s <= last:
                yield (
                    f"{step.where} was made after {step.seconds_s} s, and its epoch took those from "
                    f"{first:.3f} to {last:.3f}"
                )

    def _step(self, step: KeptStep) -> Iterator[str]:
        network, tokens = self.network, len(self.train)
        number = (step.epoch - 1) * network.epoch_size(tokens)[0] + step.step
        left = self._left if self._left is not None and self._left.number == number - 1 else None
        self._left = None
        lr, read = network.learning_rate(tokens, number, step.seconds_s), step.of("read")
        lr *= network.rate(tokens, self.seed, step.epoch, step.step)
        if step.steps_before != number - 1:
            yield f"{step.steps_before} steps were made before {step.where}, the settings say {number - 1}"
        if not abs(step.lr - lr) <= 1e-6 * lr:
            yield f"the learning rate of {step.where} was {step.lr:.4g}, the settings say {lr:.4g}"
        positions, real = network.positions(tokens, self.seed, step.epoch, step.step)
        inputs, targets = tokens_at(self.train, positions), tokens_at(self.train, positions + 1)[real]
        if read["inputs"].shape != inputs.shape or not torch.equal(read["inputs"][real], inputs[real]):
            yield f"{step.where} read other tokens than the settings and the seed say"
            return
        if not torch.equal(read["targets"], targets):
            yield f"{step.where} learned other targets than the tokens that follow"
            return
        state = (read["h"], read["c"]) if "h" in read else None
        if network.has_state:
            yield from self._state(step, state, left)
        if number == 2 and left is not None:
            yield from self._moments(step, left)
        if not self.draws and network.drops:
            return
        if any(len(rows) < len(network.module.get_parameter(n)) for n, rows in step.of("rows").items()):
            self.notes.append(f"{step.where} is kept in part")
            return
        yield from self._again(step, TokenBatch(inputs, targets, real, state), number)

    def _state(self, step: KeptStep, state: State | None, left: _Left | None) -> Iterator[str]:
        nothing = state is None or not any(bool(part.any()) for part in state)
        if (step.step == 1) != nothing:
            yield f"the state before {step.where} was {'' if nothing else 'not '}zero"
        elif step.step > 1 and state is not None and left is not None and left.state is not None:
            off = max(_relative(own, right) for own, right in zip(state, left.state, strict=True))
            if not off <= self.limit:
                yield f"the state before {step.where} was not the one after the step before it"

    def _moments(self, step: KeptStep, left: _Left) -> Iterator[str]:
        """AdamW's moments before step 2: they tell to what length the gradient of step 1 was clipped."""
        first, second, names = step.of("exp_avg"), step.of("exp_avg_sq"), sorted(left.gradients)
        gradient = torch.cat(
            [_rows(step, name, left.gradients[name]).flatten().cpu() for name in names]
        ).double()
        one = torch.cat([first[name].flatten() for name in names]).double() / (1 - BETAS[0])
        two = torch.cat([second[name].flatten() for name in names]).double() / (1 - BETAS[1])
        scale = float(one @ gradient / (gradient @ gradient))
        if _relative(one, scale * gradient) > self.limit or _relative(two, one.square()) > 2 * self.limit:
            yield f"AdamW's moments before {step.where} were not those of the gradient of the step before it"
        elif not abs(scale - 1) <= self.limit:
            length = float(gradient.norm())
            yield (
                f"the gradient of the step before {step.where} was clipped to {scale * length:.3g}, the "
                f"settings say {self.network.own.max_grad_norm:.3g}"
            )

    def _gradient(
        self, step: KeptStep, batch: TokenBatch, dropout: bool = True, single: bool = False
    ) -> tuple[float, dict[str, Tensor], State | None]:
        """See PlainNetwork; with the random draws of the step. `single`: in single precision in any case."""
        self.network.module.train(dropout)
        with _drawing(step.tensors["read/random"], self.network.device):
            return self.network.gradient(batch, self.bfloat16 and not single)

    def _again(self, step: KeptStep, batch: TokenBatch, number: int) -> Iterator[str]:
        """Its loss, its gradient, and the weights after it."""
        self.network.module.load_state_dict(step.of("before"))
        loss, gradients, state = self._gradient(step, batch)
        own = self.network.own
        plain = PlainStep(loss, gradients, number - 1, step.lr, own.max_grad_norm, BETAS, own.weight_decay)
        if not abs(step.loss - loss) <= self.limit / 10 * max(1.0, loss):
            why = self._other_loss(step, batch, abs(step.loss - loss))
            yield f"the loss of {step.where} was {step.loss:.5f}, recomputed {loss:.5f}{why}"
            return
        norm = plain.gradient_norm
        if not abs(step.gradient_norm - norm) <= self.limit * norm:
            yield f"the gradient of {step.where} was {step.gradient_norm:.4g} long, recomputed {norm:.4g}"
        # Of a sum that nearly cancels, bf16 leaves little; how much, single precision tells.
        single = self._gradient(step, batch, single=True)[1] if self.bfloat16 else None
        off = _off(step, plain, single)
        worst = max(off, key=lambda name: off[name])
        if not off[worst] <= self.limit:
            causes = {
                f"the gradient of {step.where}, {norm:.3g} long, was not clipped": _off(
                    step, replace(plain, max_norm=math.inf), single
                ),
                f"vectors decayed in {step.where}, too": _off(step, plain, single, vectors_decay=True),
                f"matrices did not decay in {step.where}": _off(step, replace(plain, decay=0.0), single),
            }
            enough = max(EXPLAINS * off[worst], self.limit)
            known = [words for words, rest in causes.items() if max(rest.values()) <= enough]
            yield (
                known[0]
                if known
                else (f"{worst} moved in {step.where} otherwise than AdamW moves it (by {off[worst]:.1%})")
            )
            return
        self._left = _Left(number, {name: _clip(plain) * part for name, part in gradients.items()}, state)

    def _other_loss(self, step: KeptStep, batch: TokenBatch, off: float) -> str:
        """The known mistake that gives a step's loss, if one does."""
        others = {"it was without dropout": self._gradient(step, batch, dropout=False)}
        if batch.state is not None:
            shifted = batch.state[0].roll(1, 1), batch.state[1].roll(1, 1)
            others["the state was not carried on"] = self._gradient(step, batch._replace(state=None))
            others["the state was that of another stream"] = self._gradient(
                step, batch._replace(state=shifted)
            )
        near = [words for words, found in others.items() if abs(step.loss - found[0]) <= EXPLAINS * off]
        return f": {near[0]}" if near else ""


def _clip(plain: PlainStep) -> float:
    return min(1.0, plain.max_norm / (plain.gradient_norm + 1e-6))


def _off(
    step: KeptStep,
    plain: PlainStep,
    single: Mapping[str, Tensor] | None = None,
    vectors_decay: bool = False,
) -> dict[str, float]:
    """How far the weights after a step are from the plain ones, by name: a share of how far these moved.

    Elements count by the size of their gradients: rounding alone moves those that have none. Of a training in
    bf16, `single` has the gradients in single precision; what they change about a step is rounding, too.
    """
    before, after, first, second = (step.of(kind) for kind in ("before", "after", "exp_avg", "exp_avg_sq"))
    clip, off = _clip(plain), {}
    for name, gradient in plain.gradients.items():
        assert gradient is not None
        weights, gradient = before[name].double(), clip * gradient.cpu().double()
        moments = (first[name], second[name]) if name in first else None
        wanted = plain.update(weights, moments, gradient)
        if vectors_decay and weights.dim() < 2:
            wanted = wanted - plain.lr * plain.decay * weights
        size = gradient.abs() if moments is None else second[name].double().sqrt() + gradient.abs()
        rounding = ROUNDING * weights.abs()
        if single is not None:
            other = plain.update(weights, moments, clip * single[name].cpu().double())
            rounding = rounding + (plain.update(weights, moments, gradient) - other).abs()
        excess = ((after[name].double() - wanted).abs() - rounding).clamp(min=0)
        off[name] = float((size * excess).sum() / ((size * (wanted - weights).abs()).sum() + 1e-30))
    return off


def _rows(step: KeptStep, name: str, whole: Tensor) -> Tensor:
    """Of a whole tensor those rows that the step keeps."""
    rows = step.tensors.get(f"rows/{name}")
    return whole if rows is None else whole[rows.to(whole.device)]


def _averaged(step: KeptStep, count: int) -> dict[str, Tensor]:
    """The mean of the weights after `count` steps, of which this is the last one."""
    after, mean = step.of("after"), step.of("ax")
    if count == 1:
        return after
    return {
        name: mean[name] + (last - mean[name]) / count if name in mean else last * math.nan
        for name, last in after.items()
    }


@contextmanager
def _drawing(state: Tensor, device: torch.device) -> Iterator[None]:
    """Within the block torch draws on from a state of the device's generator."""
    own = torch.random if device.type == "cpu" else getattr(torch, device.type)
    state_before = own.get_rng_state()
    try:
        own.set_rng_state(state)
        yield
    finally:
        own.set_rng_state(state_before)


def _relative(found: Tensor, right: Tensor) -> float:
    """Length of the difference, as a share."""
    right = right.detach().cpu().double()
    return float((found.double() - right).norm() / (right.norm() + 1e-30))
