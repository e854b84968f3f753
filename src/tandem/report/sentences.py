"""What the records show, as messages: every claim among them rests on a verdict, and none goes beyond it."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations

from tandem.report import wording
from tandem.report.analysis import Analysis, Choice, Comparison, ModelResult
from tandem.report.phase1 import depth_comparisons
from tandem.report.statistics import Verdict, mean
from tandem.report.wording import Message, Value, interval_text, literal, perplexity_text

MEMORY_SHARES = (0.1, 0.01)
"""Shares of a changed token's trace, below which the distance is told: mostly gone, and as good as gone."""


def pair_text(c: Comparison, interval: bool = False) -> str:
    """`a → b`, with the interval of the difference where it is asked for and known."""
    pair = f"{c.a} → {c.b}"
    return f"{pair} {interval_text(c.effect.interval)}" if interval and c.effect.interval else pair


def _by_verdict(
    key: str, comparisons: Sequence[Comparison], text: Callable[[Comparison], str], **values: Value
) -> Iterator[Message]:
    """The pairs in one sentence a verdict."""
    for found in Verdict:
        if pairs := [text(c) for c in comparisons if c.verdict is found]:
            yield Message(f"{key}.{found}", pairs=pairs, **values)


# Warnings


def audit_warnings(analysis: Analysis) -> Iterator[Message]:
    """What the audit says against these records, for the top of the report and of its figures."""
    audit = analysis.audit
    if audit.failed:
        yield Message(
            "audit.failed", checks=_check_names(audit.failed), runs=_untrusted(analysis, audit.untrusted)
        )
    if audit.warned:
        yield Message("audit.warned", checks=_check_names(audit.warned))
    if audit.unchecked:
        yield Message("audit.unchecked", checks=_check_names(audit.unchecked))


def _check_names(names: Iterable[str]) -> list[str]:
    """As they are where they are words, as those of Tandem's own checks; others may act as markup."""
    return [name if re.fullmatch(r"[a-z]\w*", name) else literal(name) for name in names]


def _untrusted(analysis: Analysis, runs: Sequence[str]) -> Value:
    """Names of runs that the audit failed for, or that these are all, as where a check of the data fails."""
    every = len(analysis.audit.untrusted) == len(analysis.records)
    return Message("audit.all") if every else [*map(literal, runs)]


def warnings(analysis: Analysis) -> Iterator[Message]:
    """What weakens the summary of results."""
    if not analysis.comparable:
        yield Message("warning.not_comparable")
    if len(analysis.environments) > 1:
        yield Message("warning.environments", count=str(len(analysis.environments)))
    for name, records in (("failed", analysis.failed), ("left_out", analysis.left_out)):
        if records:
            yield Message(f"warning.{name}", runs=[literal(r.run) for r in records])
    missing: dict[str, list[str]] = {}
    for name, seed in analysis.missing:
        missing.setdefault(name, []).append(str(seed))
    runs = [f"{literal(name)} (seed {', '.join(seeds)})" for name, seeds in missing.items()]
    if runs := [*runs, *map(literal, analysis.missing_baselines)]:
        yield Message("warning.missing", runs=runs)
    if len({c.seeds for c in analysis.configurations if c.validation}) > 1:
        yield Message("warning.seeds_differ")
    if any(not scan.within for scan in analysis.scans):
        yield Message("warning.scan")
    if any(data.overlap_documents for data in analysis.data):
        yield Message("warning.overlap")
    if any(data.validation_lost_bytes or data.train_lost_bytes for data in analysis.data):
        yield Message("warning.lost")


# Phase 2


def phase2_findings(analysis: Analysis) -> Iterator[Message]:
    """Whose training figures do not compare with validation, and which may still be improving."""
    unlike = [c for c in analysis.configurations if c.validation and not c.training_is_plain]
    if unlike:
        yield Message("phase2.unlike", names=list(dict.fromkeys(c.variant or c.name for c in unlike)))

    yield from (improving := list(still_improving(analysis.configurations)))
    if not improving and any(c.validation for c in analysis.configurations):
        yield Message("phase2.all_stopped")


def still_improving(models: Sequence[ModelResult]) -> Iterator[Message]:
    """Configurations or baselines with seeds whose best epoch was the last one allowed."""
    if names := [f"{m.name} ({m.still_improving}/{len(m.training)})" for m in models if m.still_improving]:
        yield Message("phase2.still_improving", names=names)


