"""What the analysis of an experiment holds: figures over seeds, comparisons, provenance."""

import math
from dataclasses import dataclass

from tandem.records import (
    DataRecord,
    Environment,
    Manifest,
    Parameters,
    Phase1Record,
    Phase2Record,
    RunRecord,
    ScanRecord,
)
from tandem.report.statistics import Paired, Spread, Verdict, perplexity


@dataclass(frozen=True)
class ConfigurationResult:
    """One configuration over its seeds. `phase2` and the spreads cover the finished runs only."""

    name: str
    context_layers: int
    token_layers: int
    phase2: dict[int, Phase2Record]
    """By seed, in order."""
    parameters: Parameters | None
    iterations: Spread | None
    convergence_rate: Spread | None
    effective_rank: Spread | None
    """On validation contexts."""
    nll: Spread | None
    """Validation, nats per token."""
    perplexity: Spread | None
    train_nll: Spread | None
    train_perplexity: Spread | None
    accuracy: Spread | None
    bits_per_byte: Spread | None
    best_epoch: Spread | None
    phase2_seconds: Spread | None
    seconds_alone: Spread | None
    peak_memory_bytes: int | None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the finished runs."""
        return tuple(self.phase2)

    @property
    def nll_by_seed(self) -> dict[int, float]:
        """Validation NLL, nats per token."""
        return {seed: p.validation_nll_nats for seed, p in self.phase2.items()}

    @property
    def accuracy_by_seed(self) -> dict[int, float]:
        """Validation accuracy."""
        return {seed: p.validation_accuracy for seed, p in self.phase2.items()}

    @property
    def mean_perplexity(self) -> float | None:
        """exp of the mean NLL over seeds: the geometric mean of the perplexities."""
        return None if self.nll is None else perplexity(self.nll.mean)

    @property
    def mean_train_perplexity(self) -> float | None:
        """As `mean_perplexity`, of the training figures at the best epoch."""
        return None if self.train_nll is None else perplexity(self.train_nll.mean)

    @property
    def gap(self) -> float | None:
        """Validation over training perplexity."""
        return (
            None
            if self.nll is None or self.train_nll is None
            else perplexity(self.nll.mean - self.train_nll.mean)
        )

    @property
    def still_improving(self) -> tuple[int, ...]:
        """Seeds whose best epoch was the last one allowed."""
        return tuple(
            seed for seed, p in self.phase2.items() if p.stopped == "max_epochs" and p.best_epoch == p.epochs
        )

    @property
    def rankable(self) -> bool:
        """Whether it has a finite validation loss, so that it can be best or recommended."""
        return self.nll is not None and math.isfinite(self.nll.mean)


@dataclass(frozen=True)
class DepthResult:
    """Phase 1 of one context depth over its seeds: run once per seed, shared by all token depths."""

    context_layers: int
    used_by: tuple[str, ...]
    phase1: dict[int, Phase1Record]
    """By seed, in order."""
    iterations: Spread | None
    convergence_rate: Spread | None
    effective_rank_train: Spread | None
    effective_rank_validation: Spread | None
    seconds: Spread | None

    @property
    def iterations_by_seed(self) -> dict[int, float]:
        """Iterations until phase 1 stopped."""
        return {seed: float(p.iterations) for seed, p in self.phase1.items()}

    @property
    def at_limit(self) -> tuple[int, ...]:
        """Seeds that stopped at the iteration limit; these are not called converged."""
        return tuple(seed for seed, p in self.phase1.items() if p.stopped == "max_iterations")


@dataclass(frozen=True)
class ScanResult:
    """How exact the contexts of one depth and split are: the largest errors over its seeds."""

    context_layers: int
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
class Comparison:
    """Configuration `b` against `a`, by validation NLL; the verdict is on `b`."""

    a: str
    b: str
    nll: Paired
    accuracy: Paired
    corrected_p: float | None
    verdict: Verdict

    @property
    def reversed(self) -> "Comparison":
        """`a` against `b`."""
        return Comparison(
            self.b, self.a, self.nll.reversed, self.accuracy.reversed, self.corrected_p, self.verdict.reversed
        )


@dataclass(frozen=True)
class DepthComparison:
    """Phase 1 with `b` context layers against `a`, by iterations; the verdict is on `b`.

    Seeds stopped by the iteration limit give only a lower bound, so a depth with such a seed is never called
    the faster one.
    """

    a: int
    b: int
    iterations: Paired
    corrected_p: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Analysis:
    """Everything the report shows."""

    experiment: str
    records: tuple[RunRecord, ...]
    manifest: Manifest | None
    environments: tuple[tuple[Environment, tuple[str, ...]], ...]
    """Each with the runs made there; one, unless the experiment moved."""
    data: tuple[tuple[DataRecord, tuple[str, ...]], ...]
    """Each with its runs, embeddings apart (random ones differ by seed); one, unless records were mixed."""
    embeddings: tuple[str, ...]
    """Fingerprints of the embeddings."""
    settings: tuple[str, ...]
    """Fingerprints of the settings; one, unless records were mixed."""
    configurations: tuple[ConfigurationResult, ...]
    depths: tuple[DepthResult, ...]
    scans: tuple[ScanResult, ...]
    comparisons: tuple[Comparison, ...]
    """Of every pair of configurations, corrected as one family; none if records are not comparable."""
    depth_comparisons: tuple[DepthComparison, ...]
    """Of every pair of context depths, corrected as one family."""
    failed: tuple[RunRecord, ...]
    missing: tuple[tuple[str, int], ...]
    """Configuration and seed of the runs that the manifest names and no record tells of."""
    seeds: tuple[int, ...]
    seconds_spent: float
    seconds_alone: float
    finished_at: str

    @property
    def comparable(self) -> bool:
        """Whether all records share data and settings; otherwise nothing is compared."""
        return len(self.data) == 1 and len(self.settings) == 1

    def configuration(self, name: str) -> ConfigurationResult | None:
        """By name."""
        return next((c for c in self.configurations if c.name == name), None)

    def compare(self, a: str, b: str) -> Comparison | None:
        """Of `b` against `a`, whichever way round the pair was tested."""
        for c in self.comparisons:
            if {c.a, c.b} == {a, b}:
                return c if c.a == a else c.reversed
        return None
