"""What the training loops tell whoever watches them; they know nothing of terminals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tick:
    """Progress within one phase of one run.

    phase      such as "phase 1"
    done       finished units (iterations or epochs, fractions included) of at most `limit`
    unit       "iteration" or "epoch"
    figures    the latest figures, by name
    """

    phase: str
    done: float
    limit: int
    unit: str
    figures: Mapping[str, float] = field(default_factory=dict)


OnTick = Callable[[Tick], None]


def silent(_: Tick) -> None:
    """Watches nothing."""
