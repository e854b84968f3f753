"""The report beside baselines and under an audit: what is said, what is marked, what is never recommended."""

import re
from collections.abc import Sequence

import pytest
from report_records import (
    GRID,
    make_audit,
    make_baseline,
    make_baselines,
    make_grid,
    make_manifest,
    make_record,
    without_documents,
)

from tandem.records import AuditRecord, RunAudit, RunRecord
from tandem.report import summary_rows
from tandem.report.analysis import Analysis, AuditStatus
from tandem.report.render import Document
from tandem.report.sentences import (
    against_controls,
    against_others,
    baseline_findings,
    baseline_summary,
    conclusions,
)
from tandem.report.statistics import Verdict
from tandem.report.wording import Texts

SEEDS = (0, 1, 2)


# Baselines


def test_baselines_are_never_ranked_or_recommended():
    best = [make_baseline("lstm", s, nll=1.0 + 0.01 * s) for s in SEEDS]  # far below every configuration
    tiny = make_baseline("unigram", nll=1.0)  # and far smaller
    analysis = Analysis([*make_grid(SEEDS), *best, tiny, *make_baselines(SEEDS)[-2:]], None)
    alone = Analysis(make_grid(SEEDS), None).choice
    choice = analysis.choice
    for found, expected in ((choice.best, alone.best), (choice.recommended, alone.recommended)):
        assert (found.name, found.kind) == (expected.name, "tandem")
    assert [c.name for c, _ in choice.avoid] == [c.name for c, _ in alone.avoid]
    assert [c.name for c in analysis.configurations] == [f"C{c}T{t}" for c, t in GRID]
    named = {c.a for c in analysis.comparisons} | {c.b for c in analysis.comparisons}
    assert named == {c.name for c in analysis.configurations}
    assert [d.used_by for d in analysis.depths] == [
        ("C1T1", "C1T2"),
        ("C2T1", "C2T2"),
    ]  # not the untrained


def test_verdicts_on_baselines_are_told():
    analysis = Analysis(make_grid() + make_baselines(), None)
    choice = analysis.choice
    assert choice.best.name == "C1T2"
    told = {(m.key, m.values["baseline"]) for m in baseline_findings(analysis, choice)}
    assert told >= {
        ("vs_baselines.better", "KN-5"),
        ("vs_baselines.worse", "LSTM"),
        ("vs_baselines.better", "bigram"),
        ("phase1_adds.better", "C1T1-untrained"),
    }
    sums = {m.key: list(m.values["names"]) for m in baseline_summary(analysis, choice)}
    assert sums["vs_all_baselines.worse"] == ["LSTM"]
    assert "C1T1-untrained" not in {name for names in sums.values() for name in names}
    assert set(sums) <= {m.key for m in conclusions(analysis)}
    assert [(c.a, c.b) for c in against_controls(analysis)] == [("C1T1-untrained", "C1T1")]
    assert {c.b for c in against_others(analysis, choice.best, choice.recommended)} == {
        choice.best.name,
        choice.recommended.name,
    }


def test_equal_models_are_not_told_apart():
    records = [make_record(1, 1, s, nll=5 + 0.1 * (s == 1)) for s in SEEDS]
    records += [make_baseline("gpt2", s, nll=5 + 0.1 * (s == 2)) for s in SEEDS]
    analysis = Analysis(records, None)
    (message,) = baseline_findings(analysis, analysis.choice)
    assert message.key == "vs_baselines.no_difference_shown"
    assert re.fullmatch(r"\[−0\.\d{4}, \+0\.\d{4}\]", message.values["interval"])


def test_summary_sets_baselines_apart():
    kinds = make_baselines(SEEDS)
    manifest = make_manifest((0, 1, 2, 3), baselines=[*(r.run for r in kinds), "LSTM-seed3"])
    heads, rows = summary_rows(make_grid(SEEDS) + kinds, manifest)
    names = [row[0] for row in rows]
    networks = "LSTM", "AWD-LSTM", "GPT-2", "Transformer"
    others = "KN-5", *networks, "C1T1-untrained", "bigram", "unigram"
    assert names[4:] == [f"{name} (baseline)" for name in others]
    shown = {name: dict(zip(heads, row, strict=True)) for name, row in zip(names, rows, strict=True)}
    assert shown["LSTM (baseline)"]["Seeds"] == "3/4"
    assert shown["KN-5 (baseline)"]["Seeds"] == "–"
    assert shown["KN-5 (baseline)"]["Phase1 Iter"] == "–"
    assert shown["KN-5 (baseline)"]["Bits/byte"] == "1.609"
    assert shown["C1T1-untrained (baseline)"]["Context"] == "1"
    analysis = Analysis(make_grid(SEEDS) + kinds, manifest)
    assert analysis.missing_baselines == ("LSTM-seed3",)


def with_settings(record: RunRecord, fingerprint: str, finished_at: str) -> RunRecord:
    return record.model_copy(update={"baseline_fingerprint": fingerprint, "finished_at": finished_at})


