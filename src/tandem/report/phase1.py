"""What the report says of phase 1, objective by objective. What belongs to one alone stands here only."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any

from tandem.records import Phase1Record, PredictionRecord, RunRecord
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


@dataclass(frozen=True)
class Curves:
    """A figure of phase 1, with one colour for each variant and context depth."""

    x: str
    """Key of the axis in the texts, as `y`."""
    y: str
    points: Callable[[Any], dict[int, float]]
    """{x: y} of one record of phase 1."""
    y_limits: tuple[float, float] | None = None


class ObjectiveReport:
    """What the report says of phase 1 with one objective. Keys are those of the texts."""

    recipe: str
    """Recipe of a run that failed before its phase 1 could tell its objective."""
    trains_embeddings = False
    caption: str
    """Key of its table's caption."""
    definitions: Sequence[str]
    """Keys of the definitions of its figures."""
    params_definition = "params"
    """Key of the definition of parameter counts."""
    figures: Mapping[str, Curves]
    """By name, which is the key of the figure's caption."""
    model_columns: Sequence[Column[ModelResult]] = ()
    """Its figures in tables of all configurations."""
    phase2_columns: Sequence[Column[ModelResult]] = ()
    """Further columns of the table of phase 2."""
    run_columns: Sequence[Column[RunRecord]] = ()
    """Its figures in the table of runs."""

    def columns(self, analysis: Analysis, texts: Texts) -> list[Column[Any]]:
        """Columns of its table, whose rows are `Phase1OverSeeds`."""
        raise NotImplementedError

    def lead(self, analysis: Analysis) -> Iterator[Message]:
        """Sentences above its table."""
        raise NotImplementedError

    def fact(self, model: ModelResult) -> Message:
        """One line about the phase 1 of a recommended configuration."""
        raise NotImplementedError

    def findings(self, _: Analysis) -> Iterator[Message]:
        """Sentences below its table."""
        return iter(())

    def phase2_findings(self, _: Analysis) -> Iterator[Message]:
        """What phase 2 makes of it."""
        return iter(())

    def compare(self, _: Sequence[Phase1OverSeeds[Any]]) -> Sequence[DepthComparison]:
        """Every pair of context depths of one variant, as one family."""
        return ()


def objective_of(records: Iterable[RunRecord]) -> str | None:
    """The objective of their phase 1, or of the one their recipe names; None for models without any."""
    records = list(records)
    recorded = (r.phase1.objective for r in records if r.phase1 is not None)
    planned = (name for r in records for name, o in OBJECTIVES.items() if o.recipe == r.recipe)
    return next(recorded, None) or next(planned, None)


def objectives_of(analysis: Analysis) -> list[tuple[ObjectiveReport, Sequence[Phase1OverSeeds[Any]]]]:
    """The objectives that the records have, each with its phase 1; the original's where there is none."""
    found: list[tuple[ObjectiveReport, Sequence[Phase1OverSeeds[Any]]]]
    found = [(OBJECTIVES[name], results) for name, results in analysis.phase1.items()]
    return [(objective, results) for objective, results in found if results] or found[:1]


def _usual_columns(texts: Texts, *own: Column[Any]) -> list[Column[Any]]:
    """The columns that every objective has, around its own."""

    def rank_column(key: str, rank: Callable[[Any], float]) -> Column[Phase1OverSeeds[Any]]:
        return spread_column(key, lambda d: d.over_seeds(rank), wording.percent)

    return [
        Column("context_depth", lambda d: d.name),
        word_column("used_by", lambda d: texts("joined", names=d.used_by)),
        *own,
        rank_column("rank_validation", lambda p: p.effective_rank_validation),
        rank_column("rank_train", lambda p: p.effective_rank_train),
        spread_column("seconds", lambda d: d.over_seeds(lambda p: p.seconds_s), wording.seconds_text),
    ]


# Phase 1 by dispersion

Dispersion = Phase1OverSeeds[Phase1Record]


def at_limit(result: Dispersion) -> tuple[int, ...]:
    """Seeds that stopped at the iteration limit; these are not called converged."""
    return tuple(seed for seed, p in result.phase1.items() if p.stopped == "max_iterations")


def _dispersion(record: RunRecord) -> list[Phase1Record]:
    return [record.phase1] if isinstance(record.phase1, Phase1Record) else []


def _over_runs(model: ModelResult, figure: Callable[[Phase1Record], float]) -> Spread | None:
    return spread(figure(p) for r in model.runs.values() for p in _dispersion(r))


