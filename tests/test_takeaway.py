"""What researchers take away: tables, a DataFrame, two experiments compared, and how many seeds it takes."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from report_records import (
    BOTH,
    GRID,
    make_audit,
    make_baselines,
    make_grid,
    make_manifest,
    make_record,
    make_variants,
    write_run_dir,
)

import tandem
from tandem.audit import statistics as audit_statistics
from tandem.cli.main import run
from tandem.errors import RunDirError
from tandem.records import RunRecord
from tandem.report.analysis import Analysis
from tandem.report.experiments import compare_experiments
from tandem.report.render import write_report
from tandem.report.statistics import (
    ALPHA,
    MOST_SEEDS,
    Effect,
    _noncentrality,
    crossed,
    estimate,
    holm,
    holm_levels,
    paired,
    power_of,
)
from tandem.report.tables import FIGURES, latex


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = run(args)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Power


def differing_by(size: float, seeds: int = 5) -> Effect:
    """Seeds whose differences have this mean and a standard deviation of 1."""
    values = np.arange(seeds) - (seeds - 1) / 2
    values = values / values.std(ddof=1) + size
    return paired(dict.fromkeys(range(seeds), 0.0), dict(enumerate(values.tolist())))


@pytest.mark.parametrize(("size", "seeds"), [(1.0, 10), (0.5, 34), (0.8, 15), (2.0, 5)])
def test_seeds_are_those_of_published_tables(size: float, seeds: int) -> None:
    """Of the two-sided paired t-test at 5% with a power of 80%, as G*Power and R's power.t.test have it."""
    assert power_of(differing_by(size), ALPHA).seeds == seeds


def test_the_smallest_difference_is_shown_in_four_of_five_cases() -> None:
    rng = np.random.default_rng(5)
    for seeds, level in ((3, 0.05), (5, 0.05 / 6)):
        power = power_of(differing_by(1.0, seeds), level)
        samples = rng.normal(power.detectable, 1.0, (20_000, seeds))
        p = [estimate(sample[:, None], np.array([1])).p for sample in samples[:4000]]
        assert np.mean(np.array(p) < level) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("df", [1, 1.3, 2, 3.9, 4, 30, 500])
