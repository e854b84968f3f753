"""The report in order, and how it is written: Markdown, one self-contained HTML page, and the figures."""

import html
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from string import Template
from typing import Literal

from markdown_it import MarkdownIt

from tandem.errors import RunDirError, storage_reason
from tandem.folders import atomic_write, new_folder
from tandem.records import AuditRecord, Manifest, RunRecord, read_audit, read_experiment, read_manifest
from tandem.report import findings, provenance, results
from tandem.report.analysis import Analysis
from tandem.report.markdown import Report, bullets
from tandem.report.tables import csv_table, latex_table
from tandem.report.wording import Texts, literal, read_resource

_PARSER = MarkdownIt("commonmark", {"html": False}).enable("table")
_PARSER.validateLink = lambda url: url.startswith(("#", "figures/"))  # type: ignore[method-assign]

Format = Literal["md", "html", "csv", "latex"]
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
        self.subtitle = texts("subtitle", date=literal(date))
        written = {section.__name__: "\n\n".join(section(report)) for section in SECTIONS}
        self.sections = {name: text for name, text in written.items() if text}
        """By the name of the function that wrote it, which is its anchor in the page."""

    def __str__(self) -> str:
        return "\n\n".join([f"# {self.title}", self.subtitle, *self.sections.values()]) + "\n"


def write_report(run_dir: Path, lang: str = "en", only: Format | None = None) -> list[Path]:
    """Write the report of the records in `run_dir`, and return the files written.

    `en` writes report.md and report.html, `ja` report.ja.md and report.ja.html, each with its figures under
    figures/. `only` writes one format: the text with its figures, the page, report.csv, or report.tex. The
    same records always give the same bytes. Raises RunDirError for an unknown language, for a directory that
    is missing, unwritable or without records, and for a damaged record, manifest or audit.
    """
    texts = Texts(lang)
    records = read_experiment(run_dir)
    analysis = Analysis(records, read_manifest(run_dir), read_audit(run_dir))
    files = {run_dir / name: text for name, text in _files(analysis, texts, only).items()}
    try:
        for path, content in files.items():
            new_folder(path.parent)
            with atomic_write(path) as draft:  # a reader never sees half a file
                draft.write_text(content, "utf-8")
    except OSError as error:
        raise RunDirError(
            f"cannot write the report into {run_dir} ({storage_reason(error)}); the records are kept; "
            "make room or mend the place, and give the command again"
        ) from None
    return list(files)


def _files(analysis: Analysis, texts: Texts, only: Format | None) -> dict[str, str]:
    """The files of the report by their names."""
    if only == "csv":
        return {"report.csv": csv_table(analysis)}
    if only == "latex":
        return {f"report{texts.suffix}.tex": latex_table(Report(analysis, texts, frozenset()))}
    # The only import of matplotlib, which is slow. Where no home folder can be written, it would warn.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from tandem.report.figures import draw_figures

    figures = draw_figures(analysis, texts)
    document = Document(analysis, texts, figures.keys())
    page = {f"report{texts.suffix}.html": render_html(document, figures)} if only != "md" else {}
    drawn = {f"figures/{name}{texts.suffix}.svg": svg for name, svg in figures.items()}
    return page if only == "html" else {f"report{texts.suffix}.md": str(document), **page, **drawn}


