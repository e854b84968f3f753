"""From saved records to every figure the report shows: no words here, and nothing that is not recorded."""

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from statistics import fmean
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tandem.baselines import BASELINES
from tandem.records import AuditRecord, Check, Manifest, RunRecord, ValidationRecord
from tandem.records.audit import Status
from tandem.report.crossed import Effect, Floats, over_seeds, over_seeds_and_documents
from tandem.report.phase1 import ORIGINAL, PHASE1_REPORTS, phase1_report
from tandem.report.results import (
    Analysis,
    AuditStatus,
    CheckResult,
    Comparison,
    MemoryResult,
    MemorySpread,
    ModelResult,
    Phase1OverSeeds,
    ScanResult,
    is_baseline,
)
from tandem.report.statistics import Verdict, holm, paired, verdict

Item = TypeVar("Item", bound=Hashable)
Shared = TypeVar("Shared")
Place = tuple[str | None, int]
"""Variant and context layers."""
Scores = Mapping[int, ValidationRecord]
"""By seed."""
OWN_EMBEDDINGS = {"embeddings": "", "embeddings_trained": False, "embeddings_fingerprint": ""}
"""What data may differ in: variants have their own embeddings, random ones seeds too."""
STATUSES: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
"""Of the audit's checks, worst first."""


def analyse(
    records: Sequence[RunRecord], manifest: Manifest | None, audit: AuditRecord | None = None
) -> Analysis:
    """Analyse the records of one experiment. Partial, failed and single runs are all allowed."""
    variants = _variants(records, manifest)
    records = sorted(records, key=lambda r: _order(r, variants))
    tandem = [r for r in records if not is_baseline(r)]
    baselines, left_out = _by_newest_settings([r for r in records if is_baseline(r)])
    places = [
        (variant, layers)
        for variant in variants
        for layers in sorted({r.context_layers for r in tandem if r.variant == variant and r.context_layers})
    ]
    of_place = {place: [r for r in tandem if (r.variant, r.context_layers) == place] for place in places}
    present, recorded = {(r.configuration, r.seed) for r in records}, {r.run for r in records}
    analysis = Analysis(
        experiment=manifest.name if manifest else records[0].experiment,
        records=tuple(records),
        manifest=manifest,
        environments=_grouped(records, lambda r: r.environment),
        data=_grouped(records, lambda r: r.data.model_copy(update=OWN_EMBEDDINGS)),
        settings=tuple(dict.fromkeys((r.variant, r.settings_fingerprint) for r in records)),
        variants=tuple(variant for variant in variants if variant is not None),
        configurations=tuple(_models(tandem, manifest)),
        baselines=tuple(_models(baselines, manifest)),
        phase1=_phase1(of_place),
        scans=tuple(_scans(of_place)),
        memories=tuple(_memories(of_place)),
        failed=tuple(r for r in records if r.status == "failed"),
        left_out=tuple(r for r in left_out if r.status == "finished"),
        missing=tuple(run for run in product(manifest.configurations, manifest.seeds) if run not in present)
        if manifest
        else (),
        missing_baselines=tuple(run for run in manifest.baselines if run not in recorded) if manifest else (),
        audit=audit_status(audit, records),
        seconds_spent=math.fsum(r.seconds_spent_s for r in records),
        seconds_alone=math.fsum(r.seconds_alone_s for r in records),
    )
    if not analysis.comparable:
        return analysis
    depth_comparisons = [phase1_report(recipe).compare(found) for recipe, found in analysis.phase1.items()]
    return replace(
        analysis,
        comparisons=_compare(combinations(analysis.configurations, 2)),
        baseline_comparisons=_compare(product(analysis.baselines, analysis.configurations)),
        depth_comparisons=tuple(comparison for found in depth_comparisons for comparison in found),
    )


# Records in order and in groups


def _variants(records: Sequence[RunRecord], manifest: Manifest | None) -> list[str | None]:
    """Variants of the Tandem models, as the manifest names their configurations first, else as recorded."""
    order = {name: place for place, name in enumerate(manifest.configurations)} if manifest else {}
    first: dict[str | None, int] = {}
    for record in records:
        if not is_baseline(record):
            place = order.get(record.configuration, len(order))
            first[record.variant] = min(place, first.get(record.variant, place))
    return sorted(first, key=lambda variant: first[variant])


