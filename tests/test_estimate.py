"""--dry-run: nothing is run or written, all work is counted, and a moment is scaled to the whole."""

import io
import json
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from conftest import PREDICTIVE, merged, tiny
from torch import Tensor

from tandem.cli.main import run
from tandem.cli.summary import print_estimate
from tandem.cli.terminal import Terminal
from tandem.contexts import Contexts, linear, linear_contexts, segments
from tandem.experiment import estimate
from tandem.experiment.baseline import run_baseline
from tandem.experiment.grid import plan
from tandem.experiment.pipeline import TrainedContexts, TrainedTokens, train_tokens, untrained_contexts
from tandem.experiment.prepared import prepare
from tandem.experiment.runner import estimate_experiment
from tandem.experiment.single_run import estimate_one, train_one
from tandem.settings import Configuration, dump_settings
from tandem.training.progress import OnTick, Tick, Watcher


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock on which a token of contexts takes a second, and nothing else any."""
    monkeypatch.setattr(estimate, "MOMENT_S", -1.0)  # where nothing is computed, this clock stands still
    monkeypatch.setattr(estimate, "PART_TOKENS", 0)
    monkeypatch.setattr(estimate, "PART_BATCHES", 7)
    clock = [0.0]
    scan, fill = segments.SegmentScan.scan, linear.LinearScan._fill

    def scanned(self: Any, numbers: Tensor, contexts: Tensor, *more: Any) -> Any:
        clock[0] += len(contexts.flatten(0, 1))
        return scan(self, numbers, contexts, *more)

    def filled(self: Any, origin: int, states: Tensor) -> None:
        clock[0] += len(states) - 1
        fill(self, origin, states)

    monkeypatch.setattr(segments.SegmentScan, "scan", scanned)
    monkeypatch.setattr(linear.LinearScan, "_fill", filled)
    monkeypatch.setattr(linear_contexts, "_loop_error", lambda *_: 0.0)  # of a fixed size
    return clock


@pytest.mark.parametrize("keep", ["memory", "disk", "recompute"])
@pytest.mark.parametrize("recipe", ["original", "predictive"])
def test_contexts_are_computed_as_often_as_was_estimated(
    recipe: str,
    keep: str,
    text_file: Path,
    tmp_path: Path,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = PREDICTIVE if recipe == "predictive" else {}
    contexts = {"keep": keep, "segment_length": 64}  # shorter than the part of the validation text
    settings = tiny(text_file, threads=1, **merged(more, {"contexts": contexts}))
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: clock[0])
        told = estimate_one(settings, Configuration(1, 1), 0, tmp_path / "model", Watcher())
    clock[0] = 0.0
    record = train_one(settings, Configuration(1, 1), 0, tmp_path / "model", Watcher())
    assert record.contexts is not None
    train = record.contexts.train
    assert train.storage == keep
    # The last segment of a scan is read to its end.
    assert told.seconds_s == pytest.approx(clock[0], rel=0.06)
    width = settings.model.context_dim
    assert told.context_disk_bytes == (2 * train.tokens * width if keep == "disk" else 0)


def test_a_part_stands_for_a_long_text(
    text_file: Path, tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contexts of a part are timed, and scaled; its memory is not, so what it lacks is counted."""
    settings = tiny(text_file, threads=1, contexts={"keep": "memory", "segment_length": 64})
    tokens, told = len(prepare(settings, lambda _: None).corpus.train), []
    for part in (tokens, tokens // 2):
        monkeypatch.setattr(estimate, "CONTEXT_TOKENS", part)
        monkeypatch.setattr(estimate, "SWEPT_TOKENS", part)
        clock[0] = 0.0
        with monkeypatch.context() as patch:
            patch.setattr(time, "perf_counter", lambda: clock[0])
            told.append(estimate_one(settings, Configuration(1, 1), 0, tmp_path / "model", Watcher()))
        work = estimate._work_of_models(prepare(settings, lambda _: None), plan(settings)[:1])
        assert work.more_bytes == 2 * (tokens - part) * settings.model.context_dim * 4  # of a sweep
    whole, half = told
    assert half.seconds_s == pytest.approx(whole.seconds_s, rel=0.15)


@pytest.mark.parametrize("command", ["experiment", "train"])
def test_a_dry_run_leaves_what_it_prepared_alone(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Each phase is stopped in the middle: no run, no record and no temporary file remains of it."""
    monkeypatch.setattr(estimate, "MOMENT_S", 0.0)
    cache, temporary, output = tmp_path / "cache", tmp_path / "temporary", tmp_path / "output"
    temporary.mkdir()
    monkeypatch.setenv("TANDEM_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(temporary)
    settings = tiny(text_file, threads=1, **merged(PREDICTIVE, {"contexts": {"keep": "disk"}}))
    file = tmp_path / "settings.yaml"
    file.write_text(dump_settings(settings), "utf-8")
    prepare(settings, lambda _: None)

    def there() -> list[Path]:
        return sorted(path for path in tmp_path.rglob("*") if "claims" not in path.parts)

    before = there()
    more = ["--baselines"] if command == "experiment" else []
    assert run([command, str(file), *more, "--output", str(output), "--dry-run"]) == 0
    assert there() == before


def test_memory_of_all_contexts_is_measured(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all of the text are there while phase 2 is begun on a part; with an embedding more are."""
    monkeypatch.setattr(estimate, "MOMENT_S", 0.05)
    monkeypatch.setattr(estimate, "PART_TOKENS", 0)
    monkeypatch.setattr(estimate, "PART_BATCHES", 2)
    made: list[weakref.ref[Contexts]] = []
    seen: list[int] = []

    def contexts(*args: Any) -> TrainedContexts:
        found = untrained_contexts(*args)
        made.append(weakref.ref(found.train.contexts))
        return found

    def begun(*args: Any, **more: Any) -> TrainedTokens:
        seen.append(max(len(alive) for ref in made if (alive := ref()) and alive.in_memory))
        return train_tokens(*args, **more)

    monkeypatch.setattr(estimate, "untrained_contexts", contexts)
    monkeypatch.setattr(estimate, "train_tokens", begun)
    for trained in (False, True):
        settings = tiny(text_file, threads=1, embeddings={"trained": trained})
        prepared = prepare(settings, lambda _: None)
        work = estimate._work_of_models(prepared, plan(settings)[:1])
        train, validation = len(prepared.corpus.train), len(prepared.corpus.validation)
        assert seen.pop() == train
        width = settings.model.context_dim
        assert work.more_bytes == (2 * (train + validation) * width * 4 if trained else 0)


def test_memory_of_an_ngram_grows_with_the_text(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(text_file, baselines={"models": ("kneser-ney",)})
    prepared = prepare(settings, lambda _: None)
    cell = next(cell for cell in plan(settings) if cell.kind == "kneser-ney")
    assert estimate._work_of_baseline(prepared, cell).more_bytes == 0  # all of this text is read for it
    whole = estimate.allocated(lambda: run_baseline(prepared, cell.kind, cell.seed, lambda _: None))
    monkeypatch.setattr(estimate, "PIECE_TOKENS", len(prepared.corpus.train) // 2)
    grown = estimate._work_of_baseline(prepared, cell).more_bytes
    assert 0.3 * whole < grown < 0.6 * whole


def test_workers_share_the_time(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MOMENT_S", 0.05)
    settings = tiny(text_file, threads=1, workers=2, seeds=(0, 1))
    told = estimate_experiment(settings, Watcher())
    assert told.seconds_s == pytest.approx(sum(p.times * p.seconds_s for p in told.parts) / 2)
    said = io.StringIO()
    print_estimate(Terminal(file=said), told)
    assert "GB at its peak in each of 2 workers" in said.getvalue()


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

    assert estimate.seconds_of(train) == pytest.approx(100)
    assert reached[-1] == estimate.LEAST_TICKS  # and no further


def test_a_training_that_is_over_in_a_moment_counts_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])

    def train(on_tick: OnTick) -> None:
        clock[0] += 3
        on_tick(Tick("phase 2", 1, 1, "epoch"))

    assert estimate.seconds_of(train) == pytest.approx(3)
