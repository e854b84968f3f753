"""The report: its claims, its choice, its files in both languages."""

import html
import itertools
import math
import re
import string
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import slow_but
from matplotlib.axes import Axes
from report_records import (
    ABLATIONS,
    BOTH,
    GRID,
    make_audit,
    make_baselines,
    make_grid,
    make_manifest,
    make_record,
    make_variants,
    without_documents,
    write_run_dir,
)

from tandem.errors import RunDirError
from tandem.records import RunRecord
from tandem.report import summary_rows, write_report
from tandem.report.analysis import Analysis
from tandem.report.figures import _perplexity_by_seconds, drawn_svg
from tandem.report.original import claims, load_original
from tandem.report.phase1 import PHASE1_REPORTS, depth_comparisons
from tandem.report.render import Document, inline_html, render_html
from tandem.report.sentences import alternative_findings, conclusions
from tandem.report.statistics import Verdict, spread
from tandem.report.wording import (
    LANGUAGES,
    Texts,
    count_short,
    literal,
    load_texts,
    percent,
    perplexity_text,
    plus_minus,
    seconds_text,
)

# Analysis, choice and claims


def with_nll(values: dict[tuple[int, int], Sequence[float]]) -> list[RunRecord]:
    return [
        make_record(*depths, seed, nll=nll) for depths, of in values.items() for seed, nll in enumerate(of)
    ]


def test_mean_perplexity_is_geometric():
    analysis = Analysis(with_nll({(1, 1): [4.0, 5.0, 6.0]}), None)
    assert analysis.configurations[0].perplexity.mean == pytest.approx(math.exp(5.0))


def test_smallest_not_shown_worse_is_recommended():
    noisy = with_nll({(1, 1): [5.0, 5.1, 4.9], (2, 2): [4.9, 5.05, 4.95], (1, 2): [6.0, 6.1, 5.91]})
    analysis = Analysis(noisy, None)
    choice = analysis.choice
    assert (choice.best.name, choice.recommended.name, choice.reason) == ("C2T2", "C1T1", "not_shown_worse")
    assert choice.alternative.name == "C2T2"
    assert next(alternative_findings(analysis, choice)).key == "alternative.lowest_perplexity"
    assert [c.name for c, _ in choice.avoid] == ["C1T2"]
    assert not choice.provisional
    clear = with_nll({(1, 1): [5.0, 5.1, 4.9], (2, 2): [4.5, 4.61, 4.4]})
    choice = Analysis(clear, None).choice
    assert (choice.recommended.name, choice.reason) == ("C2T2", "smaller_shown_worse")
    assert choice.alternative is None


def test_two_seeds_show_nothing():
    analysis = Analysis(with_nll({(1, 1): [5.0, 5.1], (1, 2): [9.0, 9.1]}), None)
    choice = analysis.choice
    assert choice.provisional
    assert choice.avoid == ()
    assert {m.key for m in conclusions(analysis)} == {
        "standing.too_few", "recommended.best_and_smallest", "recommended.provisional", "conclusion.scope",
    }  # fmt: skip


def test_no_claim_where_nothing_is_shown():
    analysis = Analysis(with_nll({(1, 1): [5.0, 5.1, 4.9], (2, 1): [5.1, 5.0, 4.9]}), None)
    keys = {m.key for m in conclusions(analysis)}
    assert "standing.nothing_shown" in keys
    assert not any(
        key.endswith((".better", ".worse", "shown_worse", ".together"))
        for key in keys - {"recommended.not_shown_worse"}
    )


def test_phase1_is_shared_and_its_limit_is_no_convergence():
    records = make_grid()
    analysis = Analysis(records, None)
    one = analysis.depths[0]
    assert one.used_by == ("C1T1", "C1T2")
    assert len(one.phase1) == 5
    assert depth_comparisons(analysis)[0].verdict is Verdict.BETTER
    assert analysis.seconds_spent < analysis.seconds_alone
    limited = [
        make_record(depth, 1, seed, iterations=60 if depth == 1 else 30, stopped="max_iterations")
        for depth in (1, 2)
        for seed in range(3)
    ]
    analysis = Analysis(limited, None)
    assert depth_comparisons(analysis)[0].verdict is Verdict.NO_DIFFERENCE_SHOWN
    keys = [m.key for m in PHASE1_REPORTS["original"].findings(analysis, analysis.depths)]
    assert keys.count("phase1.at_limit") == 2
    assert not any("converged" in key for key in keys)


def test_mixed_data_is_not_compared():
    records = [make_record(1, 1, s) for s in range(3)]
    records += [make_record(1, 2, s, text_fingerprint="other") for s in range(3)]
    analysis = Analysis(records, None)
    assert analysis.comparisons == ()
    assert analysis.choice is None


