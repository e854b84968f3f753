"""Workers as tasks of a Ray cluster."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.errors import SettingsError
from tandem.experiment.executors.base import Executor, Tell, Worker, reason
from tandem.settings import Settings

RAY_ANSWERS_S = 10.0
"""Seconds within which a Ray cluster takes a connection; Ray itself would try for minutes."""


class Ray(Executor):
    """Tasks of a Ray cluster: connected to before, RAY_ADDRESS, one running here, or a new one."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError where Ray is not installed."""
        super().__init__(settings)
        # Nobody has agreed to Ray's reports on its use. Read when Ray loads.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray  # noqa: F401
        except ImportError:
            raise SettingsError(
                "executor ray needs Ray; install it with `pip install 'tandem-lm[ray]'`"
            ) from None

    @classmethod
    def threads(cls, settings: Settings) -> int | None:
        """As many as the CPUs that a task is given."""
        return max(1, int(settings.ray.num_cpus))

    @contextmanager
    def helping(self, worker: Worker, count: int, tell: Tell) -> Iterator[None]:
        """See Executor; a task that waits for resources does not hold up the others."""
        import ray

        own = self.settings.ray
        with _ray_connection():
            # A worker whose process dies is started again by Ray, a few times.
            task = ray.remote(num_cpus=own.num_cpus, num_gpus=own.num_gpus)(_call)
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
                        tell(f"a worker stopped: {reason(error)}")


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
        raise SettingsError(f"Ray cannot be used: {reason(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()
