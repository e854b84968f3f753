"""Executors: jobs and tasks work one grid with the command; each run is made once, whatever dies."""

import operator
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from conftest import slow_but, tiny
from test_workers import experiment, lines, wait_for

from tandem.claims import CLAIMS, is_alive, liveness_lock
from tandem.cli.main import run
from tandem.errors import RunDirError, SettingsError
from tandem.experiment.executors import JOBS, Executor, Ray, Slurm, Worker, executor_of, threads_each
from tandem.experiment.grid import plan
from tandem.experiment.prepared import prepare
from tandem.experiment.run_dir import open_run_dir, run_dir_of
from tandem.experiment.runner import help_experiment, run_experiment
from tandem.records import read_records
from tandem.settings import DataSettings, Settings, SlurmSettings, dump_settings, load_settings
from tandem.training.progress import Watcher

linux = pytest.mark.skipif(sys.platform != "linux", reason="who holds a claim is looked up in /proc")
pytestmark = pytest.mark.usefixtures("warm_start")


def slurm(**more: object) -> Settings:
    return Settings(data=DataSettings(train="a.txt"), slurm=SlurmSettings(**more))


def submitted(**more: object) -> Slurm:
    """Jobs as processes of this machine, which submitit itself starts, watches and signals."""
    return Slurm(slurm(**more), cluster="local")


def made_once(run_dir: Path, settings: Settings) -> None:
    assert sorted(lines(run_dir)) == sorted(cell.name for cell in plan(settings))
    assert {record.status for record in read_records(run_dir)} == {"finished"}


class Late(Watcher):
    """The command's own worker begins only when another one has made a run; notes what is told."""

    def __init__(self, then: Callable[[Path], None] = lambda _: None) -> None:
        self.told: list[str] = []
        self.others_made = 0
        self._then = then

    def preparing(self, what: str) -> None:
        self.told.append(what)

    def planned(self, run_dir: Path, runs: list[str], finished: int) -> None:  # noqa: ARG002
        wait_for(run_dir, 1)
        self._then(run_dir)
        self.others_made = len(lines(run_dir))


def open_files(pid: int) -> list[Path]:
    """None where the process has ended, even while it is looked at, or is another user's."""
    files = []
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # this one was just closed
                files.append(link.readlink())
    return files


def holder(run_dir: Path) -> int:
    """The process, not this one, that is at a run just now; waits for one."""

    def has_claim(pid: int) -> bool:
        return any(path.is_relative_to(run_dir / CLAIMS) for path in open_files(pid))

    until = time.monotonic() + 120
    while time.monotonic() < until:
        time.sleep(0.02)  # a second look at all processes, without a pause, would take a core
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
            if pid != os.getpid() and has_claim(pid):
                time.sleep(0.1)  # a claim that is not only looked at, or let go: the process is at a run
                if has_claim(pid):
                    return pid
    raise AssertionError("no other process has a claim")


