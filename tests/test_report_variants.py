"""The report of runs with recipes and variants: what is grouped, compared, ordered, and left out."""

import io
import re
from pathlib import Path

import pytest
from report_records import (
    ABLATIONS,
    BOTH,
    GRID,
    make_baseline,
    make_baselines,
    make_grid,
    make_manifest,
    make_record,
    make_variants,
)

from tandem.cli.summary import print_run
from tandem.cli.terminal import Terminal
from tandem.records import Manifest, RunRecord
from tandem.report import summary_rows
from tandem.report.analysis import Analysis, trains_plainly
from tandem.report.findings import changed_settings, train_command
from tandem.report.original import as_the_original, claims
from tandem.report.phase1 import PHASE1_REPORTS, depth_comparisons, phase1_reports_of
from tandem.report.render import Document, render_html
from tandem.report.sentences import (
    against_controls,
    conclusions,
    effect_findings,
    reference_variant,
    variant_findings,
    variant_pairs,
)
from tandem.report.statistics import holm
from tandem.report.wording import Texts

SEEDS = (0, 1, 2)


def words(records: list[RunRecord], manifest: Manifest | None = None, lang: str = "en") -> str:
    """The report as Markdown, without figures."""
    return str(Document(Analysis(records, manifest), Texts(lang), frozenset()))


def changed(record: RunRecord, **values: object) -> RunRecord:
    return record.model_copy(update=values)


# What is compared


def test_variants_compare_with_settings_and_embeddings_of_their_own():
    analysis = Analysis(make_variants(seeds=SEEDS), None)
    assert len({r.data.embeddings for r in analysis.records}) == 2
    assert analysis.comparable
    assert len(analysis.comparisons) == 8 * 7 / 2
    assert [c.corrected_p for c in analysis.comparisons] == holm([c.effect.p for c in analysis.comparisons])


def test_two_settings_in_one_variant_are_not_compared():
    records = make_variants(seeds=SEEDS)
    records[0] = changed(records[0], settings_fingerprint="other")
    analysis = Analysis(records, None)
    assert not analysis.comparable
    assert (analysis.comparisons, depth_comparisons(analysis)) == ((), [])
    assert analysis.choice is None
    records = make_variants(seeds=SEEDS)
    other = records[0].data.model_copy(update={"tokens_fingerprint": "other"})
    assert not Analysis([changed(records[0], data=other), *records[1:]], None).comparable


def test_order_is_the_manifests_then_depth():
    records = make_variants(seeds=SEEDS)
    manifest = make_manifest(SEEDS, variants={"predictive": {}, "original": {}})
    _, rows = summary_rows(records, manifest)
    names = ["C1T1", "C2T1", "C1T2", "C2T2"]
    assert [row[0] for row in rows] == [f"{v}-{name}" for v in ("predictive", "original") for name in names]
    assert Analysis(records, manifest).variants == ("predictive", "original")
    assert Analysis(records[::-1], None).variants == ("predictive", "original")  # as recorded


def test_summary_has_no_iterations_where_phase_1_predicts():
    heads, rows = summary_rows(make_variants(seeds=SEEDS))
    shown = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert shown["predictive-C1T1"]["Phase1 Iter"] == shown["predictive-C1T1"]["Conv%"] == "–"
    assert shown["predictive-C1T1"]["ER%"].startswith("42.5")
    assert shown["original-C1T1"]["Phase1 Iter"].startswith("29.3")
    assert {row[-1] for row in rows} == {"3/3"}


def test_depths_are_compared_within_a_variant():
    variants = {"original": "original", "wide": "original", "predictive": "predictive"}
    analysis = Analysis(make_variants(variants, seeds=SEEDS), None)
    recipes = {one.recipe: depths for one, depths in phase1_reports_of(analysis)}
    assert [d.name for d in recipes["original"]] == [
        "original-C1",
        "original-C2",
        "wide-C1",
        "wide-C2",
    ]
    assert [d.name for d in recipes["predictive"]] == ["predictive-C1", "predictive-C2"]
    assert recipes["original"][2].used_by == ("wide-C1T1", "wide-C1T2")
    compared = [(c.variant, c.a, c.b) for c in depth_comparisons(analysis)]
    assert compared == [("original", 1, 2), ("wide", 1, 2)]
    assert [s.name for s in analysis.scans[::2]] == [
        "original-C1", "original-C2", "wide-C1", "wide-C2", "predictive-C1", "predictive-C2",
    ]  # fmt: skip
    pairs = [p for m in effect_findings(analysis) for p in m.values["pairs"]]
    assert pairs
    assert all(len(set(re.findall(r"(\w+)-C\dT\d", pair))) == 1 for pair in pairs)
    said = [Texts("en").say(m) for m in PHASE1_REPORTS["original"].findings(analysis, recipes["original"])]
    assert said[2].startswith("original: **2 context layers converge faster than 1**")


