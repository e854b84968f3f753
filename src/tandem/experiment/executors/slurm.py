"""Workers as jobs of a Slurm cluster, through submitit."""

import contextlib
import io
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from tandem.advice import advice
from tandem.errors import SettingsError
from tandem.experiment.executors.base import Executor, Tell, Worker, reason
from tandem.settings import Settings

if TYPE_CHECKING:
    import submitit

JOBS = "workers"
"""The folder of submitit's files within a run directory, the logs of the jobs among them."""


class Slurm(Executor):
    """Jobs of a Slurm cluster, submitted by submitit as one array; their logs are in RUN_DIR/workers."""

    def __init__(self, settings: Settings, cluster: str = "slurm") -> None:
        """`cluster` is submitit's: "local" has processes of this machine stand in for jobs.

        Raises SettingsError where submitit is not installed, or Slurm's commands are not here.
        """
        super().__init__(settings)
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
        self._cluster = cluster

    @classmethod
    def threads(cls, settings: Settings) -> int | None:
        """As many as the CPUs that a job is given."""
        return settings.slurm.cpus_per_task

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
                    tell(f"a worker stopped: {reason(error)}")
                job.cancel(check=False)  # those that have ended too: Slurm may have requeued them
            while self._cluster == "local" and not all(job.done() for job in jobs):
                time.sleep(0.05)  # as children of this process they are not left behind

    def _submit(self, worker: Worker, count: int) -> "list[submitit.Job[None]]":
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        asked = self.settings.slurm
        others = (parameter.partition("=") for parameter in asked.parameters)
        executor = submitit.AutoExecutor(folder=worker.run_dir / JOBS, cluster=self._cluster)
        executor.update_parameters(
            name=f"tandem-{worker.settings.name}",
            timeout_min=asked.time_limit_min,
            gpus_per_node=asked.gpus or None,  # a job is one worker on one node
            cpus_per_task=asked.cpus_per_task,
            mem_gb=asked.memory_gb,
            slurm_partition=asked.partition,
            slurm_setup=list(asked.setup) or None,
            slurm_additional_parameters={name: text if equals else True for name, equals, text in others},
        )
        try:
            # submitit also prints what sbatch says, which is part of the sentence below.
            with contextlib.redirect_stderr(io.StringIO()):
                return executor.submit_array([_SlurmJob(worker)] * count)
        except (FailedJobError, FailedSubmissionError) as error:
            raise SettingsError(f"Slurm did not take the workers' jobs: {reason(error)}") from None


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
