"""The report in order: which section holds what."""

from collections.abc import Callable, Iterable, Set

from tandem.report import findings, provenance, results
from tandem.report.analysis import Analysis
from tandem.report.markdown import Report
from tandem.report.wording import Texts, literal

Section = Callable[[Report], Iterable[str]]
"""Gives the blocks of a section, its heading first; none: there is no such section in this report."""
SECTIONS: list[Section] = [
    results.overview, results.summary, results.original, results.details, results.phase1, results.phase2,
    results.efficiency, results.scans, results.memory,
    findings.findings, findings.standing, findings.depth, findings.variants, findings.vs_baselines,
    findings.recommendation, findings.recommended, findings.alternative, findings.avoid,
    findings.conclusions, findings.change,
    provenance.audit, provenance.runs, provenance.provenance, provenance.definitions,
]  # fmt: skip
"""The sections in order. Another one is a function more, here or in a program that extends the report."""


class Document:
    """A whole report in Markdown; `figures` names the figures there are."""

    def __init__(self, analysis: Analysis, texts: Texts, figures: Set[str]) -> None:
        report = Report(analysis, texts, figures)
        date = max(r.finished_at for r in analysis.records)[:10]
        self.texts = texts
        self.title = texts("title", experiment=literal(analysis.experiment))
        self.subtitle = texts("subtitle", date=date)
        written = {section.__name__: "\n\n".join(section(report)) for section in SECTIONS}
        self.sections = {name: text for name, text in written.items() if text}
        """By the name of the function that wrote it, which is its anchor in the page."""

    def __str__(self) -> str:
        return "\n\n".join([f"# {self.title}", self.subtitle, *self.sections.values()]) + "\n"
