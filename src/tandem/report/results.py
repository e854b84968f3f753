"""What the analysis of an experiment holds: figures over seeds, comparisons, the audit, the records."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tandem.records import (
    Check,
    ContextsRecord,
    DataRecord,
    Environment,
    Manifest,
    Parameters,
    RunRecord,
    ScanRecord,
    TrainingRecord,
    ValidationRecord,
)
from tandem.records.audit import Status
from tandem.report.crossed import Effect
from tandem.report.statistics import Paired, Spread, Verdict, perplexities, perplexity, spread
from tandem.report.wording import Message


def is_baseline(of: "RunRecord | ModelResult") -> bool:
    """Whether a run or a model is a baseline, and no configuration."""
    return of.kind != "tandem"


class OverSeeds:
    """A figure of a model's finished runs, as a `Spread` over them; None where no run has the figure."""

    def __init__(self, values: Callable[["ModelResult"], Iterable[float]]) -> None:
        self._values = values

    def __get__(self, model: "ModelResult", _: type) -> Spread | None:
        return spread(self._values(model))


@dataclass(frozen=True)
class ModelResult:
    """One configuration, or one baseline, over its seeds. `runs` and all figures cover finished runs only."""

    name: str
    kind: str
    """`tandem` of a configuration, else a key of `tandem.baselines.BASELINES`."""
    recipe: str | None
    """Of Tandem models, whether they are configurations or controls."""
    variant: str | None
    context_layers: int | None
    """None, like `token_layers`, of baselines that are no Tandem models."""
    token_layers: int | None
    parameters: Parameters | None
    runs: Mapping[int | None, RunRecord]
    """By seed, in order; the seed None where nothing is drawn at random."""
    training_is_plain: bool
    """Whether its training figures compare with validation: not with dropout or a sampled softmax."""

    effective_rank = OverSeeds(lambda m: [c.effective_rank_validation for c in m.contexts.values()])
    """A share, on validation contexts."""
    nll = OverSeeds(lambda m: [v.nll_nats for v in m.validation.values()])
    """Validation, nats per token."""
    accuracy = OverSeeds(lambda m: [v.accuracy for v in m.validation.values()])
    """Validation, a share."""
    bits_per_byte = OverSeeds(lambda m: [v.bits_per_byte for v in m.validation.values()])
    """Validation."""
    train_nll = OverSeeds(lambda m: [t.train_nll_nats for t in m.training.values()])
    """At the best epoch, nats per token."""
    best_epoch = OverSeeds(lambda m: [t.best_epoch for t in m.training.values()])
    """Best epoch of phase 2, or of the training of a baseline."""
    training_seconds = OverSeeds(lambda m: [t.seconds_s for t in m.training.values()])
    """Seconds of phase 2, or of the training of a baseline."""
    seconds_alone = OverSeeds(lambda m: [r.seconds_alone_s for r in m.runs.values()])
    """Seconds that a run takes alone."""

    @property
    def place(self) -> tuple[str | None, int | None, int | None]:
        """Variant and depths: what a configuration shares with its control alone."""
        return self.variant, self.context_layers, self.token_layers

    @property
    def baseline(self) -> bool:
        """Whether it is a baseline, which is never ranked or recommended."""
        return is_baseline(self)

    @property
    def control(self) -> bool:
        """Whether it is a configuration without its phase 1."""
        return self.baseline and self.context_layers is not None

    @property
    def contexts(self) -> dict[int | None, ContextsRecord]:
        """By seed."""
        return {seed: r.contexts for seed, r in self.runs.items() if r.contexts is not None}

    @property
    def phase1(self) -> dict[int | None, Any]:
        """The record of its phase 1 by seed; its type is the recipe's own."""
        return {seed: r.phase1 for seed, r in self.runs.items() if r.phase1 is not None}

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the finished runs."""
        return tuple(seed for seed in self.runs if seed is not None)

    @property
    def total_parameters(self) -> int | None:
        """None where no run got as far as its parameters."""
        return self.parameters.total if self.parameters else None

    @property
    def training(self) -> dict[int | None, TrainingRecord]:
        """Phase 2, or the training of a baseline, by seed."""
        return {seed: r.trained for seed, r in self.runs.items() if r.trained is not None}

    @property
    def validation(self) -> dict[int | None, ValidationRecord]:
        """By seed."""
        return {seed: r.validation for seed, r in self.runs.items() if r.validation is not None}

    @property
    def perplexity(self) -> Spread | None:
        """Validation, with the geometric mean."""
        return perplexities((v.perplexity, v.nll_nats) for v in self.validation.values())

    @property
    def train_perplexity(self) -> Spread | None:
        """At the best epoch, with the geometric mean."""
        return perplexities((t.train_perplexity, t.train_nll_nats) for t in self.training.values())

    @property
    def gap(self) -> float | None:
        """Validation over training perplexity; None where the two do not compare."""
        if self.nll is None or self.train_nll is None or not self.training_is_plain:
            return None
        return perplexity(self.nll.mean - self.train_nll.mean)

    @property
    def still_improving(self) -> int:
        """Number of seeds whose best epoch was the last one allowed."""
        return sum(t.stopped == "max_epochs" and t.best_epoch == t.epochs for t in self.training.values())

    @property
    def rankable(self) -> bool:
        """Whether it has a finite validation loss, so that it can be best or recommended."""
        return self.nll is not None and math.isfinite(self.nll.mean)


@dataclass(frozen=True)
class Comparison:
    """Model `b` against model `a`, by validation NLL; the verdict is on `b`."""

    a: str
    b: str
    effect: Effect
    """The difference that the verdict rests on."""
    corrected_p: float | None
    """p of `effect`, Holm-corrected over its family."""
    verdict: Verdict
    nll: Paired
    """Secondary: over seeds, on this validation set."""
    paired_p: float | None
    """p of `nll`, Holm-corrected over the same family."""
    accuracy: Paired
    """Descriptive, over seeds."""

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
class SharedByDepth:
    """Base of what one variant and context depth decide, whatever the token depth."""

    variant: str | None
    context_layers: int

    @property
    def name(self) -> str:
        """Such as C1, with a variant `predictive-C1`."""
        depth = f"C{self.context_layers}"
        return depth if self.variant is None else f"{self.variant}-{depth}"


@dataclass(frozen=True)
class Phase1OverSeeds(SharedByDepth):
    """Phase 1 of one variant and context depth: run once per seed, shared by all token depths."""

    used_by: tuple[str, ...]
    phase1: Mapping[int, Any]
    """Records by seed, in order, of a type of the recipe's; without the runs that failed before its end."""
    contexts: Mapping[int, ContextsRecord]
    """By seed."""


