"""Names and texts of others in the report: shown as they are by whoever renders Markdown, HTML or SVG."""

import html
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_records import make_grid, make_manifest, make_record, write_run_dir

from tandem.report import summary_rows, write_report
from tandem.report.figures import drawn_svg, legend
from tandem.report.render import inline_html, plain
from tandem.report.wording import Texts, code, literal

NAMES = [
    "q[/a].txt", "[bold]x[/]", "$x_1$", ":tada:", "<b>&amp;", "a|b", "%s {x} {0}", "`x` ``y``", "a\\b\\",
    "_x_ *y* ~z~", "![a](b)", "`", "``", "x`", "# 1. - a", "two  spaces", "日本 é",
]  # fmt: skip
LINES = st.text(
    st.characters(exclude_categories=("C", "Zs", "Zl", "Zp"), include_characters=" `*_$|"), min_size=1
)


def rendered(markdown: str) -> str:
    """The text of a Markdown paragraph, as CommonMark has it."""
    page = MarkdownIt("commonmark").render(f"x {markdown} y")
    return html.unescape(re.sub(r"<[^>]*>", "", page)).strip()[2:-2]


@pytest.mark.parametrize("name", NAMES)
def test_names_survive_every_renderer(name: str) -> None:
    for shown in (literal(name), code(name)):
        whole = name if shown == code(name) else " ".join(name.split())
        assert html.unescape(inline_html(shown).replace("</code>", "").replace("<code>", "")) == whole
        assert plain(shown) == whole
        assert rendered(shown) == whole


@given(LINES)
def test_code_is_shown_as_it_is(name: str) -> None:
    name = name.strip(" ") or "x"
    assert plain(code(name)) == name
    assert plain(literal(name)) == " ".join(name.split())
    escaped = html.escape(name, quote=False).replace('"', "&quot;")
    assert inline_html(code(name)) == f"<code>{escaped}</code>"


def test_hostile_records_are_reported_as_they_are(tmp_path: Path) -> None:
    hostile = "q[/a] `b` $x_1$ :tada: <b> | %s {x} \\"
    records = [*make_grid([0, 1]), make_record(3, 1, failure=f"{hostile} failed")]
    records = [
        record.model_copy(update={"data": record.data.model_copy(update={"train_source": hostile})})
        for record in records
    ]
    run = write_run_dir(tmp_path / "run", records, make_manifest())
    for lang in ("en", "ja"):
        files = {path.suffix: path.read_text("utf-8") for path in write_report(run, lang)}
        page = html.unescape(re.sub(r"<[^>]*>", "", files[".html"]))
        assert hostile in page
        assert f"{hostile} failed" in page
        tables = MarkdownIt("commonmark").enable("table").render(files[".md"])
        assert hostile in html.unescape(re.sub(r"<[^>]*>", "", tables))
    assert summary_rows(records)[1]


def test_names_in_figures_are_no_formulas() -> None:
    names = ["$\\frac$", "$x_1$", "_hidden", "日本", "@nothing", "a & <b>"]

    def draw(axes, _analysis):
        for place, name in enumerate(names):
            axes.plot([0, 1], [place, place], label=name)
        axes.plot([0, 1], [9, 9])  # without a label
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel("@epoch")
        legend(axes)
        return True

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = drawn_svg("names", draw, None, Texts("en"))
    shown = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    for name in names:
        assert shown.count(name) == 2, name
    assert Texts("en")("axes.epoch") in shown
    assert not [text for text in shown if "child" in text]


def test_figures_are_drawn_in_silence_where_no_home_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    run = write_run_dir(tmp_path / "run", make_grid([0, 1]), make_manifest())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "TANDEM_CACHE"))}
    kept["HOME"] = str(tmp_path / "file" / "home")
    done = subprocess.run([sys.executable, "-m", "tandem", "report", str(run)], env=kept, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list((run / "figures").glob("*.svg"))
