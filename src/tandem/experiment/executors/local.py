"""Workers as processes of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

from tandem.claims import cores, worker_processes
from tandem.experiment.executors.base import Executor, Tell, Worker
from tandem.settings import Settings


class Local(Executor):
    """Processes of this machine."""

    for_one_worker = True

    @classmethod
    def threads(cls, settings: Settings) -> int:
        """An equal share of the cores."""
        return max(1, cores() // settings.workers)

    @contextmanager
    def helping(self, worker: Worker, count: int, tell: Tell) -> Iterator[None]:  # noqa: ARG002
        """See Executor; nothing needs to be told."""
        with worker_processes(count, worker):
            yield