def memory_findings(analysis: Analysis) -> Iterator[Message]:
    """One sentence per curve: from which distance on the change stays below each share."""

    def distance_text(distance: float | None, longest: int) -> Message:
        if distance is None:
            return Message("memory.beyond", distance=wording.number(longest))
        if distance < 1:
            return Message("memory.at_once")
        return Message("memory.distance", distance=wording.number(distance, 0 if distance >= 10 else 1))

    for m in analysis.memories:
        values: dict[str, Value] = {}
        for place, share in zip(("first", "second"), MEMORY_SHARES, strict=True):
            values[place] = wording.percent(share, 0)
            values[f"{place}_distance"] = distance_text(m.falls_below(share), m.points[-1].distance)
        yield Message("memory.falls", name=m.name, **values)


# Depths and variants


def effect_findings(analysis: Analysis) -> Iterator[Message]:
    """For more context layers and for more token layers, all else equal: the pairs by verdict."""
    unshown = Verdict.NO_DIFFERENCE_SHOWN
    for place, axis in enumerate(("context", "token")):
        pairs, values = _pairs_along(analysis, place), {"axis": Message(f"effect.{axis}")}
        yield from _by_verdict("effect", pairs, lambda c: pair_text(c, c.verdict is unshown), **values)


def _pairs_along(analysis: Analysis, axis: int) -> list[Comparison]:
    """Pairs of one variant from fewer to more layers of one block, with equal depth of the other."""
    chosen = []
    for comparison in analysis.comparisons:
        a, b = analysis.models[comparison.a], analysis.models[comparison.b]
        of_a, of_b = ((c.context_layers or 0, c.token_layers or 0) for c in (a, b))
        if a.variant == b.variant and of_a[1 - axis] == of_b[1 - axis]:
            chosen.append(comparison if of_a < of_b else comparison.reversed)
    return chosen


def reference_variant(analysis: Analysis) -> str | None:
    """The variant that the others are measured against: the first of the manifest that has results."""
    return next(iter(_with_results(analysis)), None) if analysis.manifest else None


def variant_pairs(analysis: Analysis) -> list[Comparison]:
    """Configurations of equal depths in the reference and in another variant; in every two without one."""
    reference = reference_variant(analysis)
    pairs = [pair for pair in combinations(_with_results(analysis), 2) if reference in (None, pair[0])]
    by_place = {c.place: c.name for c in analysis.configurations}
    depths = dict.fromkeys((c.context_layers, c.token_layers) for c in analysis.configurations)
    names = [((a, *depth), (b, *depth)) for a, b in pairs for depth in depths]
    return _compared(analysis, ((by_place.get(a), by_place.get(b)) for a, b in names))


def _with_results(analysis: Analysis) -> list[str]:
    finished = {c.variant for c in analysis.configurations if c.validation}
    return [variant for variant in analysis.variants if variant in finished]


def _compared(analysis: Analysis, pairs: Iterable[tuple[str | None, str | None]]) -> list[Comparison]:
    """The comparisons of these pairs, of those that there are."""
    return [c for a, b in pairs if a and b and (c := analysis.compare(a, b))]


def variant_findings(analysis: Analysis) -> Iterator[Message]:
    """The pairs by verdict: with the change of perplexity where one is shown, else with the interval."""

    def text(c: Comparison) -> str:
        change = f" ({wording.change_text(c.effect.difference)})"
        return pair_text(c) + change if c.verdict.shown else pair_text(c, interval=True)

    return _by_verdict("variants", variant_pairs(analysis), text)


# Against baselines


def against_others(analysis: Analysis, *models: ModelResult) -> list[Comparison]:
    """These configurations against every baseline that is another model."""
    others = [b.name for b in analysis.baselines if not b.control]
    names = dict.fromkeys(model.name for model in models)
    return _compared(analysis, ((other, name) for name in names for other in others))


def against_controls(analysis: Analysis) -> list[Comparison]:
    """Every configuration against itself without phase 1: what phase 1 adds."""
    controls = [b for b in analysis.baselines if b.control]
    return _compared(
        analysis, ((b.name, c.name) for c in analysis.configurations for b in controls if b.place == c.place)
    )


