"""What the report says of phase 1, recipe by recipe. What belongs to one alone stands here only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from math import isfinite
from typing import Any, NamedTuple

from tandem.objectives import OBJECTIVES
from tandem.records import RunRecord
from tandem.report import wording
from tandem.report.analysis import Analysis, DepthResult, ModelResult
from tandem.report.markdown import Column, spread_column
from tandem.report.statistics import Effect, Spread, Verdict, holm, mean, paired, perplexities, spread
from tandem.report.wording import Message


class Curves(NamedTuple):
    """A figure of phase 1, with one colour for each variant and context depth."""

    x: str
    """Key of the axis in the texts, as `y`."""
    y: str
    points: Callable[[Any], dict[int, float]]
    """{x: y} of one record of phase 1."""
    y_limits: tuple[float, float] | None = None


class DepthComparison(NamedTuple):
    """Phase 1 with `b` context layers against `a` in one variant; the verdict is on `b`."""

    variant: str | None
    a: int
    b: int
    verdict: Verdict
    message: Message
    """What is said of it."""


class Phase1Report:
    """What the report says of phase 1 with any recipe. Keys are those of the texts."""

    caption = "phase1_recipe"
    """Key of its table's caption."""
    definitions: Sequence[str] = ()
    """Keys of the definitions of its figures."""
    figures: Mapping[str, Curves] = {}
    """By name, which is the key of the figure's caption."""
    summary_columns: Sequence[Column[Any]] = ()
    """Its figures in the summary, and in the table of the original report."""
    phase2_columns: Sequence[Column[ModelResult]] = ()
    """Further columns of the table of phase 2."""
    run_columns: Sequence[Column[RunRecord]] = ()
    """Its figures in the table of runs."""
    counts: Sequence[str] = ()
    """Fields of its records that are told of a recommended configuration."""

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def columns(self, depths: Sequence[DepthResult]) -> Sequence[Column[Any]]:
        """Its own columns of its table: the figures that its objective names. Rows are `DepthResult`."""
        figures = OBJECTIVES[self.recipe].figures if self.recipe in OBJECTIVES else lambda _: {}
        names = dict.fromkeys(name for d in depths for p in d.phase1.values() for name in figures(p))

        def column(name: str) -> Column[Any]:
            return over_records(name, lambda p: figures(p).get(name), partial(wording.number, digits=3))

        return [*map(column, names)]

    def lead(self, analysis: Analysis) -> Sequence[Message]:
        """Sentences above its table."""
        return ()

    def findings(self, analysis: Analysis, depths: Sequence[DepthResult]) -> Sequence[Message]:
        """Sentences below its table."""
        return ()

    def facts(self, model: ModelResult) -> Iterator[Message]:
        """Lines about the phase 1 of a recommended configuration."""
        for name in self.counts:
            count = mean(spread(getattr(p, name) for p in model.phase1.values()))
            yield Message(f"choice.{name}", value=wording.count_text(count))

    def compare(self, depths: Sequence[DepthResult]) -> Sequence[DepthComparison]:
        """Every pair of context depths of one variant, as one family."""
        return ()


def over_records(
    key: str, figure: Callable[[Any], float | None], text: Callable[[float | None], str]
) -> Column[Any]:
    """A figure of the records of phase 1, over seeds; empty in rows whose records do not have it."""

    def over_seeds(row: DepthResult | ModelResult) -> Spread | None:
        figures = map(figure, row.phase1.values())
        return spread(value for value in figures if value is not None)

    return spread_column(key, over_seeds, text)


def shared_unit(analysis: Analysis) -> Message:
    """What decides a phase 1, together with the seed."""
    return Message("unit_variants" if analysis.variants else "unit")


# Phase 1 by dispersion


def at_limit(depth: DepthResult) -> list[int]:
    """Seeds that stopped at the iteration limit; these are not called converged."""
    return [seed for seed, p in depth.phase1.items() if p.stopped == "max_iterations"]


class DispersionReport(Phase1Report):
    """Phase 1 that spreads the contexts around the origin, iteration after iteration."""

    caption = "phase1"
    definitions = ("iterations", "convergence")
    counts = ("iterations",)
    figures: Mapping[str, Curves] = {
        "phase1_convergence": Curves(
            "iteration",
            "convergence_rate",
            lambda p: {step.iteration: 100 * step.convergence_rate for step in p.history},
            y_limits=(0, 101),
        ),
    }
    summary_columns = (
        over_records("iterations", lambda p: getattr(p, "iterations", None), wording.count_text),
        over_records("convergence", lambda p: getattr(p, "convergence_rate", None), wording.percent),
    )
    run_columns = (Column("iterations", lambda r: wording.number(getattr(r.phase1, "iterations", None))),)

    def columns(self, depths: Sequence[DepthResult]) -> Sequence[Column[Any]]:
        return self.summary_columns

    def lead(self, analysis: Analysis) -> Sequence[Message]:
        return [Message("phase1.by_dispersion")] if len(phase1_reports_of(analysis)) > 1 else []

    def findings(self, analysis: Analysis, depths: Sequence[DepthResult]) -> Sequence[Message]:
        """How widely phase 1 was shared, how it stopped, and which depth needs fewer iterations."""
        limits = [(d, at_limit(d)) for d in depths if d.phase1]
        found = [Message("phase1.shared", unit=shared_unit(analysis))] if limits else []
        if limits and not any(seeds for _, seeds in limits):
            found.append(Message("phase1.all_converged"))
        for d, seeds in limits:
            if seeds:
                message = Message("phase1.at_limit", depth=str(d.context_layers), seeds=seeds)
                found.append(_of_variant(d.variant, message))
        return [*found, *(comparison.message for comparison in depth_comparisons(analysis))]

    def compare(self, depths: Sequence[DepthResult]) -> list[DepthComparison]:
        """Every pair by iterations until phase 1 stopped.

        Seeds stopped by the limit give a lower bound only. A depth with such a seed is never called faster.
        """
        pairs = [
            (a, b) for a, b in combinations(depths, 2) if a.variant == b.variant and a.phase1 and b.phase1
        ]
        tests = [paired(_iterations(a), _iterations(b), resolution=1) for a, b in pairs]
        found = []
        for (a, b), test, p in zip(pairs, tests, holm([test.p for test in tests]), strict=True):
            shown = test.verdict(p)
            faster = {Verdict.BETTER: b, Verdict.WORSE: a}.get(shown)
            if faster is not None and set(at_limit(faster)) & set(test.by_seed):
                shown = Verdict.NO_DIFFERENCE_SHOWN
            layers = a.context_layers, b.context_layers
            message = _of_variant(a.variant, _speeds(shown, *layers, test, p))
            found.append(DepthComparison(a.variant, *layers, shown, message))
        return found


