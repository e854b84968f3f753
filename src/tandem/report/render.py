"""Write the report of a run directory: Markdown, one self-contained HTML page, and the figures."""

import html
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tandem.errors import RunDirError, storage_reason
from tandem.folders import atomic_write, check_reading
from tandem.records import AuditRecord, Manifest, RunRecord, read_audit, read_manifest, read_records
from tandem.report.analysis import Analysis
from tandem.report.document import Document
from tandem.report.markdown import Report, bullets
from tandem.report.results import summary_columns
from tandem.report.wording import Texts, read_resource

MARKS = {"strong": "emphasised", "em": "apart"}
"""Classes of a table's row by what its name is set in."""


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
    analysis = Analysis(records, read_manifest(run_dir), read_audit(run_dir))
    figures = _draw(analysis, texts)
    document = Document(analysis, texts, figures.keys())
    files = {
        f"report{texts.suffix}.md": str(document),
        f"report{texts.suffix}.html": render_html(document, figures),
        **{f"figures/{name}{texts.suffix}.svg": svg for name, svg in figures.items()},
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
    report = Report(Analysis(records, manifest, audit), Texts(lang), frozenset())
    columns, models = summary_columns(report), report.analysis.models.values()
    rows = [[plain(column.cell(model)) for column in columns] for model in models]
    return [plain(report.head(column)) for column in columns], rows


def _write(path: Path, content: str) -> Path:
    """Write all or nothing: a reader never sees half a file."""
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(content, "utf-8")
    return path


def _draw(analysis: Analysis, texts: Texts) -> dict[str, str]:
    """The figures, by the only import of matplotlib: slow, and of use to a report alone."""
    # Where no home folder can be written, it makes a temporary one by itself, but warns of it.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from tandem.report.figures import draw_figures

    return draw_figures(analysis, texts)


# The page


def render_html(document: Document, figures: Mapping[str, str]) -> str:
    """The report as one HTML page that loads nothing: style and figures stand inside it.

    Raw HTML in the Markdown is shown as text, and a link to anywhere else stays text too.
    """
    titles = {name: text.partition("\n")[0] for name, text in document.sections.items()}
    links = [f"[{title[3:]}](#{name})" for name, title in titles.items() if title.startswith("## ")]
    page = Template(read_resource("page.html")).substitute(
        language=document.texts.language,
        title=_plain(inline_html(document.title)),
        header=_html(f"# {document.title}\n\n{document.subtitle}", "report", figures),
        contents=document.texts("contents"),
        links=_html(bullets(links), "", figures),
        sections="".join(_html(text, name, figures) for name, text in document.sections.items()),
        footer=_html(document.footer, "", figures),
    )
    return "\n".join(line.rstrip() for line in page.splitlines()) + "\n"


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.validateLink = lambda url: url.startswith(("#", "figures/"))  # type: ignore[method-assign]
    return parser


_PARSER = _parser()


def _html(markdown: str, anchor: str, figures: Mapping[str, str]) -> str:
    """HTML of some Markdown, its first heading with this anchor."""
    tokens = list(_styled(_PARSER.parse(markdown), figures))
    if tokens[0].type == "heading_open":
        tokens[0].attrSet("id", anchor)
    return _PARSER.renderer.render(tokens, _PARSER.options, {})


def _styled(tokens: Sequence[Token], figures: Mapping[str, str]) -> Iterator[Token]:
    """The tokens with what the page has of its own: callouts, folded blocks, figures, captions, classes."""
    place = 0
    while place < len(tokens):
        token, inline = tokens[place], tokens[place + 1] if place + 1 < len(tokens) else None
        place += 1
        if token.type == "paragraph_open" and inline:
            after = tokens[place + 2].type if place + 2 < len(tokens) else ""
            children = inline.children or []
            if folded := re.fullmatch(r"<details>\n<summary>(.*)</summary>", inline.content):
                yield _raw(f"<details>\n<summary>{inline_html(folded[1])}</summary>\n")
                place += 2
            elif inline.content == "</details>":
                yield _raw("</details>\n")
                place += 2
            elif [child.type for child in children] == ["image"] and (svg := figures.get(_name(children[0]))):
                yield _figure(svg, inline_html(children[0].content))
                place += 2
                if place + 1 < len(tokens) and _mark(tokens[place + 1]) == "em":
                    place += 3  # its caption, which the page shows inside the figure
            elif after == "table_open" and _mark(inline) == "strong":
                end = next(i for i in range(place, len(tokens)) if tokens[i].type == "table_close")
                yield from _table(inline_html(inline.content[2:-2]), tokens[place + 3 : end])
                place = end + 1
            else:
                yield token
        elif token.type == "blockquote_open":
            quoted = tokens[place + 1]
            quoted.content, marker = re.subn(r"^\[!WARNING\]\n", "", quoted.content)
            quoted.children = _PARSER.parseInline(quoted.content)[0].children
            token.attrSet("class", "callout warning" if marker else "callout")
            yield token
        else:
            yield token


def _table(caption: str, tokens: Sequence[Token]) -> Iterator[Token]:
    """A table with its caption: every row named by its first cell, numbers flush right."""
    style = "" if any("style" in token.attrs for token in tokens) else ' class="prose"'
    yield _raw(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_plain(caption)}">\n<table{style}>\n'
    )
    yield _raw(f"<caption><span>{caption}</span></caption>\n")
    first = False
    for place, token in enumerate(tokens):
        if token.type == "tr_open":
            first = True
            mark = MARKS.get(_mark(tokens[place + 2]))
            if mark and tokens[place + 1].type == "td_open":
                token.attrSet("class", mark)
        elif token.type in ("th_open", "td_open"):
            if token.attrs.pop("style", None):
                token.attrSet("class", "number")
            if token.type == "th_open":
                token.attrSet("scope", "col")
            elif first:
                token.tag = tokens[place + 2].tag = "th"
                token.attrSet("scope", "row")
            first = False
        yield token
    yield _raw("</table>\n</div>\n")


def _name(image: Token) -> str:
    """Name of the figure that an image shows."""
    return str(image.attrs["src"]).removeprefix("figures/").partition(".")[0]


def _figure(svg: str, caption: str) -> Token:
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")  # implied inside a page
    card = f'<div class="card" role="img" aria-label="{_plain(caption)}">\n{svg}</div>'
    return _raw(f"<figure>\n{card}\n<figcaption>{caption}</figcaption>\n</figure>\n")


def _mark(inline: Token) -> str:
    """What the whole of a text is set in: `strong`, `em` or nothing."""
    outer = [c for c in inline.children or [] if c.level == 0 and (c.type != "text" or c.content)]
    kinds = [child.type for child in outer]
    return next((mark for mark in MARKS if kinds == [f"{mark}_open", f"{mark}_close"]), "")


def _raw(content: str) -> Token:
    return Token("html_block", "", 0, content=content)


def inline_html(markdown: str) -> str:
    """HTML of Markdown that is part of a line."""
    return _PARSER.renderInline(markdown)


def plain(markdown: str) -> str:
    """The text of Markdown that is part of a line, without its marks."""
    return html.unescape(_plain(inline_html(markdown)))


def _plain(inline_html: str) -> str:
    """Inline HTML without its tags, for attributes; markdown-it has escaped its quotes."""
    return re.sub(r"<[^>]*>", "", inline_html)