def summary_rows(
    records: list[RunRecord],
    manifest: Manifest | None = None,
    lang: str = "en",
    audit: AuditRecord | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the summary table as plain strings, one row per configuration, then per baseline.

    Names are marked † where `audit` failed for one of their runs.
    """
    if not records:
        return [], []
    report = Report(Analysis(records, manifest, audit), Texts(lang), frozenset())
    columns, models = results.summary_columns(report), report.analysis.models.values()
    rows = [[plain(column.cell(model)) for column in columns] for model in models]
    return [plain(report.head(column)) for column in columns], rows


# The page


def render_html(document: Document, figures: Mapping[str, str]) -> str:
    """The report as one HTML page that loads nothing: style and figures stand inside it.

    Raw HTML in the Markdown is shown as text, and a link to anywhere else stays text too.
    """
    titles = {name: text.partition("\n")[0] for name, text in document.sections.items()}
    links = [f"[{title[3:]}](#{name})" for name, title in titles.items() if title.startswith("## ")]
    page = Template(read_resource("page.html")).substitute(
        language=document.texts.language,
        title=_without_tags(inline_html(document.title)),
        header=_html(f"# {document.title}\n\n{document.subtitle}", "report", figures),
        contents=document.texts("contents"),
        links=_html(bullets(links), "", figures),
        sections="".join(_html(text, name, figures) for name, text in document.sections.items()),
    )
    return "\n".join(line.rstrip() for line in page.splitlines()) + "\n"


def _html(markdown: str, anchor: str, figures: Mapping[str, str]) -> str:
    """HTML of some Markdown, its first heading with this anchor, and what the page has of its own.

    Text of others has no part in the replacements: the parser has escaped every tag in it.
    """

    def figure(found: re.Match[str]) -> str:
        """The SVG inside the page, where namespaces are implied."""
        if found[1] not in figures:
            return found[0]
        svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", figures[found[1]]).replace("xlink:href", "href")
        card = f'<div class="card" role="img" aria-label="{_without_tags(found[2])}">\n{svg}</div>'
        return f"<figure>\n{card}\n<figcaption>{found[2]}</figcaption>\n</figure>"

    page = _PARSER.render(markdown)
    page = re.sub(r"^<(h\d)>", rf'<\1 id="{anchor}">', page)
    page = page.replace("<blockquote>\n<p>[!WARNING]\n", '<blockquote class="callout warning">\n<p>')
    page = page.replace("<blockquote>", '<blockquote class="callout">')
    folded = r"<p>&lt;details&gt;\n&lt;summary&gt;(.*)&lt;/summary&gt;</p>"
    page = re.sub(folded, r"<details>\n<summary>\1</summary>", page)
    page = page.replace("<p>&lt;/details&gt;</p>", "</details>")
    page = re.sub(r'<p><img src="figures/(\w+)[^>]*></p>\n<p><em>(.*)</em></p>', figure, page)
    return re.sub(r"<p><strong>(.*)</strong></p>\n<table>\n((?:.*\n)*?)</table>", _table, page)


def _table(found: re.Match[str]) -> str:
    """A table with its caption: every row named by its first cell, numbers flush right."""
    caption, rows = found.groups()
    rows = rows.replace(' style="text-align:right"', ' class="number"')
    style = "" if 'class="number"' in rows else ' class="prose"'
    rows = re.sub(r"<th( [^>]*)?>", r'<th\1 scope="col">', rows)
    rows = re.sub(r"<tr>\n<td>(.*)</td>", _named_row, rows)
    around = f'<div class="scroll" tabindex="0" role="region" aria-label="{_without_tags(caption)}">'
    return f"{around}\n<table{style}>\n<caption><span>{caption}</span></caption>\n{rows}</table>\n</div>"


def _named_row(found: re.Match[str]) -> str:
    """The beginning of a row, its class by what its name is set in."""
    mark = re.fullmatch(r"<(strong|em)>(?!.*<\1>).*</\1>", found[1])
    style = {"strong": ' class="emphasised"', "em": ' class="apart"'}[mark[1]] if mark else ""
    return f'<tr{style}>\n<th scope="row">{found[1]}</th>'


def inline_html(markdown: str) -> str:
    """HTML of Markdown that is part of a line."""
    return _PARSER.renderInline(markdown)


def plain(markdown: str) -> str:
    """The text of Markdown that is part of a line, without its marks."""
    return html.unescape(_without_tags(inline_html(markdown)))


def _without_tags(inline: str) -> str:
    """Inline HTML as the text of an attribute; markdown-it has escaped its quotes."""
    return re.sub(r"<[^>]*>", "", inline)
