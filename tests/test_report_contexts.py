"""The report on contexts: phase 1 that predicts, what phase 2 adds to it, and how far contexts remember."""

import math
import re

import pytest
from report_records import (
    GRID,
    make_grid,
    make_manifest,
    make_memory,
    make_prediction,
    make_record,
    make_variants,
)

from tandem.records import MemoryPoint, RunRecord
from tandem.report.analysis import Analysis, DepthResult
from tandem.report.figures import draw_figures
from tandem.report.phase1 import depth_comparisons, head_perplexity, over_head, phase1_reports_of
from tandem.report.render import Document
from tandem.report.sentences import memory_findings, phase2_findings
from tandem.report.wording import Texts

SEEDS = (0, 1, 2)
DROPOUT = {
    "original": {"recipe": "original"},
    "predictive": {"recipe": "predictive", "phase2": {"dropout": 0.5}},
}


def words(records: list[RunRecord]) -> str:
    """The report as Markdown, without figures."""
    return str(Document(Analysis(records, None), Texts("en"), frozenset()))


def changed(record: RunRecord, **values: object) -> RunRecord:
    return record.model_copy(update=values)


# Phase 1 by prediction


def test_a_predictive_run_has_a_prediction_table_and_no_iterations():
    records = [make_record(*depths, s, recipe="predictive") for depths in GRID for s in SEEDS]
    analysis = Analysis(records, None)
    assert [one.recipe for one, _ in phase1_reports_of(analysis)] == ["predictive"]
    assert depth_comparisons(analysis) == []
    part = words(records).partition("### 1. Phase 1")[2].partition("### 2. Phase 2")[0]
    assert "| Depth | Shared by | Epochs | Val PPL (own head) | ER% (val) | ER% (train) | Time |" in part
    assert "Phase1 Iter" not in part
    assert "by dispersion" not in part
    one = analysis.depths[0]
    heads = [r.phase1.heads[-1].nll_nats for r in records if r.configuration == "C1T1"]
    assert head_perplexity(one).mean == pytest.approx(math.exp(sum(heads) / 3))
    assert one.used_by == ("C1T1", "C1T2")
    names = draw_figures(analysis, Texts("en")).keys()
    assert "phase1_prediction" in names
    assert not {"phase1_convergence", "memory"} & names
    assert "- Phase 1: 6 epochs" in words(records)


def test_both_objectives_stand_apart():
    text = words(make_variants(seeds=SEEDS))
    part = text.partition("### 1. Phase 1")[2].partition("### 2. Phase 2")[0]
    by_dispersion, by_prediction = part.split("**Phase 1 by prediction** trains")
    assert by_dispersion.startswith(" (training the ContextBlock)\n\n**Phase 1 by dispersion**")
    assert "| predictive-C1 |" not in by_dispersion
    assert "| predictive-C1 | predictive-C1T1, predictive-C1T2 |" in by_prediction
    assert "| original-C1 |" not in by_prediction


def test_runs_that_failed_stand_where_their_recipe_says():
    failed = [make_record(c, t, recipe="predictive", failure="NaN") for c, t in GRID]
    analysis = Analysis(failed, None)
    ((one, depths),) = phase1_reports_of(analysis)
    assert (one.recipe, [depth.name for depth in depths]) == ("predictive", ["C1", "C2"])
    assert Analysis([make_record(failure="NaN")], None).depths[0].phase1 == {}


def test_phase_2_is_told_against_the_head_of_phase_1():
    records = [make_record(1, 1, s, nll=5.0 + s, recipe="predictive") for s in SEEDS]
    heads = [
        changed(r, phase1=make_prediction(1, s, r.validation.nll_nats + 0.1 * (s + 1)))
        for s, r in enumerate(records)
    ]
    analysis = Analysis(heads, None)
    assert over_head(analysis.configurations[0]).mean == pytest.approx(-0.2)
    assert "| −18.1% |" in words(heads)
    assert "PPL against own head" not in words(make_grid(SEEDS))
    endless = make_prediction(1, 0, math.inf)
    assert over_head(Analysis([changed(heads[0], phase1=endless)], None).configurations[0]) is None


def test_training_figures_of_another_kind_are_not_held_against_validation():
    records = make_variants(seeds=SEEDS)
    analysis = Analysis(records, make_manifest(SEEDS, variants=DROPOUT))
    gaps = {c.name: c.gap is not None for c in analysis.configurations}
    assert gaps == {c.name: c.variant == "original" for c in analysis.configurations}
    told = {m.key: m.values for m in phase2_findings(analysis)}
    assert told["phase2.unlike"] == {"names": ["predictive"]}

    assert all(c.gap is not None for c in Analysis(records, None).configurations)