@pytest.mark.parametrize("pairs", [1, 28, 5000])
def test_the_audit_finds_the_same_power(df: float, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By other integrals, also where few degrees of freedom meet a strict level."""
    monkeypatch.setattr(audit_statistics, "_error", lambda *_: (1.0, df))
    theirs = audit_statistics._shows((1.0, 0.0, 0.0, 3, 1, 0.0), 3, ALPHA / pairs)
    assert _noncentrality(df, ALPHA / pairs) == pytest.approx(theirs, rel=5e-6)


def test_documents_limit_what_seeds_can_show() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(20, 400, 30)
    of_documents = rng.normal(0.0, 0.1, 30) * tokens
    shift = 0.03 * tokens
    rows = {seed: of_documents + shift + rng.normal(0.0, 0.01, 30) * tokens for seed in range(4)}
    effect = crossed(rows, tokens)
    power = power_of(effect, ALPHA)
    assert effect.squares is not None
    assert effect.squares.error(4) == (
        pytest.approx(estimate(np.stack([*rows.values()]), tokens).standard_error),
        effect.df,
    )
    assert power.detectable > abs(effect.difference or 0)
    assert power.seeds is None
    assert effect.squares.error(MOST_SEEDS)[0] > 0.9 * effect.squares.error(4)[0]


def test_levels_are_what_holm_leaves_to_each() -> None:
    rng = np.random.default_rng(2)
    for size in (1, 2, 5, 9):
        for _ in range(50):
            p: list[float | None] = [*(rng.random(size) ** 4).tolist()]
            for place, level in enumerate(holm_levels(p)):
                below, above = ([*p[:place], level * by, *p[place + 1 :]] for by in (1 - 1e-9, 1 + 1e-9))
                assert (holm(below)[place] or 0) < ALPHA <= (holm(above)[place] or 0)


def test_the_report_tells_what_it_could_have_shown(tmp_path: Path) -> None:
    analysis = Analysis(make_grid(), make_manifest())
    for c in (*analysis.comparisons, *(r.reversed for r in analysis.comparisons)):
        assert c.power is not None
        assert c.power.detectable > 0
        if c.verdict.shown and c.effect.difference and abs(c.effect.difference) > c.power.detectable:
            assert c.power.seeds is not None
            assert c.power.seeds <= 5
    assert all(c.power is None for c in Analysis(make_grid((0, 1)), None).comparisons)
    write_report(write_run_dir(tmp_path, make_grid(), make_manifest()), only="md")
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "| Could show (nats/token) | Seeds needed |" in text
    assert not (tmp_path / "report.html").exists()


# Tables

HOSTILE = r"50%_of {x} & $y$ #1 ~ ^ \z -- <a> [b] | `c`"
CASES: dict[str, list[RunRecord]] = {
    "grid": make_grid(),
    "one seed": make_grid((0,)),
    "a failed run": [*make_grid(), make_record(3, 1, failure=HOSTILE)],
    "all failed": [make_record(c, t, failure="no memory") for c, t in GRID],
    "baselines": make_grid((0, 1, 2)) + make_baselines((0, 1, 2)),
    "variants": make_variants(seeds=(0, 1, 2)) + make_baselines((0, 1, 2), BOTH),
    "mixed data": [make_record(1, 1, 0), make_record(2, 1, 0, text_fingerprint="other")],
    "diverged": [make_record(1, 1, 0, nll=800.0), make_record(2, 1, 0)],
}


@pytest.mark.parametrize("case", CASES)
def test_csv_has_the_numbers_of_the_report(case: str, tmp_path: Path) -> None:
    (path,) = write_report(write_run_dir(tmp_path / "run", CASES[case]), only="csv")
    assert path.name == "report.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    analysis = Analysis(CASES[case], None)
    assert [*rows] == [*analysis.models]
    for name, m in analysis.models.items():
        row = rows[name]
        for figure, of in FIGURES.items():
            found = getattr(m, of)
            assert row[f"{figure}_mean"] == ("" if found is None else str(found.mean))
            assert row[f"{figure}_sd"] == ("" if found is None or found.sd is None else str(found.sd))
        best = analysis.choice and analysis.choice.best.name
        c = analysis.compare(best, name) if best and best != name else None
        assert row["compared_with"] == (best if c else "")
        assert row["p_holm"] == ("" if c is None or c.corrected_p is None else str(c.corrected_p))
        if c and c.effect.interval:
            assert float(row["difference_nats_low"]) == c.effect.interval[0]


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("case", CASES)
def test_latex_is_well_formed(case: str, lang: str, tmp_path: Path) -> None:
    manifest = make_manifest().model_copy(update={"name": HOSTILE})
    run_dir = write_run_dir(tmp_path / "run", CASES[case], None if case == "variants" else manifest)
    (path,) = write_report(run_dir, lang, "latex")
    text = path.read_text("utf-8")
    assert path.name == ("report.tex" if lang == "en" else "report.ja.tex")
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    bare = re.sub(r"\\[{}#$%&_\\]", "", "\n".join(lines))
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[%#~^`±−→∞†]", bare)
    assert not re.search(r"[<>|]", re.sub(r"\$.*?\$", "", bare))
    rows = [line for line in lines if line.endswith(r" \\")]
    assert len(rows) == 1 + len(Analysis(CASES[case], None).models)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {5}
    assert not any(row.startswith(("[", "*")) for row in rows)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX")
@pytest.mark.parametrize("case", CASES)
def test_latex_compiles(case: str, tmp_path: Path) -> None:
    manifest = make_manifest().model_copy(update={"name": HOSTILE})
    run_dir = write_run_dir(tmp_path / "run", CASES[case], None if case == "variants" else manifest)
    (path,) = write_report(run_dir, only="latex")
    paper = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{%s}\end{document}"
    (tmp_path / "paper.tex").write_text(paper % path, "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Missing character" not in (tmp_path / "paper.log").read_text("utf-8")


def cells(text: str) -> dict[str, list[str]]:
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    return {re.sub(r"\\textsuperscript\{\d+\}", "", first): rest for first, *rest in rows}


def test_latex_has_the_best_in_bold_and_intervals_below(tmp_path: Path) -> None:
    records = CASES["baselines"]
    (path,) = write_report(write_run_dir(tmp_path / "run", records, make_manifest((0, 1, 2))), only="latex")
    text = path.read_text("utf-8")
    found = cells(text)
    bold = [name for name, (_, perplexity, *_) in found.items() if perplexity.startswith(r"\textbf{")]
    assert bold == ["LSTM"]  # better than every configuration, which a paper must not hide
    assert r"$\pm$" in found["C1T1"][1]
    assert r"\pm" not in found["KN-5"][1]
    assert "C1T2\\textsuperscript{" in text
    assert r"95\% interval over seeds $\times$ documents" in text
    assert text.count(r"\midrule") == 2  # below the heads, and before the baselines


def test_what_the_audit_failed_is_marked(tmp_path: Path) -> None:
    audit = make_audit(make_grid(), {("C1T1-seed1", "causality"): "fail"})
    run_dir = write_run_dir(tmp_path / "run", make_grid(), None, audit)
    text = write_report(run_dir, only="latex")[0].read_text("utf-8")
    assert r"C1T1 $\dagger$" in text
    assert "the audit failed for this run" in text
    assert "C1T1,tandem,original,,1,1,40210540,5,True,C1T2," in write_report(run_dir, only="csv")[
        0
    ].read_text("utf-8")


def test_text_is_no_command_of_latex() -> None:
    shown = latex(HOSTILE)
    assert shown == (
        r"50\%\_of \{x\} \& \$y\$ \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}z "
        r"-{}- $<$a$>$ {[}b{]} $|$ \textasciigrave{}c\textasciigrave{}"
    )


# Records


def test_records_are_a_flat_table(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    records = [*make_variants(seeds=(0, 1)), *make_baselines((0,)), make_record(3, 1, failure="no memory")]
    table = tandem.records(write_run_dir(tmp_path / "run", records))
    assert list(table["run"]) == [r.run for r in records]
    assert table.columns.is_unique
    assert {
        "seed",
        "status",
        "parameters.total",
        "data.validation_tokens",
        "environment.device_name",
        "phase1.seconds_s",
        "phase1.iterations",
        "contexts.train.loop_error",
        "phase2.best_epoch",
        "training.epochs",
        "validation.nll_nats",
        "validation.accuracy",
        "seconds_alone_s",
        "peak_memory_bytes",
    } <= set(table.columns)
    assert not {"validation.documents", "phase2.history", "phase1.parts"} & set(table.columns)
    row = table.set_index("run").loc[records[0].run]
    assert row["validation.nll_nats"] == records[0].validation.nll_nats
    assert str(table["seed"].dtype) == "Int64"
    assert pandas.isna(table.set_index("run").loc["KN-5", "seed"])
    failed = tandem.records(str(write_run_dir(tmp_path / "failed", CASES["all failed"])))
    assert failed["validation.nll_nats"].isna().all()


def test_records_without_pandas_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RunDirError, match=r"needs pandas: `pip install 'tandem-lm\[pandas\]'`"):
        tandem.records(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'recordz'"):
        _ = tandem.recordz


# Two experiments


def shifted(records: Sequence[RunRecord], by: float) -> list[RunRecord]:
    """The same runs with losses that differ so much, in every document."""
    found = []
    for r in records:
        assert r.validation is not None
        assert r.validation.documents is not None
        tokens, sums = r.validation.documents.unpack()
        documents = type(r.validation.documents).pack(tokens, sums + by * tokens)
        changed = {"nll_nats": r.validation.nll_nats + by, "documents": documents}
        found.append(r.model_copy(update={"validation": r.validation.model_copy(update=changed)}))
    return found


def test_two_experiments_compare_as_within_a_report(tmp_path: Path) -> None:
    """C1T2 against C1T1 of one report, as two experiments that call both C1T1."""
    seeds = (0, 1, 2, 3)
    one, two = ([make_record(1, t, s) for s in seeds] for t in (1, 2))
    (expected,) = Analysis([*one, *two], None).comparisons
    renamed = [r.model_copy(update={"configuration": "C1T1", "run": f"C1T1-seed{r.seed}"}) for r in two]
    found = compare_experiments(write_run_dir(tmp_path / "a", one), write_run_dir(tmp_path / "b", renamed))
    (c,) = found.comparisons
    assert (c.effect, c.corrected_p, c.nll) == (expected.effect, expected.corrected_p, expected.nll)
    assert (c.verdict, c.power, c.effect.basis) == (expected.verdict, expected.power, "seeds_documents")


def test_compare_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_grid((0, 1, 2)) + make_baselines((0, 1, 2))
    second = [
        *shifted([r for r in make_grid((1, 2, 3)) if r.configuration != "C2T2"], -0.05),
        *make_baselines((0, 1, 2)),
    ]
    dirs = [str(write_run_dir(tmp_path / name, of)) for name, of in (("a", first), ("b", second))]
    code, out, _ = call(capsys, "compare", *dirs)
    assert code == 0
    assert "too few seeds" in out
    assert f"first: {dirs[0]}" in out
    code, out, _ = call(capsys, "compare", *dirs, "--json")
    compared = json.loads(out)
    by_name = {m["name"]: m for m in compared["comparisons"]}
    assert by_name["C1T1"]["common_seeds"] == 2
    assert compared["only"] == [["C2T2"], []]
    assert by_name["C1T1"]["difference_nats"] == pytest.approx(-0.05, abs=1e-5)
    assert by_name["LSTM"]["difference_nats"] == 0
    assert by_name["LSTM"]["verdict"] == "no_difference_shown"
    assert by_name["KN-5"]["difference_nats"] is None


def test_what_does_not_compare_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_run_dir(tmp_path / "grid", make_grid((0,)))
    other = write_run_dir(tmp_path / "other", [make_record(text_fingerprint="other")])
    deeper = write_run_dir(tmp_path / "deeper", [make_record(5, 1)])
    mixed = write_run_dir(tmp_path / "mixed", CASES["mixed data"])
    for args, said in (
        ((grid, other), "differ in text ("),
        ((grid, deeper), "no configuration or baseline with results in common"),
        ((grid, mixed), "has records of several data or settings"),
        ((grid, tmp_path / "none"), "there is no run directory"),
        ((grid,), "give two run directories to compare, not 1"),
        ((grid, grid, grid), "give two run directories to compare, not 3"),
    ):
        code, _, err = call(capsys, "compare", *map(str, args))
        assert code == 2
        assert said in err
        assert len(err.splitlines()) == 1


def test_report_in_one_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_run_dir(tmp_path / "run", make_grid((0,)))
    code, out, _ = call(capsys, "report", str(run_dir), "--format", "csv")
    assert code == 0
    assert out.splitlines()[-1].endswith("report.csv")
    code, out, _ = call(capsys, "report", str(run_dir), "--format", "latex", "--json")
    assert json.loads(out) == [str(run_dir / "report.tex")]
    code, _, err = call(capsys, "report", str(run_dir), "--format", "pdf")
    assert code == 2
    assert "--format 'pdf' is not possible" in err
