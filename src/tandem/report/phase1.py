"""What the report says of phase 1, recipe by recipe. What belongs to one alone stands here only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any

from tandem.objectives import OBJECTIVES
from tandem.records import ContextsRecord, RunRecord
from tandem.report import wording
from tandem.report.markdown import Column, spread_column, word_column
from tandem.report.results import Analysis, DepthComparison, ModelResult, Phase1OverSeeds
from tandem.report.statistics import (
    Paired,
    Spread,
    Verdict,
    holm,
    mean,
    paired,
    perplexities,
    perplexity,
    spread,
    verdict,
)
from tandem.report.wording import NONE, Message, Texts, Value

OverPhase1 = Phase1OverSeeds | ModelResult
"""Both hold records of phase 1 by seed."""


def _column(key: str, figure: Callable[[Any], float], text: Callable[[float | None], str]) -> Column[Any]:
    """A figure of the records of phase 1, over seeds."""
    return spread_column(key, lambda found: spread(map(figure, found.phase1.values())), text)


@dataclass(frozen=True)
class Curves:
    """A figure of phase 1, with one colour for each variant and context depth."""

    x: str
    """Key of the axis in the texts, as `y`."""
    y: str
    points: Callable[[Any], dict[int, float]]
    """{x: y} of one record of phase 1."""
    y_limits: tuple[float, float] | None = None


def shared_unit(analysis: Analysis) -> Message:
    """What decides a phase 1, together with the seed."""
    return Message("unit_variants" if analysis.variants else "unit")


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

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def columns(self, analysis: Analysis, texts: Texts) -> Sequence[Column[Any]]:  # noqa: ARG002
        """Its own columns of its table: the figures that its objective names. Rows are `Phase1OverSeeds`."""
        objective = OBJECTIVES.get(self.recipe)
        records = [p for result in analysis.phase1[self.recipe] for p in result.phase1.values()]
        names = dict.fromkeys(name for p in records for name in objective.figures(p)) if objective else ()
        return [_column(name, self._figure(name), lambda value: wording.number(value, 3)) for name in names]

    def _figure(self, name: str) -> Callable[[Any], float]:
        return lambda record: OBJECTIVES[self.recipe].figures(record)[name]

    def lead(self, analysis: Analysis) -> Iterator[Message]:  # noqa: ARG002
        """Sentences above its table."""
        return iter(())

    def findings(self, results: Sequence[Phase1OverSeeds], analysis: Analysis) -> Iterator[Message]:  # noqa: ARG002
        """Sentences below its table."""
        return iter(())

    def phase2_findings(self, analysis: Analysis) -> Iterator[Message]:  # noqa: ARG002
        """What phase 2 makes of it."""
        return iter(())

    def facts(self, model: ModelResult) -> Iterator[Message]:  # noqa: ARG002
        """Lines about the phase 1 of a recommended configuration."""
        return iter(())

    def compare(self, results: Sequence[Phase1OverSeeds]) -> Sequence[DepthComparison]:  # noqa: ARG002
        """Every pair of context depths of one variant, as one family."""
        return ()


def phase1_report(recipe: str | None) -> Phase1Report:
    """What is said of phase 1 with this recipe: of one that is not known here, what holds for any."""
    recipe = recipe or ORIGINAL
    return PHASE1_REPORTS.get(recipe) or Phase1Report(recipe)


def own_columns(kind: str, analysis: Analysis | None = None) -> Iterator[Column[Any]]:
    """Such columns of all recipes, or of those in the analysis; empty in rows of other recipes."""

    def of(report: Phase1Report, column: Column[Any]) -> Column[Any]:
        return Column(
            column.key, lambda row: column.cell(row) if phase1_report(row.recipe) is report else NONE
        )

    reports = (
        (report for _, report, _ in phase1_reports_of(analysis)) if analysis else PHASE1_REPORTS.values()
    )
    for report in reports:
        yield from (of(report, column) for column in getattr(report, kind))


def all_columns(report: Phase1Report, analysis: Analysis, texts: Texts) -> list[Column[Any]]:
    """The columns of a table of phase 1: those of every recipe and its own."""

    def rank(key: str, share: Callable[[ContextsRecord], float]) -> Column[Phase1OverSeeds]:
        return spread_column(key, lambda d: spread(map(share, d.contexts.values())), wording.percent)

    return [
        Column("context_depth", lambda d: d.name),
        word_column("used_by", lambda d: texts("joined", names=d.used_by)),
        *report.columns(analysis, texts),
        rank("rank_validation", lambda c: c.effective_rank_validation),
        rank("rank_train", lambda c: c.effective_rank_train),
        _column("seconds", lambda p: p.seconds_s, wording.seconds_text),
    ]


# Phase 1 by dispersion


def at_limit(result: Phase1OverSeeds) -> tuple[int, ...]:
    """Seeds that stopped at the iteration limit; these are not called converged."""
    return tuple(seed for seed, p in result.phase1.items() if p.stopped == "max_iterations")


class DispersionReport(Phase1Report):
    """Phase 1 that spreads the contexts around the origin, iteration after iteration."""

    caption = "phase1"
    definitions = ("iterations", "convergence")
    figures: Mapping[str, Curves] = {
        "phase1_convergence": Curves(
            "iteration",
            "convergence_rate",
            lambda p: {step.iteration: 100 * step.convergence_rate for step in p.history},
            y_limits=(0, 101),
        ),
        "phase1_loss": Curves(
            "iteration", "phase1_loss", lambda p: {step.iteration: step.loss for step in p.history}
        ),
    }
    summary_columns = (
        _column("iterations", lambda p: p.iterations, wording.count_text),
        _column("convergence", lambda p: p.convergence_rate, wording.percent),
    )
    run_columns = (Column("iterations", lambda r: wording.number(getattr(r.phase1, "iterations", None))),)

    def columns(self, analysis: Analysis, texts: Texts) -> Sequence[Column[Any]]:
        """See Phase1Report."""

        def stopped(d: Phase1OverSeeds) -> str:
            converged = len(d.phase1) - len(at_limit(d))
            return texts("stopped", converged=str(converged), total=str(len(d.phase1))) if d.phase1 else NONE

        def speed(d: Phase1OverSeeds) -> str:
            """What is shown of this depth's speed against every other of its variant."""
            own = [c for c in analysis.depth_comparisons if c.variant == d.variant]
            shown = {c.a: c.verdict for c in own if c.b == d.context_layers}
            shown |= {c.b: c.verdict.reversed for c in own if c.a == d.context_layers}
            said = [texts(f"speed.{found}", other=f"C{other}") for other, found in shown.items()]
            return texts("joined", names=said) if said else NONE

        return [*self.summary_columns, word_column("stopped", stopped), word_column("speed", speed)]

    def lead(self, analysis: Analysis) -> Iterator[Message]:
        """See Phase1Report."""
        if len(phase1_reports_of(analysis)) > 1:
            yield Message("phase1.by_dispersion")

    def facts(self, model: ModelResult) -> Iterator[Message]:
        """See Phase1Report."""
        iterations = mean(spread(p.iterations for p in model.phase1.values()))
        yield Message("choice.iterations", {"value": wording.count_text(iterations)})

    def findings(self, results: Sequence[Phase1OverSeeds], analysis: Analysis) -> Iterator[Message]:
        """How widely phase 1 was shared, how it stopped, and which depth needs fewer iterations."""
        limits = [(d, at_limit(d)) for d in results if d.phase1]
        if limits:
            yield Message("phase1.shared", {"unit": shared_unit(analysis)})
            if not any(seeds for _, seeds in limits):
                yield Message("phase1.all_converged")
        for d, seeds in limits:
            if seeds:
                how = "all_at_limit" if len(seeds) == len(d.phase1) else "some_at_limit"
                values = {"depth": str(d.context_layers), "seeds": wording.seeds_text(seeds)}
                yield Message(f"phase1.{how}", values, d.variant)
        yield from (comparison.message for comparison in analysis.depth_comparisons)

    def compare(self, results: Sequence[Phase1OverSeeds]) -> list[DepthComparison]:
        """Every pair by iterations until phase 1 stopped.

        Seeds stopped by the limit give a lower bound only. A depth with such a seed is never called faster.
        """
        pairs = [
            (a, b) for a, b in combinations(results, 2) if a.variant == b.variant and a.phase1 and b.phase1
        ]
        tests = [paired(_iterations(a), _iterations(b), resolution=1) for a, b in pairs]
        found = []
        for (a, b), test, p in zip(pairs, tests, holm([test.p for test in tests]), strict=True):
            shown = verdict(len(test.seeds), test.difference, p)
            faster = {Verdict.BETTER: b, Verdict.WORSE: a}.get(shown)
            if faster is not None and set(at_limit(faster)) & set(test.seeds):
                shown = Verdict.NO_DIFFERENCE_SHOWN
            depths = a.context_layers, b.context_layers
            message = Message(
                "phase1.faster" if shown.shown else f"phase1.{shown}", _speeds(*depths, test, p), a.variant
            )
            found.append(DepthComparison(a.variant, *depths, shown, message))
        return found


