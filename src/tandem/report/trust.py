"""What the audit says of the runs in a report: which checks failed, and whose figures are untrusted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tandem.records import AuditRecord, Check, RunRecord

Status = Literal["pass", "warn", "fail", "skip"]
STATUSES: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
"""Worst first."""


@dataclass(frozen=True)
class CheckResult:
    """One check over all runs it was made for; `shown` is the run (None: the data) with its worst outcome."""

    name: str
    shown: str | None
    check: Check
    counts: Mapping[Status, int]
    """How many runs had each status."""


@dataclass(frozen=True)
class Trust:
    """The audit as it bears on the records at hand.

    audited_at    when it was made; None: there is no audit
    checks        one result for each check, and one more for every further run that failed it
    failed        names of the checks that failed; `warned`: of those that warned
    untrusted     runs for which a check failed; all of them where it was a check of the data they share
    unaudited     finished runs that the audit does not cover, or covers in an earlier record
    unrecomputed  Tandem runs without a saved model: their figures were not recomputed
    """

    audited_at: str | None
    checks: tuple[CheckResult, ...]
    failed: tuple[str, ...]
    warned: tuple[str, ...]
    untrusted: tuple[str, ...]
    unaudited: tuple[str, ...]
    unrecomputed: tuple[str, ...]


def judge(audit: AuditRecord | None, records: Sequence[RunRecord]) -> Trust:
    """Hold an audit against the records: what it found of earlier or of other runs is passed over."""
    finished = {r.run: r.finished_at for r in records if r.status == "finished"}
    if audit is None:
        return Trust(None, (), (), (), (), tuple(finished), ())
    current = [a for a in audit.runs if a.run is None or finished.get(a.run) == a.finished_at]
    found: dict[str, list[tuple[str | None, Check]]] = {}
    for run_audit in current:
        for check in run_audit.checks:
            found.setdefault(check.name, []).append((run_audit.run, check))
    checks = [result for name, outcomes in found.items() for result in _results(name, outcomes)]
    bad = {a.run for a in current if a.status == "fail"}
    covered = {a.run for a in current}
    no_model = {
        a.run for a in current for c in a.checks if c.name == "model" and c.status in ("skip", "warn")
    }
    return Trust(
        audited_at=audit.audited_at,
        checks=tuple(checks),
        failed=tuple(dict.fromkeys(c.name for c in checks if c.counts.get("fail"))),
        warned=tuple(dict.fromkeys(c.name for c in checks if c.counts.get("warn"))),
        untrusted=tuple(r.run for r in records if None in bad or r.run in bad),
        unaudited=tuple(run for run in finished if run not in covered),
        unrecomputed=tuple(r.run for r in records if r.is_tandem and r.run in no_model),
    )


def _results(name: str, outcomes: Sequence[tuple[str | None, Check]]) -> list[CheckResult]:
    """Every run that failed; the worst run if none did."""
    counts = Counter(check.status for _, check in outcomes)
    ordered = sorted(outcomes, key=lambda outcome: STATUSES.index(outcome[1].status))
    shown = [outcome for outcome in outcomes if outcome[1].status == "fail"] or ordered[:1]
    return [CheckResult(name, run, check, dict(counts)) for run, check in shown]
