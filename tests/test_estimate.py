"""--dry-run: nothing is run or written, all work is counted, and a moment is scaled to the whole."""

import json
from pathlib import Path

import pytest
from conftest import tiny

from tandem.cli.main import run
from tandem.contexts import Stream, compute_contexts
from tandem.experiment import estimate
from tandem.experiment.cells import plan
from tandem.experiment.prepared import prepare
from tandem.experiment.runner import Unwatched, estimate_experiment
from tandem.model import TandemForCausalLM
from tandem.settings import ContextSettings, dump_settings
from tandem.training.progress import OnTick, Tick


def test_a_dry_run_counts_all_work_and_does_none(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "MOMENT_S", 0.1)
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
    monkeypatch.setattr(estimate, "MOMENT_S", 0.1)
    file = tmp_path / "settings.yaml"
    file.write_text(dump_settings(tiny(text_file, threads=1)), "utf-8")
    folder = tmp_path / "model"
    depths = ["--context-layers", "2", "--token-layers", "1"]
    assert run(["train", str(file), *depths, "--output", str(folder), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "C2T1, phase 2" in said
    assert "about" in said
    assert not folder.exists()


def test_contexts_on_disk_are_told_and_contexts_computed_again_take_time(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of contexts is made to take a second, so that nothing else of the estimate counts."""
    monkeypatch.setattr(estimate, "MOMENT_S", 0.05)
    clock = [0.0]

    def computed(model: TandemForCausalLM, stream: Stream, settings: ContextSettings) -> object:
        clock[0] += len(stream)
        return compute_contexts(model, stream, settings)

    monkeypatch.setattr(estimate, "compute_contexts", computed)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    told, epochs = {}, 3
    for keep in ("memory", "disk", "recompute"):
        settings = tiny(text_file, threads=1, contexts={"keep": keep}, phase2={"max_epochs": epochs})
        found = estimate_experiment(settings, Unwatched())
        told[keep] = found.passing_bytes, {part.what: part.seconds_s for part in found.parts}
    corpus = prepare(settings, lambda _: None).corpus
    train, validation, width = len(corpus.train), len(corpus.validation), settings.model.context_dim
    assert [told[keep][0] for keep in told] == [0, 2 * train * width, 0]
    for part, of_train, of_validation in (
        ("C1, phase 1", 0, 0),
        ("C1, contexts and scores", 1, 1),  # the effective rank
        ("C1T1, phase 2", epochs + 1, epochs),  # and the sample that is kept of them
    ):
        held, on_disk, again = (told[keep][1][part] for keep in ("memory", "disk", "recompute"))
        assert on_disk - held == pytest.approx(of_validation * validation)
        assert again - on_disk == pytest.approx(of_train * train)


def test_workers_share_the_time(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MOMENT_S", 0.05)
    settings = tiny(text_file, threads=1, workers=2, seeds=(0, 1))
    told = estimate_experiment(settings, Unwatched())
    assert told.seconds_s == pytest.approx(sum(p.times * p.seconds_s for p in told.parts) / 2)


def test_a_moment_is_scaled_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the work moves: ten seconds of setting up, then two for a tenth of an epoch."""
    clock = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    reached = []

    def train(on_tick: OnTick) -> None:
        clock[0] += 10
        for step in range(1, 51):
            clock[0] += 2
            reached.append(step)
            on_tick(Tick("phase 1", step / 10, 5, "epoch"))

    assert estimate._seconds_of(train) == pytest.approx(100)
    assert reached[-1] == estimate.LEAST_TICKS  # and no further


def test_a_training_that_is_over_in_a_moment_counts_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])

    def train(on_tick: OnTick) -> None:
        clock[0] += 3
        on_tick(Tick("phase 2", 1, 1, "epoch"))

    assert estimate._seconds_of(train) == pytest.approx(3)
