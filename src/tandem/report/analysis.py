"""From saved records to every figure the report shows: no words here, and nothing that is not recorded."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from tandem.baselines import BASELINES
from tandem.records import AuditRecord, Check, Manifest, RunRecord, ScanRecord, ValidationRecord
from tandem.records.audit import Status
from tandem.report import statistics
from tandem.report.statistics import Effect, Verdict, crossed, holm, paired, perplexities, perplexity, spread

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Scores = Mapping[int, tuple[ValidationRecord, ValidationRecord]]
"""Of two models, by seed."""
OWN_EMBEDDINGS = {"embeddings": "", "embeddings_trained": False, "embeddings_fingerprint": ""}
"""What data may differ in: variants have their own embeddings, random ones seeds too."""
STATUSES: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
"""Of the audit's checks, worst first."""


def is_baseline(record: RunRecord) -> bool:
    """Whether a run is one of a baseline, and of no configuration."""
    return record.kind != "tandem"


class ModelResult:
    """One configuration, or one baseline, over its seeds. All figures cover finished runs only.

    A figure is a `Spread`, or None where no run has it. What is kept by seed has the seed None where nothing
    is drawn at random.
    """

    def __init__(self, records: Sequence[RunRecord], manifest: Manifest | None) -> None:
        first = records[0]
        self.name = first.configuration
        self.kind = first.kind
        """`tandem` of a configuration, else a key of `tandem.baselines.BASELINES`."""
        self.recipe = first.recipe
        """Of Tandem models, whether they are configurations or controls."""
        self.variant = first.variant
        self.context_layers, self.token_layers = first.context_layers, first.token_layers
        """None of baselines that are no Tandem models."""
        self.place = self.variant, self.context_layers, self.token_layers
        """What a configuration shares with its control alone."""
        self.baseline = is_baseline(first)
        """Whether it is a baseline, which is never ranked or recommended."""
        self.control = self.baseline and self.context_layers is not None
        """Whether it is a configuration without its phase 1."""
        self.parameters = next((r.parameters for r in records if r.parameters is not None), None)
        self.total_parameters = self.parameters.total if self.parameters else None
        """None where no run got as far as its parameters."""
        self.runs = {r.seed: r for r in records if r.status == "finished" and r.validation is not None}
        """By seed, in order, as all records below."""
        self.seeds = tuple(seed for seed in self.runs if seed is not None)
        self.contexts = {seed: r.contexts for seed, r in self.runs.items() if r.contexts is not None}
        self.phase1: dict[int | None, Any] = {
            seed: r.phase1 for seed, r in self.runs.items() if r.phase1 is not None
        }
        """Records of a type of the recipe's."""
        self.training = {seed: r.trained for seed, r in self.runs.items() if r.trained is not None}
        """Phase 2, or the training of a baseline."""
        self.validation = {seed: r.validation for seed, r in self.runs.items() if r.validation is not None}

        training, validation = self.training.values(), self.validation.values()
        self.effective_rank = spread(c.effective_rank_validation for c in self.contexts.values())
        """A share, on validation contexts."""
        self.nll = spread(v.nll_nats for v in validation)
        """Validation, nats per token."""
        self.perplexity = perplexities(v.nll_nats for v in validation)
        """Validation, with the geometric mean."""
        self.accuracy = spread(v.accuracy for v in validation)
        self.bits_per_byte = spread(v.bits_per_byte for v in validation)
        self.train_perplexity = perplexities(t.train_nll_nats for t in training)
        """At the best epoch, with the geometric mean."""
        self.best_epoch = spread(t.best_epoch for t in training)
        self.training_seconds = spread(t.seconds_s for t in training)
        self.seconds_alone = spread(r.seconds_alone_s for r in self.runs.values())
        """Seconds that a run takes alone."""
        self.rankable = self.nll is not None and math.isfinite(self.nll.mean)
        """Whether it has a finite validation loss, so that it can be best or recommended."""
        self.still_improving = sum(t.stopped == "max_epochs" and t.best_epoch == t.epochs for t in training)
        """Number of seeds whose best epoch was the last one allowed."""
        # Of epoch 0, what phase 2 started from, the training figure is exact whatever the settings are.
        untouched = bool(training) and all(t.best_epoch == 0 for t in training)
        self.training_is_plain = self.baseline or untouched or trains_plainly(manifest, self.variant)
        """Whether training figures compare with validation: not with dropout or a sampled softmax."""
        train_nll = spread(t.train_nll_nats for t in training)
        self.gap: float | None = None
        """Validation over training perplexity; None where the two do not compare."""
        if self.nll and train_nll and self.training_is_plain:
            self.gap = perplexity(self.nll.mean - train_nll.mean)


