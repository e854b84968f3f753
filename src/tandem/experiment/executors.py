"""Executors: where the workers beside this process run. They share out the runs by claims (`tandem.claims`).

A worker is only started and stopped here. It takes its runs from the run directory, so that one which fails,
is preempted or never starts loses at most the run it is at, which another makes.
"""

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from tandem.advice import Options, advice, command_options, in_command
from tandem.claims import helped_by, in_sight, presence
from tandem.errors import RunDirError, SettingsError
from tandem.settings import RaySettings, Settings, SlurmSettings
from tandem.shown import tolerate_any_encoding
from tandem.text.places import counted_from, source_folder

if TYPE_CHECKING:
    import submitit

JOBS = "workers"
"""The folder of submitit's files within a run directory, the logs of the jobs among them."""
RAY_ANSWERS_S = 10.0
"""Seconds within which a Ray cluster takes a connection; Ray itself would try for minutes."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Worker:
    """What a further worker does, wherever it runs: `work` on the run directory. Calling it does it.

    It is pickled, and what it names is looked up there: `work` is an importable function, `run_dir` absolute.

    folder   working directory of the command, from which relative paths in the settings count
    command  the command's `presence`
    options  the command's options, for messages
    """

    settings: Settings
    run_dir: Path
    folder: Path
    command: str
    work: Callable[[Settings, Path], None]
    options: Options | None = None

    def __call__(self) -> None:
        """Raises RunDirError where the run directory is not shared with this machine; else as `work`."""
        tolerate_any_encoding()
        host = socket.gethostname()
        if not self.run_dir.is_dir():
            raise RunDirError(
                f"{host} does not see the run directory {self.run_dir}"
                + advice(("choose one that all machines share with {}", "output"))
            )
        if not in_sight(self.run_dir, self.command):
            raise RunDirError(
                f"file locks in {self.run_dir} do not span {host} and the machine that gave the command, or "
                "the command has ended" + advice(("choose a file system whose locks do with {}", "output"))
            )
        # A folder that is not there is missed only by settings with relative paths, and they say so.
        folder = self.folder if self.folder.is_dir() else None
        with counted_from(folder), in_command(self.options):
            self.work(self.settings, self.run_dir)


class Executor(Protocol):
    """Where further workers run."""

    def helping(self, worker: Worker, count: int, tell: Tell) -> AbstractContextManager[None]:
        """Within the block `count` workers run or wait to be started; those left at its end are stopped.

        `tell` is told where they are. Raises SettingsError where they cannot be started.
        """


def executor_of(settings: Settings) -> Executor:
    """The executor that the settings name. Raises SettingsError where it is not installed, or not here."""
    if settings.executor == "local":
        return Local()
    if settings.workers == 1:
        raise SettingsError(
            f"setting executor = '{settings.executor}' is for the workers beside this process, and setting "
            "workers = 1 asks for none" + advice(("give {} or more", "workers 2"))
        )
    return Slurm(settings.slurm) if settings.executor == "slurm" else Ray(settings.ray)


@contextmanager
def helped(
    executor: Executor,
    settings: Settings,
    run_dir: Path,
    work: Callable[[Settings, Path], None],
    tell: Tell,
) -> Iterator[None]:
    """Within the block `settings.workers` - 1 further workers do `work` on the run directory.

    The block ends when all work is done, so what still runs is stopped.
    """
    if settings.workers == 1:
        yield
        return
    run_dir = run_dir.absolute()
    with presence(run_dir) as command:
        worker = Worker(settings, run_dir, source_folder(), command, work, command_options())
        with executor.helping(worker, settings.workers - 1, tell):
            yield


class Local:
    """Processes of this machine."""

    @contextmanager
    def helping(self, worker: Worker, count: int, tell: Tell) -> Iterator[None]:  # noqa: ARG002
        """See Executor; nothing needs to be told."""
        with helped_by(count, worker):
            yield


class Slurm:
    """Jobs of a Slurm cluster, submitted by submitit as one array; their logs are in RUN_DIR/workers."""

    def __init__(self, settings: SlurmSettings, cluster: str = "slurm") -> None:
        """`cluster` is submitit's: "local" has processes of this machine stand in for jobs.

        Raises SettingsError where submitit is not installed, or Slurm's commands are not here.
        """
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise SettingsError(
                "executor slurm needs submitit; install it with `pip install 'tandem-lm[slurm]'`"
            ) from None
        missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
        if cluster == "slurm" and missing:
            raise SettingsError(
                f"executor slurm needs Slurm's command {missing[0]}, which is not here"
                + advice("work on a machine of the cluster", ("give {}", "executor local"))
            )
        self._settings, self._cluster = settings, cluster

    @contextmanager
    def helping(self, worker: Worker, count: int, tell: Tell) -> Iterator[None]:
        """See Executor; a job that waits in the queue does not hold up the others."""
        jobs = self._submit(worker, count)
        number = jobs[0].job_id.split("_")[0]
        tell(f"workers: {count} more as job {number} of Slurm, whose logs are in {worker.run_dir / JOBS}")
        try:
            yield
        finally:
            for job in jobs:
                if job.paths.result_pickle.exists() and (error := job.exception()) is not None:
                    tell(f"a worker stopped: {_reason(error)}")
                job.cancel(check=False)  # those that have ended too: Slurm may have requeued them
            while self._cluster == "local" and not all(job.done() for job in jobs):
                time.sleep(0.05)  # as children of this process they are not left behind

    def _submit(self, worker: Worker, count: int) -> "list[submitit.Job[None]]":
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = submitit.AutoExecutor(folder=worker.run_dir / JOBS, cluster=self._cluster)
        try:
            executor.update_parameters(name=f"tandem-{worker.settings.name}", **self._parameters())
            # submitit also prints what sbatch says, which is part of the sentence below.
            with contextlib.redirect_stderr(io.StringIO()):
                return executor.submit_array([_SlurmJob(worker)] * count)
        except (FailedJobError, FailedSubmissionError) as error:
            raise SettingsError(f"Slurm did not take the workers' jobs: {_reason(error)}") from None
        except (TypeError, ValueError) as error:
            raise SettingsError(f"setting slurm.parameters is not possible: {_reason(error)}") from None

    def _parameters(self) -> dict[str, Any]:
        """Arguments of submitit's `update_parameters`; what it has no name for goes to sbatch as it is."""
        import submitit

        asked = self._settings
        named: dict[str, Any] = {
            "timeout_min": asked.time_limit_min,
            "gpus_per_node": asked.gpus or None,  # a job is one worker on one node
            "cpus_per_task": asked.cpus_per_task,
            "mem_gb": asked.memory_gb,
            "slurm_partition": asked.partition,
            "slurm_setup": list(asked.setup) or None,
        }
        known, others = submitit.SlurmExecutor._valid_parameters(), {}
        for parameter in asked.parameters:
            name, equals, text = parameter.partition("=")
            value = _value(text) if equals else True
            if (key := name.replace("-", "_")) in known:
                named[f"slurm_{key}"] = value
            else:
                others[name] = value
        return named | ({"slurm_additional_parameters": others} if others else {})


