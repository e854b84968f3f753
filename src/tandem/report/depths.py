"""What variant, context depth and seed decide, whatever the token depth: phase 1, contexts, their memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean
from typing import TypeVar

from tandem.objectives.original import DispersionRecord
from tandem.objectives.predictive import PredictionRecord
from tandem.records import ContextsRecord, Phase1Record, RunRecord, ScanRecord
from tandem.report.statistics import Spread, perplexity, spread

Shared = TypeVar("Shared")
Place = tuple[str | None, int]
"""Variant and context layers."""


@dataclass(frozen=True)
class AtDepth:
    """Base of what belongs to one variant and context depth."""

    variant: str | None
    context_layers: int

    @property
    def name(self) -> str:
        """Such as C1, with a variant `predictive-C1`."""
        depth = f"C{self.context_layers}"
        return depth if self.variant is None else f"{self.variant}-{depth}"


@dataclass(frozen=True)
class Phase1AtDepth(AtDepth):
    """Phase 1 over its seeds, whatever its objective."""

    used_by: tuple[str, ...]
    phase1: Mapping[int, Phase1Record]
    """By seed, in order."""
    contexts: Mapping[int, ContextsRecord]
    """By seed, in order."""

    @property
    def effective_rank_train(self) -> Spread | None:
        """On training contexts."""
        return spread(c.effective_rank_train for c in self.contexts.values())

    @property
    def effective_rank_validation(self) -> Spread | None:
        """On validation contexts."""
        return spread(c.effective_rank_validation for c in self.contexts.values())

    @property
    def seconds(self) -> Spread | None:
        """Of phase 1."""
        return spread(p.seconds_s for p in self.phase1.values())


@dataclass(frozen=True)
class DepthResult(Phase1AtDepth):
    """Phase 1 by dispersion over its seeds: run once per seed, shared by all token depths."""

    phase1: Mapping[int, DispersionRecord]

    @property
    def iterations(self) -> Spread | None:
        """Until phase 1 stopped."""
        return spread(p.iterations for p in self.phase1.values())

    @property
    def convergence_rate(self) -> Spread | None:
        """At the end of phase 1."""
        return spread(p.convergence_rate for p in self.phase1.values())

    @property
    def iterations_by_seed(self) -> dict[int, float]:
        """Iterations until phase 1 stopped."""
        return {seed: float(p.iterations) for seed, p in self.phase1.items()}

    @property
    def at_limit(self) -> tuple[int, ...]:
        """Seeds that stopped at the iteration limit; these are not called converged."""
        return tuple(seed for seed, p in self.phase1.items() if p.stopped == "max_iterations")


@dataclass(frozen=True)
class PredictionResult(Phase1AtDepth):
    """Phase 1 by prediction over its seeds: run once per seed, shared by all token depths.

    Of its heads, the token layers that it predicts through, the deepest is shown.
    """

    phase1: Mapping[int, PredictionRecord]

    @property
    def epochs(self) -> Spread | None:
        """Of phase 1."""
        return spread(p.epochs for p in self.phase1.values())

    @property
    def head_perplexity(self) -> Spread | None:
        """Validation, through the deepest head."""
        return spread(perplexity(p.heads[-1].nll_nats) for p in self.phase1.values())

    @property
    def mean_head_perplexity(self) -> float | None:
        """exp of the mean NLL over seeds, as of all mean perplexities."""
        nll = spread(p.heads[-1].nll_nats for p in self.phase1.values())
        return None if nll is None else perplexity(nll.mean)


@dataclass(frozen=True)
class ScanResult(AtDepth):
    """How exact the contexts of one split are: the largest errors over seeds."""

    split: str
    scans: tuple[ScanRecord, ...]

    @property
    def loop_error(self) -> float:
        """Largest difference from the sequential loop."""
        return max(scan.loop_error for scan in self.scans)

    @property
    def join_error(self) -> float:
        """Largest difference at a join of two segments."""
        return max(scan.join_error for scan in self.scans)

    @property
    def tolerance(self) -> float:
        """The strictest one asked for."""
        return min(scan.tolerance for scan in self.scans)

    @property
    def within(self) -> bool:
        """Whether every scan kept to its own tolerance."""
        return all(max(scan.loop_error, scan.join_error) <= scan.tolerance for scan in self.scans)


@dataclass(frozen=True)
class Left:
    """How much of one changed token is left `distance` tokens later: mean, lowest and highest over seeds."""

    distance: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class MemoryResult(AtDepth):
    """How far back the contexts remember."""

    points: tuple[Left, ...]
    """At the distances that all seeds have, in order."""
    seeds: tuple[int, ...]

    @property
    def measured_to(self) -> int:
        """The largest distance."""
        return self.points[-1].distance

    def falls_below(self, share: float) -> float | None:
        """The distance in tokens from which on the mean change stays below `share`.

        Between two recorded distances the change is taken to fall exponentially. 0 where it is below from
        the first one on; None where it is not below at the last one.
        """
        above = [i for i, point in enumerate(self.points) if point.mean >= share]
        if not above:
            return 0.0
        if above[-1] == len(self.points) - 1:
            return None
        before, after = self.points[above[-1]], self.points[above[-1] + 1]
        lowest = 1e-30  # stands for a change that is exactly zero, which has no logarithm
        fallen = log(before.mean / share) / log(before.mean / max(after.mean, lowest))
        return before.distance + fallen * (after.distance - before.distance)


def dispersion_results(places: Sequence[Place], records: Sequence[RunRecord]) -> Iterator[DepthResult]:
    """Of every place that phase 1 by dispersion was for, runs that failed before its end included."""
    for place in places:
        own = _at(place, records)
        runs = _by_seed(own, lambda r: r.phase1 if isinstance(r.phase1, DispersionRecord) else None)
        if not _predicts(own):
            yield DepthResult(*place, _names(own), runs, _by_seed(own, lambda r: r.contexts))


def prediction_results(places: Sequence[Place], records: Sequence[RunRecord]) -> Iterator[PredictionResult]:
    """Of every place that phase 1 by prediction was for, runs that failed before its end included."""
    for place in places:
        own = _at(place, records)
        runs = _by_seed(own, lambda r: r.phase1 if isinstance(r.phase1, PredictionRecord) else None)
        if _predicts(own):
            yield PredictionResult(*place, _names(own), runs, _by_seed(own, lambda r: r.contexts))


def scan_results(places: Sequence[Place], records: Sequence[RunRecord]) -> Iterator[ScanResult]:
    """Of both splits of every place with contexts."""
    for place in places:
        contexts = [r.contexts for r in _at(place, records) if r.contexts is not None]
        if contexts:
            yield ScanResult(*place, "train", tuple(c.train for c in contexts))
            yield ScanResult(*place, "validation", tuple(c.validation for c in contexts))


def memory_results(places: Sequence[Place], records: Sequence[RunRecord]) -> Iterator[MemoryResult]:
    """Of every place where memory was measured."""
    for place in places:
        curves = _by_seed(
            _at(place, records),
            lambda r: {p.distance: p.change for p in r.contexts.memory} or None if r.contexts else None,
        )
        common = sorted(set.intersection(*(set(c) for c in curves.values()))) if curves else []
        changes = [(distance, [curve[distance] for curve in curves.values()]) for distance in common]
        points = tuple(Left(at, fmean(found), min(found), max(found)) for at, found in changes)
        if points:
            yield MemoryResult(*place, points, tuple(curves))


def _at(place: Place, records: Iterable[RunRecord]) -> list[RunRecord]:
    return [r for r in records if (r.variant, r.context_layers) == place]


def _predicts(records: Sequence[RunRecord]) -> bool:
    """Whether phase 1 predicted, or was to predict where no run got through it."""
    found = [isinstance(r.phase1, PredictionRecord) for r in records if r.phase1 is not None]
    return found[0] if found else any(r.recipe == "predictive" for r in records)


def _by_seed(records: Iterable[RunRecord], of: Callable[[RunRecord], Shared | None]) -> dict[int, Shared]:
    """What the runs of each seed share, from the run that computed it where that is known."""
    found: dict[int, Shared] = {}
    for record in sorted(records, key=lambda r: (r.seed or 0, not r.phase1_computed_here)):
        shared = of(record)
        if shared is not None and record.seed is not None:
            found.setdefault(record.seed, shared)
    return found


def _names(records: Iterable[RunRecord]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(r.configuration for r in records))
