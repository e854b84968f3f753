"""The audit of records: histories replayed, runs against each other, the report's numbers a second time."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import pstdev
from types import SimpleNamespace
from typing import Any

import defects
import pytest
from conftest import PREDICTIVE, merged, sentences, tiny, write_jsonl
from report_records import (
    BOTH,
    make_baselines,
    make_grid,
    make_manifest,
    make_record,
    make_variants,
    without_documents,
)

from tandem.audit import audit
from tandem.audit.history import history_check
from tandem.audit.report import report_check
from tandem.audit.siblings import sibling_checks
from tandem.experiment.runner import run_experiment
from tandem.objectives.predictive import PredictionRecord
from tandem.records import Check, Manifest, RunRecord, read_manifest, read_records
from tandem.report import analysis, phase1, statistics
from tandem.report import sentences as report_sentences
from tandem.training.progress import Watcher

Edit = Callable[[dict[str, Any]], object]
"""Changes a record."""
Copy = Callable[[dict[str, Any], dict[str, Any]], object]
"""Changes a record; it is given all of them by name, too."""
SMALL = {"model": {"embed_dim": 12, "context_dim": 8}}
PREDICTS = merged(PREDICTIVE, {"prediction": {"head_layers": (1, 2)}})


def experiment(folder: Path, **more: object) -> Path:
    """A run directory with runs that take a moment each."""
    values = merged(
        {"configurations": ((1, 1),), "seeds": (0,), "output": str(folder / "run"), "save_models": False},
        more,
    )
    settings = tiny(write_jsonl(folder / "text.jsonl", sentences(20)), **merged(SMALL, values))
    run_dir, records = run_experiment(settings, Watcher())
    assert [record.failure for record in records] == [None] * len(records)
    return run_dir


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both recipes, two seeds, two depths, baselines; taken up again after the first depth."""
    networks = {"layers": 1, "max_epochs": 3}
    baselines = {"models": ("lstm", "gpt2", "untrained", "kneser-ney", "bigram"), "order": 2}
    values: dict[str, object] = {
        "seeds": (0, 1),
        "variants": {"original": {}, "predictive": PREDICTS},
        "baselines": {**baselines, "lstm": networks, "gpt2": networks},
        "phase2": {"max_epochs": 4},
    }
    folder = tmp_path_factory.mktemp("records")
    experiment(folder, configurations=((1, 1),), **merged(values, {"baselines": {"models": ()}}))
    return experiment(folder, configurations=((1, 1), (1, 2)), **values)


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def checks_of(run_dir: Path) -> Iterator[tuple[str | None, Check]]:
    """What is checked of the records alone."""
    every, manifest = read_records(run_dir), read_manifest(run_dir)
    assert manifest is not None
    for record in every:
        yield record.run, history_check(manifest.settings, record, every)
    yield from ((None, check) for check in sibling_checks(run_dir, manifest, every))
    yield None, report_check(every, manifest)


def of_run(name: str, change: Edit) -> Edit:
    """The same for one run alone."""
    return lambda record: change(record) if record["run"] == name else None