def test_a_baseline_with_mixed_settings_uses_the_newest():
    lstm = [
        with_settings(make_baseline("lstm", 0, nll=4.6), "new", "2026-03-09T10:00:00+00:00"),
        with_settings(make_baseline("lstm", 1, nll=9.0), "old", "2026-03-02T10:00:00+00:00"),
        with_settings(make_baseline("lstm", 2, nll=4.6), "new", "2026-03-08T10:00:00+00:00"),
    ]
    gpt2 = [with_settings(make_baseline("gpt2", s), "old", f"2026-03-0{s + 1}T10:00:00+00:00") for s in SEEDS]
    records = [*make_grid(SEEDS), *lstm, *gpt2, make_baseline("kneser-ney")]
    audit = make_audit(records, {("LSTM-seed1", "counts"): "fail"})
    analysis = Analysis(records, None, audit)
    assert {b.name: b.seeds for b in analysis.baselines} == {"KN-5": (), "LSTM": (0, 2), "GPT-2": SEEDS}
    assert [r.run for r in analysis.left_out] == ["LSTM-seed1"]
    assert analysis.baselines[1].nll.mean == 4.6
    assert analysis.compare("LSTM", "C1T1").nll.by_seed.keys() == {0, 2}
    assert not analysis.untrusted("LSTM")  # what is left out does not mark what is shown
    english, japanese = words(records), words(records, lang="ja")
    assert "**Runs with other settings:** LSTM-seed1." in english
    assert "**設定の異なる実行:** LSTM-seed1。" in japanese
    assert "other settings:" not in words(make_grid(SEEDS) + gpt2)


def test_what_failed_with_newer_settings_takes_the_older_figures_along():
    old = [with_settings(make_baseline("lstm", s), "old", "2026-03-02T10:00:00+00:00") for s in (1, 2)]
    failed = make_record(1, 1, 0, failure="NaN").model_copy(
        update={"run": "LSTM-seed0", "kind": "lstm", "configuration": "LSTM", "parameters": None}
    )
    records = [*make_grid(SEEDS), with_settings(failed, "new", "2026-03-09T10:00:00+00:00"), *old]
    analysis = Analysis(records, None)
    assert [b.runs for b in analysis.baselines] == [{}]
    assert [r.run for r in analysis.left_out] == ["LSTM-seed1", "LSTM-seed2"]
    assert "**Failed runs:** LSTM-seed0." in words(records)


# Audit


def test_an_audit_holds_for_the_records_it_saw():
    records = [make_record(1, 1, s) for s in SEEDS] + [make_record(1, 2, 0, failure="NaN")]
    assert AuditStatus(None, records).unaudited == ("C1T1-seed0", "C1T1-seed1", "C1T1-seed2")
    audit = make_audit(records[:2], {("C1T1-seed1", "counts"): "fail", ("C1T1-seed0", "contexts"): "skip"})
    status = AuditStatus(audit, records)
    assert (status.failed, status.warned, status.untrusted) == (("counts",), (), ("C1T1-seed1",))
    assert status.unaudited == ("C1T1-seed2",)
    assert {c.name: dict(c.counts) for c in status.checks} == {
        "leakage": {"pass": 1},
        "tokens": {"pass": 1},
        "causality": {"pass": 2},
        "contexts": {"pass": 1, "skip": 1},
        "counts": {"pass": 1, "fail": 1},
    }
    again = [r.model_copy(update={"finished_at": "2026-04-01T00:00:00+00:00"}) for r in records]
    later = AuditStatus(audit, again)  # the runs were made again: what the audit found of them is history
    assert (later.failed, later.untrusted) == ((), ())
    assert later.unaudited == ("C1T1-seed0", "C1T1-seed1", "C1T1-seed2")


def test_a_failing_check_of_the_data_spoils_every_run():
    records = make_grid([0])
    status = AuditStatus(make_audit(records, {(None, "leakage"): "fail"}), records)
    assert set(status.untrusted) == {r.run for r in records}


def test_every_failing_run_is_shown_and_the_worst_of_the_others():
    records = [make_record(1, 1, s) for s in SEEDS]
    outcomes = {(r.run, "causality"): "fail" for r in records[1:]} | {("C1T1-seed2", "counts"): "warn"}
    shown = [(c.name, c.shown) for c in AuditStatus(make_audit(records, outcomes), records).checks]
    assert shown[2:] == [
        ("causality", "C1T1-seed1"),
        ("causality", "C1T1-seed2"),
        ("contexts", "C1T1-seed0"),
        ("counts", "C1T1-seed2"),
    ]


def words(records: Sequence[RunRecord], audit: AuditRecord | None = None, lang: str = "en") -> str:
    """The report as Markdown, without figures."""
    return str(Document(Analysis(records, None, audit), Texts(lang), frozenset()))