class ScanResult(NamedTuple):
    """The contexts of one split, as computed for every run of one variant and context depth."""

    name: str
    split: Literal["train", "validation"]
    scans: Sequence[ScanRecord]

    @property
    def within(self) -> bool:
        """Whether every scan kept to its own tolerance."""
        return all(max(scan.loop_error, scan.join_error) <= scan.tolerance for scan in self.scans)


class MemorySpread(NamedTuple):
    """The share of a changed token that is left `distance` tokens later: mean, lowest and highest seed."""

    distance: int
    mean: float
    low: float
    high: float


class DepthResult:
    """What one variant and context depth decide, whatever the token depth: phase 1 and the contexts."""

    def __init__(self, variant: str | None, context_layers: int, records: Sequence[RunRecord]) -> None:
        self.variant, self.context_layers, self.recipe = variant, context_layers, records[0].recipe
        depth = f"C{context_layers}"
        self.name = depth if variant is None else f"{variant}-{depth}"
        self.used_by = tuple(dict.fromkeys(r.configuration for r in records))
        self.phase1: dict[int, Any] = _by_seed(records, lambda r: r.phase1)
        """Records by seed, of a type of the recipe's; without the runs that failed before its end."""
        self.contexts = _by_seed(records, lambda r: r.contexts)
        self.scans = tuple(
            ScanResult(self.name, split, [getattr(r.contexts, split) for r in records if r.contexts])
            for split in ("train", "validation")
            if self.contexts
        )
        self.memory = _by_seed(
            records,
            lambda r: {p.distance: p.change for p in r.contexts.memory} or None if r.contexts else None,
        )
        """By seed and distance in tokens: the share of a changed token that is left."""
        curves = [*self.memory.values()]
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        changes = {distance: [curve[distance] for curve in curves] for distance in shared}
        self.points = [MemorySpread(d, fmean(c), min(c), max(c)) for d, c in changes.items()]
        """The memory at the distances that all seeds have, in order."""

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


def _by_seed(records: Iterable[RunRecord], of: Callable[[RunRecord], Item | None]) -> dict[int, Item]:
    """What the runs of each seed share, from the run that computed it where that is known."""
    found: dict[int, Item] = {}
    for record in sorted(records, key=lambda r: (r.seed or 0, not r.phase1_computed_here)):
        shared = of(record)
        if shared is not None and record.seed is not None:
            found.setdefault(record.seed, shared)
    return found


# Models against each other


@dataclass(frozen=True)
class Comparison:
    """Model `b` against model `a`, by validation NLL."""

    a: str
    b: str
    effect: Effect
    """The difference that the verdict rests on."""
    corrected_p: float | None
    """p of `effect`, Holm-corrected over its family."""
    nll: Effect
    """Secondary: over seeds, on this validation set."""
    paired_p: float | None
    """p of `nll`, Holm-corrected over the same family."""
    accuracy: Effect
    """Descriptive, over seeds."""
    power: statistics.Power | None
    """What `effect` can show, in its family; None where it has no p."""

    @property
    def verdict(self) -> Verdict:
        """On `b`."""
        return self.effect.verdict(self.corrected_p)

    @property
    def reversed(self) -> "Comparison":
        """`a` against `b`."""
        parts = {name: getattr(self, name).reversed for name in ("effect", "nll", "accuracy")}
        return replace(self, a=self.b, b=self.a, **parts)


