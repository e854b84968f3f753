"""--dry-run: nothing is run or written, all work is counted, and a moment is scaled to the whole."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PREDICTIVE, merged, tiny
from torch import Tensor

from tandem.cli.main import run
from tandem.cli.summary import print_estimate
from tandem.cli.terminal import Terminal
from tandem.contexts import Stream, compute_contexts, linear, linear_contexts, segments
from tandem.experiment import stopwatch, trial
from tandem.experiment.baseline import run_baseline
from tandem.experiment.grid import plan
from tandem.experiment.prepared import prepare
from tandem.experiment.runner import estimate_experiment, estimate_one, train_one
from tandem.model import TandemForCausalLM
from tandem.settings import Configuration, ContextSettings, dump_settings
from tandem.training.progress import OnTick, Tick, Watcher


def test_a_dry_run_counts_all_work_and_does_none(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stopwatch, "MOMENT_S", 0.1)
    settings = tiny(
        text_file,
        output=str(tmp_path / "run"),
        threads=1,
        seeds=(0, 1, 2),
        configurations=((1, 1), (1, 2), (2, 1)),
        baselines={"models": ("kneser-ney", "lstm", "untrained"), "untrained": ((1, 1),)},
    )
    file = tmp_path / "settings.yaml"
    file.write_text(dump_settings(settings), "utf-8")
    assert run(["experiment", str(file), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
    assert told["runs"] == len(plan(settings))
    assert {part["what"]: part["times"] for part in told["parts"]} == {
        "KN-5": 1,
        "C1, phase 1": 3,
        "C1, contexts and scores": 3,
        "C1T1, phase 2": 3,
        "C1T2, phase 2": 3,
        "C2, phase 1": 3,
        "C2, contexts and scores": 3,
        "C2T1, phase 2": 3,
        "untrained, C1, contexts and scores": 3,
        "untrained, C1T1, phase 2": 3,
        "LSTM": 3,
    }
    assert all(part["seconds_s"] > 0 for part in told["parts"])
    total = sum(part["times"] * part["seconds_s"] for part in told["parts"])
    assert told["seconds_s"] == pytest.approx(total)
    assert told["memory_bytes"] > 10_000_000
    assert told["disk_bytes"] > 0


def test_a_dry_run_of_one_training_is_told_for_people(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stopwatch, "MOMENT_S", 0.1)
    file = tmp_path / "settings.yaml"
    file.write_text(dump_settings(tiny(text_file, threads=1)), "utf-8")
    folder = tmp_path / "model"
    depths = ["--context-layers", "2", "--token-layers", "1"]
    assert run(["train", str(file), *depths, "--output", str(folder), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "C2T1, phase 2" in said
    assert "about" in said
    assert "of contexts" not in said
    assert not folder.exists()
    keep = ["--contexts.keep", "disk"]
    assert run(["train", str(file), *depths, *keep, "--output", str(folder), "--dry-run"]) == 0
    assert "MB of contexts in the cache while it trains" in capsys.readouterr().out


def test_a_dry_run_is_of_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun says it
    assert run(["train", "--dry-run"]) == 2
    assert "--dry-run times one process, so torchrun is not for it" in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["memory", "disk", "recompute"])
@pytest.mark.parametrize("recipe", ["original", "predictive"])
def test_contexts_are_computed_as_often_as_was_estimated(
    recipe: str, keep: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the estimate a token of contexts takes a second, and nothing else any; a training counts them."""
    monkeypatch.setattr(stopwatch, "MOMENT_S", 0.05)
    more = PREDICTIVE if recipe == "predictive" else {}
    settings = tiny(text_file, threads=1, **merged(more, {"contexts": {"keep": keep}}))
    clock = [0.0]

    def computed(model: TandemForCausalLM, stream: Stream, settings: ContextSettings) -> object:
        clock[0] += len(stream)
        return compute_contexts(model, stream, settings)

    with monkeypatch.context() as patch:
        patch.setattr(trial, "compute_contexts", computed)
        patch.setattr(stopwatch.time, "perf_counter", lambda: clock[0])
        told = estimate_one(settings, Configuration(1, 1), 0, tmp_path / "model", Watcher())
    count = [0]
    scan, fill = segments.SegmentScan.scan, linear.LinearScan._fill

    def scanned(self: Any, numbers: Tensor, contexts: Tensor, *more: Any) -> Any:
        count[0] += len(contexts.flatten(0, 1))
        return scan(self, numbers, contexts, *more)

    def filled(self: Any, origin: int, states: Tensor) -> None:
        count[0] += len(states) - 1
        fill(self, origin, states)

    monkeypatch.setattr(segments.SegmentScan, "scan", scanned)
    monkeypatch.setattr(linear.LinearScan, "_fill", filled)
    monkeypatch.setattr(linear_contexts, "_loop_error", lambda *_: 0.0)  # of a fixed size
    record = train_one(settings, Configuration(1, 1), 0, tmp_path / "model", Watcher())
    assert record.contexts is not None
    train = record.contexts.train
    assert train.storage == keep
    assert told.seconds_s == pytest.approx(
        count[0], rel=0.06
    )  # the last segment of a scan is read to its end
    width = settings.model.context_dim
    assert told.context_disk_bytes == (2 * train.tokens * width if keep == "disk" else 0)


