"""Text of others is shown as text: in the page, in Markdown, in spreadsheets and on the terminal."""

import csv
import html
import io
import itertools
import json
import random
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from pydantic import ValidationError
from report_records import make_grid, make_manifest, make_record, write_run_dir
from test_terminal import Terminals

from tandem.cli.main import run
from tandem.cli.summary import print_audit, print_summary
from tandem.cli.terminal import Terminal
from tandem.experiment import generate
from tandem.records import AuditRecord, Check, RunAudit, RunRecord, write_audit
from tandem.report import write_report
from tandem.report.tables import _cell, csv_table
from tandem.shown import command, json_for, one_line, several_lines

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0)))) + "\u2028\u2029" + BIDI
PARTS = {
    "HTML": [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</code></td></table><b>x</b>",
        "<svg/onload=alert(1)>", "<!-- x", "]]>", "<details open ontoggle=x>", "</title><style>", "&lt;b&gt;",
        '"><a href="//evil">', "<iframe srcdoc='<script>1</script>'>", "</details>", "<base href=//evil>",
    ],
    "links": [
        "javascript:alert(1)", "[x](javascript:alert(1))", "![x](http://evil/x.png)", "<javascript:alert(1)>",
        "[x]: javascript:1", "[a]( data:text/html;base64,PHNjcmlwdD4= )", "<http://evil>",
        "![](figures/x.svg)",
    ],
    "terminal": [
        "\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\link", "\x9b2J", "\x1b[2J\x1b[H",
        "\x07\x08", "\x1bP+q\x1b\\", "\r over", "a\nb", "\x85", "\x7f", "\x00",
    ],
    "order": ["\u202egnp.exe", "\u2067x\u2069", "\u200fabc", "\u061c1", "\u202a\u202e\u202c"],
    "formulas": ["=1+1", "=cmd|' /C calc'!A0", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1"],
    "Rich": ["[bold red]x[/]", "[link=http://evil]x[/link]", ":tada:", "[/]", "[@click=app.bell]x[/]"],
    "Markdown": [
        "# head", "**b** _i_", "| a | b |", "```\nfence", "`code", "> quote", "---", "- item", "1. one", "\\",
        "~~~", "a  \nb", "<details>", "$x_1$", "[^1]", "&#60;b&#62;",
    ],
    "formats": ["{0}", "%s", "{x.__class__}", "${HOME}", "$title", "@epoch", "日本é😀"],
}  # fmt: skip


def strings(count: int) -> list[str]:
    """Each part by itself, then random joins of a few, always the same ones."""
    parts, chance = [*itertools.chain(*PARTS.values())], random.Random(5)
    joined = (" ".join(chance.choices(parts, k=chance.randint(2, 4))) for _ in itertools.count())
    return list(itertools.islice(itertools.chain(parts, joined), count))


STRINGS = strings(600)
DATA = ("train_source", "validation_source", "tokenizer", "embeddings", "tokens_fingerprint")
ENVIRONMENT = (
    *("device", "device_name", "platform", "python", "torch", "transformers", "tandem", "code_fingerprint"),
    "git_commit",
)


def hostile_run(folder: Path, texts: list[str]) -> Path:
    """Records, manifest and audit of an experiment with one of the texts in each field of free text."""
    given = iter(texts)
    failure, experiment, finished, name, value, key = (next(given) for _ in range(6))

    def spoilt(record: RunRecord) -> RunRecord:
        data: dict[str, Any] = {field: next(given) for field in DATA}
        machine: dict[str, Any] = {field: next(given) for field in ENVIRONMENT}
        update = {
            "experiment": experiment,
            "finished_at": finished,
            "data": record.data.model_copy(update=data),
            "environment": record.environment.model_copy(update=machine),
        }
        return record.model_copy(update=update)

    records = [spoilt(one) for one in (*make_grid([0]), make_record(3, 1, failure=failure))]
    manifest = make_manifest()
    settings = {**manifest.settings, "description": value, key: [value, {key: key}]}
    run_dir = write_run_dir(folder, records, manifest.model_copy(update={"name": name, "settings": settings}))
    check, looked_at, figure = (next(given) for _ in range(3))
    write_audit(
        run_dir,
        AuditRecord(
            audited_at=next(given),
            code_fingerprint="x",
            runs=(
                RunAudit(
                    run=records[0].run,
                    finished_at=finished,
                    checks=(Check(name=check, looked_at=looked_at, figure=figure, status="fail"),),
                ),
            ),
        ),
    )
    return run_dir


RECORDS = 5
FIELDS = 6 + RECORDS * (len(DATA) + len(ENVIRONMENT)) + 4
ALLOWED_TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "nav", "main", "h1", "h2", "h3", "p", "ul",
    "ol", "li", "a", "code", "strong", "em", "table", "caption", "span", "thead", "tbody", "tr", "th", "td",
    "figure", "figcaption", "div", "details", "summary", "blockquote", "pre", "svg", "g", "path", "defs",
    "clippath", "rect", "use", "text", "tspan", "circle", "line", "polyline", "br",
}  # fmt: skip
"""What the report has of its own."""