def compare_pairs(pairs: Iterable[tuple[ModelResult, ModelResult]]) -> tuple[Comparison, ...]:
    """The comparisons of all pairs with results, as one family; the two may be of two experiments."""
    pairs = [(a, b) for a, b in pairs if a.validation and b.validation]
    scores = [_common(a, b) for a, b in pairs]
    tests = [_paired(both, lambda v: v.nll_nats) for both in scores]
    effects = [_effect(both) or test for both, test in zip(scores, tests, strict=True)]
    corrected, paired_p = holm([e.p for e in effects]), holm([t.p for t in tests])

    accuracies = [_paired(both, lambda v: v.accuracy) for both in scores]
    names = [a.name for a, _ in pairs], [b.name for _, b in pairs]
    powers = statistics.powers(effects)
    return tuple(map(Comparison, *names, effects, corrected, tests, paired_p, accuracies, powers))


def _common(a: ModelResult, b: ModelResult) -> Scores:
    """The scores of both with each common seed; what has no seed stands beside every seed of the other."""
    return {
        seed: (of_a, of_b)
        for seed in sorted({*a.seeds, *b.seeds})
        if (of_a := a.validation.get(seed, a.validation.get(None)))
        and (of_b := b.validation.get(seed, b.validation.get(None)))
    }


def _paired(scores: Scores, figure: Callable[[ValidationRecord], float]) -> Effect:
    a, b = ({seed: figure(both[side]) for seed, both in scores.items()} for side in (0, 1))
    return paired(a, b)


def _effect(scores: Scores) -> Effect | None:
    """Over seeds and documents; None unless all scores are of the same two documents or more."""
    unpacked = {
        seed: [v.documents.unpack() for v in both if v.documents is not None] for seed, both in scores.items()
    }
    tokens = [tokens for both in unpacked.values() for tokens, _ in both]
    if not tokens or len(tokens) < 2 * len(scores) or np.count_nonzero(tokens[0]) < 2:
        return None
    if not all(np.array_equal(tokens[0], other) for other in tokens):
        return None
    differences = {seed: sums_b - sums_a for seed, ((_, sums_a), (_, sums_b)) in unpacked.items()}
    return crossed(differences, tokens[0])


# What the manifest says of variants: plain data, whatever version of Tandem wrote it


def trains_plainly(manifest: Manifest | None, variant: str | None) -> bool:
    """Whether phase 2 trains without dropout and on the whole vocabulary, as far as is known.

    Otherwise its training figures are of another kind than those of validation.
    """
    common = manifest.settings if manifest else {}
    phase2 = _section(common, "phase2") | _section(own_settings(manifest, variant), "phase2")
    return not any(phase2.get(name) for name in ("dropout", "embed_dropout", "output_dropout", "negatives"))


def own_settings(manifest: Manifest | None, variant: str | None) -> dict[str, object]:
    """What a variant sets differently from the common settings."""
    return _section(_section(manifest.settings, "variants"), variant) if manifest and variant else {}


def _section(settings: Mapping[str, object], name: str) -> dict[str, object]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


# The audit


class CheckResult(NamedTuple):
    """One check of the audit over all runs it was made for."""

    name: str
    shown: str | None
    """The run with its worst outcome; None: it is of the data that all runs share."""
    check: Check
    counts: Mapping[Status, int]
    """Number of runs by status."""


class AuditStatus:
    """What an audit says of these records; what it found of earlier or of other runs is left out."""

    def __init__(self, audit: AuditRecord | None, records: Sequence[RunRecord]) -> None:
        finished = {r.run: r.finished_at for r in records if r.status == "finished"}
        runs = audit.runs if audit else ()
        current = [a for a in runs if a.run is None or finished.get(a.run) == a.finished_at]
        outcomes = _grouped(
            ((a.run, check) for a in current for check in a.checks), lambda found: found[1].name
        )
        bad, covered = {a.run for a in current if a.status == "fail"}, {a.run for a in current}
        no_model = {run for run, check in outcomes.get("model", []) if check.status in ("skip", "warn")}
        self.audited_at = audit.audited_at if audit else None
        """UTC, ISO 8601; None without an audit."""
        self.checks: list[CheckResult] = []
        """Of each check every run that failed; the worst run if none did."""
        for name, found in outcomes.items():
            counts = Counter(check.status for _, check in found)
            worst = min(found, key=lambda outcome: STATUSES.index(outcome[1].status))
            shown = [outcome for outcome in found if outcome[1].status == "fail"] or [worst]
            self.checks += [CheckResult(name, run, check, counts) for run, check in shown]
        self.failed, self.warned, self.unchecked = (
            tuple(dict.fromkeys(c.name for c in self.checks if c.counts.get(status)))
            for status in ("fail", "warn", "skip")
        )
        """Names of the checks that failed, of those that warned, and of those that could not be made."""
        self.untrusted = tuple(r.run for r in records if None in bad or r.run in bad)
        """Runs that failed a check; every run where a check of the shared data failed."""
        self.unaudited = tuple(run for run in finished if run not in covered)
        """Finished runs that the audit does not cover, or covers in an earlier record."""
        self.unrecomputed = tuple(r.run for r in records if r.is_tandem and r.run in no_model)
        """Runs whose figures were not recomputed, since no model was saved."""