# Memory


def test_distance_of_forgetting_by_hand():
    """0.8 halved every 4 tokens: 10% after 4 log2(8) tokens, whatever is recorded between."""
    analysis = Analysis([make_record(1, 1, 0, half_life=4)], None)
    (memory,) = analysis.memories
    assert memory.falls_below(0.1) == pytest.approx(12)
    assert memory.falls_below(0.01) == pytest.approx(4 * math.log2(80))
    (message,) = memory_findings(analysis)
    assert Texts("en").say(message) == (
        "**C1**: what one token leaves in the context falls below 10% after 12 tokens, "
        "and below 1% after 25 tokens."
    )


def with_memory(record: RunRecord, points: dict[int, float]) -> RunRecord:
    memory = tuple(MemoryPoint(distance=d, change=change) for d, change in points.items())
    return changed(record, contexts=record.contexts.model_copy(update={"memory": memory}))


def memory_of(points: dict[int, float]) -> DepthResult:
    return Analysis([with_memory(make_record(), points)], None).memories[0]


def test_forgetting_beyond_what_was_measured_at_once_and_for_good():
    long = Analysis([with_memory(make_record(), {0: 0.9, 100: 0.5, 1500: 0.05})], None)
    assert long.memories[0].falls_below(0.01) is None
    assert "below 1% after more than 1,500 tokens." in Texts("en").say(*memory_findings(long))
    assert "1,500トークンを超えた先で1%を下回る" in Texts("ja").say(*memory_findings(long))
    assert memory_of({0: 0.05, 1: 0.04}).falls_below(0.1) == 0
    again = memory_of({0: 0.5, 1: 0.05, 2: 0.2, 3: 0.05})  # it comes back: what counts is the last time
    assert again.falls_below(0.1) == pytest.approx(2.5)
    gone = memory_of({0: 0.5, 10: 0.0})
    assert 0 < gone.falls_below(0.1) < 10
    short = Analysis([with_memory(make_record(), {0: 0.5, 8: 0.05, 16: 0.001})], None)
    assert re.search(r"10% after \d\.\d tokens", Texts("en").say(*memory_findings(short)))


def test_memory_is_the_mean_over_seeds_of_each_variant_and_depth():
    records = make_variants(seeds=SEEDS)
    analysis = Analysis(records, None)
    assert [m.name for m in analysis.memories] == [
        "original-C1",
        "original-C2",
        "predictive-C1",
        "predictive-C2",
    ]
    first = analysis.memories[0]
    assert tuple(first.memory) == SEEDS
    starts = [make_memory(4, s)[0].change for s in SEEDS]
    assert (first.points[0].mean, first.points[0].low, first.points[0].high) == pytest.approx(
        (sum(starts) / 3, min(starts), max(starts))
    )
    shorter = with_memory(make_record(1, 1, 1), {0: 0.5, 2: 0.1})
    both = Analysis([make_record(1, 1, 0, half_life=4), shorter], None)
    assert [p.distance for p in both.memories[0].points] == [0, 2]  # where every seed has a figure
    figures = draw_figures(analysis, Texts("ja"))
    assert "変更したトークンからのトークン数" in figures["memory"]
    assert "### 5. Memory of the contexts" in words(records)


def test_without_memory_nothing_is_said_of_it():
    text = words(make_grid(SEEDS))
    assert "Memory" not in text
    assert "memory" not in draw_figures(Analysis(make_grid(SEEDS), None), Texts("en"))


def test_a_linear_scan_is_explained():
    record = make_record()
    linear = record.contexts.train.model_copy(update={"method": "linear"})
    contexts = record.contexts.model_copy(update={"train": linear})
    assert "the scan is exact and needs no burn-in" in words([changed(record, contexts=contexts)])
    assert "needs no burn-in" not in words([record])


def test_contexts_that_were_not_held_are_told():
    record = make_record()
    for kept, said in (("recompute", "again in every epoch"), ("disk", "kept on disk in bf16")):
        train = record.contexts.train.model_copy(update={"storage": kept})
        contexts = record.contexts.model_copy(update={"train": train})
        assert said in words([changed(record, contexts=contexts)])
    assert "again in every epoch" not in words([record])
