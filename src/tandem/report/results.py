"""What the analysis of an experiment holds: figures over seeds, comparisons, provenance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tandem.objectives.original import DispersionRecord
from tandem.objectives.predictive import PredictionRecord
from tandem.records import (
    DataRecord,
    Environment,
    Manifest,
    Parameters,
    Phase1Record,
    RunRecord,
    TrainingRecord,
    ValidationRecord,
)
from tandem.report.crossed import Effect
from tandem.report.depths import DepthResult, MemoryResult, PredictionResult, ScanResult
from tandem.report.statistics import Paired, Spread, Verdict, perplexity, spread
from tandem.report.trust import Trust


@dataclass(frozen=True)
class ModelResult:
    """One configuration, or one baseline, over its seeds. `runs` and all spreads cover finished runs only."""

    name: str
    kind: str
    recipe: str | None
    variant: str | None
    context_layers: int | None
    """None, like `token_layers`, of baselines that are no Tandem models."""
    token_layers: int | None
    parameters: Parameters | None
    runs: dict[int | None, RunRecord]
    """By seed, in order; the seed None where nothing is drawn at random."""
    training_is_plain: bool = True
    """Whether its training figures compare with validation; not where dropout or a sampled softmax is set."""

    @property
    def place(self) -> tuple[str | None, int | None, int | None]:
        """Variant and depths: what a configuration shares with its control alone."""
        return self.variant, self.context_layers, self.token_layers

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the finished runs."""
        return tuple(seed for seed in self.runs if seed is not None)

    @property
    def training(self) -> dict[int | None, TrainingRecord]:
        """Phase 2, or the training of a baseline, by seed."""
        return {seed: r.trained for seed, r in self.runs.items() if r.trained is not None}

    @property
    def validation(self) -> dict[int | None, ValidationRecord]:
        """By seed."""
        return {seed: r.validation for seed, r in self.runs.items() if r.validation is not None}

    @property
    def iterations(self) -> Spread | None:
        """Of phase 1 by dispersion."""
        return spread(p.iterations for p in self._phase1 if isinstance(p, DispersionRecord))

    @property
    def convergence_rate(self) -> Spread | None:
        """Of phase 1 by dispersion, at its end."""
        return spread(p.convergence_rate for p in self._phase1 if isinstance(p, DispersionRecord))

    @property
    def prediction_epochs(self) -> Spread | None:
        """Of phase 1 by prediction."""
        return spread(p.epochs for p in self._phase1 if isinstance(p, PredictionRecord))

    @property
    def effective_rank(self) -> Spread | None:
        """On validation contexts."""
        return spread(r.contexts.effective_rank_validation for r in self.runs.values() if r.contexts)

    @property
    def over_head(self) -> Spread | None:
        """Validation NLL less that of the nearest head of phase 1 by prediction, nats per token."""
        heads = (
            (r.validation, r.phase1.head_for(self.token_layers or 1))
            for r in self.runs.values()
            if isinstance(r.phase1, PredictionRecord) and r.validation is not None
        )
        return spread(v.nll_nats - head.nll_nats for v, head in heads if math.isfinite(head.nll_nats))

    @property
    def nll(self) -> Spread | None:
        """Validation, nats per token."""
        return spread(v.nll_nats for v in self.validation.values())

    @property
    def perplexity(self) -> Spread | None:
        """Validation."""
        return spread(v.perplexity for v in self.validation.values())

    @property
    def accuracy(self) -> Spread | None:
        """Validation, a share."""
        return spread(v.accuracy for v in self.validation.values())

    @property
    def bits_per_byte(self) -> Spread | None:
        """Validation."""
        return spread(v.bits_per_byte for v in self.validation.values())

    @property
    def train_nll(self) -> Spread | None:
        """At the best epoch, nats per token."""
        return spread(t.train_nll_nats for t in self.training.values())

    @property
    def train_perplexity(self) -> Spread | None:
        """At the best epoch."""
        return spread(t.train_perplexity for t in self.training.values())

    @property
    def best_epoch(self) -> Spread | None:
        """Of phase 2, or of the training of a baseline."""
        return spread(t.best_epoch for t in self.training.values())

    @property
    def training_seconds(self) -> Spread | None:
        """Of phase 2, or of the training of a baseline."""
        return spread(t.seconds_s for t in self.training.values())

    @property
    def seconds_alone(self) -> Spread | None:
        """What a run costs alone."""
        return spread(r.seconds_alone_s for r in self.runs.values())

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
        """Validation over training perplexity; None where the two do not compare."""
        if self.nll is None or self.train_nll is None or not self.training_is_plain:
            return None
        return perplexity(self.nll.mean - self.train_nll.mean)

    @property
    def still_improving(self) -> tuple[int | None, ...]:
        """Seeds whose best epoch was the last one allowed."""
        return tuple(
            seed
            for seed, t in self.training.items()
            if t.stopped == "max_epochs" and t.best_epoch == t.epochs
        )

    @property
    def rankable(self) -> bool:
        """Whether it has a finite validation loss, so that it can be best or recommended."""
        return self.nll is not None and math.isfinite(self.nll.mean)

    @property
    def _phase1(self) -> list[Phase1Record]:
        return [r.phase1 for r in self.runs.values() if r.phase1 is not None]