@dataclass(frozen=True)
class DepthComparison:
    """Phase 1 with `b` context layers against `a` in one variant; the verdict is on `b`."""

    variant: str | None
    a: int
    b: int
    verdict: Verdict
    message: Message
    """What is said of it."""


@dataclass(frozen=True)
class ScanResult(SharedByDepth):
    """How exact the contexts of one split are: the largest absolute errors over seeds."""

    split: str
    scans: tuple[ScanRecord, ...]

    @property
    def within(self) -> bool:
        """Whether every scan kept to its own tolerance."""
        return all(max(scan.loop_error, scan.join_error) <= scan.tolerance for scan in self.scans)


@dataclass(frozen=True)
class MemorySpread:
    """The share of a changed token that is left `distance` tokens later: mean, lowest and highest seed."""

    distance: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class MemoryResult(SharedByDepth):
    """How far back the contexts remember."""

    points: tuple[MemorySpread, ...]
    """At the distances that all seeds have, in order."""
    seeds: tuple[int, ...]

    @property
    def measured_to(self) -> int:
        """The largest distance, in tokens."""
        return self.points[-1].distance

    def falls_below(self, share: float) -> float | None:
        """The distance in tokens from which on the mean change stays below `share`.

        Between two recorded distances the change is taken to fall exponentially. The distance is 0 where the
        change is below from the first one on, and None where it is not below at the last one.
        """
        above = [i for i, point in enumerate(self.points) if point.mean >= share]
        if not above:
            return 0.0
        if above[-1] == len(self.points) - 1:
            return None
        before, after = self.points[above[-1]], self.points[above[-1] + 1]
        lowest = 1e-30  # stands for a change that is exactly zero, which has no logarithm
        fallen = math.log(before.mean / share) / math.log(before.mean / max(after.mean, lowest))
        return before.distance + fallen * (after.distance - before.distance)