def wait_for_end(pid: int) -> None:
    until = time.monotonic() + 60
    while open_files(pid):
        assert time.monotonic() < until, f"process {pid} goes on"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def workers_that_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's are nice to others by default, and starve where these keep all cores busy."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def cluster() -> Iterator[None]:
    """A Ray cluster on this machine, to which this process is connected."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_tasks_share_the_runs_with_the_command(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster that the command starts and ends; data and run directory are named by relative paths."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.chdir(tmp_path)
    settings = experiment(Path(text_file.name), Path("run"), workers=2, executor="ray")
    watcher = Late()
    run_dir, _ = run_experiment(settings, watcher)
    assert not ray.is_initialized()
    assert watcher.others_made >= 1
    assert not [told for told in watcher.told if "stopped" in told]
    made_once(run_dir, settings)


@linux
@pytest.mark.parametrize("kind", slow_but({"slurm"}, ["slurm", "ray"]))
def test_the_run_of_a_killed_worker_is_taken_up(
    kind: str, text_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    executor: Executor = submitted()
    if kind == "ray":
        request.getfixturevalue("cluster")
        executor = Ray(slurm())
    settings = experiment(text_file, tmp_path / "run", workers=2)
    killed: list[int] = []

    def kill(run_dir: Path) -> None:
        killed.append(holder(run_dir))
        os.kill(killed[0], signal.SIGKILL)
        wait_for_end(killed[0])

    watcher = Late(kill)
    run_dir, records = run_experiment(settings, watcher, executor)
    assert killed
    assert watcher.others_made >= 1
    assert [record.run for record in records] == [cell.name for cell in plan(settings)]
    made_once(run_dir, settings)
    if kind == "slurm":
        assert list((run_dir / JOBS).glob("*_log.out"))
        assert any(str(run_dir / JOBS) in told for told in watcher.told)


@linux
def test_a_preempted_job_comes_back_and_no_run_counts_as_failed(text_file: Path, tmp_path: Path) -> None:
    def preempt(run_dir: Path) -> None:
        job = holder(run_dir)
        os.kill(job, signal.SIGUSR2)  # as Slurm does
        wait_for_end(job)
        (log,) = (run_dir / JOBS).glob("*_log.out")
        until = time.monotonic() + 120
        while log.read_text("utf-8").count("Starting with") < 2:
            assert time.monotonic() < until, "it does not come back"
            time.sleep(0.05)

    settings = experiment(text_file, tmp_path / "run", workers=2)
    run_dir, _ = run_experiment(settings, Late(preempt), submitted(time_limit_min=600))
    made_once(run_dir, settings)


@linux
def test_a_job_at_its_time_limit_ends_and_no_run_counts_as_failed(text_file: Path, tmp_path: Path) -> None:
    def limit(run_dir: Path) -> None:
        job = holder(run_dir)
        os.kill(job, signal.SIGUSR2)
        wait_for_end(job)

    settings = experiment(text_file, tmp_path / "run", workers=2)
    run_dir, _ = run_experiment(settings, Late(limit), submitted(time_limit_min=1))
    made_once(run_dir, settings)


SBATCH = """#!/bin/bash
cp "$1" {bin}/submitted
for i in 0 1; do
  SLURM_JOB_ID=70$i SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$i SLURM_NTASKS=1 \\
    setsid bash {bin}/submitted > {bin}/output 2>&1 < /dev/null &
  echo $! > {bin}/77_$i
done
echo Submitted batch job 77
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
  [[ $1 == --unbuffered ]] || shift
  shift
done
exec "$@"
"""
SCANCEL = """#!/bin/bash
kill -KILL -- -$(cat {bin}/$1) && touch {bin}/killed_$1
touch {bin}/cancelled_$1
"""


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that stand in for Slurm's: they start, and kill, an array of two jobs here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scancel", SCANCEL)):
        (folder / name).write_text(script.format(bin=folder) if name != "srun" else script, "utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


@linux
def test_jobs_are_one_array_and_are_cancelled_when_the_command_is_interrupted(
    text_file: Path, tmp_path: Path, slurm_commands: Path
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    slurm = {
        "partition": "long",
        "time_limit_min": 90,
        "gpus": 1,
        "cpus_per_task": 3,
        "memory_gb": 8,
        "setup": ["export FROM_SETUP=1"],
        "parameters": ["account=mine", "exclusive", "hint=nomultithread"],
    }
    settings = experiment(text_file, tmp_path / "run", workers=3, executor="slurm", slurm=slurm)
    settings = settings.model_copy(update={"seeds": tuple(range(60))})
    watcher = Late(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings, watcher)
    assert {path.name for path in slurm_commands.glob("killed_*")} == {"killed_77_0", "killed_77_1"}
    assert any(told.startswith("workers: 2 more as job 77 of Slurm") for told in watcher.told)
    asked = (slurm_commands / "submitted").read_text("utf-8").splitlines()
    assert {
        *("#SBATCH --array=0-1%2", "#SBATCH --job-name=tandem-tiny", "#SBATCH --partition=long"),
        *("#SBATCH --time=90", "#SBATCH --gpus-per-node=1", "#SBATCH --cpus-per-task=3", "#SBATCH --mem=8GB"),
        *("#SBATCH --account=mine", "#SBATCH --exclusive", "#SBATCH --hint=nomultithread"),
        "export FROM_SETUP=1",
    } <= set(asked)
    assert lines(tmp_path / "run")  # what was made is kept


@linux
def test_jobs_that_have_ended_are_cancelled_too(
    text_file: Path, tmp_path: Path, slurm_commands: Path
) -> None:
    """Slurm may have put them back into its queue, where they would stay."""
    told: list[str] = []
    with liveness_lock(tmp_path) as command:
        worker = Worker(tiny(text_file), tmp_path, tmp_path, command, operator.is_)  # done at once
        with Slurm(slurm()).helping(worker, 2, told.append):
            until = time.monotonic() + 120
            while len(list((tmp_path / JOBS).glob("*_result.pkl"))) < 2:
                assert time.monotonic() < until, "the jobs do not end"
                time.sleep(0.05)
    assert {path.name for path in slurm_commands.glob("cancelled_*")} == {"cancelled_77_0", "cancelled_77_1"}
    assert len(told) == 1


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that the command ends with, at exit code 2."""
    assert run(["experiment", *arguments]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("tandem: error: ")] == told[-1:]
    return told[-1]