def _value(text: str) -> Any:
    """A number, truth value or list as JSON has them, else the text itself (01:30:00 is one)."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class _SlurmJob:
    """A worker as a job: preempted, it is put back into the queue; at its time limit it ends."""

    worker: Worker

    def __call__(self) -> None:
        import submitit
        from submitit.core.utils import UncompletedJobError

        # The handler that submitit has set raises an ordinary exception at the time limit; that would count
        # as a failure of the run that it interrupts.
        warned = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        requeue = signal.getsignal(warned)

        def requeue_or_end(number: int, frame: FrameType | None) -> None:
            assert callable(requeue)
            try:
                requeue(number, frame)
            except UncompletedJobError as error:
                raise SystemExit(str(error)) from None

        signal.signal(warned, requeue_or_end)
        self.worker()


class Ray:
    """Tasks of a Ray cluster: connected to before, RAY_ADDRESS, one running here, or a new one."""

    def __init__(self, settings: RaySettings) -> None:
        """Raises SettingsError where Ray is not installed."""
        # Nobody has agreed to Ray's reports on its use. Read when Ray loads.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray  # noqa: F401
        except ImportError:
            raise SettingsError(
                "executor ray needs Ray; install it with `pip install 'tandem-lm[ray]'`"
            ) from None
        self._settings = settings

    @contextmanager
    def helping(self, worker: Worker, count: int, tell: Tell) -> Iterator[None]:
        """See Executor; a task that waits for resources does not hold up the others."""
        import ray

        with _ray_connection():
            # A worker whose process dies is started again by Ray, a few times.
            task = ray.remote(num_cpus=self._settings.num_cpus, num_gpus=self._settings.num_gpus)(_call)
            tasks = [task.remote(worker) for _ in range(count)]
            tell(f"workers: {count} more as tasks of Ray at {ray.get_runtime_context().gcs_address}")
            try:
                yield
            finally:
                ended, running = ray.wait(tasks, num_returns=count, timeout=0)
                for one in running:
                    ray.cancel(one, force=True)
                for one in ended:
                    try:
                        ray.get(one)
                    except ray.exceptions.RayError as error:
                        tell(f"a worker stopped: {_reason(error)}")


def _call(worker: Worker) -> None:
    worker()


@contextmanager
def _ray_connection() -> Iterator[None]:
    """Within the block this process is connected to Ray; SettingsError where no cluster answers."""
    import ray

    if ray.is_initialized():  # by whoever uses this as a library, who also ends it
        yield
        return
    host, _, port = os.environ.get("RAY_ADDRESS", "").removeprefix("ray://").rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), timeout=RAY_ANSWERS_S).close()
        except (OSError, ValueError):
            raise SettingsError(
                f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}; start it, or unset that"
            ) from None
    try:
        # Workers' output stays in Ray's logs: ours is for people, or JSON.
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SettingsError(f"Ray cannot be used: {_reason(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _reason(error: BaseException) -> str:
    """The last line of an error's text, where those that quote another process have its reason."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)