@pytest.mark.parametrize(
    ("lang", "said"), [("en", "The audit failed (causality)"), ("ja", "不合格となった（causality）")]
)
def test_a_failed_audit_is_said_first_and_marked(lang: str, said: str):
    records = make_grid(SEEDS)
    audit = make_audit(records, {("C1T2-seed1", "causality"): "fail"})
    text = words(records, audit, lang)
    assert text.count(said) == 2  # in the overview and with the summary
    assert text.index(said) < text.index("C1T1")
    table = text[text.index("| Config | Context |") :].split("\n\n")[0]
    assert [row.startswith(("| C1T2 †", "| **C1T2 †")) for row in table.splitlines()[2:]].count(True) == 1
    assert "C1T1 → C1T2 †" in text
    assert "| C1T2-seed1 †" in text
    assert "| C1T2-seed0 |" in text
    assert "1.5e-06 \\| limit 1e-05" in text


UNTRUSTED = {
    "en": "**This rests on figures that the audit does not trust** ({runs}); see “Audit”.",
    "ja": "**この推奨は、監査で信頼できないとされた数値に基づく**（{runs}）。「監査」を参照。",
}
SECTIONS = {"en": ("Overview", "Recommended: ", "Conclusions"), "ja": ("概要", "推奨: ", "結論")}


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("run", ["C1T2-seed1", "C1T1-seed0"])
def test_a_recommendation_from_untrusted_figures_says_so(lang: str, run: str):
    """Of the best itself, or of one that it was compared with."""
    records = make_grid(SEEDS) + make_baselines(SEEDS)
    assert Analysis(records, None).choice.recommended.name == "C1T2"
    text = words(records, make_audit(records, {(run, "causality"): "fail"}), lang)
    said = UNTRUSTED[lang].format(runs=run)
    parts = re.split(r"^#+ ", text, flags=re.MULTILINE)
    assert [p.partition("\n")[0] for p in parts if said in p] == [
        next(p.partition("\n")[0] for p in parts if p.startswith(title)) for title in SECTIONS[lang]
    ]
    assert UNTRUSTED[lang].partition("{")[0] not in words(records, make_audit(records), lang)
    baseline = make_audit(records, {("LSTM-seed0", "counts"): "fail"})
    assert UNTRUSTED[lang].partition("{")[0] not in words(records, baseline, lang)


@pytest.mark.parametrize(
    ("lang", "every", "said"),
    [
        ("en", "all runs", "(leakage): these figures are untrusted: all runs**"),
        ("ja", "すべての実行", "（leakage）。次の実行の数値は信頼できない: すべての実行**"),
    ],
)
def test_a_failing_check_of_the_data_is_said_of_all_runs(lang: str, every: str, said: str):
    records = make_grid(SEEDS)
    text = words(records, make_audit(records, {(None, "leakage"): "fail"}), lang)
    assert text.count(said) == 2
    assert text.count(UNTRUSTED[lang].format(runs=every)) == 3


@pytest.mark.parametrize(
    ("lang", "said"),
    [
        ("en", "not recomputed (no model kept), only checked for consistency: {runs}."),
        ("ja", "再計算しておらず（モデルが保存されていない）、記録内の整合性のみを確認した: {runs}。"),
    ],
)
def test_figures_without_a_model_are_said_not_to_be_recomputed(lang: str, said: str):
    records = [make_record(1, 1, s) for s in SEEDS] + make_baselines([0])
    bare = ("C1T1-seed0", "C1T1-seed1", "C1T1-untrained-seed0")
    statuses = dict(zip(bare, ("skip", "warn", "skip"), strict=True))
    statuses |= {"C1T1-seed2": "fail", "LSTM-seed0": "skip"}

    def model_check(run: RunAudit) -> RunAudit:
        changes = {"name": "model", "status": statuses.get(run.run, "pass")}
        return run.model_copy(update={"checks": (run.checks[0].model_copy(update=changes),)})

    audit = make_audit(records)
    audit = audit.model_copy(update={"runs": tuple(model_check(run) for run in audit.runs)})
    assert AuditStatus(audit, records).unrecomputed == bare
    separator = Texts(lang)("list_separator")
    assert said.format(runs=separator.join(bare)) in words(records, audit, lang)
    assert said.partition("{")[0] not in words(records, make_audit(records), lang)


def test_without_an_audit_the_report_says_so():
    text = words([make_record()])
    assert "Not audited; run `tandem audit RUN_DIR`" in text
    assert "†" not in text


def test_summary_rows_mark_what_is_untrusted():
    records = make_grid([0])
    audit = make_audit(records, {("C2T1-seed0", "counts"): "fail"})
    _, rows = summary_rows(records, None, "en", audit)
    assert [row[0] for row in rows] == ["C1T1", "C2T1 †", "C1T2", "C2T2"]


# What the sentences carry


def test_what_is_not_shown_carries_its_interval():
    records = [make_record(1, t, s, nll=5 + 0.1 * (s == t)) for t in (1, 2) for s in SEEDS]
    analysis = Analysis(records, None)
    assert analysis.comparisons[0].verdict is Verdict.NO_DIFFERENCE_SHOWN
    messages = {m.key: m for m in conclusions(analysis)}
    assert "[−" in messages["standing.nothing_shown"].values["others"][0]
    assert "[−" in messages["effect.no_difference_shown"].values["pairs"][0]


def test_seeds_alone_are_owned_up_to():
    text = words([without_documents(r) for r in make_grid(SEEDS)])
    assert "On this validation text only:" in text
    assert "(seeds only)" in text