def _iterations(depth: DepthResult) -> dict[int, float]:
    return {seed: float(p.iterations) for seed, p in depth.phase1.items()}


def _of_variant(variant: str | None, message: Message) -> Message:
    """The message as it holds for one variant alone."""
    return message if variant is None else Message("of_variant", variant=variant, said=message)


def _speeds(shown: Verdict, a: int, b: int, test: Effect, p: float | None) -> Message:
    """The convergence speed with `a` and with `b` context layers."""
    sides = list(zip((a, b), test.means or (None, None), strict=True))
    (fast, fast_mean), (slow, slow_mean) = sides[:: -1 if (test.difference or 0) < 0 else 1]
    return Message(
        "phase1.faster" if shown.shown else f"phase1.{shown}",
        fast=str(fast),
        slow=str(slow),
        fast_iterations=wording.count_text(fast_mean),
        slow_iterations=wording.count_text(slow_mean),
        ratio=wording.number(slow_mean / fast_mean if slow_mean and fast_mean else None, 1),
        interval=wording.interval_text(test.interval, wording.signed),
        a=str(a),
        b=str(b),
        p="p < 0.001" if p is not None and p < 0.001 else f"p = {wording.p_text(p)}",
        seeds=list(test.by_seed),
    )


# Phase 1 by prediction


def head_perplexity(found: DepthResult | ModelResult) -> Spread | None:
    """Validation perplexity of the deepest head, with the geometric mean."""
    return perplexities(p.heads[-1].nll_nats for p in found.phase1.values())


def over_head(model: ModelResult) -> Spread | None:
    """Validation NLL less that of the nearest head of phase 1, nats per token."""
    heads = (
        (model.validation[seed].nll_nats, p.head_for(model.token_layers or 1).nll_nats)
        for seed, p in model.phase1.items()
        if hasattr(p, "head_for")
    )
    return spread(nll - head for nll, head in heads if isfinite(head))


class PredictionReport(Phase1Report):
    """Phase 1 that predicts the next token through heads, token layers of its own."""

    caption = "prediction"
    definitions = ("prediction",)
    counts = ("epochs",)
    figures: Mapping[str, Curves] = {
        # Training only: validation is measured in another way, and at the end.
        "phase1_prediction": Curves(
            "epoch", "training_nll", lambda p: {epoch.epoch: epoch.train_nll_nats for epoch in p.history}
        ),
    }
    phase2_columns = (Column("over_head", lambda m: wording.change_text(mean(over_head(m)))),)

    def columns(self, depths: Sequence[DepthResult]) -> Sequence[Column[Any]]:
        epochs = over_records("epochs", lambda p: p.epochs, wording.count_text)
        return [epochs, spread_column("head_perplexity", head_perplexity, wording.perplexity_text)]

    def lead(self, analysis: Analysis) -> Sequence[Message]:
        return [Message("phase1.by_prediction"), Message("phase1.shared", unit=shared_unit(analysis))]


# All recipes

ORIGINAL = "original"
"""Recipe of the original experiment."""
PHASE1_REPORTS: dict[str, Phase1Report] = {
    ORIGINAL: DispersionReport(ORIGINAL),
    "predictive": PredictionReport("predictive"),
}
"""By recipe, in the order of the report."""


def phase1_report(recipe: str | None) -> Phase1Report:
    """What is said of phase 1 with this recipe: of one that is not known here, what holds for any."""
    recipe = recipe or ORIGINAL
    return PHASE1_REPORTS.get(recipe) or Phase1Report(recipe)


def phase1_reports_of(analysis: Analysis) -> list[tuple[Phase1Report, list[DepthResult]]]:
    """The recipes that the records have, each with its depths; the original's where there is none."""
    by_recipe: dict[str, list[DepthResult]] = {recipe: [] for recipe in PHASE1_REPORTS}
    for depth in analysis.depths:
        by_recipe.setdefault(depth.recipe or ORIGINAL, []).append(depth)
    found = [(phase1_report(recipe), depths) for recipe, depths in by_recipe.items()]
    return [one for one in found if one[1]] or found[:1]


def depth_comparisons(analysis: Analysis) -> list[DepthComparison]:
    """Every pair of context depths of one variant; a recipe's are corrected as one family."""
    recipes = phase1_reports_of(analysis) if analysis.comparable else []
    return [comparison for report, depths in recipes for comparison in report.compare(depths)]


def own_columns(kind: str, analysis: Analysis | None = None) -> list[Column[Any]]:
    """Such columns of all recipes, or of those in the analysis."""
    recipes = [one for one, _ in phase1_reports_of(analysis)] if analysis else PHASE1_REPORTS.values()
    return [column for one in recipes for column in getattr(one, kind)]
