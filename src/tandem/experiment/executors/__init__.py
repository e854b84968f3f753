"""Executors: where the workers beside this process run. They share out the runs by claims (`tandem.claims`).

A worker is only started and stopped here. It takes its runs from the run directory. So one that fails, is
preempted or never starts loses at most the run it is at, and another worker makes that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem.advice import advice, command_options
from tandem.claims import liveness_lock
from tandem.errors import SettingsError
from tandem.experiment.executors.base import Executor as Executor
from tandem.experiment.executors.base import Tell as Tell
from tandem.experiment.executors.base import Worker as Worker
from tandem.experiment.executors.local import Local
from tandem.experiment.executors.ray import Ray as Ray
from tandem.experiment.executors.slurm import JOBS as JOBS
from tandem.experiment.executors.slurm import Slurm as Slurm
from tandem.settings import Settings
from tandem.text.places import source_folder

EXECUTORS: dict[str, type[Executor]] = {"local": Local, "slurm": Slurm, "ray": Ray}


def executor_of(settings: Settings) -> Executor:
    """The executor that the settings name. Raises SettingsError where it is not installed, or not here."""
    executor = EXECUTORS[settings.executor]
    if settings.workers == 1 and not executor.for_one_worker:
        raise SettingsError(
            f"setting executor = '{settings.executor}' is for the workers beside this process, and setting "
            "workers = 1 asks for none" + advice(("give {} or more", "workers 2"))
        )
    return executor(settings)


def threads_each(settings: Settings) -> int | None:
    """CPU threads of every worker; None: as torch chooses.

    What the settings say, else what the executor says; on one machine an equal share.
    """
    if settings.threads is not None or settings.workers == 1:
        return settings.threads
    return EXECUTORS[settings.executor].threads(settings)


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
    with liveness_lock(run_dir) as command:
        worker = Worker(settings, run_dir, source_folder(), command, work, command_options())
        with executor.helping(worker, settings.workers - 1, tell):
            yield
