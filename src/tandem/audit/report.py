"""The numbers of the report a second time: plainly, from the records alone, by the definitions.

What is checked is `tandem.report.analysis`; nothing of `tandem.report.statistics` is called here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from tandem.audit.statistics import (
    SeedTest,
    family_of,
    holm_corrected,
    mean_of,
    paired_test,
    perplexities_of,
    perplexity_of,
    spread_of,
    verdict_of,
)
from tandem.records import Check, Manifest, RunRecord
from tandem.report.analysis import Analysis
from tandem.report.phase1 import depth_comparisons, head_perplexity, over_head
from tandem.report.sentences import MEMORY_SHARES, effect_findings, variant_pairs

SAME = 1e-5
"""Relative difference up to which two computations of a number agree."""
Finding = tuple[str, Any, Any]
"""What a number is of, what the report says, and what comes out here."""
AS_RECORDED = ("wall times", "peaks of memory", "the environment", "the errors of the scan")
"""Numbers in the report that no check computes again: it shows them as the runs recorded them."""


def report_check(records: Sequence[RunRecord], manifest: Manifest | None) -> Check:
    """`report`: every number that the report works out of these records, failed ones included."""
    said, ours = Analysis(records, manifest), _Figures(records, manifest)
    found = [*_whole(said, ours), *_models(said, ours), *_depths(said, ours)]
    found += [*_pairs(said, ours), *_selected(said, ours), *_choice(said, ours)]
    wrong = [f"{name} is {_text(a)}, recomputed {_text(b)}" for name, a, b in found if not _same(a, b)]
    shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
    return Check(
        name="report",
        looked_at="means, intervals, p-values, verdicts and the recommendation, computed again from records",
        figure=shown or f"{len(found)} numbers agree; as recorded: {', '.join(AS_RECORDED)}",
        status="fail" if wrong else "pass",
    )


def _same(said: Any, right: Any) -> bool:
    """Whether both are equal, numbers to rounding."""
    if isinstance(said, Mapping) and isinstance(right, Mapping):
        return said.keys() == right.keys() and all(_same(said[key], right[key]) for key in said)
    if isinstance(said, list | tuple) and isinstance(right, list | tuple):
        return len(said) == len(right) and all(map(_same, said, right))
    if isinstance(said, float) and isinstance(right, int | float):
        both_undefined = math.isnan(said) and math.isnan(right)
        return both_undefined or math.isclose(said, right, rel_tol=SAME, abs_tol=1e-9)
    return bool(said == right)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_text, value)) + ")"
    return str(value)


# The records, in groups


class _Figures:
    """Runs by model and by context depth, and the comparisons of models; nothing is shared with the report.

    order       names of configurations, by variant and depth.
    baselines   names of baselines.
    runs        records of each model, failed ones included, without those of earlier settings.
    """

    def __init__(self, records: Sequence[RunRecord], manifest: Manifest | None) -> None:
        self.records, self.settings = records, manifest.settings if manifest else {}
        own = [r for r in records if r.kind == "tandem"]
        planned = list(manifest.configurations) if manifest else []
        place = {r.configuration: len(planned) for r in own} | {name: i for i, name in enumerate(planned)}
        self.variants = list(
            dict.fromkeys(r.variant for r in sorted(own, key=lambda r: place[r.configuration]))
        )
        own.sort(key=lambda r: (self.variants.index(r.variant), r.token_layers or 0, r.context_layers or 0))
        self.order = list(dict.fromkeys(r.configuration for r in own))
        newest: dict[str, RunRecord] = {}
        for r in records:
            if r.kind != "tandem" and r.finished_at >= newest.get(r.configuration, r).finished_at:
                newest[r.configuration] = r
        self.baselines = list(newest)
        self.runs: dict[str, list[RunRecord]] = {}
        for r in sorted(records, key=lambda r: -1 if r.seed is None else r.seed):
            current = newest.get(r.configuration, r).baseline_fingerprint
            if r.kind == "tandem" or r.baseline_fingerprint == current:
                self.runs.setdefault(r.configuration, []).append(r)
        self.scores: dict[str, dict[int | None, Any]] = {
            name: {r.seed: r.validation for r in runs if r.status == "finished" and r.validation}
            for name, runs in self.runs.items()
        }
        data = {
            r.data.model_dump_json(exclude={n for n in type(r.data).model_fields if "embeddings" in n})
            for r in records
        }
        named = {(r.variant, r.settings_fingerprint) for r in records}
        self.comparable = len(data) == 1 and len(named) == len({variant for variant, _ in named})
        families = (combinations(self.order, 2), product(self.baselines, self.order))
        self.families = [family_of(self.scores, pairs) if self.comparable else {} for pairs in families]

    def finished(self, name: str) -> list[RunRecord]:
        return [r for r in self.runs[name] if r.seed in self.scores[name] and r.status == "finished"]

    def nll(self, name: str) -> float | None:
        """Mean validation NLL."""
        return mean_of([score.nll_nats for score in self.scores[name].values()])

    def verdict(self, a: str, b: str) -> str:
        """Of `b` against `a`."""
        turned = {"better": "worse", "worse": "better"}
        for family in self.families:
            if (a, b) in family:
                return family[a, b].verdict
            if (b, a) in family:
                return turned.get(family[b, a].verdict, family[b, a].verdict)
        return "too_few_seeds"

    def plain(self, variant: str | None) -> bool:
        """Whether phase 2 trains on what validation scores: no dropout, the whole vocabulary."""
        changes: Any = (self.settings.get("variants") or {}).get(variant) or {}  # type: ignore[attr-defined]
        own: Any = {**(self.settings.get("phase2") or {}), **(changes.get("phase2") or {})}  # type: ignore[dict-item]
        return not any(own.get(n) for n in ("dropout", "embed_dropout", "output_dropout", "negatives"))


# What the report says, beside it


def _said(spread: Any) -> tuple[Any, Any, Any] | None:
    return None if spread is None else (spread.mean, spread.sd, spread.interval)


def _whole(said: Analysis, ours: _Figures) -> Iterator[Finding]:
    yield "whether runs compare", said.comparable, ours.comparable
    yield "time spent", said.seconds_spent, math.fsum(r.seconds_spent_s for r in ours.records)
    yield "time alone", said.seconds_alone, math.fsum(r.seconds_alone_s for r in ours.records)
    yield "configurations", sorted(c.name for c in said.configurations), sorted(ours.order)
    yield "baselines", sorted(b.name for b in said.baselines), sorted(ours.baselines)
    yield "failed runs", len(said.failed), sum(r.status == "failed" for r in ours.records)


def _models(said: Analysis, ours: _Figures) -> Iterator[Finding]:
    for name, m in said.models.items():
        runs = ours.finished(name)
        trained = [r.trained for r in runs if r.trained]
        validation = [r.validation for r in runs if r.validation]
        right: dict[str, Any] = {
            "nll": spread_of(v.nll_nats for v in validation),
            "perplexity": perplexities_of(v.nll_nats for v in validation),
            "accuracy": spread_of(v.accuracy for v in validation),
            "bits_per_byte": spread_of(v.bits_per_byte for v in validation),
            "effective_rank": spread_of(r.contexts.effective_rank_validation for r in runs if r.contexts),
            "train_perplexity": perplexities_of(t.train_nll_nats for t in trained),
            "best_epoch": spread_of(t.best_epoch for t in trained),
            "training_seconds": spread_of(t.seconds_s for t in trained),
            "seconds_alone": spread_of(r.seconds_alone_s for r in runs),
        }
        for figure, spread in right.items():
            yield f"{figure} of {name} (mean, sd, interval)", _said(getattr(m, figure)), spread
        sizes = [r.parameters.total for r in ours.runs[name] if r.parameters]
        yield f"parameters of {name}", m.total_parameters, sizes[0] if sizes else None
        last = sum(t.stopped == "max_epochs" and t.best_epoch == t.epochs for t in trained)
        yield f"seeds of {name} that still improve", m.still_improving, last
        untouched = trained != [] and all(t.best_epoch == 0 for t in trained)
        plain = m.kind != "tandem" or untouched or ours.plain(m.variant)
        nll, train = ours.nll(name), mean_of([t.train_nll_nats for t in trained])
        gap = perplexity_of(nll - train) if plain and nll is not None and train is not None else None
        yield f"gap of {name}", m.gap, gap
        over = []
        for r in runs:
            if r.validation and (heads := getattr(r.phase1, "heads", ())):
                depths = [head.token_layers for head in heads]
                nearest = max([d for d in depths if d <= (r.token_layers or 1)], default=min(depths))
                over.append(r.validation.nll_nats - heads[depths.index(nearest)].nll_nats)
        if over and all(map(math.isfinite, over)):
            yield f"NLL of {name} over its head", _said(over_head(m)), spread_of(over)


def _depths(said: Analysis, ours: _Figures) -> Iterator[Finding]:
    for d in said.depths:
        runs = [r for r in ours.records if r.kind == "tandem"]
        runs = [r for r in runs if (r.variant, r.context_layers) == (d.variant, d.context_layers)]
        first: dict[int, RunRecord] = {}
        for r in sorted(runs, key=lambda r: not r.phase1_computed_here):
            if r.seed is not None and r.contexts is not None:
                first.setdefault(r.seed, r)
        shared = {seed: r.contexts for seed, r in first.items() if r.contexts}
        for split in ("train", "validation"):
            name = f"effective_rank_{split}"
            ranks = {seed: getattr(c, name) for seed, c in d.contexts.items()}
            yield f"{name} of {d.name}", ranks, {seed: getattr(c, name) for seed, c in shared.items()}
        heads = [r.phase1.heads[-1].nll_nats for r in first.values() if getattr(r.phase1, "heads", ())]  # type: ignore[union-attr]
        if heads:
            yield f"head perplexity of {d.name}", _said(head_perplexity(d)), perplexities_of(heads)
        curves = [{p.distance: p.change for p in c.memory} for c in shared.values() if c.memory]
        distances = sorted(set.intersection(*map(set, curves))) if curves else []
        points = [
            (distance, sum(values) / len(values), min(values), max(values))
            for distance in distances
            for values in [[curve[distance] for curve in curves]]
        ]
        yield f"memory of {d.name}", [tuple(point) for point in d.points], points
        if points:
            for share in MEMORY_SHARES:
                yield f"memory of {d.name} below {share}", d.falls_below(share), _falls(points, share)


def _falls(points: Sequence[tuple[int, float, float, float]], share: float) -> float | None:
    """The distance after which the mean change stays below a share; between two it falls exponentially."""
    place = max((i for i, point in enumerate(points) if point[1] >= share), default=None)
    if place is None:
        return 0.0
    if place == len(points) - 1:
        return None
    (x, high, *_), (y, low, *_) = points[place], points[place + 1]
    return x + (y - x) * (math.log(high) - math.log(share)) / (math.log(high) - math.log(max(low, 1e-30)))


def _pairs(said: Analysis, ours: _Figures) -> Iterator[Finding]:
    for comparisons, family in zip((said.comparisons, said.baseline_comparisons), ours.families, strict=True):
        yield "compared pairs", sorted((c.a, c.b) for c in comparisons), sorted(family)
        for c in comparisons:
            if (right := family.get((c.a, c.b))) is None:
                continue
            pair = f"{c.a} → {c.b}"
            for name, test, own in (
                ("difference", c.effect, right.effect),
                ("paired difference", c.nll, right.nll),
                ("difference of accuracy", c.accuracy, right.accuracy),
            ):
                for field in SeedTest._fields:
                    shown = getattr(test, field)
                    shown = dict(shown) if field == "by_seed" else shown
                    yield f"{name} of {pair}, its {field}", shown, getattr(own, field)
            yield f"corrected p of {pair}", c.corrected_p, right.corrected
            yield f"corrected paired p of {pair}", c.paired_p, right.paired
            yield f"means of {pair}", c.nll.means, right.means
            judged = (str(c.verdict), c.power), (right.verdict, right.power)
            yield f"verdict of {pair}, and its power", *judged
    yield from _speeds(said, ours)


def _speeds(said: Analysis, ours: _Figures) -> Iterator[Finding]:
    """Which context depth converges in fewer iterations, of the recipe that iterates; one family."""
    depths: dict[Any, dict[int, Any]] = {}
    for r in ours.records:
        if r.kind == "tandem" and hasattr(r.phase1, "iterations") and r.seed is not None:
            depths.setdefault((r.variant, r.context_layers), {})[r.seed] = r.phase1
    ordered = sorted(depths, key=lambda depth: (str(depth[0]), depth[1]))
    pairs = [(a, b) for a, b in combinations(ordered, 2) if a[0] == b[0] and ours.comparable]
    tests = [
        paired_test([{seed: float(p.iterations) for seed, p in depths[d].items()} for d in pair], 1)
        for pair in pairs
    ]
    right = {}
    for (a, b), test, p in zip(pairs, tests, holm_corrected(tests), strict=True):
        verdict = verdict_of(test, p)
        faster = {"better": b, "worse": a}.get(verdict)
        limited = faster and any(depths[faster][s].stopped == "max_iterations" for s in test.by_seed)
        right[a[0], a[1], b[1]] = "no_difference_shown" if limited else verdict
    shown = {(c.variant, c.a, c.b): str(c.verdict) for c in depth_comparisons(said)}
    yield "speeds of phase 1", shown, right


def _selected(said: Analysis, ours: _Figures) -> Iterator[Finding]:
    """Which pairs the report names for the effect of a depth, and for variants."""
    places = {name: ours.runs[name][0] for name in ours.order}
    pairs = set()
    for a, b in ours.families[0]:
        one, two = (places[name] for name in (a, b))
        depths = [(r.context_layers or 0, r.token_layers or 0) for r in (one, two)]
        if one.variant == two.variant and sum(x != y for x, y in zip(*depths, strict=True)) == 1:
            more, fewer = (b, a) if depths[0] < depths[1] else (a, b)
            pairs.add((f"effect.{ours.verdict(fewer, more)}", f"{fewer} → {more}"))
    shown = {
        (message.key, " ".join(str(pair).split()[:3]))
        for message in effect_findings(said)
        for pair in list(message.values["pairs"])  # type: ignore[arg-type]
    }
    yield "pairs that tell of depth", sorted(shown), sorted(pairs)
    with_results = [
        v for v in ours.variants if any(ours.scores[n] for n in ours.order if places[n].variant == v)
    ]
    first = with_results[:1] if said.manifest else with_results
    both = {
        frozenset((a, b))
        for a, b in ours.families[0]
        if places[a].variant != places[b].variant
        and {places[a].variant, places[b].variant} & {*first}
        and places[a].token_layers == places[b].token_layers
        and places[a].context_layers == places[b].context_layers
    }
    yield "pairs of variants", {frozenset((c.a, c.b)) for c in variant_pairs(said)}, both


def _choice(said: Analysis, ours: _Figures) -> Iterator[Finding]:
    """The rule: of those not shown worse than the best, the one with the fewest parameters."""
    choice = said.choice
    losses = {
        name: loss for name in ours.order if (loss := ours.nll(name)) is not None and math.isfinite(loss)
    }
    if not losses or not ours.comparable:
        yield "the recommendation", choice, None
        return
    if choice is None:
        yield "the recommendation", None, "a configuration"
        return
    ranked = sorted(losses, key=lambda name: losses[name])
    best = ranked[0]
    sizes = {
        name: next((r.parameters.total for r in ours.runs[name] if r.parameters), math.inf) for name in ranked
    }
    fit = [name for name in ranked if name == best or ours.verdict(best, name) != "worse"]
    recommended = min(fit, key=lambda name: (sizes[name], losses[name]))
    avoid = {
        name: [rival for rival in dict.fromkeys((best, recommended)) if ours.verdict(rival, name) == "worse"]
        for name in ranked
    }
    avoid = {name: rivals for name, rivals in avoid.items() if rivals}
    others = [name for name in fit if name != recommended and name not in avoid]
    smaller = any(size < sizes[best] for size in sizes.values())
    reason = "smaller_shown_worse" if smaller else "best_and_smallest"
    reason = "only" if len(ranked) == 1 else "not_shown_worse" if recommended != best else reason
    unsure = any(ours.verdict(best, name) == "too_few_seeds" for name in ranked[1:])
    yield "the best configuration", choice.best.name, best
    yield "the recommended configuration", choice.recommended.name, recommended
    yield "the reason of the recommendation", choice.reason, reason
    yield "whether the recommendation is provisional", choice.provisional, unsure
    yield "the alternative", choice.alternative and choice.alternative.name, others[0] if others else None
    yield "what to avoid", {c.name: list(than) for c, than in choice.avoid}, avoid