def test_claims_of_the_original_report():
    outcomes = {claim.key: claim.outcome for claim in claims(Analysis(make_grid(), None))}
    assert outcomes == {
        "c1t1_best": "contradicted",
        "c1t2_worst": "contradicted",
        "previous_context": "contradicted",
        "faster_convergence": "supported",
    }
    single = {claim.outcome for claim in claims(Analysis(make_grid([0]), None))}
    assert single == {"not_tested"}


def test_original_figures_are_as_printed():
    rows = {row["config"]: row for row in load_original()["rows"]}
    assert [rows[name]["perplexity"] for name in ("C1T1", "C2T1", "C1T2", "C2T2")] == [
        "127.2",
        "138.7",
        "300.8",
        "132.2",
    ]
    assert rows["C2T2"]["best_epoch"] == "9"
    assert load_original()["caveats"].keys() == set(LANGUAGES)
    assert "artefact" in load_original()["caveats"]["en"][0]


# Words and numbers


def test_languages_have_the_same_texts():
    english, japanese = (load_texts(language) for language in ("en", "ja"))
    assert english.keys() == {key for key in japanese if not key.startswith("baseline.")}
    for key, text in english.items():
        named = [
            {name for _, name, _, _ in string.Formatter().parse(t) if name} for t in (text, japanese[key])
        ]
        assert named[0] >= named[1], key
        assert text, key
        assert japanese[key] != text or len(text.split()) < 4, f"{key} is not translated"


def test_light_markdown():
    hostile = "a <b> `c` **d** | e_f & \\"
    assert html.unescape(inline_html(literal(hostile))) == hostile
    assert inline_html("**x `y`** <z>") == "<strong>x <code>y</code></strong> &lt;z&gt;"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (perplexity_text(127.24), "127.2"),
        (perplexity_text(math.inf), "∞"),
        (perplexity_text(None), "–"),
        (count_short(40_210_540), "40.2M"),
        (count_short(976_128), "976K"),
        (plus_minus(spread([0.24, 0.25, 0.26]), percent), "25.0 ± 1.0%"),
        (plus_minus(spread([127.2]), perplexity_text), "127.2"),
        (plus_minus(spread([100.0, 140.0]), perplexity_text), "120.0 ± 28.3"),
        (plus_minus(spread([700.0, 800.0, 900.0]), seconds_text), "800 ± 100 s"),
    ],
)
def test_numbers(text: str, expected: str):
    assert text == expected


# Files


def make_troubled() -> RunRecord:
    """A run with overlapping data, trained embeddings and contexts beyond their tolerance."""
    record = make_record(1, 1, 1)
    bad = record.contexts.train.model_copy(update={"loop_error": 3e-3})
    return record.model_copy(
        update={
            "data": record.data.model_copy(update={"overlap_documents": 2, "embeddings_trained": True}),
            "contexts": record.contexts.model_copy(update={"train": bad}),
        }
    )


CASES = {
    "full": make_grid(),
    "one seed": make_grid([0]),
    "one configuration": [make_record(1, 1, s) for s in range(3)],
    "one run": [make_record()],
    "all failed": [make_record(c, t, failure="the loss became NaN") for c, t in GRID],
    "arbitrary depths": [make_record(c, t, s) for c, t in [(3, 2), (1, 4), (3, 1)] for s in range(3)],
    "different seeds": [make_record(1, 1, s) for s in (0, 1, 2)] + [make_record(1, 2, s) for s in (2, 3, 4)],
    "nothing converged": [make_record(c, 1, s, stopped="max_iterations") for c in (1, 2) for s in range(3)],
    "still improving": [make_record(c, 1, s, phase2_stopped="max_epochs") for c in (1, 2) for s in range(3)],
    "diverged": [*make_grid([0, 1, 2])[:-1], make_record(2, 2, 2, nll=800.0)],
    "all diverged": [make_record(1, 1, s, nll=900.0) for s in range(3)],
    "one at the limit": [make_record(1, 1, 0), make_record(1, 1, 1, stopped="max_iterations")],
    "troubled": [make_troubled()],
    "without documents": [without_documents(r) for r in make_grid([0, 1, 2])],
    "predictive": [make_record(*d, s, recipe="predictive", half_life=30) for d in GRID for s in range(3)],
    "both recipes": [*make_variants(seeds=[0, 1, 2]), *make_baselines([0, 1, 2], variants=BOTH)],
    "ablations": make_variants(ABLATIONS, [(1, 1)], [0, 1, 2]),
    "ablations of every depth": make_variants(ABLATIONS, GRID, [0, 1]),
    "one variant": make_variants({"predictive": "predictive"}, GRID, [0, 1, 2]),
    "variants failed": [
        make_record(c, t, recipe=recipe, variant=variant, failure="the loss became NaN")
        for variant, recipe in BOTH.items()
        for c, t in GRID
    ],
    "with baselines": make_grid([0, 1, 2]) + make_baselines([0, 1, 2]),
    "baselines only": make_baselines([0]),
    "two machines": [make_record(1, 1, 0), make_record(1, 1, 1, device_name="A | B <x>")],
    "mixed data": [make_record(1, 1, 0), make_record(2, 1, 0, text_fingerprint="other")],
    "failed, hostile": [
        make_record(),
        make_record(1, 2, failure="NaN at `x` | <script>alert(1)</script> **y**"),
    ],
}