def _order(record: RunRecord, variants: Sequence[str | None]) -> tuple[int, int, int, int, str, int]:
    """Configurations by variant and depth, then baselines by kind; each by seed."""
    kinds = ["tandem", *BASELINES, record.kind]  # an unknown one comes last
    variant = variants.index(record.variant) if record.variant in variants else len(variants)
    seed = -1 if record.seed is None else record.seed
    depths = (record.token_layers or 0, record.context_layers or 0)
    return (kinds.index(record.kind), variant, *depths, record.configuration, seed)


def _by_newest_settings(baselines: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Records with the settings of the newest one of the same name, finished or not; and all others.

    A resume with other settings makes a baseline's runs again; until it is through, both kinds are there.
    """
    newest = {r.configuration: r.baseline_fingerprint for r in sorted(baselines, key=lambda r: r.finished_at)}
    current = [r for r in baselines if r.baseline_fingerprint == newest[r.configuration]]
    return current, [r for r in baselines if r.baseline_fingerprint != newest[r.configuration]]


def _models(records: Sequence[RunRecord], manifest: Manifest | None) -> Iterator[ModelResult]:
    """One result for each configuration or baseline."""
    for name in dict.fromkeys(r.configuration for r in records):
        own = [r for r in records if r.configuration == name]
        trained = [r.trained for r in own if r.status == "finished" and r.trained is not None]
        # Of epoch 0, what phase 2 started from, the training figure is exact whatever the settings are.
        untouched = bool(trained) and all(training.best_epoch == 0 for training in trained)
        first = own[0]
        yield ModelResult(
            name=name,
            kind=first.kind,
            recipe=first.recipe,
            variant=first.variant,
            context_layers=first.context_layers,
            token_layers=first.token_layers,
            parameters=next((r.parameters for r in own if r.parameters is not None), None),
            runs={r.seed: r for r in own if r.status == "finished" and r.validation is not None},
            training_is_plain=is_baseline(first) or untouched or trains_plainly(manifest, first.variant),
        )


def _grouped(
    records: Sequence[RunRecord], key: Callable[[RunRecord], Item]
) -> tuple[tuple[Item, tuple[str, ...]], ...]:
    """Each distinct item with the runs it belongs to."""
    runs: dict[Item, list[str]] = {}
    for record in records:
        runs.setdefault(key(record), []).append(record.run)
    return tuple((item, tuple(names)) for item, names in runs.items())


# What variant and context depth decide

ByPlace = Mapping[Place, Sequence[RunRecord]]


def _phase1(of_place: ByPlace) -> dict[str, tuple[Phase1OverSeeds, ...]]:
    """Phase 1 of every place by its recipe, places included where every run failed before its end."""
    found: dict[str, list[Phase1OverSeeds]] = {recipe: [] for recipe in PHASE1_REPORTS}
    for place, records in of_place.items():
        names = tuple(dict.fromkeys(r.configuration for r in records))
        phase1, contexts = (_by_seed(records, of) for of in (lambda r: r.phase1, lambda r: r.contexts))
        result = Phase1OverSeeds(*place, names, phase1, contexts)
        found.setdefault(records[0].recipe or ORIGINAL, []).append(result)
    return {recipe: tuple(results) for recipe, results in found.items()}


def _scans(of_place: ByPlace) -> Iterator[ScanResult]:
    for place, records in of_place.items():
        contexts = [r.contexts for r in records if r.contexts is not None]
        if contexts:
            yield ScanResult(*place, "train", tuple(c.train for c in contexts))
            yield ScanResult(*place, "validation", tuple(c.validation for c in contexts))


def _memories(of_place: ByPlace) -> Iterator[MemoryResult]:
    for place, records in of_place.items():
        curves = _by_seed(
            records,
            lambda r: {p.distance: p.change for p in r.contexts.memory} or None if r.contexts else None,
        )
        common = sorted(set.intersection(*(set(c) for c in curves.values()))) if curves else []
        changes = [(distance, [curve[distance] for curve in curves.values()]) for distance in common]
        if changes:
            points = (MemorySpread(d, fmean(found), min(found), max(found)) for d, found in changes)
            yield MemoryResult(*place, tuple(points), tuple(curves))


def _by_seed(records: Iterable[RunRecord], of: Callable[[RunRecord], Shared | None]) -> dict[int, Shared]:
    """What the runs of each seed share, from the run that computed it where that is known."""
    found: dict[int, Shared] = {}
    for record in sorted(records, key=lambda r: (r.seed or 0, not r.phase1_computed_here)):
        shared = of(record)
        if shared is not None and record.seed is not None:
            found.setdefault(record.seed, shared)
    return found


# Models against each other


def _compare(pairs: Iterable[tuple[ModelResult, ModelResult]]) -> tuple[Comparison, ...]:
    """The comparisons of all pairs with results, as one family."""
    pairs = [(a, b) for a, b in pairs if a.validation and b.validation]
    scores = [_common(a, b) for a, b in pairs]
    tests = [paired(_nll(of_a), _nll(of_b)) for of_a, of_b in scores]
    accuracies = [paired(_accuracy(of_a), _accuracy(of_b)) for of_a, of_b in scores]
    effects = [_effect(of_a, of_b) for of_a, of_b in scores]
    corrected, paired_p = holm([e.p for e in effects]), holm([t.p for t in tests])
    return tuple(
        Comparison(
            a=a.name,
            b=b.name,
            effect=effects[i],
            corrected_p=corrected[i],
            verdict=verdict(len(effects[i].by_seed), effects[i].difference, corrected[i]),
            nll=tests[i],
            paired_p=paired_p[i],
            accuracy=accuracies[i],
        )
        for i, (a, b) in enumerate(pairs)
    )


def _common(a: ModelResult, b: ModelResult) -> tuple[Scores, Scores]:
    """The scores of both with each common seed; what has no seed stands beside every seed of the other."""

    def scores(model: ModelResult, seed: int) -> ValidationRecord | None:
        return model.validation.get(seed, model.validation.get(None))

    both = {
        seed: (of_a, of_b)
        for seed in sorted({*a.seeds, *b.seeds})
        if (of_a := scores(a, seed)) and (of_b := scores(b, seed))
    }
    return {seed: of_a for seed, (of_a, _) in both.items()}, {seed: of_b for seed, (_, of_b) in both.items()}


def _nll(scores: Scores) -> dict[int, float]:
    return {seed: v.nll_nats for seed, v in scores.items()}


def _accuracy(scores: Scores) -> dict[int, float]:
    return {seed: v.accuracy for seed, v in scores.items()}


def _effect(a: Scores, b: Scores) -> Effect:
    """Over seeds and documents where both hold scores of the same two documents or more, else over seeds."""
    differences: dict[int, Floats] = {}
    tokens: npt.NDArray[np.int64] | None = None
    for seed in a:
        of_a, of_b = a[seed].documents, b[seed].documents
        if of_a is None or of_b is None:
            break
        (tokens_a, sums_a), (tokens_b, sums_b) = of_a.unpack(), of_b.unpack()
        tokens = tokens_a if tokens is None else tokens
        if not (np.array_equal(tokens, tokens_a) and np.array_equal(tokens, tokens_b)):
            break
        differences[seed] = sums_b - sums_a
    if len(differences) == len(a) and tokens is not None and np.count_nonzero(tokens) > 1:
        return over_seeds_and_documents(differences, tokens)
    nll_a, nll_b = _nll(a), _nll(b)
    return over_seeds(paired(nll_a, nll_b), {seed: nll_b[seed] - nll_a[seed] for seed in nll_a})


# Which configuration to use


@dataclass(frozen=True)
class Choice:
    """The recommendation that follows from the verdicts."""

    best: ModelResult
    """Lowest mean validation NLL; by itself no claim."""
    recommended: ModelResult
    """The smallest one among those not shown to be worse than the best."""
    reason: Literal["only", "best_and_smallest", "smaller_shown_worse", "not_shown_worse"]
    """No rival; best and smallest; best, and all smaller ones shown worse; or smaller than the best."""
    provisional: bool
    """Whether some comparison with the best had too few seeds to show anything."""
    alternative: ModelResult | None
    avoid: tuple[tuple[ModelResult, tuple[str, ...]], ...]
    """Configurations shown worse, each with what they are shown worse than (the best, the recommended)."""


def choose(analysis: Analysis) -> Choice | None:
    """Best, recommended, alternative and avoided configurations; none where nothing can be ranked.

    Seeds that differ between configurations do not disturb the verdicts, which rest on common seeds.
    """
    nll = {c.name: c.nll.mean for c in analysis.configurations if c.nll is not None and c.rankable}
    ranked = sorted((c for c in analysis.configurations if c.rankable), key=lambda c: nll[c.name])
    if not ranked or not analysis.comparable:
        return None

    def verdict_against(rival: ModelResult, c: ModelResult) -> Verdict:
        comparison = analysis.compare(rival.name, c.name)
        return comparison.verdict if comparison else Verdict.TOO_FEW_SEEDS

    def size(c: ModelResult) -> float:
        return math.inf if c.total_parameters is None else c.total_parameters

    best = ranked[0]
    acceptable = [c for c in ranked if verdict_against(best, c) is not Verdict.WORSE]
    recommended = min(acceptable, key=lambda c: (size(c), nll[c.name]))
    rivals = {best.name: best, recommended.name: recommended}
    worse_than = [
        (c, tuple(name for name, rival in rivals.items() if verdict_against(rival, c) is Verdict.WORSE))
        for c in ranked
    ]
    avoid = tuple((c, names) for c, names in worse_than if names)
    rest = [c for c in acceptable if c is not recommended and c not in [avoided for avoided, _ in avoid]]
    smaller = any(size(c) < size(recommended) for c in ranked)
    return Choice(
        best=best,
        recommended=recommended,
        reason="only"
        if len(ranked) == 1
        else "not_shown_worse"
        if recommended is not best
        else "smaller_shown_worse"
        if smaller
        else "best_and_smallest",
        provisional=any(verdict_against(best, c) is Verdict.TOO_FEW_SEEDS for c in ranked if c is not best),
        alternative=rest[0] if rest else None,
        avoid=avoid,
    )


# What the manifest says of variants: plain data, whatever version of Tandem wrote it


def changed_settings(manifest: Manifest, variant: str) -> tuple[str, ...]:
    """What a variant sets differently from the common settings, such as `phase2.lr = 0.002`."""
    return tuple(_leaves(_own_settings(manifest, variant)))


def trains_plainly(manifest: Manifest | None, variant: str | None) -> bool:
    """Whether phase 2 trains without dropout and on the whole vocabulary, as far as is known.

    Otherwise its training figures are of another kind than those of validation.
    """
    settings: dict[str, object] = {}
    for source in (manifest.settings if manifest else {}, _own_settings(manifest, variant)):
        phase2 = source.get("phase2")
        settings |= phase2 if isinstance(phase2, Mapping) else {}
    return not any(settings.get(name) for name in ("dropout", "embed_dropout", "output_dropout", "negatives"))


def _own_settings(manifest: Manifest | None, variant: str | None) -> Mapping[str, object]:
    variants = manifest.settings.get("variants") if manifest else None
    own = variants.get(variant) if isinstance(variants, Mapping) and variant is not None else None
    return own if isinstance(own, Mapping) else {}


def _leaves(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} = {json.dumps(value, ensure_ascii=False)}"


# The audit


def audit_status(audit: AuditRecord | None, records: Sequence[RunRecord]) -> AuditStatus:
    """What an audit says of these records; what it found of earlier or of other runs is left out."""
    finished = {r.run: r.finished_at for r in records if r.status == "finished"}
    if audit is None:
        return AuditStatus(None, (), (), (), (), tuple(finished), ())
    current = [a for a in audit.runs if a.run is None or finished.get(a.run) == a.finished_at]
    found: dict[str, list[tuple[str | None, Check]]] = {}
    for run_audit in current:
        for check in run_audit.checks:
            found.setdefault(check.name, []).append((run_audit.run, check))
    checks = [result for name, outcomes in found.items() for result in _check_results(name, outcomes)]
    bad, covered = {a.run for a in current if a.status == "fail"}, {a.run for a in current}
    no_model = {run for run, check in found.get("model", []) if check.status in ("skip", "warn")}
    return AuditStatus(
        audited_at=audit.audited_at,
        checks=tuple(checks),
        failed=tuple(dict.fromkeys(c.name for c in checks if c.counts.get("fail"))),
        warned=tuple(dict.fromkeys(c.name for c in checks if c.counts.get("warn"))),
        untrusted=tuple(r.run for r in records if None in bad or r.run in bad),
        unaudited=tuple(run for run in finished if run not in covered),
        unrecomputed=tuple(r.run for r in records if r.is_tandem and r.run in no_model),
    )


def _check_results(name: str, outcomes: Sequence[tuple[str | None, Check]]) -> list[CheckResult]:
    """Every run that failed; the worst run if none did."""
    counts = Counter(check.status for _, check in outcomes)
    ordered = sorted(outcomes, key=lambda outcome: STATUSES.index(outcome[1].status))
    shown = [outcome for outcome in outcomes if outcome[1].status == "fail"] or ordered[:1]
    return [CheckResult(name, run, check, dict(counts)) for run, check in shown]