class DispersionReport(ObjectiveReport):
    """Phase 1 that spreads the contexts around the origin, iteration after iteration."""

    recipe = "original"
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
    model_columns = (
        spread_column("iterations", lambda m: _over_runs(m, lambda p: p.iterations), wording.count_text),
        spread_column("convergence", lambda m: _over_runs(m, lambda p: p.convergence_rate), wording.percent),
    )
    run_columns = (
        Column("iterations", lambda r: next((wording.number(p.iterations) for p in _dispersion(r)), NONE)),
    )

    def columns(self, analysis: Analysis, texts: Texts) -> list[Column[Any]]:
        def stopped(d: Dispersion) -> str:
            converged = len(d.phase1) - len(at_limit(d))
            return texts("stopped", converged=str(converged), total=str(len(d.phase1))) if d.phase1 else NONE

        def speed(d: Dispersion) -> str:
            """What is shown of this depth's speed against every other of its variant."""
            own = [c for c in analysis.depth_comparisons if c.variant == d.variant]
            shown = {c.a: c.verdict for c in own if c.b == d.context_layers}
            shown |= {c.b: c.verdict.reversed for c in own if c.a == d.context_layers}
            said = [texts(f"speed.{found}", other=f"C{other}") for other, found in shown.items()]
            return texts("joined", names=said) if said else NONE

        iterations: Column[Dispersion] = spread_column(
            "iterations", lambda d: d.over_seeds(lambda p: p.iterations), wording.count_text
        )
        convergence: Column[Dispersion] = spread_column(
            "convergence", lambda d: d.over_seeds(lambda p: p.convergence_rate), wording.percent
        )
        last = [word_column("stopped", stopped), word_column("speed", speed)]
        return [*_usual_columns(texts, iterations, convergence), *last]

    def lead(self, analysis: Analysis) -> Iterator[Message]:
        if len(objectives_of(analysis)) > 1:
            yield Message("phase1.by_dispersion")

    def fact(self, model: ModelResult) -> Message:
        iterations = _over_runs(model, lambda p: p.iterations)
        return Message("choice.iterations", {"value": wording.count_text(mean(iterations))})

    def findings(self, analysis: Analysis) -> Iterator[Message]:
        """How widely phase 1 was shared, how it stopped, and which depth needs fewer iterations."""
        limits = [(d, at_limit(d)) for d in analysis.phase1["dispersion"] if d.phase1]
        if limits:
            yield Message("phase1.shared_variants" if analysis.variants else "phase1.shared")
            if not any(seeds for _, seeds in limits):
                yield Message("phase1.all_converged")
        for d, seeds in limits:
            if seeds:
                how = "all_at_limit" if len(seeds) == len(d.phase1) else "some_at_limit"
                values = {"depth": str(d.context_layers), "seeds": wording.seeds_text(seeds)}
                yield Message(f"phase1.{how}", values, d.variant)
        yield from (comparison.message for comparison in analysis.depth_comparisons)

    def compare(self, results: Sequence[Dispersion]) -> list[DepthComparison]:
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


def _iterations(result: Dispersion) -> dict[int, float]:
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

Prediction = Phase1OverSeeds[PredictionRecord]


def head_perplexity(result: Prediction) -> Spread | None:
    """Validation perplexity of the deepest head, with the geometric mean."""
    losses = [p.heads[-1].nll_nats for p in result.phase1.values()]
    return perplexities((perplexity(nll), nll) for nll in losses)


def over_head(model: ModelResult) -> Spread | None:
    """Validation NLL less that of the nearest head of phase 1, nats per token."""
    heads = (
        (r.validation.nll_nats, r.phase1.head_for(model.token_layers or 1).nll_nats)
        for r in model.runs.values()
        if isinstance(r.phase1, PredictionRecord) and r.validation is not None
    )
    return spread(nll - head for nll, head in heads if isfinite(head))


class PredictionReport(ObjectiveReport):
    """Phase 1 that predicts the next token through heads, token layers of its own."""

    recipe = "predictive"
    trains_embeddings = True
    caption = "prediction"
    definitions = ("prediction",)
    params_definition = "params_prediction"
    figures: Mapping[str, Curves] = {
        # Training only: validation is measured in another way, and at the end.
        "phase1_prediction": Curves(
            "epoch", "training_nll", lambda p: {epoch.epoch: epoch.train_nll_nats for epoch in p.history}
        ),
    }
    phase2_columns = (Column("over_head", lambda m: wording.change_text(mean(over_head(m)))),)

    def columns(self, _: Analysis, texts: Texts) -> list[Column[Any]]:
        epochs: Column[Prediction] = spread_column(
            "epochs", lambda d: d.over_seeds(lambda p: p.epochs), wording.count_text
        )
        head = spread_column("head_perplexity", head_perplexity, wording.perplexity_text)
        return _usual_columns(texts, epochs, head)

    def lead(self, analysis: Analysis) -> Iterator[Message]:
        yield Message("phase1.by_prediction")
        yield Message(f"phase1.shared_predictions{'_variants' if analysis.variants else ''}")

    def fact(self, model: ModelResult) -> Message:
        runs = [r.phase1 for r in model.runs.values()]
        epochs = spread(p.epochs for p in runs if isinstance(p, PredictionRecord))
        return Message("choice.epochs", {"value": wording.count_text(mean(epochs))})

    def phase2_findings(self, analysis: Analysis) -> Iterator[Message]:
        """From where to where phase 2 changes validation perplexity."""
        over = sorted((found.mean, c.name) for c in analysis.configurations if (found := over_head(c)))
        if over:
            (low, low_name), (high, high_name) = over[0], over[-1]
            values = {"low": wording.change_text(low), "low_name": low_name}
            values |= {"high": wording.change_text(high), "high_name": high_name}
            yield Message("phase2.over_head" if len(over) == 1 else "phase2.over_heads", values)


OBJECTIVES: Mapping[str, ObjectiveReport] = {
    "dispersion": DispersionReport(),
    "prediction": PredictionReport(),
}
"""By the `objective` of the records of phase 1, in the order of the report."""
ORIGINAL = "dispersion"
"""Objective of the original experiment."""
