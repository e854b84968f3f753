"""What the training loops tell whoever watches them; they know nothing of terminals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tandem.records import RunRecord


@dataclass(frozen=True)
class Tick:
    """Progress within one phase of one run.

    phase      such as "phase 1".
    done       finished units (fractions included) of at most `limit`.
    unit       "iteration", "epoch" or "second".
    figures    the latest figures, by name.
    """

    phase: str
    done: float
    limit: int
    unit: str
    figures: Mapping[str, float] = field(default_factory=dict)


OnTick = Callable[[Tick], None]


def silent(_: Tick) -> None:
    """Watches nothing."""


class Watcher:
    """Whoever follows an experiment while it runs. This one shows nothing; a subclass shows what it likes."""

    def preparing(self, what: str) -> None:
        """Text, tokens or embeddings are being made."""

    def planned(self, run_dir: Path, runs: list[str], finished: int) -> None:
        """The runs of the grid, and how many of them were finished before."""

    def run_started(self, run: str) -> None:
        """One run begins."""

    def tick(self, tick: Tick) -> None:
        """Progress of the current run."""

    def run_finished(self, record: RunRecord) -> None:
        """One run was recorded, finished or failed."""