@dataclass(frozen=True)
class CheckResult:
    """One check of the audit over all runs it was made for."""

    name: str
    shown: str | None
    """The run with its worst outcome; None: it is of the data that all runs share."""
    check: Check
    counts: Mapping[Status, int]
    """Number of runs by status."""


@dataclass(frozen=True)
class AuditStatus:
    """What the audit says of the records of this report. Runs are given by name."""

    audited_at: str | None
    """UTC, ISO 8601; None without an audit."""
    checks: tuple[CheckResult, ...]
    """One result for each check, and one more for every further run that failed it."""
    failed: tuple[str, ...]
    """Names of the checks that failed."""
    warned: tuple[str, ...]
    """Names of the checks that warned."""
    untrusted: tuple[str, ...]
    """Runs that failed a check; every run where a check of the shared data failed."""
    unaudited: tuple[str, ...]
    """Finished runs that the audit does not cover, or covers in an earlier record."""
    unrecomputed: tuple[str, ...]
    """Runs whose figures were not recomputed, since no model was saved."""


@dataclass(frozen=True)
class Analysis:
    """Everything the report shows."""

    experiment: str
    records: tuple[RunRecord, ...]
    manifest: Manifest | None
    environments: tuple[tuple[Environment, tuple[str, ...]], ...]
    """Each with the runs made there; one, unless the experiment moved."""
    data: tuple[tuple[DataRecord, tuple[str, ...]], ...]
    """Each with its runs; one, unless records were mixed. Embeddings do not tell them apart."""
    settings: tuple[tuple[str | None, str], ...]
    """Variant and fingerprint of its settings; one a variant, unless records were mixed."""
    variants: tuple[str, ...]
    """In the order of the manifest; empty where there is only one way to train."""
    configurations: tuple[ModelResult, ...]
    """By variant, then by depth."""
    baselines: tuple[ModelResult, ...]
    """What the configurations are measured against; never ranked or recommended."""
    phase1: Mapping[str, tuple[Phase1OverSeeds, ...]]
    """By recipe; of those that the records have, in the order of the report."""
    scans: tuple[ScanResult, ...]
    memories: tuple[MemoryResult, ...]
    failed: tuple[RunRecord, ...]
    left_out: tuple[RunRecord, ...]
    """Finished runs of baselines, made with other settings than the newest one; in no mean or comparison."""
    missing: tuple[tuple[str, int], ...]
    """Configuration and seed of the runs that the manifest names and that have no record."""
    missing_baselines: tuple[str, ...]
    """Runs of baselines that the manifest names and that have no record."""
    audit: AuditStatus
    seconds_spent: float
    """Of all records, shared work counted only where it was done."""
    seconds_alone: float
    """Of all records, had every run been made alone."""
    comparisons: tuple[Comparison, ...] = ()
    """Every pair of configurations, corrected as one family; none if records are not comparable."""
    baseline_comparisons: tuple[Comparison, ...] = ()
    """Every configuration (`b`) against every baseline (`a`), corrected as one family."""
    depth_comparisons: tuple[DepthComparison, ...] = ()
    """Every pair of context depths of one variant, corrected as one family."""

    @property
    def comparable(self) -> bool:
        """Whether all records share the text and its tokens, and those of a variant their settings.

        Otherwise nothing is compared.
        """
        return len(self.data) == 1 and len(self.settings) == len({variant for variant, _ in self.settings})

    @property
    def models(self) -> dict[str, ModelResult]:
        """Configurations and baselines by name."""
        return {model.name: model for model in (*self.configurations, *self.baselines)}

    def compare(self, a: str, b: str) -> Comparison | None:
        """Model `b` against `a`, whichever way round the pair was tested; None where it was not."""
        for c in (*self.comparisons, *self.baseline_comparisons):
            if {c.a, c.b} == {a, b}:
                return c if c.a == a else c.reversed
        return None

    def untrusted(self, name: str) -> bool:
        """Whether the audit failed for a run that the figures of this configuration or baseline include."""
        left_out = {r.run for r in self.left_out}
        own = {r.run for r in self.records if r.configuration == name}
        return not (own - left_out).isdisjoint(self.audit.untrusted)

    @property
    def all_untrusted(self) -> bool:
        """Whether the audit failed for every run, as it does where a check of the shared data fails."""
        return len(self.audit.untrusted) == len(self.records)
