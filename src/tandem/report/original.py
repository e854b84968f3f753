"""The report this project set out from: its figures, what is known of them, its claims put to the test."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import yaml
from pydantic import BaseModel, ConfigDict

from tandem.report.findings import effect_interval
from tandem.report.phase1 import speed_message
from tandem.report.results import Analysis, Comparison, ModelResult
from tandem.report.statistics import Verdict
from tandem.report.wording import Message, change_text, read_resource


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OriginalRow(_Figures):
    """One configuration, every figure as printed there."""

    configuration: str
    parameters: str
    iterations: str
    convergence: str
    rank: str
    best_epoch: str
    train_perplexity: str
    perplexity: str
    accuracy: str
    time: str


class OriginalReport(_Figures):
    """The figures of the original report (one run per row) and the caveats by language."""

    title: str
    date: str
    device: str
    data: str
    tokenizer: str
    rows: tuple[OriginalRow, ...]
    caveats: dict[str, tuple[str, ...]]


class Outcome(StrEnum):
    """What these records say of a claim of the original report."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    NOT_SHOWN = "not_shown"
    NOT_TESTED = "not_tested"


@dataclass(frozen=True)
class Claim:
    """A claim of the original report, the outcome here, and the comparisons it rests on."""

    key: str
    outcome: Outcome
    evidence: tuple[Message, ...]


@cache
def load_original() -> OriginalReport:
    """The shipped figures."""
    return OriginalReport.model_validate(yaml.safe_load(read_resource("original_figures.yaml")))


def models_of_recipe_original(analysis: Analysis) -> list[ModelResult]:
    """The configurations trained as the original's were: by recipe `original`, in its first variant."""
    trained_so = [c for c in analysis.configurations if c.recipe == "original"]
    return [c for c in trained_so if c.variant == trained_so[0].variant]


def as_the_original(analysis: Analysis) -> dict[str, ModelResult]:
    """Those, by the name that the original report calls them."""
    return {f"C{c.context_layers}T{c.token_layers}": c for c in models_of_recipe_original(analysis)}


def claims(analysis: Analysis) -> Iterator[Claim]:
    """The original report's claims, each judged by the verdicts of these records."""
    deeper = [("C1T1", "C2T1"), ("C1T1", "C1T2"), ("C1T1", "C2T2")]
    yield _claim(analysis, "c1t1_best", deeper, supports=Verdict.WORSE, contradicts=Verdict.BETTER)
    yield _claim(
        analysis, "c1t2_worst", [("C1T1", "C1T2")], supports=Verdict.WORSE, contradicts=Verdict.BETTER
    )
    two_token_layers = [("C1T1", "C1T2"), ("C2T1", "C2T2")]
    yield _claim(analysis, "previous_context", two_token_layers, supports=None, contradicts=Verdict.BETTER)
    yield _speed_claim(analysis)


def _claim(
    analysis: Analysis,
    key: str,
    pairs: list[tuple[str, str]],
    supports: Verdict | None,
    contradicts: Verdict,
) -> Claim:
    """Supported if every pair shows `supports`; contradicted if any pair shows `contradicts`.

    A claim that something makes no difference (`supports` none) can be contradicted, never shown.
    """
    ours = as_the_original(analysis)
    found = [
        comparison
        for a, b in pairs
        if a in ours
        and b in ours
        and (comparison := analysis.compare(ours[a].name, ours[b].name)) is not None
    ]
    tested = [c for c in found if c.verdict is not Verdict.TOO_FEW_SEEDS]
    if any(c.verdict is contradicts for c in tested):
        outcome = Outcome.CONTRADICTED
    elif not tested:
        outcome = Outcome.NOT_TESTED
    elif len(tested) == len(pairs) and all(c.verdict is supports for c in tested):
        outcome = Outcome.SUPPORTED
    else:
        outcome = Outcome.NOT_SHOWN
    return Claim(key, outcome, tuple(_evidence(c) for c in found))


def _speed_claim(analysis: Analysis) -> Claim:
    variants = {c.variant for c in models_of_recipe_original(analysis)}
    comparison = next(
        (c for c in analysis.depth_comparisons if (c.a, c.b) == (1, 2) and c.variant in variants), None
    )
    if comparison is None or comparison.verdict is Verdict.TOO_FEW_SEEDS:
        return Claim("faster_convergence", Outcome.NOT_TESTED, ())
    outcome = {Verdict.BETTER: Outcome.SUPPORTED, Verdict.WORSE: Outcome.CONTRADICTED}.get(
        comparison.verdict, Outcome.NOT_SHOWN
    )
    return Claim("faster_convergence", outcome, (speed_message(comparison),))


def _evidence(comparison: Comparison) -> Message:
    return Message(
        f"evidence.{comparison.verdict}",
        {
            "a": comparison.a,
            "b": comparison.b,
            "change": change_text(comparison.effect.difference),
            "interval": effect_interval(comparison),
        },
    )
