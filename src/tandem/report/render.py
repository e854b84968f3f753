"""Write the report of a run directory: Markdown, one self-contained HTML page, and the figures."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from tandem.errors import RunDirError, storage_reason
from tandem.folders import atomic_write, check_reading
from tandem.records import AuditRecord, Manifest, RunRecord, read_audit, read_manifest, read_records
from tandem.report.analysis import analyse
from tandem.report.blocks import Code, Document
from tandem.report.choice import choose
from tandem.report.document import compose
from tandem.report.results import Analysis
from tandem.report.tables import summary_table
from tandem.report.wording import Texts, inline_html, plain, read_resource


def write_report(run_dir: Path, lang: str = "en") -> list[Path]:
    """Write the report of the records in `run_dir`, and return the files written.

    `en` writes report.md and report.html, `ja` report.ja.md and report.ja.html, each with its figures under
    figures/. The same records always give the same bytes. Raises RunDirError for an unknown language, for a
    directory that is missing, unwritable or without records, and for a damaged record, manifest or audit.
    """
    texts = Texts(lang)
    check_reading(run_dir, "run directory")
    records = read_records(run_dir)
    if not records:
        raise RunDirError(f"{run_dir} holds no records yet; finish at least one run with `tandem experiment`")
    analysis = analyse(records, read_manifest(run_dir), read_audit(run_dir))
    figures = _draw(analysis, texts)
    document = compose(analysis, texts, figures.keys())
    suffix = _suffix(lang)
    files = {
        f"report{suffix}.md": render_markdown(document),
        f"report{suffix}.html": render_html(document, figures),
        **{f"figures/{name}{suffix}.svg": svg for name, svg in figures.items()},
    }
    try:
        return [_write(run_dir / name, content) for name, content in files.items()]
    except OSError as error:
        raise RunDirError(
            f"cannot write the report into {run_dir} ({storage_reason(error)}); the records are kept; "
            "make room or mend the place, and give the command again"
        ) from None


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
    analysis = analyse(records, manifest, audit)
    table = summary_table(analysis, Texts(lang), choose(analysis))
    return list(map(plain, table.columns)), [list(map(plain, row)) for row in table.rows]


def render_markdown(document: Document) -> str:
    """The report as Markdown; figures are links into figures/."""
    jinja = _jinja(document.language, autoescape=False)
    text = jinja.get_template("report.md.j2").render(document=document)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def render_html(document: Document, figures: Mapping[str, str]) -> str:
    """The report as one HTML page that loads nothing: style and figures stand inside it."""
    jinja = _jinja(document.language, autoescape=True)
    drawings = {name: _inline_svg(svg) for name, svg in figures.items()}
    page = jinja.get_template("report.html.j2").render(
        document=document,
        figures=drawings,
        style=Markup(read_resource("templates/report.css").rstrip()),
        contents=Texts(document.language)("contents"),
    )
    return "\n".join(line.rstrip() for line in page.splitlines()) + "\n"


def _inline_svg(svg: str) -> str:
    """The drawing for use inside an HTML page, where namespaces are implied."""
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")


def _draw(analysis: Analysis, texts: Texts) -> dict[str, str]:
    """The figures, by the only import of matplotlib: slow, and of use to a report alone."""
    # Where no home folder can be written, it makes a temporary one by itself, but warns of it.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from tandem.report.figures import draw_figures

    return draw_figures(analysis, texts)


def _jinja(language: str, autoescape: bool) -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: read_resource(f"templates/{name}")),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(inline=inline_html, md_cell=_md_cell, md_fence=_md_fence)
    environment.globals["figure_file"] = lambda name: f"{name}{_suffix(language)}.svg"
    return environment


def _md_cell(text: str) -> str:
    """A cell of a Markdown table: no line breaks, no bare pipes."""
    return " ".join(text.split()).replace("|", "\\|")


def _md_fence(block: Code) -> str:
    """Code between fences longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", block.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{block.language}\n{block.text}\n{fence}"


def _suffix(language: str) -> str:
    return "" if language == "en" else f".{language}"


def _write(path: Path, content: str) -> Path:
    """Write all or nothing: a reader never sees half a file."""
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(content, "utf-8")
    return path