class Elements(HTMLParser):
    """All elements of a page, and the attributes of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check_elements(page: str, where: str) -> None:
    """No element, attribute or link that only a text can have brought."""
    for tag, attributes in Elements(page).found:
        assert tag in ALLOWED_TAGS, (where, tag)
        for name, value in attributes.items():
            assert not name.startswith("on"), (where, tag, name)
            if name.endswith(("href", "src")):
                assert (value or "").startswith(("#", "figures/")), (where, tag, value)


def without_controls(text: str, where: str) -> None:
    found = sorted(set(text) & set(CONTROLS) - {"\n"})
    assert not found, (where, found)


@pytest.mark.parametrize("first", range(0, len(STRINGS), FIELDS))
def test_reports_show_text_as_text(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every string in one field or another; figures have names alone, so none is drawn."""
    monkeypatch.setattr("tandem.report.figures.draw_figures", lambda *_: {})
    texts = (STRINGS[first:] + STRINGS)[:FIELDS]
    run_dir = hostile_run(tmp_path / "run", texts)
    lang = "ja" if first % (2 * FIELDS) else "en"
    files = {path.suffix: path.read_text("utf-8") for path in write_report(run_dir, lang)}
    for kind, text in files.items():
        without_controls(text, kind)
    check_elements(files[".html"], "page")
    # As a renderer that lets HTML through has it.
    check_elements(MarkdownIt("commonmark", {"html": True}).enable("table").render(files[".md"]), "Markdown")
    seen = " ".join(html.unescape(re.sub(r"<[^>]*>", "", files[".html"])).split())
    shown = [
        " ".join(one_line(text).split()) in seen or one_line(" ".join(text.split())) in seen for text in texts
    ]
    assert shown[0], texts[0]  # of a failure
    assert shown[3], texts[3]  # the name of the experiment
    assert sum(shown) > 0.8 * FIELDS, [text for text, found in zip(texts, shown, strict=True) if not found]


def test_strings_are_many() -> None:
    assert len(set(STRINGS)) >= 500
    assert len(make_grid([0])) + 1 == RECORDS


def test_the_page_allows_no_script_and_no_network(tmp_path: Path) -> None:
    run_dir = write_run_dir(tmp_path / "run", make_grid([0, 1, 2]), make_manifest())
    page = next(path for path in write_report(run_dir) if path.suffix == ".html").read_text("utf-8")
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in Elements(page).found
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules.keys() == {"default-src", "style-src", "img-src", "base-uri", "form-action"}
    assert (rules["style-src"], rules["img-src"]) == ("'unsafe-inline'", "data:")
    # Only what it allows is there: styles and figures within the page.
    tags = {tag for tag, _ in Elements(page).found}
    assert {"svg", "style"} <= tags
    assert not tags & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "image",
        "foreignobject",
    }
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", page.partition("</style>")[0])


@pytest.mark.parametrize("text", STRINGS[: sum(map(len, PARTS.values()))])
def test_names_that_are_markup_are_no_names(text: str) -> None:
    """Names of runs stand in all sentences as they are."""
    record = make_record().model_dump()
    for field in ("run", "configuration", "variant"):
        try:
            RunRecord.model_validate({**record, field: text})
        except ValidationError:
            continue
        assert not set(text) & set(f"{CONTROLS}<>&`*[]|\\$"), text