MANIFESTS = {
    "full": make_manifest(),
    "one seed": make_manifest(),
    "both recipes": make_manifest(
        variants={
            "original": {"recipe": "original"},
            "predictive": {"recipe": "predictive", "phase2": {"dropout": 0.5}},
        }
    ),
    "ablations": make_manifest(
        variants={name: {"model": {"cell": name}} if name != "full" else {} for name in ABLATIONS},
        grid=[(1, 1)],
    ),
}
IN_BOTH = (
    "full", "with baselines", "all failed", "arbitrary depths", "failed, hostile", "predictive",
    "both recipes", "ablations", "variants failed",
)  # fmt: skip
QUICK = {*((case, "en") for case in CASES), ("with baselines", "ja"), ("failed, hostile", "ja")}


@pytest.mark.parametrize(
    ("case", "lang"), slow_but(QUICK, [*((c, "en") for c in CASES), *((c, "ja") for c in IN_BOTH)])
)
def test_report_files(tmp_path: Path, case: str, lang: str):
    """Every case gives a whole report: nothing unfilled, nothing loaded from elsewhere, tables in shape."""
    manifest, audit = MANIFESTS.get(case), None
    if case == "with baselines":
        outcomes = {("C2T2-seed1", "causality"): "fail", (None, "leakage"): "warn"}
        audit = make_audit(CASES[case][:-1], outcomes)
    files = write_report(write_run_dir(tmp_path / "run", CASES[case], manifest, audit), lang)
    suffix = "" if lang == "en" else ".ja"
    assert [f.name for f in files[:2]] == [f"report{suffix}.md", f"report{suffix}.html"]
    assert not list((tmp_path / "run").rglob("*.partial"))
    markdown, page = (file.read_text("utf-8") for file in files[:2])
    for text in (markdown, page):
        assert not re.search(r"\{\{|\}\}|\{%|\bNone\b(?!:)|Undefined|\bnan\b", text)
    check_html(page, lang)
    check_markdown(markdown)
    linked = set(re.findall(r"\]\(figures/([^)]+)\)", markdown))
    assert linked == {file.name for file in files[2:]}
    assert len(linked) == page.count("<svg")
    for figure in files[2:]:
        ElementTree.parse(figure)


