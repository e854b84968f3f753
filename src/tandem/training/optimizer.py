"""What trainings by AdamW share: which parameters decay, how gradients are clipped, how the rate moves."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

BETAS = (0.9, 0.999)


def adamw(
    parameters: Iterable[nn.Parameter], weight_decay: float, lr: float, betas: tuple[float, float] = BETAS
) -> torch.optim.AdamW:
    """AdamW under which matrices decay; biases and gains, whose size is no sign of overfitting, do not.

    Without a weight decay it is Adam.
    """
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    # A third of the time of the other one on a CPU (LOG.md).
    fused = all(parameter.device.type != "mps" for parameter in parameters)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class WeightAverage:
    """The mean of the weights after each of the last steps (Polyak & Juditsky 1992).

    It stands in the optimizer's state as `ax`, where torch.optim.ASGD has it, so that checkpoints have it.

    epochs     over which it is taken, the present one included; 0: it is not taken.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, epochs: int) -> None:
        self.epochs = epochs
        self._optimizer = optimizer

    @torch.no_grad()
    def after_step(self, count: int) -> None:
        """Add the weights as they are now, as the last of `count`."""
        if self.epochs:
            for parameter, state in self._optimizer.state.items():
                if count == 1:
                    state["ax"] = parameter.detach().clone()
                else:
                    state["ax"].lerp_(parameter, 1 / count)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the mean stands in place of the weights."""
        weights = {p: p.detach() for p in self._optimizer.state} if self.epochs else {}
        try:
            for parameter in weights:
                parameter.data = self._optimizer.state[parameter]["ax"]
            yield
        finally:
            for parameter, own in weights.items():
                parameter.data = own


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Make the gradient as a whole at most `max_norm` long; returns how long it was.

    As torch's `clip_grad_norm_`, but one that is short enough is not multiplied by 1. That took more than
    half of its time on a CPU (LOG.md).
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm > max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


def cosine_share(step: int, steps: int, warm_up: int) -> float:
    """Share of the largest learning rate at `step` (from 0): a linear rise, then a cosine from 1 to 0.1."""
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    done = (step - warm_up) / max(1, steps - 1 - warm_up)
    return 0.55 + 0.45 * math.cos(math.pi * min(1.0, done))


def timed_share(used: float, warm_up: float) -> float:
    """The same by the share of the seconds that is used: a linear rise over `warm_up`, then that cosine."""
    if used < warm_up:
        return used / warm_up
    done = (used - warm_up) / (1 - warm_up)
    return 0.55 + 0.45 * math.cos(math.pi * min(1.0, done))


def linear_share(step: int, steps: int, warm_up: int) -> float:
    """Share of the largest learning rate at `step` (from 0): a rise over `warm_up` steps, a fall to zero."""
    return min(1.0, (step + 1) / max(1, warm_up)) * (1 - step / steps)
