"""The report this project set out from: its figures, what is known of them, its claims put to the test."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import yaml

from tandem.report.analysis import Analysis, ModelResult
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
    ours = as_the_original(analysis)

    def claim(key: str, supports: Verdict | None, *pairs: tuple[str, str]) -> Claim:
        """Supported if every pair shows `supports`; contradicted if the second of any pair is better."""
        models = [(ours[a].name, ours[b].name) for a, b in pairs if a in ours and b in ours]
        found = [comparison for a, b in models if (comparison := analysis.compare(a, b))]
        outcome = _outcome([c.verdict for c in found], [supports] * len(pairs), Verdict.BETTER)
        evidence = [
            Message(
                f"evidence.{c.verdict}",
                **{"a": c.a, "b": c.b, "change": change_text(c.effect.difference)},
                interval=interval_text(c.effect.interval),
            )
            for c in found
        ]
        return Claim(key, outcome, evidence)

    worse = Verdict.WORSE
    yield claim("c1t1_best", worse, ("C1T1", "C2T1"), ("C1T1", "C1T2"), ("C1T1", "C2T2"))
    yield claim("c1t2_worst", worse, ("C1T1", "C1T2"))
    # That something makes no difference can be contradicted, never shown.
    yield claim("previous_context", None, ("C1T1", "C1T2"), ("C2T1", "C2T2"))
    variants = {c.variant for c in ours.values()}
    speeds = [c for c in depth_comparisons(analysis) if (c.a, c.b) == (1, 2) and c.variant in variants]
    tested = [c for c in speeds if c.verdict is not Verdict.TOO_FEW_SEEDS]
    outcome = _outcome([c.verdict for c in tested], [Verdict.BETTER], worse)
    yield Claim("faster_convergence", outcome, [c.message for c in tested])


def _outcome(verdicts: list[Verdict], supports: list[Verdict | None], contradicts: Verdict) -> Outcome:
    """What the verdicts on all pairs of a claim make of it."""
    tested = [verdict for verdict in verdicts if verdict is not Verdict.TOO_FEW_SEEDS]
    if not tested:
        return "not_tested"
    if contradicts in tested:
        return "contradicted"
    return "supported" if tested == supports else "not_shown"