# Variants beside each other


def test_every_variant_stands_against_the_first_of_the_manifest():
    records = make_variants(ABLATIONS, [(1, 1), (1, 2)], SEEDS)
    manifest = make_manifest(SEEDS, variants={name: {} for name in ABLATIONS}, grid=[(1, 1), (1, 2)])
    analysis = Analysis(records, manifest)
    pairs = variant_pairs(analysis)
    assert reference_variant(analysis) == "full"
    assert len(pairs) == 7 * 2
    assert {c.a for c in pairs} == {"full-C1T1", "full-C1T2"}
    assert all(c.a.partition("-")[2] == c.b.partition("-")[2] for c in pairs)
    assert len(analysis.comparisons) == 16 * 15 / 2  # the family is of all pairs
    assert all(c in analysis.comparisons for c in pairs)
    without = Analysis(records, None)
    assert reference_variant(without) is None
    assert len(variant_pairs(without)) == 8 * 7 / 2 * 2


def test_the_reference_has_results():
    records = [r for r in make_variants(ABLATIONS, [(1, 1)], SEEDS) if r.variant != "full"]
    records.append(make_record(recipe="predictive", variant="full", failure="the loss became NaN"))
    analysis = Analysis(
        records, make_manifest(SEEDS, variants={name: {} for name in ABLATIONS}, grid=[(1, 1)])
    )
    assert analysis.variants[0] == "full"
    assert reference_variant(analysis) == "no_dropout"


def test_variants_are_told_by_verdict():
    records = [make_record(1, 1, s, nll=5 + 0.01 * s, variant="full") for s in SEEDS]
    records += [make_record(1, 1, s, nll=5.3 + 0.01 * s, variant="bad") for s in SEEDS]
    records += [make_record(1, 1, s, nll=5.01 - 0.02 * (s == 1), variant="same") for s in SEEDS]
    manifest = make_manifest(SEEDS, variants={"full": {}, "bad": {"a": 1}, "same": {}}, grid=[(1, 1)])
    analysis = Analysis(records, manifest)
    told = {m.key: m.values["pairs"] for m in variant_findings(analysis)}
    assert told["variants.worse"] == ["full-C1T1 → bad-C1T1 (+35.0%)"]
    assert re.fullmatch(
        r"full-C1T1 → same-C1T1 \[−0\.\d{4}, \+0\.\d{4}\]", told["variants.no_difference_shown"][0]
    )
    assert told.keys() <= {m.key for m in conclusions(analysis)}
    text = words(records, manifest)
    part = text.partition("### 3. Variants beside each other")[2].partition("\n## ")[0]
    assert "Every other variant is measured against **full**" in part
    assert "- **full**: the common settings as they are" in part
    assert "- **bad**: `a = 1`" in part
    assert part.count("\n| full-C1T1 →") == 2
    assert "層数の等しい**full**と比べる" in words(records, manifest, "ja")
    two = Analysis([r for r in records if r.seed != 2], manifest)
    assert {m.key for m in variant_findings(two)} == {"variants.too_few_seeds"}
    assert "variants.too_few_seeds" not in {m.key for m in conclusions(two)}


def test_long_tables_of_pairs_are_folded_only_beside_variants():
    many = [make_record(c, t, s) for c in (1, 2) for t in (1, 2, 3) for s in SEEDS]  # 15 pairs
    assert "rows)</summary>" not in words(many)
    text = words(make_variants(seeds=SEEDS))
    assert text.count("(28 rows)</summary>") == 2
    page = render_html(Document(Analysis(make_variants(seeds=SEEDS), None), Texts("en"), frozenset()), {})
    assert (
        len(re.findall(r"<details>\s*<summary>[^<]*\(28 rows\)</summary>\s*<div class=\"scroll\"", page)) == 2
    )
    assert "rows)</summary>" not in words(make_variants(BOTH, [(1, 1), (1, 2)], SEEDS))


def test_settings_of_variants_are_those_of_the_manifest():
    variants = {"full": {}, "bad": {"phase2": {"lr": 0.1, "negatives": None}, "recipe": "original"}}
    manifest = make_manifest(variants=variants, phase2={"dropout": 0.5})
    assert changed_settings(manifest, "full") == changed_settings(manifest, "unknown") == []
    assert changed_settings(manifest, "bad") == [
        "phase2.lr = 0.1",
        "phase2.negatives = null",
        'recipe = "original"',
    ]
    assert not trains_plainly(manifest, "bad")
    assert trains_plainly(
        make_manifest(variants={"a": {"phase2": {"dropout": 0.0}}}, phase2={"dropout": 1}), "a"
    )
    assert not trains_plainly(make_manifest(phase2={"negatives": 1024}), None)
    assert trains_plainly(None, None)
    assert trains_plainly(make_manifest(), "predictive")