def check_html(page: str, lang: str) -> None:
    """Well nested, ids unique, and no request to anywhere."""
    assert not re.search(r"https?://|<script|<link|<img|@import|url\((?!#)", page)
    assert f'<html lang="{lang}">' in page

    class Checker(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.ids: list[str] = []
            self.heads = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.ids += [value or "" for name, value in attrs if name == "id"]
            if tag != "meta":
                self.open.append(tag)
            if tag == "th":
                assert dict(attrs).get("scope") in ("row", "col")

        def handle_startendtag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.ids += [value or "" for name, value in attrs if name == "id"]

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {a or b for a, b in targets} <= set(checker.ids)


def check_markdown(markdown: str) -> None:
    """Every table has as many cells in each row as in its head, and blank lines around it."""
    outside, fenced = [], False
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        outside.append("" if fenced else line)
    width = 0
    for before, line in itertools.pairwise(outside):
        if not line.startswith("|"):
            assert not before.startswith("|") or line == ""
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        if not before.startswith("|"):
            assert before == ""
            width = cells
        assert cells == width, line
    assert not re.search(r"(?<!\\)<script", "\n".join(outside))
    headings = [line for line in outside if line.startswith("## ")]
    assert len(headings) >= 10


def test_foreign_text_is_no_markup():
    """What records and settings hold stays text: no HTML, no link, no image, no block of its own."""
    foreign = (
        "<img src=x> [a](http://b.c) ![d](http://e.f) <details> &amp; > [!WARNING] # g \n\n# h **i** | `j`"
    )
    record = make_record(1, 1, failure=foreign, device_name=foreign)
    manifest = make_manifest(data={"train": foreign}).model_copy(update={"name": foreign})
    page = render_html(Document(Analysis([record], manifest), Texts("en"), frozenset()), {})
    check_html(page.replace("http://", ""), "en")
    shown = " ".join(foreign.split())
    titles = re.findall(r"<title>(.*)</title>|<h1[^>]*>(.*)</h1>|<td>(.*g # h.*)</td>", page)
    assert {html.unescape("".join(title)) for title in titles} >= {
        f"{shown}: comparison of configurations",
        shown,
    }
    assert page.count("<h1") == 1
    assert page.count("<details>") == 1  # the settings
    assert inline_html("[a](http://b.c) ![d](http://e.f)") == "[a](http://b.c) ![d](http://e.f)"


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_sections_of_the_original_report_are_there(tmp_path: Path, lang: str):
    write_report(write_run_dir(tmp_path, make_grid(), make_manifest()), lang)
    text = (tmp_path / ("report.md" if lang == "en" else "report.ja.md")).read_text("utf-8")
    wanted = {
        "en": ["Overview", "Summary of results", "Detailed analysis", "Phase 1", "Phase 2",
               "Parameter efficiency", "Key findings", "Recommended", "Alternative",
               "To avoid", "Conclusions", "Change of settings"],
        "ja": ["概要", "結果サマリー", "詳細分析", "Phase 1（ContextBlock学習）",
               "Phase 2（TokenBlock学習）", "パラメータ効率", "重要な知見", "推奨構成",
               "代替", "非推奨", "結論", "設定変更"],
    }  # fmt: skip
    headings = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    positions = [headings.index(title) for title in wanted[lang]]
    assert positions == sorted(positions)
    assert (
        "| Config | Context | Token | Params | Phase1 Iter | Conv% | ER% | Val PPL | Val Acc | Total Time |"
        in text
    )
    assert "tandem train layers.yaml --context-layers 1 --token-layers 2" in text
    assert "records.jsonl" in text
    assert "tandem report RUN_DIR" in text
    assert "300.8" in text


def test_recommended_equal_depths_name_num_layers(tmp_path: Path):
    write_report(write_run_dir(tmp_path, [make_record(2, 2)]))
    assert (
        "context_layers = 2\ntoken_layers = 2\n# or\nnum_layers = 2\n" in (tmp_path / "report.md").read_text()
    )


def test_same_records_same_bytes(tmp_path: Path):
    first, second = (
        write_report(write_run_dir(tmp_path / name, make_grid([0, 1]), make_manifest())) for name in "ab"
    )
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]


def test_summary_rows():
    heads, rows = summary_rows(make_grid([0, 1, 2]), make_manifest())
    assert heads[:4] == ["Config", "Context", "Token", "Params"]
    assert [row[0] for row in rows] == ["C1T1", "C2T1", "C1T2", "C2T2"]
    assert rows[0][3] == "40.2M"
    assert rows[0][-1] == "3/5"
    assert {len(row) for row in rows} == {len(heads)}
    assert summary_rows([]) == ([], [])


def test_errors_are_one_sentence(tmp_path: Path):
    with pytest.raises(RunDirError, match="no run directory"):
        write_report(tmp_path / "missing")
    with pytest.raises(RunDirError, match="not a run directory"):
        write_report(tmp_path)
    with pytest.raises(RunDirError, match="language 'fr'"):
        write_report(tmp_path, "fr")
    (write_run_dir(tmp_path, [make_record()]) / "figures").write_text("a file in the way")
    with pytest.raises(RunDirError, match="cannot write the report"):
        write_report(tmp_path)


def test_report_needs_no_torch():
    """Importing the report loads neither torch nor transformers nor pyplot."""
    heavy = "{'torch', 'transformers', 'matplotlib.pyplot'}"
    program = f"import sys, tandem.report; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_perplexity_against_seconds_has_every_model_and_the_front() -> None:
    drawn: list[Axes] = []

    def draw(axes: Axes, analysis: Analysis) -> None:
        drawn.append(axes)
        _perplexity_by_seconds(axes, analysis)

    records = [*make_grid([0, 1]), *make_baselines([0, 1])]
    seconds = {"KN-5": 2.0, "unigram": 0.5, "bigram": 3.0, "LSTM": 40.0}
    records = [r.model_copy(update={"seconds_alone_s": seconds.get(r.configuration, 90.0)}) for r in records]
    analysis = Analysis(records, None)
    texts = Texts("en")
    assert "best for its time" in (drawn_svg("x", draw, analysis, texts) or "")
    points = {str(line.get_label()): line.get_xydata() for line in drawn[0].lines}
    assert points.keys() == {*analysis.models, "@pareto_front"}
    front = points["@pareto_front"]
    best = min(analysis.models.values(), key=lambda m: m.perplexity.mean)
    ways = [analysis.models[name] for name in ("unigram", "KN-5", "LSTM")]
    ways += [best] if best.name != "LSTM" else []
    assert [y for _, y in front[:-1]] == [m.perplexity.mean for m in ways]
    assert [x for x, _ in front] == [0.5, 2.0, 40.0, *[90.0] * (len(front) - 3)]
    assert drawn_svg("x", draw, Analysis(make_grid([0, 1]), None), texts) is None
