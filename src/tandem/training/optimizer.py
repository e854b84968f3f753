"""What all trainings by AdamW share: which parameters decay, and how the learning rate moves."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn


def decayed_apart(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay; biases and gains, whose size is no sign of overfitting, do not."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def cosine_share(step: int, steps: int, warm_up: int) -> float:
    """Share of the largest learning rate at `step` (from 0): a linear rise, then a cosine from 1 to 0.1."""
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    done = (step - warm_up) / max(1, steps - 1 - warm_up)
    return 0.55 + 0.45 * math.cos(math.pi * min(1.0, done))


def linear_share(step: int, steps: int, warm_up: int) -> float:
    """Share of the largest learning rate at `step` (from 0): a rise over `warm_up` steps, a fall to zero."""
    return min(1.0, (step + 1) / max(1, warm_up)) * (1 - step / steps)
