"""Several workers on one run directory: every run is made once, whoever dies, and gives the same figures."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import tiny

from tandem.claims import locked, try_lock
from tandem.experiment.executors import threads_each
from tandem.experiment.grid import claims, plan
from tandem.experiment.runner import help_experiment, run_experiment
from tandem.records import RunRecord, read_manifest, read_records, records_path
from tandem.settings import Settings, dump_settings
from tandem.training.progress import Watcher

pytestmark = pytest.mark.usefixtures("warm_start")
PYTHON = sys.executable
"""Which leads its own group of processes, as that of a terminal does."""
COMMAND = """
import multiprocessing, runpy, sys
multiprocessing.set_executable(sys.argv.pop(1))
runpy.run_module("tandem", run_name="__main__", alter_sys=True)
"""
"""`python -m tandem`, whose workers start as `warm` has it."""


def figures(record: RunRecord) -> tuple[object, ...]:
    assert record.validation is not None
    return record.run, record.validation.nll_nats, record.status


def lines(run_dir: Path) -> list[str]:
    """Runs in the order in which they were recorded, repeated ones repeated."""
    text = records_path(run_dir).read_text("utf-8")
    return [json.loads(line)["run"] for line in text.splitlines()]


def experiment(text_file: Path, output: Path, **more: object) -> Settings:
    return tiny(
        text_file,
        output=str(output),
        threads=1,
        seeds=(0, 1),
        configurations=((1, 1), (1, 2), (2, 1)),
        baselines={"models": ("unigram",)},
        **more,
    )


def wait_for(run_dir: Path, runs: int, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while len(read_records(run_dir)) < runs:
        assert time.monotonic() < until, f"only {len(read_records(run_dir))} records"
        time.sleep(0.05)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_claim_is_one_processs_alone(tmp_path: Path) -> None:
    with (
        try_lock(tmp_path, "a") as first,
        try_lock(tmp_path, "a") as second,
        try_lock(tmp_path, "b") as other,
    ):
        assert (first, second, other) == (True, False, True)
    with try_lock(tmp_path, "a") as again:
        assert again


def test_runs_of_one_phase_1_are_claimed_together(text_file: Path, tmp_path: Path) -> None:
    groups = claims(plan(experiment(text_file, tmp_path)))
    assert {name: [cell.name for cell in cells] for name, cells in groups.items()} == {
        "unigram": ["unigram"],
        "tandem-C1-seed0": ["C1T1-seed0", "C1T2-seed0"],
        "tandem-C2-seed0": ["C2T1-seed0"],
        "tandem-C1-seed1": ["C1T1-seed1", "C1T2-seed1"],
        "tandem-C2-seed1": ["C2T1-seed1"],
    }


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    monkeypatch.setattr("tandem.experiment.executors.local.cores", lambda: 8)
    assert threads_each(tiny(text_file)) is None
    assert threads_each(tiny(text_file, workers=3)) == 2
    assert threads_each(tiny(text_file, workers=30)) == 1
    assert threads_each(tiny(text_file, workers=3, threads=5)) == 5


def test_two_workers_make_every_run_once_and_as_one_would(text_file: Path, tmp_path: Path) -> None:
    _, alone = run_experiment(experiment(text_file, tmp_path / "alone"), Watcher())
    run_dir, together = run_experiment(experiment(text_file, tmp_path / "two", workers=2), Watcher())
    assert [figures(r) for r in together] == [figures(r) for r in alone]
    assert sorted(lines(run_dir)) == sorted(r.run for r in alone)
    manifest = read_manifest(run_dir)
    assert manifest is not None
    assert manifest.settings["workers"] == 2  # a helper does not write over what was asked for


def test_what_another_worker_has_is_waited_for_and_not_made(text_file: Path, tmp_path: Path) -> None:
    settings, run_dir = experiment(text_file, tmp_path / "run"), tmp_path / "run"
    run_dir.mkdir()
    done: list[RunRecord] = []
    worker = threading.Thread(target=lambda: done.extend(run_experiment(settings, Watcher())[1]))
    with try_lock(run_dir, "tandem-C1-seed1") as mine:
        assert mine
        worker.start()
        wait_for(run_dir, 5)
        time.sleep(1.5)  # long enough to look again
        assert worker.is_alive()
        assert not {"C1T1-seed1", "C1T2-seed1"} & set(lines(run_dir))
    worker.join(120)
    assert len(done) == len(lines(run_dir)) == 7


def test_what_a_dead_worker_had_is_made_by_another(text_file: Path, tmp_path: Path) -> None:
    settings, run_dir = experiment(text_file, tmp_path / "run"), tmp_path / "run"
    first = multiprocessing.get_context("spawn").Process(target=run_experiment, args=(settings, Watcher()))
    first.start()
    run_dir.mkdir(exist_ok=True)
    wait_for(run_dir, 3)
    first.kill()
    first.join()
    kept = lines(run_dir)
    help_experiment(settings, run_dir)
    assert lines(run_dir)[: len(kept)] == kept
    assert sorted(lines(run_dir)) == sorted(cell.name for cell in plan(settings))


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a group of processes are POSIX")
def test_an_interrupt_stops_all_workers_in_one_sentence(text_file: Path, tmp_path: Path) -> None:
    run_dir, file = tmp_path / "run", tmp_path / "settings.yaml"
    settings = experiment(text_file, run_dir, workers=2).model_copy(update={"seeds": tuple(range(60))})
    file.write_text(dump_settings(settings), "utf-8")
    command = [PYTHON, "-c", COMMAND, sys.executable, "experiment", str(file)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore interrupts and hand that down, to these tests and what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(run_dir, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.rstrip().splitlines()[-1].startswith("tandem: interrupted; the same command continues ")
    assert "Traceback" not in told
    until = time.monotonic() + 30
    while group_lives(process.pid):
        assert time.monotonic() < until, "a worker is left"
        time.sleep(0.1)


def test_writing_takes_turns(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path, "report"):
            order.append("second")

    other = threading.Thread(target=second)
    with locked(tmp_path, "report"):
        other.start()
        time.sleep(0.2)
        order.append("first")
    other.join(30)
    assert order == ["first", "second"]