# All of it


@dataclass(frozen=True)
class Choice:
    """The recommendation that follows from the verdicts."""

    best: ModelResult
    """Lowest mean validation NLL; by itself no claim."""
    recommended: ModelResult
    """The smallest one among those not shown to be worse than the best."""
    reason: str
    """Why, as the key of its sentence in `recommended`."""
    provisional: bool
    """Whether some comparison with the best had too few seeds to show anything."""
    alternative: ModelResult | None
    avoid: tuple[tuple[ModelResult, tuple[str, ...]], ...]
    """Configurations shown worse, each with what they are shown worse than (the best, the recommended)."""


class Analysis:
    """Everything the report shows of the records of one experiment.

    Partial, failed and single runs are all allowed.
    """

    def __init__(
        self, records: Sequence[RunRecord], manifest: Manifest | None, audit: AuditRecord | None = None
    ) -> None:
        variants = _variants(records, manifest)
        self.manifest = manifest
        self.records = records = tuple(sorted(records, key=lambda r: _order(r, variants)))
        self.experiment = manifest.name if manifest else records[0].experiment
        self.environments = _grouped(records, lambda r: r.environment)
        """Each with its records; one, unless the experiment moved."""
        self.data = _grouped(records, lambda r: r.data.model_copy(update=OWN_EMBEDDINGS))
        """Each with its records; one, unless records were mixed. Embeddings do not tell them apart."""
        self.settings = tuple(dict.fromkeys((r.variant, r.settings_fingerprint) for r in records))
        """Variant and fingerprint of its settings; one a variant, unless records were mixed."""
        self.comparable = len(self.data) == 1 and len(self.settings) == len({v for v, _ in self.settings})
        """Whether all share the text and its tokens, and those of a variant their settings.

        Otherwise nothing is compared.
        """
        self.variants = tuple(variant for variant in variants if variant is not None)
        """In the order of the manifest; empty where there is only one way to train."""
        tandem = [r for r in records if not is_baseline(r)]
        baselines, left_out = _by_newest_settings([r for r in records if is_baseline(r)])
        self.configurations, self.baselines = (
            tuple(ModelResult(runs, manifest) for runs in _grouped(group, lambda r: r.configuration).values())
            for group in (tandem, baselines)
        )
        """Configurations by variant, then by depth; and what they are measured against."""
        self.models = {model.name: model for model in (*self.configurations, *self.baselines)}
        by_depth = _grouped(
            [r for r in tandem if r.context_layers],
            lambda r: (variants.index(r.variant), r.context_layers or 0),
        )
        self.depths = tuple(DepthResult(variants[v], c, runs) for (v, c), runs in sorted(by_depth.items()))
        """By variant, then by context depth, those included where every run failed."""
        self.scans = tuple(scan for depth in self.depths for scan in depth.scans)
        self.memories = tuple(depth for depth in self.depths if depth.points)
        self.failed = tuple(r for r in records if r.status == "failed")
        self.left_out = tuple(r for r in left_out if r.status == "finished")
        """Finished runs of baselines with other settings than the newest one; in no mean or comparison."""
        present, recorded = {(r.configuration, r.seed) for r in records}, {r.run for r in records}
        planned = product(manifest.configurations, manifest.seeds) if manifest else ()
        self.missing = tuple(run for run in planned if run not in present)
        """Configuration and seed of the runs that the manifest names and that have no record."""
        planned_baselines = manifest.baselines if manifest else ()
        self.missing_baselines = tuple(run for run in planned_baselines if run not in recorded)
        self.audit = AuditStatus(audit, records)
        self.seconds_spent = math.fsum(r.seconds_spent_s for r in records)
        """Of all records, shared work counted only where it was done."""
        self.seconds_alone = math.fsum(r.seconds_alone_s for r in records)
        """Of all records, had every run been made alone."""
        self.comparisons = compare_pairs(combinations(self.configurations, 2)) if self.comparable else ()
        """Every pair of configurations, corrected as one family."""
        against = product(self.baselines, self.configurations)
        self.baseline_comparisons = compare_pairs(against) if self.comparable else ()
        """Every configuration (`b`) against every baseline (`a`), corrected as one family."""

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

    @cached_property
    def choice(self) -> Choice | None:
        """Best, recommended, alternative and avoided configurations; None where nothing can be ranked.

        Seeds that differ between configurations do not disturb the verdicts, which rest on common seeds.
        """
        nll = {c.name: c.nll.mean for c in self.configurations if c.nll is not None and c.rankable}
        ranked = sorted((c for c in self.configurations if c.rankable), key=lambda c: nll[c.name])
        if not ranked or not self.comparable:
            return None

        def verdict_against(rival: ModelResult, c: ModelResult) -> Verdict:
            comparison = self.compare(rival.name, c.name)
            return comparison.verdict if comparison else Verdict.TOO_FEW_SEEDS

        best, size = ranked[0], {c.name: c.total_parameters or math.inf for c in ranked}
        acceptable = [c for c in ranked if verdict_against(best, c) is not Verdict.WORSE]
        recommended = min(acceptable, key=lambda c: (size[c.name], nll[c.name]))
        rivals = {best.name: best, recommended.name: recommended}
        avoid = {
            c: names
            for c in ranked
            if (
                names := tuple(n for n, rival in rivals.items() if verdict_against(rival, c) is Verdict.WORSE)
            )
        }
        if len(ranked) == 1:
            reason = "only"
        elif recommended is not best:
            reason = "not_shown_worse"
        else:
            smaller = any(size[c.name] < size[best.name] for c in ranked)
            reason = "smaller_shown_worse" if smaller else "best_and_smallest"
        return Choice(
            best=best,
            recommended=recommended,
            reason=reason,
            provisional=any(verdict_against(best, c) is Verdict.TOO_FEW_SEEDS for c in ranked[1:]),
            alternative=next((c for c in acceptable if c is not recommended and c not in avoid), None),
            avoid=tuple(avoid.items()),
        )