def baseline_findings(analysis: Analysis, choice: Choice) -> Iterator[Message]:
    """One sentence for the best configuration against each baseline, and one for each phase 1."""
    models = analysis.models
    for c in (*against_others(analysis, choice.best), *against_controls(analysis)):
        yield Message(
            f"{'phase1_adds' if models[c.a].control else 'vs_baselines'}.{c.verdict}",
            name=c.b,
            baseline=c.a,
            perplexity=perplexity_text(mean(models[c.b].perplexity)),
            other=perplexity_text(mean(models[c.a].perplexity)),
            ratio=wording.ratio_text(c.effect.difference),
            difference=wording.nats_text(c.effect.difference),
            interval=interval_text(c.effect.interval),
        )


def baseline_summary(analysis: Analysis, choice: Choice) -> Iterator[Message]:
    """The best configuration against the baselines that are other models, one sentence a verdict."""
    own = against_others(analysis, choice.best)
    for found in Verdict:
        if names := [c.a for c in own if c.verdict is found]:
            yield Message(f"vs_all_baselines.{found}", name=choice.best.name, names=names)


# Which is best


def standing(analysis: Analysis, choice: Choice) -> Message:
    """How firmly the configuration of lowest perplexity is the best."""
    best = choice.best
    others = [c.name for c in analysis.configurations if c is not best and c.validation]
    rivals = {name: analysis.compare(best.name, name) for name in others}
    beaten = [name for name, r in rivals.items() if r is not None and r.verdict is Verdict.WORSE]
    untested = [name for name, r in rivals.items() if r is None or r.verdict is Verdict.TOO_FEW_SEEDS]
    if not rivals:
        key = "only"
    elif beaten:
        key = "best_of_all" if len(beaten) == len(rivals) else "best_of_some"
    else:
        key = "too_few" if len(untested) == len(rivals) else "nothing_shown"
    return Message(
        f"standing.{key}",
        name=best.name,
        perplexity=perplexity_text(mean(best.perplexity)),
        accuracy=wording.percent(mean(best.accuracy)),
        beaten=beaten,
        others=[
            name if r is None or r.effect.interval is None else f"{name} {interval_text(r.effect.interval)}"
            for name, r in rivals.items()
            if name not in beaten
        ],
    )


def recommendation(analysis: Analysis, choice: Choice) -> Iterator[Message]:
    """The recommended configuration, the rule that chose it, and what weakens the recommendation."""
    yield Message(f"recommended.{choice.reason}", name=choice.recommended.name, best=choice.best.name)
    if choice.provisional:
        yield Message("recommended.provisional")
    # Every configuration with results was compared with the best, or left unranked for its figures.
    compared = {r.run for c in analysis.configurations for r in c.runs.values()}
    if runs := [run for run in analysis.audit.untrusted if run in compared]:
        yield Message("recommended.untrusted", runs=_untrusted(analysis, runs))


def alternative_findings(analysis: Analysis, choice: Choice) -> Iterator[Message]:
    """Why the alternative is one, or why there is none."""
    alternative, recommended = choice.alternative, choice.recommended
    if alternative is None:
        alone = sum(c.rankable for c in analysis.configurations) == 1
        yield Message("alternative.alone" if alone else "alternative.all_worse")
        return
    reason = "lowest_perplexity" if alternative is choice.best else "next"
    yield Message(f"alternative.{reason}", recommended=recommended.name)


def no_conclusion(analysis: Analysis) -> Message:
    """Why nothing is recommended."""
    finished = any(c.validation for c in analysis.configurations)
    reason = "not_comparable" if not analysis.comparable else "diverged" if finished else "no_results"
    return Message(f"conclusion.{reason}")


def conclusions(analysis: Analysis) -> Iterator[Message]:
    """The closing sentences."""
    choice = analysis.choice
    if choice is None:
        yield no_conclusion(analysis)
        return
    yield standing(analysis, choice)
    few = Verdict.TOO_FEW_SEEDS  # the standing says so
    yield from (message for message in variant_findings(analysis) if message.key != f"variants.{few}")
    yield from (message for message in effect_findings(analysis) if message.key != f"effect.{few}")
    yield from (c.message for c in depth_comparisons(analysis) if c.verdict.shown)
    yield from baseline_summary(analysis, choice)
    yield from recommendation(analysis, choice)

    yield from still_improving(analysis.configurations)
    yield Message("conclusion.scope")