def _iterations(result: Phase1OverSeeds) -> dict[int, float]:
    return {seed: float(p.iterations) for seed, p in result.phase1.items()}


def _speeds(a: int, b: int, test: Paired, p: float | None) -> dict[str, Value]:
    """What a sentence on the convergence speed with `a` and with `b` context layers names."""
    sides = [(a, test.mean_a), (b, test.mean_b)]
    (fast, fast_mean), (slow, slow_mean) = sides[:: -1 if (test.difference or 0) < 0 else 1]
    return {
        "fast": str(fast),
        "slow": str(slow),
        "fast_iterations": wording.count_text(fast_mean),
        "slow_iterations": wording.count_text(slow_mean),
        "ratio": wording.number(slow_mean / fast_mean if slow_mean and fast_mean else None, 1),
        "interval": wording.interval_text(test.interval, wording.signed),
        "a": str(a),
        "b": str(b),
        "p": "p < 0.001" if p is not None and p < 0.001 else f"p = {wording.p_text(p)}",
        "seeds": wording.seeds_text(test.seeds),
    }


# Phase 1 by prediction


def head_perplexity(result: OverPhase1) -> Spread | None:
    """Validation perplexity of the deepest head, with the geometric mean."""
    losses = [p.heads[-1].nll_nats for p in result.phase1.values()]
    return perplexities((perplexity(nll), nll) for nll in losses)