def _variants(records: Sequence[RunRecord], manifest: Manifest | None) -> list[str | None]:
    """Variants of the Tandem models, as the manifest names their configurations first, else as recorded."""
    order = {name: place for place, name in enumerate(manifest.configurations)} if manifest else {}
    tandem = [r for r in records if not is_baseline(r)]
    tandem.sort(key=lambda r: order.get(r.configuration, len(order)))
    return list(dict.fromkeys(r.variant for r in tandem))


def _order(record: RunRecord, variants: Sequence[str | None]) -> tuple[int, int, int, int, str, int]:
    """Configurations by variant and depth, then baselines by kind; each by seed."""
    kinds = ["tandem", *BASELINES, record.kind]  # an unknown one comes last
    variant = variants.index(record.variant) if record.variant in variants else len(variants)
    seed = -1 if record.seed is None else record.seed
    depths = (record.token_layers or 0, record.context_layers or 0)
    return (kinds.index(record.kind), variant, *depths, record.configuration, seed)


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items of each key."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _by_newest_settings(baselines: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Records with the settings of the newest one of the same name, finished or not; and all others.

    A resume with other settings makes a baseline's runs again; until it is through, both kinds are there.
    """
    newest = {r.configuration: r.baseline_fingerprint for r in sorted(baselines, key=lambda r: r.finished_at)}
    current = [r for r in baselines if r.baseline_fingerprint == newest[r.configuration]]
    return current, [r for r in baselines if r.baseline_fingerprint != newest[r.configuration]]
