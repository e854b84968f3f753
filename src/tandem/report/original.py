"""The report this project set out from: its figures, what is known of them, its claims put to the test."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import yaml

from tandem.report.analysis import Analysis, Comparison, ModelResult
from tandem.report.phase1 import ORIGINAL, PHASE1_REPORTS, depth_comparisons, phase1_report
from tandem.report.statistics import Verdict
from tandem.report.wording import Message, change_text, interval_text, read_resource

Outcome = Literal["supported", "contradicted", "not_shown", "not_tested"]


class Claim(NamedTuple):
    """A claim of the original report, the outcome here, and the comparisons it rests on."""

    key: str
    outcome: Outcome
    evidence: Sequence[Message]


@cache
def load_original() -> dict[str, Any]:
    """What the original report printed, one run per row, and what is known of it by language."""
    return yaml.safe_load(read_resource("original_figures.yaml"))


def as_the_original(analysis: Analysis) -> dict[str, ModelResult]:
    """The configurations trained as the original's were, of the first such variant, by their names there."""
    alike = [c for c in analysis.configurations if phase1_report(c.recipe) is PHASE1_REPORTS[ORIGINAL]]
    return {f"C{c.context_layers}T{c.token_layers}": c for c in alike if c.variant == alike[0].variant}


def claims(analysis: Analysis) -> Iterator[Claim]:
    """The original report's claims, each judged by the verdicts of these records."""
    yield _claim(analysis, "c1t1_best", [("C1T1", "C2T1"), ("C1T1", "C1T2"), ("C1T1", "C2T2")], Verdict.WORSE)
    yield _claim(analysis, "c1t2_worst", [("C1T1", "C1T2")], Verdict.WORSE)
    # That something makes no difference can be contradicted, never shown.
    yield _claim(analysis, "previous_context", [("C1T1", "C1T2"), ("C2T1", "C2T2")], supports=None)
    variants = {c.variant for c in as_the_original(analysis).values()}
    speeds = [
        c
        for c in depth_comparisons(analysis)
        if (c.a, c.b) == (1, 2) and c.variant in variants and c.verdict is not Verdict.TOO_FEW_SEEDS
    ]
    outcomes: dict[Verdict, Outcome] = {Verdict.BETTER: "supported", Verdict.WORSE: "contradicted"}
    outcome = outcomes.get(speeds[0].verdict, "not_shown") if speeds else "not_tested"
    yield Claim("faster_convergence", outcome, [c.message for c in speeds])


def _claim(analysis: Analysis, key: str, pairs: Sequence[tuple[str, str]], supports: Verdict | None) -> Claim:
    """Supported if every pair shows `supports`; contradicted if the second of any pair is better."""
    ours = as_the_original(analysis)
    found = [
        comparison
        for a, b in pairs
        if a in ours and b in ours and (comparison := analysis.compare(ours[a].name, ours[b].name))
    ]
    tested = [c.verdict for c in found if c.verdict is not Verdict.TOO_FEW_SEEDS]
    outcome: Outcome = (
        "contradicted" if Verdict.BETTER in tested
        else "not_tested" if not tested
        else "supported" if tested == [supports] * len(pairs)
        else "not_shown"
    )  # fmt: skip
    return Claim(key, outcome, [_evidence(c) for c in found])


def _evidence(c: Comparison) -> Message:
    change, interval = change_text(c.effect.difference), interval_text(c.effect.interval)
    return Message(f"evidence.{c.verdict}", a=c.a, b=c.b, change=change, interval=interval)