def epochs(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Of phase 2, or of a baseline's training."""
    training = record["phase2"] or record["training"]
    assert isinstance(training["history"], list)
    return training["history"]


def fewer(record: dict[str, Any]) -> None:
    """A training that says it made half of its epochs, consistently."""
    training = record["phase2"] or record["training"]
    training["history"] = training["history"][: len(training["history"]) // 2]
    best = min(training["history"], key=lambda e: e["validation_nll_nats"])
    training.update(epochs=training["history"][-1]["epoch"], best_epoch=best["epoch"])
    training.update(train_nll_nats=best["train_nll_nats"], train_perplexity=math.exp(best["train_nll_nats"]))


def stopped_early(record: dict[str, Any]) -> None:
    fewer(record)
    record["phase2"]["stopped"] = "patience"


def ran_on(record: dict[str, Any]) -> None:
    """The second epoch was no better, which patience 1 does not allow."""
    epochs(record)[1]["validation_nll_nats"] = epochs(record)[0]["validation_nll_nats"] + 0.01


def swap(record: dict[str, Any]) -> None:
    first, second = epochs(record)[:2]
    first["seconds_s"], second["seconds_s"] = second["seconds_s"], first["seconds_s"]


def repeat(record: dict[str, Any]) -> None:
    epochs(record)[1]["train_nll_nats"] = epochs(record)[0]["train_nll_nats"]


def converged_late(record: dict[str, Any]) -> None:
    record["phase1"]["history"][1]["convergence_rate"] = 1.0


def more_parameters(record: dict[str, Any]) -> None:
    parameters = record["parameters"]
    for name in ("other", "total", "trained_phase2"):
        parameters[name] += 1000


FIRST, P, L, G = "original-C1T1-seed0", "predictive-C1T1-seed0", "LSTM-seed0", "GPT-2-seed1"
HISTORIES: dict[str, tuple[str, Edit, str]] = {
    "half of a baseline's epochs": (L, fewer, "1 epochs were made, the settings say 3"),
    "half of the GPT-2's epochs": (G, fewer, "1 epochs were made, the settings say 3"),
    "half of phase 2": (FIRST, fewer, "2 epochs were made, the settings say 4"),
    "a stop by patience": (FIRST, stopped_early, "by patience, but 0 of 1 had passed"),
    "patience ignored": (FIRST, ran_on, "it ran on to epoch 4, but patience 1 was reached at epoch 2"),
    "another reason": (
        FIRST,
        lambda r: r["phase2"].update(stopped="patience"),
        "ended by patience, and its history by max_epochs",
    ),
    "an epoch twice": (FIRST, repeat, "epochs 1 and 2 have the same training NLL to the last digit"),
    "a baseline's epoch twice": (L, repeat, "epochs 1 and 2 have the same training NLL"),
    "numbers of epochs": (FIRST, lambda r: epochs(r)[1].update(epoch=7), "should count from 1"),
    "a start that does not count": (P, lambda r: epochs(r).pop(0), "should count from 0"),
    "seconds that fall": (FIRST, swap, "before the one in front of it"),
    "seconds beyond the total": (FIRST, lambda r: epochs(r)[-1].update(seconds_s=1e4), "s in all"),
    "best epoch": (
        FIRST,
        lambda r: r["phase2"].update(best_epoch=1),
        "its best epoch is 1, in the best epoch of its history 4",
    ),
    "count of epochs": (FIRST, lambda r: r["phase2"].update(epochs=9), "it says epochs: 9"),
    "training NLL": (FIRST, lambda r: r["phase2"].update(train_nll_nats=1.0), "its training NLL is 1.0"),
    "training PPL": (L, lambda r: r["training"].update(train_perplexity=2.0), "is not exp of its NLL"),
    "validation accuracy": (
        FIRST,
        lambda r: r["validation"].update(accuracy=0.5),
        "its validation accuracy is",
    ),
    "accuracy that is no count": (
        "bigram",
        lambda r: r["validation"].update(accuracy=0.12345),
        "which is no whole number",
    ),
    "bits per byte": (FIRST, lambda r: r["validation"].update(bits_per_byte=1.0), "bits per byte are 1.0"),
    "scored tokens": (FIRST, lambda r: r["validation"].update(tokens=100), "validation scored tokens 100"),
    "seconds alone": (FIRST, lambda r: r.update(seconds_alone_s=0.1), "seconds alone are 0.1"),
    "seconds spent": (FIRST, lambda r: r.update(phase1_computed_here=False), "seconds spent are"),
    "seconds of contexts": (FIRST, lambda r: r["contexts"].update(seconds_s=9.0), "seconds of its contexts"),
    "a baseline's seconds": (L, lambda r: r["training"].update(seconds_s=1e4), "and the whole run"),
    "rates that nobody asked for": (
        L,
        lambda r: r["training"].update(search=[{"lr": 0.5, "validation_nll_nats": 1.0, "seconds_s": 0.0}]),
        "learning rates were tried: [0.5], the settings say []",
    ),
    "positions": (FIRST, lambda r: epochs(r)[1].update(positions=600), "epoch 2 predicted tokens: 600"),
    "positions read twice": (
        FIRST,
        lambda r: epochs(r)[0].update(position_sum=0),
        "epoch 1 read some of",
    ),
    "a larger LSTM": (L, more_parameters, "and may have"),
    "a narrower GPT-2": (
        G,
        lambda r: r["parameters"].update(total=4000, other=1000, embedding=3000, trained_phase2=4000),
        "its parameters in all and in its embedding: (4000, 3000)",
    ),
    "a frozen baseline": (
        L,
        lambda r: r["parameters"].update(trained_phase2=5),
        "parameters that it trains: 5",
    ),
    "an embed_norm that is trained": (
        FIRST,
        lambda r: r["parameters"].update(trained_phase2=r["parameters"]["trained_phase2"] + 24),
        "parameters, trained_phase2:",
    ),
    "iterations": (FIRST, lambda r: r["phase1"].update(iterations=9), "phase 1 says iterations: 9"),
    "iterations left out": (
        FIRST,
        lambda r: r["phase1"]["history"].pop(),
        "phase 1 stopped after 5 iterations",
    ),
    "a phase 1 that ran on": (
        FIRST,
        converged_late,
        "phase 1 ran on to iteration 6, but 90.0% had converged at 3",
    ),
    "a reason of phase 1": (
        FIRST,
        lambda r: r["phase1"].update(stopped="converged"),
        "ended by converged, and its history by max_iterations",
    ),
    "convergence above 1": (
        FIRST,
        lambda r: r["phase1"]["history"][0].update(convergence_rate=1.5),
        "a share is from 0 to 1",
    ),
    "swept tokens": (FIRST, lambda r: r["phase1"].update(tokens=600), "phase 1 swept tokens: 600"),
    "an infinite gradient": (
        FIRST,
        lambda r: r["phase1"]["history"][0].update(grad_norm=-1.0),
        "gradient norm -1.0 in iteration 2",
    ),
    "epochs of prediction": (
        P,
        lambda r: (r["phase1"]["history"].pop(), r["phase1"].update(epochs=1)),
        "epochs of phase 1: 1, the settings say 2",
    ),
    "positions of prediction": (
        P,
        lambda r: r["phase1"]["history"][1].update(positions=9),
        "epoch 2 of phase 1 predicted tokens: 9",
    ),
    "positions of split tokens": (
        P,
        lambda r: r["phase1"]["history"][0].update(positions=9),
        "epoch 1 of phase 1 predicted tokens: 9",
    ),
    "split tokens read twice": (
        P,
        lambda r: r["phase1"]["history"][0].update(position_sum=0),
        "epoch 1 of phase 1 read some positions more often",
    ),
    "a text that is too short": (
        P,
        lambda r: r["phase1"]["history"][0].update(text_tokens=9),
        "epoch 1 of phase 1 read a text of 9 tokens",
    ),
    "split tokens at the end": (
        P,
        lambda r: r["phase1"]["history"][1].update(text_tokens=10**6),
        "epoch 2 of phase 1 read a text of 1000000 tokens",
    ),
    "a head too few": (
        P,
        lambda r: r["phase1"]["heads"].pop(),
        "phase 1 has heads of layers [1], the settings say [1, 2]",
    ),
    "a head's NLL": (
        P,
        lambda r: r["phase1"]["heads"][0].update(nll_nats=1.0),
        "its copy in phase 2",
    ),
    "a head's size": (
        P,
        lambda r: r["phase1"]["heads"][0].update(parameters=3),
        "parameters of the head of 1 layers: 3",
    ),
    "tolerance of contexts": (
        FIRST,
        lambda r: r["contexts"]["train"].update(tolerance=0.5),
        "had the tolerance 0.5, the settings say 1e-05",
    ),
    "effective rank": (FIRST, lambda r: r["contexts"].update(effective_rank_train=1.5), "contexts is 1.5"),
}


@pytest.mark.parametrize("what", HISTORIES)
def test_an_edited_history_is_named(what: str, finished: Path) -> None:
    run, change, words = HISTORIES[what]
    defects.edit_records(finished, of_run(run, change))
    wrong = {name: check for name, check in checks_of(finished) if check.name == "history"}
    assert wrong[run].status == "fail", wrong[run]
    assert words in wrong[run].figure
    assert {name for name, check in wrong.items() if check.status != "pass"} == {run}


def as_seed_0(*names: str) -> Copy:
    """Results of seed 0 under the name of seed 1."""

    def change(record: dict[str, Any], runs: dict[str, Any]) -> None:
        if record["seed"] == 1:
            record.update({name: runs[record["run"][:-1] + "0"][name] for name in names})

    return change


def as_the_original(*names: str) -> Copy:
    """Results of the variant original under the name of predictive."""

    def change(record: dict[str, Any], runs: dict[str, Any]) -> None:
        if record["variant"] == "predictive":
            theirs = runs[record["run"].replace("predictive", "original")]
            record.update({name: theirs[name] for name in names})

    return change


def alone(name: str, /, **values: object) -> Copy:
    """These values for one run; a mapping is of what lies within."""

    def change(record: dict[str, Any], _: dict[str, Any]) -> None:
        if record["run"] == name:
            record.update(merged(record, values))

    return change


SAME = "to the last digit: the"
SIBLINGS: dict[str, tuple[Copy, str, str, str]] = {
    "seeds that are no replications": (
        as_seed_0("validation"),
        "fail",
        "siblings",
        f"original-C1T1-seed0 and original-C1T1-seed1 have the same validation NLL {SAME} seed reached",
    ),
    "a phase 1 of another seed": (
        as_seed_0("phase1"),
        "fail",
        "siblings",
        f"have the same phase-1 weights {SAME} seed reached nothing",
    ),
    "a history of another seed": (
        as_seed_0("training"),
        "fail",
        "siblings",
        f"LSTM-seed0 and LSTM-seed1 have the same first epoch {SAME} seed reached nothing",
    ),
    "a variant that was never applied": (
        as_the_original("validation", "phase2"),
        "fail",
        "siblings",
        "original-C1T1-seed0 and predictive-C1T1-seed0 have the same validation NLL to the last digit",
    ),
    "a depth that reached nothing": (
        lambda record, _: record["validation"].update(nll_nats=4.0) if "C1T" in record["run"] else None,
        "fail",
        "siblings",
        f"original-C1T1-seed0 and original-C1T2-seed0 have the same validation NLL {SAME} depth reached",
    ),
    "a time that is counted twice": (
        alone("original-C1T2-seed0", phase1_computed_here=True),
        "fail",
        "siblings",
        "each count the time of the phase 1",
    ),
    "a time that nobody counts": (
        alone(FIRST, phase1_computed_here=False),
        "fail",
        "siblings",
        "nobody counts the time",
    ),
    "width": (alone(P, embed_dim=99), "fail", "variants", "has embed_dim 99"),
    "width of contexts": (
        alone(P, context_dim=99),
        "fail",
        "variants",
        "has context_dim 99, the settings of its variant say 8",
    ),
    "embeddings": (
        alone(P, data={"embeddings": "spectral"}),
        "fail",
        "variants",
        "has embeddings.source spectral, the settings of its variant say random",
    ),
    "trained embeddings": (
        alone(FIRST, data={"embeddings_trained": True}),
        "fail",
        "variants",
        "has embeddings.trained True",
    ),
    "one name of the settings": (
        as_the_original("settings_fingerprint"),
        "fail",
        "variants",
        "variants original and predictive differ in their settings",
    ),
    "other code": (
        alone(FIRST, environment={"code_fingerprint": "0"}),
        "warn",
        "siblings",
        "with different code",
    ),
    "another torch": (alone(L, environment={"torch": "1.0"}), "warn", "siblings", f"1.0: {L}"),
    "another precision": (
        alone(G, environment={"precision": "bfloat16"}),
        "fail",
        "variants",
        f"{G} was trained in bfloat16, and the experiment is in float32",
    ),
    "a phase 1 trained again": (
        lambda record, _: (
            [part.update(after="0") for part in record["phase1"]["parts"]] if record["run"] == FIRST else None
        ),
        "warn",
        "siblings",
        "share a phase 1, and its weights differ",
    ),
    "a run that failed": (alone(FIRST, status="failed"), "warn", "runs", f"1 failed: {FIRST}"),
    "a run that nothing plans": (alone(FIRST, run="C9-seed0"), "warn", "runs", "plan these runs: C9"),
}


@pytest.mark.parametrize("what", SIBLINGS)
def test_runs_that_do_not_fit_each_other_are_named(what: str, finished: Path) -> None:
    change, status, name, words = SIBLINGS[what]
    runs = {record.run: json.loads(record.model_dump_json()) for record in read_records(finished)}
    defects.edit_records(finished, lambda record: change(record, runs))
    (found,) = (check for run, check in checks_of(finished) if (run, check.name) == (None, name))
    assert found.status == status
    assert words in found.figure


def test_runs_recorded_twice_or_not_at_all_are_named(finished: Path) -> None:
    path = finished / "records.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[1:], lines[-1]]), "utf-8")
    first, last = (json.loads(line)["run"] for line in (lines[0], lines[-1]))
    (found,) = (check for _, check in checks_of(finished) if check.name == "runs")
    assert found.status == "fail"
    assert f"{last} was recorded as finished 2 times" in found.figure
    assert f"1 were not made: {first}" in found.figure


def test_the_whole_audit_has_them(made: Path, finished: Path) -> None:
    found = audit(made)
    odd = [(run.run, c) for run in found.runs for c in run.checks if c.status not in ("pass", "skip")]
    assert not odd
    names = {run.run: {check.name for check in run.checks} for run in found.runs}
    assert names[None] >= {"siblings", "variants", "runs", "report"}
    assert all("history" in checks for run, checks in names.items() if run is not None)
    defects.edit_records(finished, of_run(L, fewer))
    assert {run for run, check in audit(finished).failed() if check.name == "history"} == {L}


# Correct histories of other shapes

UNUSUAL: dict[str, dict[str, object]] = {
    "one_epoch": {"phase2": {"max_epochs": 1}},
    "patience": {"phase2": {"max_epochs": 9, "patience": 3, "lr": 0.3}},
    "huge_lr": {"phase2": {"lr": 20.0, "max_epochs": 4}},
    "impatient": {"phase2": {"lr": 3.0, "max_epochs": 30}},
    "converged": {"phase1": {"max_iterations": 60, "convergence_stop": 0.3}},
    "one_iteration": {"phase1": {"max_iterations": 2}},
    "part_of_the_text": {"phase1": {"tokens_per_step": 1000}},
    "never_stopped": {"phase1": {"convergence_stop": 1.5}},
    "trained_embeddings": {"embeddings": {"trained": True}},
    "loop": {"contexts": {"method": "loop"}},
    "shuffled": {"phase2": {"shuffle": True, "batch_positions": 100, "dropout": 0.3}},
    "same_as_one_epoch": {"phase2": {"max_epochs": 1, "patience": 2}},
    "kept_start": merged(PREDICTS, {"phase2": {"lr": 30.0, "patience": 2, "max_epochs": 5}}),
    "kept_start_too": merged(PREDICTS, {"phase2": {"lr": 20.0, "patience": 2, "max_epochs": 5}}),
    "another_head": merged(PREDICTS, {"prediction": {"head_layers": (2,), "streams": 7, "max_epochs": 1}}),
    "linear": {"model": {"cell": "gated"}, "phase2": {"schedule": "linear"}},
}


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One variant each, of one seed."""
    return experiment(tmp_path_factory.mktemp("unusual"), variants=UNUSUAL)


@pytest.mark.parametrize("variant", UNUSUAL)
def test_a_correct_history_passes(variant: str, unusual: Path) -> None:
    every, manifest = read_records(unusual), read_manifest(unusual)
    assert manifest is not None
    for record in every:
        if record.variant == variant:
            check = history_check(manifest.settings, record, every)
            assert check.status == "pass", check.figure


def test_the_unusual_runs_are_what_they_are_to_be(unusual: Path) -> None:
    records = {r.run: r for r in read_records(unusual)}
    for name in ("kept_start-C1T1-seed0", "kept_start_too-C1T1-seed0"):
        assert (phase2 := records[name].phase2) is not None
        assert (phase2.best_epoch, phase2.stopped) == (0, "patience")
    assert getattr(records["converged-C1T1-seed0"].phase1, "stopped", "") == "converged"
    assert {c.name: c.status for _, c in checks_of(unusual) if c.name != "history"} == dict.fromkeys(
        ("siblings", "variants", "runs", "report"), "pass"
    )


# The report

REPORTED: dict[str, tuple[list[RunRecord], Manifest | None]] = {
    "five seeds": (make_grid(), make_manifest()),
    "no manifest": (make_grid(), None),
    "two seeds": (make_grid((0, 1)), make_manifest((0, 1))),
    "one seed": (make_grid((0,)), make_manifest((0,))),
    "baselines": (make_grid() + make_baselines(), make_manifest()),
    "variants": (
        make_variants(seeds=(0, 1, 2)) + make_baselines((0, 1, 2), BOTH),
        make_manifest((0, 1, 2), variants={name: {"recipe": recipe} for name, recipe in BOTH.items()}),
    ),
    "no documents": ([*map(without_documents, make_grid())], make_manifest()),
    "a failed run": ([*make_grid(), make_record(3, 1, failure="no memory")], make_manifest()),
    "an infinite loss": ([*make_grid(), make_record(3, 1, nll=math.inf, documents=False)], make_manifest()),
    "another text": ([*make_grid(), make_record(3, 1, text_fingerprint="other")], make_manifest()),
    "iterations at the limit": (
        [make_record(c, 1, s, stopped="max_iterations") for c in (1, 2, 3) for s in range(4)],
        None,
    ),
    "memories": (
        [make_record(c, t, s, half_life=9.0 * c) for c in (1, 2) for t in (1, 2) for s in (0, 1)],
        None,
    ),
    "equal losses": ([make_record(c, t, s, nll=4.0) for c in (1, 2) for t in (1, 2) for s in range(4)], None),
}


@pytest.mark.parametrize("case", REPORTED)
def test_the_report_is_computed_again_to_the_same(case: str) -> None:
    check = report_check(*REPORTED[case])
    assert check.status == "pass", check.figure


def half_the_error(real: Any) -> Any:
    """An estimate that is surer than it may be, as one that leaves a factor out."""

    def estimate(*given: Any) -> Any:
        found = real(*given)
        return replace(found, standard_error=found.standard_error / 2)

    return estimate


def backwards(real: Any) -> Any:
    """Seeds of one model beside other seeds of the other."""
    return lambda a, b, *rest: real(a, dict(zip(b, reversed(b.values()), strict=True)), *rest)


def all_or_nothing(_: Any) -> Any:
    """Bonferroni's correction instead of Holm's."""
    return lambda p: [None if one is None else min(1.0, one * len(p)) for one in p]


def as_the_first(real: Any) -> Any:
    """Every configuration called better than the first."""
    return lambda self, p: statistics.Verdict.BETTER if p is not None else real(self, p)


BROKEN: dict[str, tuple[str, object, str, Callable[[Any], Any], str]] = {
    "intervals that ignore a factor": (
        "five seeds",
        statistics,
        "estimate",
        half_the_error,
        "difference of C1T1 → C2T1, its interval",
    ),
    "normal instead of t": (
        "five seeds",
        statistics,
        "t_interval",
        lambda _: lambda center, error, _df: (center - 1.96 * error, center + 1.96 * error),
        "(mean, sd, interval) is",
    ),
    "standard deviation with n": (
        "five seeds",
        statistics,
        "stdev",
        lambda _: pstdev,
        "(mean, sd, interval) is",
    ),
    "another level": ("five seeds", statistics, "CONFIDENCE", lambda _: 0.9, "(mean, sd, interval) is"),
    "no correction": ("five seeds", analysis, "holm", lambda _: list, "corrected p of"),
    "another correction": ("baselines", analysis, "holm", all_or_nothing, "corrected p of"),
    "arithmetic mean of perplexities": (
        "five seeds",
        analysis,
        "perplexities",
        lambda _: lambda losses: statistics.spread(map(statistics.perplexity, losses)),
        "perplexity of C1T1",
    ),
    "p-values on two seeds": ("two seeds", statistics, "MIN_SEEDS", lambda _: 2, "its p is"),
    "a verdict at 90%": ("baselines", statistics, "ALPHA", lambda _: 0.9, "verdict of"),
    "verdicts of another family": ("five seeds", statistics.Effect, "verdict", as_the_first, "verdict of"),
    "seeds out of step": ("no documents", analysis, "paired", backwards, "its by_seed is"),
    "documents left out": (
        "five seeds",
        analysis,
        "_effect",
        lambda _: lambda _scores: None,
        "its documents is None",
    ),
    "a run left out of the time": (
        "five seeds",
        analysis,
        "math",
        lambda real: SimpleNamespace(**{**vars(real), "fsum": lambda values: real.fsum([*values][1:])}),
        "time spent",
    ),
    "half of the seeds": (
        "five seeds",
        analysis,
        "spread",
        lambda real: lambda values: real(list(values)[:2]),
        "accuracy of C1T1 (mean, sd, interval)",
    ),
    "memory read off": (
        "memories",
        analysis.DepthResult,
        "falls_below",
        lambda _: lambda *_: 3.0,
        "memory of C1 below 0.1 is 3",
    ),
    "memory of the last seed": (
        "memories",
        analysis,
        "fmean",
        lambda _: lambda values: [*values][-1],
        "memory of C1",
    ),
    "speeds in spite of the limit": (
        "iterations at the limit",
        phase1,
        "at_limit",
        lambda _: lambda _depth: [],
        "speeds of phase 1",
    ),
    "depths that are mixed up": (
        "five seeds",
        report_sentences,
        "_pairs_along",
        lambda _: lambda report, _axis: list(report.comparisons),
        "pairs that tell of depth",
    ),
    "a pair left out": (
        "five seeds",
        analysis,
        "combinations",
        lambda real: lambda items, size: list(real(items, size))[1:],
        "compared pairs",
    ),
    "the largest recommended": (
        "two seeds",
        analysis,
        "min",
        lambda _: lambda found, key: max(found, key=key),
        "the recommended configuration",
    ),
    "texts that differ": (
        "another text",
        analysis,
        "OWN_EMBEDDINGS",
        lambda names: {**names, "text_fingerprint": ""},
        "whether runs compare",
    ),
    "power without the correction": (
        "baselines",
        statistics,
        "holm_levels",
        lambda _: lambda p: [0.05] * len(p),
        "verdict of KN-5 → C1T1, and its power",
    ),
    "another power": ("baselines", statistics, "POWER", lambda _: 0.7, "and its power is"),
    "the wrong head": (
        "variants",
        PredictionRecord,
        "head_for",
        lambda _: lambda self, _depth: self.heads[0].model_copy(update={"nll_nats": 1.0}),
        "over its head",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_report_that_counts_wrongly_is_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, owner, name, change, words = BROKEN[what]
    real = getattr(owner, name, __builtins__["min"] if name == "min" else None)
    monkeypatch.setattr(owner, name, change(real), raising=False)
    check = report_check(*REPORTED[case])
    assert check.status == "fail", check.figure
    assert words in check.figure
