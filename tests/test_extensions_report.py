"""The report of what others add: a section of their own, recipes and kinds of baselines it does not know."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_records import make_baseline, make_grid, make_manifest, make_record, write_run_dir

from tandem.objectives import OBJECTIVES, Objective, Phase1Inputs
from tandem.records import Phase1Record, RunRecord
from tandem.report import SECTIONS, Column, Report, summary_rows, write_report
from tandem.report.analysis import Analysis
from tandem.report.render import Document, render_html
from tandem.report.wording import LANGUAGES, Texts

WORDS = {
    "en": ("What it cost", "All runs took {hours} hours.", "Hours by run"),
    "ja": ("費用", "全実行の所要時間は{hours}時間である。", "実行ごとの時間"),
}


def cost(report: Report) -> Iterator[str]:
    """A section of somebody else's."""
    heading, total, caption = WORDS[report.texts.language]
    columns = [Column("run", lambda r: r.run), Column("hours", lambda r: f"{r.seconds_spent_s / 3600:.2f}")]
    yield f"## {heading}"
    yield total.format(hours=f"{report.analysis.seconds_spent / 3600:.1f}")
    yield report.table(caption, columns, report.analysis.records)


@pytest.fixture
def registered() -> Iterator[None]:
    SECTIONS.insert(2, cost)
    yield
    SECTIONS.remove(cost)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_section_of_another_package_stands_in_both_files(tmp_path: Path, lang: str) -> None:
    heading, _, caption = WORDS[lang]
    files = write_report(write_run_dir(tmp_path, make_grid([0]), make_manifest([0])), lang)
    text, page = (path.read_text("utf-8") for path in files[:2])
    own = text.partition(f"\n\n## {heading}\n\n")[2].partition("\n\n## ")[0]
    assert f"**{caption}**" in own
    assert re.search(r"\| C1T1-seed0 \| \d\.\d\d \|\n", own)
    assert f'<li><a href="#cost">{heading}</a></li>' in page
    assert f'<h2 id="cost">{heading}</h2>' in page
    assert f"<caption><span>{caption}</span></caption>" in page
    assert 'scope="col">hours</th>' in page  # a column without words has its key for its head


class ToyRecord(Phase1Record):
    """What the phase 1 of somebody else's recipe leaves."""

    steps: int


class Toy(Objective):
    """An objective of another package, of which the report has the figures alone."""

    record_type = ToyRecord

    def train(self, inputs: Phase1Inputs) -> ToyRecord:
        pytest.fail(f"a report trains nothing, and not {inputs.settings.recipe}")

    def figures(self, record: ToyRecord) -> dict[str, float]:
        return {"steps": record.steps}


def of_a_toy_recipe(record: RunRecord) -> RunRecord:
    """The same run, had it been made by that recipe."""
    common = record.phase1.model_dump(include=set(Phase1Record.model_fields))
    phase1 = ToyRecord(steps=100 + record.seed, **common)
    name = f"toy-{record.configuration}"
    update = {"recipe": "toy", "phase1": phase1, "variant": "toy", "configuration": name}
    return record.model_copy(update={**update, "run": f"{name}-seed{record.seed}"})


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "of an objective"])
@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
def test_a_recipe_of_which_the_report_has_no_words(
    monkeypatch: pytest.MonkeyPatch, lang: str, known: bool, others: bool
) -> None:
    if known:
        monkeypatch.setitem(OBJECTIVES, "toy", Toy())
    seeds = (0, 1, 2)
    records = [of_a_toy_recipe(r) for r in make_grid(seeds)]
    if others:
        records += [make_record(c, t, s, variant="original") for c in (1, 2) for t in (1, 2) for s in seeds]
    analysis, texts = Analysis(records, None), Texts(lang)
    document = Document(analysis, texts, frozenset())
    part = document.sections["phase1"]
    assert (texts("column.iterations") in part) == others
    table = part.partition(f"**{texts('caption.phase1_recipe', recipe='`toy`')}**")[2]
    heads = [texts(f"column.{key}") for key in ("rank_validation", "rank_train", "seconds")]
    own = ["steps"] if known else []
    first = [texts("column.context_depth"), texts("column.used_by")]
    assert f"\n| {' | '.join([*first, *own, *heads])} |\n" in table
    assert ("| 101.000 ± 1.000 |" in table) == known
    assert "toy-C1T1" in [row[0] for row in summary_rows(records, lang=lang)[1]]
    assert analysis.choice is not None
    assert html.escape(texts("column.rank_train")) in render_html(document, {})


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_baseline_that_the_report_does_not_know(lang: str) -> None:
    seeds = (0, 1, 2)
    toys = [
        make_baseline("lstm", s).model_copy(
            update={"kind": "toy", "configuration": "Toy", "run": f"Toy-seed{s}"}
        )
        for s in seeds
    ]
    analysis = Analysis([*make_grid(seeds), *toys, make_baseline("unigram")], None)
    assert [b.name for b in analysis.baselines] == ["unigram", "Toy"]  # unknown kinds come last
    document = Document(analysis, Texts(lang), frozenset())
    assert re.search(r"\| Toy \|.*\| toy \|", document.sections["vs_baselines"])
    assert "Toy → C1T2" in document.sections["vs_baselines"]
    page = html.unescape(render_html(document, {}))
    assert "Toy → C1T2" in page
