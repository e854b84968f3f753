"""The report: its statistics against scipy and by hand, its claims, its files in both languages."""

import itertools
import math
import random
import re
import string
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jinja2.filters import do_striptags as striptags
from scipy import stats

from tandem.errors import RunDirError
from tandem.records import (
    ContextsRecord,
    DataRecord,
    Environment,
    Manifest,
    Parameters,
    Phase1Iteration,
    Phase1Record,
    Phase2Epoch,
    Phase2Record,
    RunRecord,
    ScanRecord,
    append_record,
    write_manifest,
)
from tandem.report import summary_rows, write_report
from tandem.report.analysis import analyse
from tandem.report.choice import choose
from tandem.report.findings import conclusions, phase1_findings
from tandem.report.original import Outcome, claims, load_original
from tandem.report.statistics import Verdict, holm, paired, perplexity, spread, verdict
from tandem.report.wording import (
    LANGUAGES,
    count_short,
    inline_html,
    literal,
    load_texts,
    percent,
    perplexity_text,
    plus_minus,
    seconds_text,
)

C, E, V = 500, 768, 50_257
NLL = {"C1T1": 4.85, "C2T1": 4.93, "C1T2": 4.80, "C2T2": 4.88}


def make_record(
    context_layers: int = 1,
    token_layers: int = 1,
    seed: int = 0,
    *,
    nll: float | None = None,
    iterations: int | None = None,
    stopped: str = "converged",
    phase2_stopped: str = "patience",
    failure: str | None = None,
    device_name: str = "NVIDIA L4",
    text_fingerprint: str = "5f0c1a9be2d7",
) -> RunRecord:
    """A record with the sizes of the original experiment and values that depend on the seed alone."""
    noise = random.Random(f"{context_layers} {token_layers} {seed}")
    name = f"C{context_layers}T{token_layers}"
    if nll is None:
        nll = NLL.get(name, 4.9) + 0.03 * random.Random(seed).gauss(0, 1) + noise.gauss(0, 0.002)
    iterations = iterations or (30 if context_layers == 1 else 14) + random.Random(seed).randint(-1, 1)
    context_block, token_block = context_layers * 635_500, token_layers * 976_128
    total = V * E + 2 * E + context_block + token_block
    phase1 = Phase1Record(
        iterations=iterations,
        stopped=stopped,
        convergence_rate=0.92 if stopped == "converged" else 0.71,
        effective_rank_train=0.78 + noise.gauss(0, 0.004),
        effective_rank_validation=0.797 + noise.gauss(0, 0.004),
        tokens=2_403_563,
        seconds_s=9.5 * iterations,
        history=tuple(
            Phase1Iteration(
                iteration=i,
                loss=-0.3 * (1 - math.exp(-i / 9)) + noise.gauss(0, 0.002),
                grad_norm=1.3,
                convergence_rate=0.92 / (1 + math.exp(-(i - 0.7 * iterations) * 6 / iterations)),
                seconds_s=9.5 * i,
            )
            for i in range(2, iterations + 1)
        ),
    )
    epochs = 9 + noise.randint(-2, 2)
    history = tuple(
        Phase2Epoch(
            epoch=e,
            train_nll_nats=nll - 0.35 + 2.2 * math.exp(-e / 2.4) - 0.01 * e,
            validation_nll_nats=nll + 1.4 * math.exp(-e / 2.0) * (e < epochs),
            validation_accuracy=0.247 - 0.1 * math.exp(-e / 2.0),
            seconds_s=55.0 * e,
        )
        for e in range(1, epochs + 1)
    )
    phase2 = Phase2Record(
        best_epoch=epochs,
        epochs=epochs + (phase2_stopped == "patience"),
        stopped=phase2_stopped,
        train_nll_nats=history[-1].train_nll_nats,
        train_perplexity=perplexity(history[-1].train_nll_nats),
        validation_nll_nats=nll,
        validation_perplexity=perplexity(nll),
        validation_accuracy=0.247 - 0.12 * (nll - 4.85) + noise.gauss(0, 0.0008),
        validation_bits_per_byte=nll / math.log(2) / 4.5,
        seconds_s=55.0 * epochs,
        history=history,
    )
    scan = ScanRecord(
        method="scan", tokens=22_723, segments=47, burn_in=160, loop_error=3.9e-6, join_error=2.1e-6,
        checked_tokens=2048, tolerance=1e-5, seconds_s=0.5,
    )  # fmt: skip
    done = failure is None
    here = token_layers == 1
    return RunRecord(
        run=f"{name}-seed{seed}",
        experiment="layers",
        configuration=name,
        context_layers=context_layers,
        token_layers=token_layers,
        embed_dim=E,
        context_dim=C,
        seed=seed,
        status="finished" if done else "failed",
        failure=failure,
        settings_fingerprint="9a1de07744c2",
        data=DataRecord(
            train_source="hf:HuggingFaceH4/ultrachat_200k:train_sft[:2000]",
            validation_source="hf:HuggingFaceH4/ultrachat_200k:train_sft[50000:50020]",
            train_documents=2000, train_tokens=2_403_563, train_bytes=10_800_112,
            validation_documents=20, validation_tokens=22_723, validation_bytes=102_411,
            duplicates_dropped=3, overlap_documents=0, vocab_size=V, tokenizer="gpt2",
            text_fingerprint=text_fingerprint, tokenizer_fingerprint="0b77", tokens_fingerprint="c0ffee12",
            embeddings="gpt2", embeddings_trained=False, embeddings_fingerprint="77ab",
        ),
        environment=Environment(
            device="cuda", device_name=device_name, device_memory_bytes=23_800_000_000,
            cpu_count=8, threads=4, platform="Linux-6.1-x86_64", python="3.12.4", torch="2.12.0",
            transformers="5.1.0", tandem="0.1.0", code_fingerprint="e41b8d02", git_commit="3f1c9ab",
        ),
        parameters=Parameters(
            embedding=V * E, embed_norm=2 * E, context_block=context_block, token_block=token_block,
            total=total, trained_phase1=context_block, trained_phase2=token_block + 2 * E,
        ),
        phase1=phase1 if done else None,
        phase1_computed_here=here if done else None,
        contexts=ContextsRecord(train=scan, validation=scan, seconds_s=1.0) if done else None,
        phase2=phase2 if done else None,
        seconds_spent_s=(phase1.seconds_s if here else 0) + phase2.seconds_s if done else 12.5,
        seconds_alone_s=phase1.seconds_s + phase2.seconds_s if done else 12.5,
        peak_memory_bytes=9_120_000_000,
        finished_at=f"2026-03-0{1 + seed % 9}T10:00:00+00:00",
    )  # fmt: skip