def test_memory_of_the_whole_text_is_added(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts before and after a sweep, both splits' contexts, or two pieces of them; the largest counts."""
    monkeypatch.setattr(stopwatch, "MOMENT_S", 0.05)
    added = {}
    for name, phase1, keep in (
        ("sweep", {"batch_positions": 50}, "memory"),
        ("contexts", {"batch_positions": 50, "tokens_per_step": 200}, "memory"),
        ("pieces", {"batch_positions": 50, "tokens_per_step": 200}, "disk"),
    ):
        settings = tiny(text_file, threads=1, phase1=phase1, contexts={"keep": keep})
        prepared = prepare(settings, lambda _: None)
        begun = trial.Trial(prepared, 1)
        begun.parts(plan(settings)[:1])
        added[name] = begun.held_bytes
    train, validation = len(prepared.corpus.train), len(prepared.corpus.validation)
    width = settings.model.context_dim
    assert added == {
        "sweep": 2 * (train - 200) * width * 4,
        "contexts": (train + validation) * width * 4,
        "pieces": 2 * train * width * 4,
    }


def test_memory_of_an_ngram_grows_with_the_text(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(text_file, baselines={"models": ("kneser-ney",)})
    prepared = prepare(settings, lambda _: None)
    cell = next(cell for cell in plan(settings) if cell.kind == "kneser-ney")
    assert trial.baseline_trial(prepared, cell)[1] == 0  # all of this text is read for the trial
    whole = stopwatch.allocated(lambda: run_baseline(prepared, cell.kind, cell.seed, lambda _: None))
    monkeypatch.setattr(trial, "PIECE_TOKENS", len(prepared.corpus.train) // 2)
    grown = trial.baseline_trial(prepared, cell)[1]
    assert 0.3 * whole < grown < 0.6 * whole


def test_workers_share_the_time(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "MOMENT_S", 0.05)
    settings = tiny(text_file, threads=1, workers=2, seeds=(0, 1))
    told = estimate_experiment(settings, Watcher())
    assert told.seconds_s == pytest.approx(sum(p.times * p.seconds_s for p in told.parts) / 2)
    said = io.StringIO()
    print_estimate(Terminal(file=said), told)
    assert "GB at its peak in each of 2 workers" in said.getvalue()


def test_a_moment_is_scaled_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the work moves: ten seconds of setting up, then two for a tenth of an epoch."""
    clock = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock[0])
    reached = []

    def train(on_tick: OnTick) -> None:
        clock[0] += 10
        for step in range(1, 51):
            clock[0] += 2
            reached.append(step)
            on_tick(Tick("phase 1", step / 10, 5, "epoch"))

    assert stopwatch.seconds_of(train) == pytest.approx(100)
    assert reached[-1] == stopwatch.LEAST_TICKS  # and no further


def test_a_training_that_is_over_in_a_moment_counts_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock[0])

    def train(on_tick: OnTick) -> None:
        clock[0] += 3
        on_tick(Tick("phase 2", 1, 1, "epoch"))

    assert stopwatch.seconds_of(train) == pytest.approx(3)