@dataclass(frozen=True)
class Comparison:
    """Model `b` against model `a`, by validation NLL; the verdict is on `b`.

    effect         the difference that the verdict rests on
    corrected_p    of `effect`, Holm-corrected over its family
    verdict        of `effect` and `corrected_p`
    nll            secondary: over seeds, on this validation set
    paired_p       of `nll`, Holm-corrected over the same family
    accuracy       descriptive, over seeds
    """

    a: str
    b: str
    effect: Effect
    corrected_p: float | None
    verdict: Verdict
    nll: Paired
    paired_p: float | None
    accuracy: Paired

    @property
    def reversed(self) -> "Comparison":
        """`a` against `b`."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            effect=self.effect.reversed,
            verdict=self.verdict.reversed,
            nll=self.nll.reversed,
            accuracy=self.accuracy.reversed,
        )


@dataclass(frozen=True)
class DepthComparison:
    """Phase 1 by dispersion with `b` context layers against `a`, by iterations; the verdict is on `b`.

    Seeds stopped by the iteration limit give only a lower bound, so a depth with such a seed is never called
    the faster one.
    """

    variant: str | None
    """Of both."""
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
    """Each with its runs, embeddings apart (they differ by variant, random ones by seed too); one, unless
    records were mixed."""
    settings: tuple[tuple[str | None, str], ...]
    """Variant and fingerprint of its settings; one a variant, unless records were mixed."""
    variants: tuple[str, ...]
    """In the order of the manifest; none where there is only one way to train."""
    configurations: tuple[ModelResult, ...]
    """By variant, then by depth."""
    baselines: tuple[ModelResult, ...]
    """What the configurations are measured against; never ranked or recommended."""
    depths: tuple[DepthResult, ...]
    """Phase 1 by dispersion."""
    predictions: tuple[PredictionResult, ...]
    """Phase 1 by prediction."""
    scans: tuple[ScanResult, ...]
    memories: tuple[MemoryResult, ...]
    comparisons: tuple[Comparison, ...]
    """Of every pair of configurations, corrected as one family; none if records are not comparable."""
    baseline_comparisons: tuple[Comparison, ...]
    """Of every configuration (`b`) against every baseline (`a`), corrected as one family."""
    depth_comparisons: tuple[DepthComparison, ...]
    """Of every pair of context depths of one variant, corrected as one family."""
    failed: tuple[RunRecord, ...]
    left_out: tuple[RunRecord, ...]
    """Finished runs of baselines, made with other settings than the newest one; in no mean or comparison."""
    missing: tuple[tuple[str, int], ...]
    """Configuration and seed of the runs that the manifest names and no record tells of."""
    missing_baselines: tuple[str, ...]
    """Runs of baselines, by name, that the manifest names and no record tells of."""
    trust: Trust
    """What the audit says of these runs."""
    seeds: tuple[int, ...]
    seconds_spent: float
    seconds_alone: float
    finished_at: str

    @property
    def comparable(self) -> bool:
        """Whether all records share the text and its tokens, and those of a variant their settings.

        Otherwise nothing is compared.
        """
        return len(self.data) == 1 and len(self.settings) == len({variant for variant, _ in self.settings})

    def configuration(self, name: str) -> ModelResult | None:
        """By name."""
        return next((c for c in self.configurations if c.name == name), None)

    def compare(self, a: str, b: str) -> Comparison | None:
        """Of `b` against `a`, whichever way round the pair was tested."""
        return _find(self.comparisons, a, b)

    def against_baseline(self, baseline: str, configuration: str) -> Comparison | None:
        """Of a configuration against a baseline."""
        return _find(self.baseline_comparisons, baseline, configuration)

    def untrusted(self, name: str) -> bool:
        """Whether the audit failed for a run that the figures of this configuration or baseline include."""
        left_out = {r.run for r in self.left_out}
        return any(
            r.configuration == name and r.run in self.trust.untrusted and r.run not in left_out
            for r in self.records
        )

    @property
    def all_untrusted(self) -> bool:
        """Whether the audit failed for every run, as it does where a check of the shared data fails."""
        return len(self.trust.untrusted) == len(self.records)


def _find(comparisons: Sequence[Comparison], a: str, b: str) -> Comparison | None:
    for c in comparisons:
        if {c.a, c.b} == {a, b}:
            return c if c.a == a else c.reversed
    return None