GRID = [(1, 1), (2, 1), (1, 2), (2, 2)]


def make_grid(seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> list[RunRecord]:
    return [make_record(*depths, seed) for seed in seeds for depths in GRID]


def make_manifest(seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> Manifest:
    return Manifest(
        name="layers",
        settings={"name": "layers", "seeds": list(seeds), "data": {"train": "a | b ``` <script>"}},
        settings_fingerprint="9a1de07744c2",
        tokens_fingerprint="c0ffee12",
        configurations=tuple(f"C{c}T{t}" for c, t in GRID),
        seeds=tuple(seeds),
        created_at="2026-03-01T08:00:00+00:00",
    )


def write_run_dir(folder: Path, records: Sequence[RunRecord], manifest: Manifest | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for record in records:
        append_record(folder, record)
    if manifest is not None:
        write_manifest(folder, manifest)
    return folder


# Statistics


def test_paired_agrees_with_scipy():
    rng = random.Random(1)
    a = {seed: rng.gauss(5, 0.1) for seed in range(6)}
    b = {seed: a[seed] + rng.gauss(0.02, 0.03) for seed in range(1, 8) if seed in a} | {9: 1.0}
    common = sorted(a.keys() & b.keys())
    expected = stats.ttest_rel([b[s] for s in common], [a[s] for s in common])
    interval = expected.confidence_interval(0.95)
    result = paired(a, b)
    assert result.seeds == tuple(common)
    assert result.p == pytest.approx(expected.pvalue)
    assert result.interval == pytest.approx((interval.low, interval.high))
    assert result.difference == pytest.approx(result.mean_b - result.mean_a)
    assert paired(b, a) == result.reversed


def test_spread_by_hand():
    result = spread([1.0, 2.0, 3.0, 6.0])
    assert (result.mean, result.low, result.high) == (3.0, 1.0, 6.0)
    assert result.sd == pytest.approx(math.sqrt(14 / 3))
    assert spread([2.0]).sd is None
    assert spread([]) is None
    assert spread([1.0, math.inf]).mean == math.inf


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.02, None]) == [None, 0.02, None]
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def judge(a: Sequence[float], b: Sequence[float], **options: float) -> Verdict:
    test = paired(dict(enumerate(a)), dict(enumerate(b)), **options)
    return verdict(test, holm([test.p])[0])


def test_verdicts():
    assert judge([5.0, 5.1, 4.9], [4.8, 4.91, 4.7]) is Verdict.BETTER
    assert judge([5.0, 5.1, 4.9], [5.2, 5.29, 5.1]) is Verdict.WORSE
    assert judge([5.0, 5.1, 4.9], [5.1, 5.0, 4.9]) is Verdict.NO_DIFFERENCE_SHOWN
    assert judge([5.0, 5.1], [1.0, 1.1]) is Verdict.TOO_FEW_SEEDS
    assert judge([], []) is Verdict.TOO_FEW_SEEDS
    assert judge([5.0, 5.1, 4.9], [4.8, 4.9, math.inf]) is Verdict.NO_DIFFERENCE_SHOWN


def test_identical_differences():
    assert judge([5.0] * 3, [5.0] * 3) is Verdict.NO_DIFFERENCE_SHOWN
    assert judge([5.0] * 3, [5.0 + 1e-9] * 3) is Verdict.NO_DIFFERENCE_SHOWN  # rounding, not a difference
    assert judge([5.0] * 3, [5.5] * 3) is Verdict.WORSE
    assert judge([30.0] * 3, [14.0] * 3, resolution=1) is Verdict.BETTER
    assert judge([30.0] * 3, [29.0] * 3, resolution=1) is Verdict.NO_DIFFERENCE_SHOWN


def test_noise_is_seldom_called_a_difference():
    """Four equal configurations, 3 seeds: any claim at all in at most about 5% of experiments."""
    rng, claims = random.Random(0), 0
    for _ in range(400):
        values = [{seed: rng.gauss(5, 0.05) for seed in range(3)} for _ in range(4)]
        tests = [paired(a, b) for a, b in itertools.combinations(values, 2)]
        corrected = holm([t.p for t in tests])
        claims += any(
            verdict(t, p) in (Verdict.BETTER, Verdict.WORSE) for t, p in zip(tests, corrected, strict=True)
        )
    assert claims / 400 < 0.07


# Analysis, choice and claims


def with_nll(values: dict[tuple[int, int], Sequence[float]]) -> list[RunRecord]:
    return [
        make_record(*depths, seed, nll=nll) for depths, of in values.items() for seed, nll in enumerate(of)
    ]


def test_mean_perplexity_is_geometric():
    analysis = analyse(with_nll({(1, 1): [4.0, 5.0, 6.0]}), None)
    assert analysis.configurations[0].mean_perplexity == pytest.approx(math.exp(5.0))


def test_smallest_not_shown_worse_is_recommended():
    noisy = with_nll({(1, 1): [5.0, 5.1, 4.9], (2, 2): [4.9, 5.05, 4.95], (1, 2): [6.0, 6.1, 5.91]})
    choice = choose(analyse(noisy, None))
    assert (choice.best.name, choice.recommended.name, choice.reason) == ("C2T2", "C1T1", "not_shown_worse")
    assert (choice.alternative.name, choice.alternative_reason) == ("C2T2", "lowest_perplexity")
    assert [c.name for c, _ in choice.avoid] == ["C1T2"]
    assert not choice.provisional
    clear = with_nll({(1, 1): [5.0, 5.1, 4.9], (2, 2): [4.5, 4.61, 4.4]})
    choice = choose(analyse(clear, None))
    assert (choice.recommended.name, choice.reason) == ("C2T2", "smaller_shown_worse")
    assert choice.alternative is None


def test_two_seeds_show_nothing():
    analysis = analyse(with_nll({(1, 1): [5.0, 5.1], (1, 2): [9.0, 9.1]}), None)
    choice = choose(analysis)
    assert choice.provisional
    assert choice.avoid == ()
    assert {m.key for m in conclusions(analysis, choice)} == {
        "standing.too_few", "conclusion.no_effect.token", "recommended.best_and_smallest",
        "recommended.provisional", "conclusion.scope",
    }  # fmt: skip


def test_no_claim_where_nothing_is_shown():
    analysis = analyse(with_nll({(1, 1): [5.0, 5.1, 4.9], (2, 1): [5.1, 5.0, 4.9]}), None)
    keys = {m.key for m in conclusions(analysis, choose(analysis))}
    assert "standing.nothing_shown" in keys
    assert not any(
        key.endswith((".better", ".worse", "shown_worse", ".together"))
        for key in keys - {"recommended.not_shown_worse"}
    )


def test_phase1_is_shared_and_its_limit_is_no_convergence():
    records = make_grid()
    analysis = analyse(records, None)
    one = analysis.depths[0]
    assert one.used_by == ("C1T1", "C1T2")
    assert len(one.phase1) == 5
    assert analysis.depth_comparisons[0].verdict is Verdict.BETTER
    assert analysis.seconds_spent < analysis.seconds_alone
    limited = [
        make_record(depth, 1, seed, iterations=60 if depth == 1 else 30, stopped="max_iterations")
        for depth in (1, 2)
        for seed in range(3)
    ]
    analysis = analyse(limited, None)
    assert analysis.depth_comparisons[0].verdict is Verdict.NO_DIFFERENCE_SHOWN
    assert [m.key for m in phase1_findings(analysis)].count("phase1.all_at_limit") == 2
    assert not any("converged" in m.key for m in phase1_findings(analysis))


def test_mixed_data_is_not_compared():
    records = [make_record(1, 1, s) for s in range(3)]
    records += [make_record(1, 2, s, text_fingerprint="other") for s in range(3)]
    analysis = analyse(records, None)
    assert analysis.comparisons == ()
    assert choose(analysis) is None


def test_claims_of_the_original_report():
    outcomes = {claim.key: claim.outcome for claim in claims(analyse(make_grid(), None))}
    assert outcomes == {
        "c1t1_best": Outcome.CONTRADICTED,
        "c1t2_worst": Outcome.CONTRADICTED,
        "previous_context": Outcome.CONTRADICTED,
        "faster_convergence": Outcome.SUPPORTED,
    }
    single = {claim.outcome for claim in claims(analyse(make_grid([0]), None))}
    assert single == {Outcome.NOT_TESTED}


def test_original_figures_are_as_printed():
    rows = {row.configuration: row for row in load_original().rows}
    assert [rows[name].perplexity for name in ("C1T1", "C2T1", "C1T2", "C2T2")] == [
        "127.2",
        "138.7",
        "300.8",
        "132.2",
    ]
    assert rows["C2T2"].best_epoch == "9"
    assert load_original().caveats.keys() == set(LANGUAGES)
    assert "artefact" in load_original().caveats["en"][0]


# Words and numbers


def test_languages_have_the_same_texts():
    english, japanese = (load_texts(language) for language in ("en", "ja"))
    assert english.keys() == japanese.keys()
    for key, text in english.items():
        named = [
            {name for _, name, _, _ in string.Formatter().parse(t) if name} for t in (text, japanese[key])
        ]
        assert named[0] >= named[1], key
        assert text, key


def test_light_markdown():
    hostile = "a <b> `c` **d** | e_f & \\"
    assert striptags(inline_html(literal(hostile))) == hostile
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
    "two machines": [make_record(1, 1, 0), make_record(1, 1, 1, device_name="A | B <x>")],
    "mixed data": [make_record(1, 1, 0), make_record(2, 1, 0, text_fingerprint="other")],
    "failed, hostile": [
        make_record(),
        make_record(1, 2, failure="NaN at `x` | <script>alert(1)</script> **y**"),
    ],
}


IN_BOTH = ("full", "all failed", "arbitrary depths", "failed, hostile")


@pytest.mark.parametrize(("case", "lang"), [*((c, "en") for c in CASES), *((c, "ja") for c in IN_BOTH)])
def test_report_files(tmp_path: Path, case: str, lang: str):
    """Every case gives a whole report: nothing unfilled, nothing loaded from elsewhere, tables in shape."""
    manifest = make_manifest() if case in ("full", "one seed") else None
    files = write_report(write_run_dir(tmp_path / "run", CASES[case], manifest), lang)
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
    assert "tandem train --context-layers 1 --token-layers 2" in text
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
    with pytest.raises(RunDirError, match="no records"):
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
