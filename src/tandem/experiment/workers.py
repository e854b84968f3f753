"""Several workers on one run directory: processes of one machine, or of any machines that share it.

What a worker works on it claims by a file lock, which the system takes back from a process that dies: another
worker then makes what is left. Runs that share a phase 1 are claimed together.

On several machines this relies on a file system whose `flock` spans them: NFS 4, or NFS 3 with its lock
service (but not mounted with `nolock` or `local_lock`), Lustre mounted with `flock` (not `localflock`), GPFS,
CephFS. `in_sight` tells a worker that was started for a command where it does not. Records are written and
closed before a claim is released, and opened after it is had, which is what NFS needs to show them. A machine
that dies, not only a process on it, keeps its claims until the server ends its lease (NFS 4: a minute or
two); one cut off for longer may go on with a run that another has begun by then, and the later record counts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from tandem.settings import Settings

CLAIMS = "claims"
"""The folder of the locks within a run directory; it may be deleted when nobody works there."""


@contextmanager
def claimed(run_dir: Path, name: str) -> Iterator[bool]:
    """Within the block, whether this process has the claim `name`; if not, another one has it just now."""
    lock = _lock(run_dir, name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def in_turn(run_dir: Path, name: str) -> Iterator[None]:
    """As `claimed`, but waits until it has it."""
    with _lock(run_dir, name):
        yield


@contextmanager
def presence(run_dir: Path) -> Iterator[str]:
    """Within the block this process has a claim of its own; yields its name, for `in_sight`."""
    name = f"command-{uuid4().hex}"
    try:
        with claimed(run_dir, name):
            yield name
    finally:
        (run_dir / CLAIMS / f"{name}.lock").unlink(missing_ok=True)


def in_sight(run_dir: Path, name: str) -> bool:
    """Whether the claim that `presence` named is held, and seen to be held from here.

    If not, its process has ended, or file locks do not reach from its machine to this one.
    """
    with claimed(run_dir, name) as free:
        return not free


def _lock(run_dir: Path, name: str) -> FileLock:
    folder = run_dir / CLAIMS
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def threads_each(settings: Settings) -> int | None:
    """CPU threads of every worker; none: as torch chooses.

    What the settings say, else as many as the CPUs that a worker is given; on one machine an equal share.
    """
    if settings.threads is not None or settings.workers == 1:
        return settings.threads
    if settings.executor == "slurm":
        return settings.slurm.cpus_per_task
    if settings.executor == "ray":
        return max(1, int(settings.ray.num_cpus))
    return max(1, _cores() // settings.workers)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