@pytest.fixture
def settings_file(text_file: Path, tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_settings(tiny(text_file, output=str(tmp_path / "run"))), "utf-8")
    return str(path)


def test_what_sbatch_refuses_is_said(
    capsys: pytest.CaptureFixture[str], settings_file: str, slurm_commands: Path
) -> None:
    (slurm_commands / "sbatch").write_text(
        "#!/bin/bash\necho 'sbatch: error: invalid partition specified: none' >&2\nexit 1\n", "utf-8"
    )
    told = complaint(capsys, settings_file, "--executor", "slurm", "--workers", "2")
    assert told.endswith("did not take the workers' jobs: sbatch: error: invalid partition specified: none")


def test_slurm_that_is_not_here_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str], settings_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    told = complaint(capsys, settings_file, "--executor", "slurm", "--workers", "2")
    assert "Slurm's command sbatch, which is not here" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("executor", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_names_the_extra(
    capsys: pytest.CaptureFixture[str],
    settings_file: str,
    monkeypatch: pytest.MonkeyPatch,
    executor: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    told = complaint(capsys, settings_file, "--executor", executor, "--workers", "2")
    assert f"pip install 'tandem-lm[{executor}]'" in told


def test_a_ray_cluster_that_does_not_answer_is_said(
    capsys: pytest.CaptureFixture[str], settings_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    told = complaint(capsys, settings_file, "--executor", "ray", "--workers", "2")
    assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1" in told


def test_an_executor_without_further_workers_is_an_error(text_file: Path) -> None:
    with pytest.raises(SettingsError, match="give workers = 2 or more"):
        executor_of(tiny(text_file, executor="slurm"))


def test_a_worker_that_does_not_share_the_run_directory_works_on_nothing(
    text_file: Path, tmp_path: Path
) -> None:
    settings = experiment(text_file, tmp_path / "run", workers=2)
    corpus = prepare(settings, lambda _: None).corpus
    run_dir = run_dir_of(settings, corpus)
    open_run_dir(run_dir, settings, corpus, plan(settings), "float32")
    with liveness_lock(run_dir) as command:
        assert is_alive(run_dir, command)
        elsewhere = Worker(settings, tmp_path / "elsewhere", tmp_path, command, help_experiment)
        with pytest.raises(RunDirError, match="does not see the run directory"):
            elsewhere()
    # As where file locks do not reach from machine to machine: nobody is seen to hold this one.
    with pytest.raises(RunDirError, match="do not span"):
        Worker(settings, run_dir, tmp_path, command, help_experiment)()
    assert lines(run_dir) == []


def test_a_worker_with_another_text_works_on_nothing(text_file: Path, tmp_path: Path) -> None:
    settings = experiment(text_file, tmp_path / "run", workers=2)
    corpus = prepare(settings, lambda _: None).corpus
    run_dir = run_dir_of(settings, corpus)
    open_run_dir(run_dir, settings, corpus, plan(settings), "float32")
    content = text_file.read_text("utf-8").splitlines()
    text_file.write_text("\n".join(content[1:]), "utf-8")
    with pytest.raises(RunDirError, match="other text or tokens"):
        help_experiment(settings, run_dir)


def test_results_do_not_depend_on_executors(text_file: Path) -> None:
    ours = tiny(text_file, executor="ray", workers=4, ray={"num_gpus": 0.5}, slurm={"partition": "long"})
    assert ours.fingerprint() == tiny(text_file).fingerprint()


def test_threads_are_the_cpus_that_a_worker_is_given(text_file: Path) -> None:
    assert threads_each(tiny(text_file, workers=9, executor="slurm")) is None
    assert threads_each(tiny(text_file, workers=9, executor="slurm", slurm={"cpus_per_task": 4})) == 4
    assert threads_each(tiny(text_file, workers=9, executor="ray", ray={"num_cpus": 3})) == 3
    assert threads_each(tiny(text_file, workers=9, executor="ray", ray={"num_cpus": 0.5})) == 1
    assert threads_each(tiny(text_file, workers=9, executor="ray", threads=2)) == 2


def test_options_of_sbatch_are_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--executor", "slurm", "--slurm.parameters", "account=mine", "qos=low"]
    assert run(["config", "demo", *arguments]) == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out, "utf-8")
    assert load_settings(str(file)).slurm.parameters == ("account=mine", "qos=low")
    assert run(["config", "demo", "--slurm.parameters", "=mine"]) == 2