def test_training_figures_of_epoch_0_are_exact_whatever_the_dropout():
    trained = [make_record(seed=seed, recipe="predictive") for seed in SEEDS]
    untouched = [
        r.model_copy(update={"phase2": r.phase2.model_copy(update={"best_epoch": 0})}) for r in trained
    ]
    manifest = make_manifest(phase2={"dropout": 0.5})
    for records, plain in ((trained, False), (untouched, True), ([*untouched[:2], trained[2]], False)):
        (result,) = Analysis(records, manifest).configurations
        assert result.training_is_plain is plain


def test_facts_that_differ_by_variant_are_all_told():
    records = [
        changed(r, context_dim=120) if r.variant == "original" else r for r in make_variants(seeds=SEEDS)
    ] + make_baselines(SEEDS, variants=BOTH)
    text = words(records)
    assert "- Context dim: 120, 500" in text
    assert "- Embedding dim: 768" in text
    assert "- Variants: original, predictive\n- Recipe: `original`, `predictive`\n" in text
    assert "| Embeddings | `gpt2` (frozen), `spectral` (trained in phase 1) |" in text
    alike = words(make_variants(ABLATIONS, [(1, 1)], SEEDS))
    assert "- Variants: full, no_dropout," in alike
    assert "- Recipe: `predictive`" in alike
    assert "- Recipe: `original`\n" in words(make_grid(SEEDS))


# The original experiment, recommendation, controls


def test_claims_are_of_the_first_variant_trained_as_the_original():
    variants = {"predictive": "predictive", "first": "original", "second": "original"}
    analysis = Analysis(make_variants(variants), None)
    ours = as_the_original(analysis)
    assert {name: c.name for name, c in ours.items()} == {f"C{c}T{t}": f"first-C{c}T{t}" for c, t in GRID}
    found = {claim.key: claim for claim in claims(analysis)}
    assert found["faster_convergence"].outcome == "supported"
    assert {m.values["a"] for m in found["c1t1_best"].evidence} == {"first-C1T1"}
    text = words(make_variants(variants))
    assert "are of variant **first**" in text
    assert "| **first-C1T1** | here |" in text


def test_without_the_original_recipe_nothing_is_held_against_it():
    records = [make_record(*depths, s, recipe="predictive") for depths in GRID for s in SEEDS]
    assert {claim.outcome for claim in claims(Analysis(records, None))} == {"not_tested"}
    assert "300.8" not in words(records)
    assert "by recipe `original`; these records have none." in words(records)
    assert "レシピ`original`" in words(records, lang="ja")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("demo", "tandem train demo --variant predictive --context-layers 1 --token-layers 1"),
        ("mine", "tandem train mine.yaml --variant predictive --context-layers 1 --token-layers 1"),
    ],
)
def test_command_names_settings_and_variant(name: str, command: str):
    records = [make_record(1, 1, s, recipe="predictive", variant="predictive") for s in SEEDS]
    manifest = make_manifest(SEEDS, variants={"predictive": {}}).model_copy(update={"name": name})
    (model,) = Analysis(records, manifest).configurations
    assert train_command(model, name) == command
    assert f"```sh\n{command}\n```" in words(records, manifest)


def test_controls_belong_to_their_variant():
    controls = [make_baseline("untrained", s, variant=v) for v in BOTH for s in SEEDS]
    analysis = Analysis(make_variants(seeds=SEEDS) + controls, None)
    assert [(c.a, c.b) for c in against_controls(analysis)] == [
        ("original-C1T1-untrained", "original-C1T1"),
        ("predictive-C1T1-untrained", "predictive-C1T1"),
    ]
    assert [b.variant for b in analysis.baselines] == ["original", "predictive"]


# One run in the terminal


def printed(record: RunRecord) -> str:
    out = io.StringIO()
    print_run(Terminal(file=out), record, Path("models/x"))
    return " ".join(out.getvalue().split())


def test_a_run_in_the_terminal():
    predictive = make_record(nll=5.0, recipe="predictive", variant="predictive")
    assert "configuration predictive-C1T1," in printed(predictive)
    assert "phase 1 6 epochs, PPL 156.0 through 1 token layer of its own, ER 4" in printed(predictive)
    assert "iterations, 92.0% converged (converged), ER " in printed(make_record())


def test_steps_in_parts_are_told():
    record = make_record(nll=5.0, recipe="predictive", variant="predictive")
    assert "ran out" not in printed(record)
    assert record.phase1 is not None
    assert record.phase2 is not None
    phase1, phase2 = (part.model_copy(update={"micro_batches": 4}) for part in (record.phase1, record.phase2))
    said = "memory ran out; computed {}phase 2 in 4 parts a step, with the same gradient"
    assert said.format("") in printed(record.model_copy(update={"phase2": phase2}))
    both = record.model_copy(update={"phase1": phase1, "phase2": phase2})
    assert said.format("phase 1 in 4 parts a step, ") in printed(both)
