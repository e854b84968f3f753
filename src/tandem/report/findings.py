"""What the records show, as messages: every claim among them rests on a verdict, and none goes beyond it."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from tandem.report.beside import beside_summary
from tandem.report.choice import Choice
from tandem.report.phase1 import speed_message
from tandem.report.results import Analysis, Comparison, ModelResult
from tandem.report.statistics import Verdict
from tandem.report.variants import variant_findings
from tandem.report.wording import (
    Message,
    change_text,
    interval_text,
    literal,
    nats_text,
    number,
    percent,
    perplexity_text,
)

Axis = Literal["context", "token"]


def effect_interval(comparison: Comparison) -> str:
    """95% interval of the difference, nats per token."""
    return interval_text(comparison.effect.interval, nats_text)


def pair_text(comparison: Comparison, interval: bool = False) -> str:
    """`a → b`, with the interval of the difference where it is asked for and known."""
    pair = f"{comparison.a} → {comparison.b}"
    return f"{pair} {effect_interval(comparison)}" if interval and comparison.effect.interval else pair


# Phase 2


def phase2_findings(analysis: Analysis, choice: Choice | None) -> Iterator[Message]:
    """Lowest perplexity, what it is beside training and beside phase 1, and who may still be improving."""
    if choice is not None:
        mean = perplexity_text(choice.best.mean_perplexity)
        yield Message("phase2.lowest", {"name": choice.best.name, "perplexity": mean})
    gaps = [(c.gap, c.name) for c in analysis.configurations if c.gap is not None and math.isfinite(c.gap)]
    if len(gaps) > 1:
        (low, low_name), (high, high_name) = min(gaps), max(gaps)
        values = {
            "low": number(low, 2),
            "low_name": low_name,
            "high": number(high, 2),
            "high_name": high_name,
        }
        yield Message("phase2.gap", values)
    unlike = [c for c in analysis.configurations if c.validation and not c.training_is_plain]
    if unlike:
        yield Message("phase2.unlike", {"names": list(dict.fromkeys(c.variant or c.name for c in unlike))})
    yield from _over_heads(analysis)
    if any(c.still_improving for c in analysis.configurations):
        yield from still_improving(analysis.configurations)
    elif any(c.validation for c in analysis.configurations):
        yield Message("phase2.all_stopped")


def _over_heads(analysis: Analysis) -> Iterator[Message]:
    """What phase 2 makes of validation perplexity after a phase 1 that predicts: from where to where."""
    over = sorted(
        (c.over_head.mean, c.name) for c in analysis.configurations if c.over_head and c.over_head.values
    )
    if over:
        (low, low_name), (high, high_name) = over[0], over[-1]
        values = {"low": change_text(low), "low_name": low_name}
        values |= {"high": change_text(high), "high_name": high_name}
        yield Message("phase2.over_head" if len(over) == 1 else "phase2.over_heads", values)


def still_improving(models: Sequence[ModelResult]) -> Iterator[Message]:
    """Configurations or baselines with seeds whose best epoch was the last one allowed."""
    names = [f"{m.name} ({len(m.still_improving)}/{len(m.training)})" for m in models if m.still_improving]
    if names:
        yield Message("phase2.still_improving", {"names": names})


# Effect of depth


def effect_findings(analysis: Analysis) -> Iterator[Message]:
    """For more context layers and for more token layers, all else equal: the pairs by verdict."""
    for axis in ("context", "token"):
        pairs = _pairs_along(analysis, axis)
        for found in Verdict:
            interval = found is Verdict.NO_DIFFERENCE_SHOWN
            named = [pair_text(c, interval) for c in pairs if c.verdict is found]
            if named:
                yield Message(f"effect.{axis}.{found}", {"pairs": named})


def _pairs_along(analysis: Analysis, axis: Axis) -> list[Comparison]:
    """Pairs of one variant from fewer to more layers of one block, with equal depth of the other."""
    chosen = []
    for comparison in analysis.comparisons:
        a, b = analysis.configuration(comparison.a), analysis.configuration(comparison.b)
        if a is None or b is None or a.variant != b.variant:
            continue
        equal = (
            a.token_layers == b.token_layers if axis == "context" else a.context_layers == b.context_layers
        )
        grows = (a.context_layers or 0, a.token_layers or 0) < (b.context_layers or 0, b.token_layers or 0)
        if equal:
            chosen.append(comparison if grows else comparison.reversed)
    return chosen


# Which is best


def standing(analysis: Analysis, choice: Choice) -> Message:
    """How firmly the configuration of lowest perplexity is the best."""
    best = choice.best.name
    rivals = {
        c.name: analysis.compare(best, c.name)
        for c in analysis.configurations
        if c.name != best and c.validation
    }
    beaten = [name for name, r in rivals.items() if r is not None and r.verdict is Verdict.WORSE]
    untested = [name for name, r in rivals.items() if r is None or r.verdict is Verdict.TOO_FEW_SEEDS]
    others = [
        name if r is None or r.effect.interval is None else f"{name} {effect_interval(r)}"
        for name, r in rivals.items()
        if name not in beaten
    ]
    values = {
        "name": best,
        "perplexity": perplexity_text(choice.best.mean_perplexity),
        "accuracy": percent(choice.best.accuracy.mean if choice.best.accuracy else None),
        "beaten": beaten,
        "others": others,
        "untested": untested,
    }
    if not rivals:
        return Message("standing.only", values)
    if len(beaten) == len(rivals):
        return Message("standing.best_of_all", values)
    if beaten:
        return Message("standing.best_of_some", values)
    return Message("standing.too_few" if len(untested) == len(rivals) else "standing.nothing_shown", values)


def recommendation_message(choice: Choice) -> Message:
    """The recommended configuration and the rule that chose it."""
    return Message(
        f"recommended.{choice.reason}", {"name": choice.recommended.name, "best": choice.best.name}
    )


def caveats(analysis: Analysis, choice: Choice) -> Iterator[Message]:
    """What weakens the recommendation; to be said wherever it is."""
    if choice.provisional:
        yield Message("recommended.provisional")
    if analysis.all_untrusted:
        yield Message("recommended.untrusted_all")
        return
    # Every configuration with results was compared with the best, or left unranked for its figures.
    compared = {r.run for c in analysis.configurations for r in c.runs.values()}
    runs = [literal(run) for run in analysis.trust.untrusted if run in compared]
    if runs:
        yield Message("recommended.untrusted", {"runs": runs})


def alternative_messages(analysis: Analysis, choice: Choice) -> Iterator[Message]:
    """Why the alternative is one, and whether its phase 1 is shown to be faster; or why there is none."""
    alternative, recommended = choice.alternative, choice.recommended
    if alternative is None:
        alone = sum(c.rankable for c in analysis.configurations) == 1
        yield Message("alternative.alone" if alone else "alternative.all_worse")
        return
    yield Message(f"alternative.{choice.alternative_reason}", {"recommended": recommended.name})
    depths = (recommended.context_layers, alternative.context_layers)
    variants = {recommended.variant, alternative.variant}
    for c in (c for c in analysis.depth_comparisons if {c.variant} == variants):
        found: dict[tuple[int | None, int | None], Verdict] = {
            (c.a, c.b): c.verdict,
            (c.b, c.a): c.verdict.reversed,
        }
        if found.get(depths) is Verdict.BETTER:
            yield speed_message(c)


def avoid_messages(choice: Choice, together: bool = False) -> Iterator[Message]:
    """What is shown worse, and than what; each with its perplexity, or all in one sentence."""
    if together:
        for rivals in dict.fromkeys(than for _, than in choice.avoid):
            names = [c.name for c, than in choice.avoid if than == rivals]
            yield Message("avoid.together", {"names": names, "than": rivals})
        return
    for c, than in choice.avoid:
        values = {"name": c.name, "than": than, "perplexity": perplexity_text(c.mean_perplexity)}
        yield Message("avoid.shown_worse", values)


def conclusions(analysis: Analysis, choice: Choice | None) -> Iterator[Message]:
    """The closing sentences."""
    if choice is None:
        finished = any(c.validation for c in analysis.configurations)
        reason = "not_comparable" if not analysis.comparable else "diverged" if finished else "no_results"
        yield Message(f"conclusion.{reason}")
        return
    yield standing(analysis, choice)
    few = f"variants.{Verdict.TOO_FEW_SEEDS}"  # which the standing says
    yield from (message for message in variant_findings(analysis) if message.key != few)
    for axis in ("context", "token"):
        pairs = _pairs_along(analysis, axis)
        shown = [c for c in pairs if c.verdict in (Verdict.BETTER, Verdict.WORSE)]
        if pairs and not shown:
            named = [pair_text(c, interval=True) for c in pairs]
            yield Message(f"conclusion.no_effect.{axis}", {"pairs": named})
        for found in (Verdict.BETTER, Verdict.WORSE):
            named = [pair_text(c) for c in shown if c.verdict is found]
            if named:
                yield Message(f"effect.{axis}.{found}", {"pairs": named})
    for comparison in analysis.depth_comparisons:
        if comparison.verdict in (Verdict.BETTER, Verdict.WORSE):
            yield speed_message(comparison)
    yield from beside_summary(analysis, choice)
    yield recommendation_message(choice)
    yield from caveats(analysis, choice)
    yield from avoid_messages(choice, together=True)
    yield from still_improving(analysis.configurations)
    yield Message("conclusion.scope")