def over_head(model: ModelResult) -> Spread | None:
    """Validation NLL less that of the nearest head of phase 1, nats per token."""
    heads = (
        (model.validation[seed].nll_nats, p.head_for(model.token_layers or 1).nll_nats)
        for seed, p in model.phase1.items()
    )
    return spread(nll - head for nll, head in heads if isfinite(head))


class PredictionReport(Phase1Report):
    """Phase 1 that predicts the next token through heads, token layers of its own."""

    caption = "prediction"
    definitions = ("prediction",)
    figures: Mapping[str, Curves] = {
        # Training only: validation is measured in another way, and at the end.
        "phase1_prediction": Curves(
            "epoch", "training_nll", lambda p: {epoch.epoch: epoch.train_nll_nats for epoch in p.history}
        ),
    }
    phase2_columns = (Column("over_head", lambda m: wording.change_text(mean(over_head(m)))),)

    def columns(self, analysis: Analysis, texts: Texts) -> Sequence[Column[Any]]:  # noqa: ARG002
        """See Phase1Report."""
        epochs = _column("epochs", lambda p: p.epochs, wording.count_text)
        return [epochs, spread_column("head_perplexity", head_perplexity, wording.perplexity_text)]

    def lead(self, analysis: Analysis) -> Iterator[Message]:
        """See Phase1Report."""
        yield Message("phase1.by_prediction")
        yield Message("phase1.shared", {"unit": shared_unit(analysis)})

    def facts(self, model: ModelResult) -> Iterator[Message]:
        """See Phase1Report."""
        epochs = mean(spread(p.epochs for p in model.phase1.values()))
        yield Message("choice.epochs", {"value": wording.count_text(epochs)})

    def phase2_findings(self, analysis: Analysis) -> Iterator[Message]:
        """From where to where phase 2 changes validation perplexity."""
        own = [c for c in analysis.configurations if phase1_report(c.recipe) is self]
        over = sorted((found.mean, c.name) for c in own if (found := over_head(c)))
        if over:
            (low, low_name), (high, high_name) = over[0], over[-1]
            values = {"low": wording.change_text(low), "low_name": low_name}
            values |= {"high": wording.change_text(high), "high_name": high_name}
            yield Message("phase2.over_head" if len(over) == 1 else "phase2.over_heads", values)


ORIGINAL = "original"
"""Recipe of the original experiment."""
PHASE1_REPORTS: dict[str, Phase1Report] = {
    ORIGINAL: DispersionReport(ORIGINAL),
    "predictive": PredictionReport("predictive"),
}
"""By recipe, in the order of the report."""


def phase1_reports_of(analysis: Analysis) -> list[tuple[str, Phase1Report, Sequence[Phase1OverSeeds]]]:
    """The recipes that the records have, each with its phase 1; the original's where there is none."""
    found: list[tuple[str, Phase1Report, Sequence[Phase1OverSeeds]]]
    found = [(recipe, phase1_report(recipe), results) for recipe, results in analysis.phase1.items()]
    return [one for one in found if one[2]] or found[:1]