def test_tables_for_spreadsheets_hold_no_formulas(tmp_path: Path) -> None:
    for text in STRINGS:
        shown = _cell(text)
        assert one_line(text) in shown
        assert not shown.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d")), text
        without_controls(shown, text)
    for figure in (-0.5, 3, None, True):
        assert _cell(figure) is figure
    grid = [
        one.model_copy(update={"variant": "=1+1", "configuration": f"=1+1-{one.configuration}"})
        for one in make_grid([0])
    ]
    run_dir = write_run_dir(tmp_path / "run", grid)
    (path,) = write_report(run_dir, only="csv")
    rows = list(csv.reader(io.StringIO(path.read_text("utf-8"))))
    assert all(row[0].startswith("'=1+1-") for row in rows[1:])
    assert csv_table.__module__ == _cell.__module__


class Screen(io.StringIO):
    """A terminal, as far as one asks."""

    def isatty(self) -> bool:
        return True


def test_consoles_show_text_as_text(tmp_path: Path) -> None:
    """Styles of our own are the only escapes."""
    screen = Screen()
    console = Terminal(file=screen)
    for text in STRINGS[::4]:
        console.say(text)
        console.say(("name", "dim"), f": {text}", (text, "red"))
    console.table(("x", STRINGS[0]), [[text, (text, "red")] for text in STRINGS[::6]])
    for number in range(1):
        texts = STRINGS[FIELDS * number :][:FIELDS]
        run_dir = hostile_run(tmp_path / str(number), texts)
        print_summary(console, run_dir, "en", [Path(text) for text in texts])
        audit = AuditRecord(
            audited_at="x",
            code_fingerprint="x",
            runs=tuple(
                RunAudit(run=t, finished_at=t, checks=(Check(name=t, looked_at=t, figure=t, status="fail"),))
                for t in texts[::2]
            ),
        )
        print_audit(console, audit)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    without_controls(shown, "console")
    assert "[bold red]x[/]" in shown


def test_errors_and_json_show_text_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    for text in STRINGS[::12]:
        if "\0" in text:
            continue
        for words in (
            ["config", f"{text}.yaml"],
            ["report", f"./{text}"],
            [text],
            ["config", f"--{text}", "x"],
        ):
            code = run(words)
            out, said = capsys.readouterr()
            assert code in (0, 2), words
            without_controls(said, text)
            without_controls(out, text)
    for text in STRINGS:
        written = json.dumps({text: text}, ensure_ascii=False)
        for encoding in ("utf-8", "ascii", "cp1252", None):
            shown = json_for(encoding, written, terminal=True)
            without_controls(shown, text)
            assert json.loads(shown) == {text: text}
        assert json_for("utf-8", written) == written  # for a program as it is


def test_text_of_several_lines_keeps_them() -> None:
    assert several_lines("a\n\tb\x1b[0m\r\u202e é") == "a\n\tb\\x1b[0m\\r\\u202e é"
    for text in STRINGS:
        without_controls(several_lines(text).replace("\t", ""), text)
        without_controls(one_line(text), text)
        without_controls(command("tandem", text, Path(text)), text)


class Spelling:
    """A tokenizer whose tokens are characters."""

    def decode(self, ids: Any, **_: object) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize("kind", [Screen, io.StringIO])
def test_what_a_model_writes_is_text_on_a_terminal(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a pipe or a file it goes as it is."""
    for text in STRINGS[::5]:
        stream = kind()
        monkeypatch.setattr(sys, "stdout", stream)
        print(generate._as_text(text), end="")
        streamer = generate._Streamer(Spelling(), skip_prompt=False)  # type: ignore[arg-type]
        for character in text:
            streamer.put(torch.tensor([ord(character)]))
        streamer.end()
        shown = several_lines(text) if kind is Screen else text
        assert stream.getvalue() == f"{shown}{shown}\n"


def test_settings_on_a_terminal_show_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.yaml"
    path.write_text('description: "\\e[31mred \u202eabc"\n', "utf-8")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert run(["config", str(path)]) == 0
    assert run(["config", str(path), "--json"]) == 0
    without_controls(screen.getvalue(), "settings")
    code, out, _ = Terminals("utf-8").call("config", str(path))
    assert code == 0
    assert "\u202e" in out  # for a program as it is
