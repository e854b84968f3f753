"""Several processes on one folder, of one machine or of any machines that share it.

What a process works on it claims by a file lock, which the system takes back from a process that dies:
another one then makes what is left.

On several machines this relies on a file system whose `flock` spans them: NFS 4, or NFS 3 with its lock
service (but not mounted with `nolock` or `local_lock`), Lustre mounted with `flock` (not `localflock`), GPFS,
CephFS. `is_alive` tells a process that was started for a command where it does not. NFS shows what was
written and closed before a claim is released to whoever opens it after the claim is had. If a whole machine
dies, and not only a process on it, its claims stay until the server ends its lease (NFS 4: a minute or two).
A machine that was cut off for longer may go on with a run that another has begun by then.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from tandem.errors import TandemError, naming
from tandem.shown import one_line, tolerate_any_encoding
from tandem.stopping import Stopped, stopping_gently

CLAIMS = "claims"
"""The folder of the locks within that folder; it may be deleted when nobody works there."""


@contextmanager
def try_lock(folder: Path, name: str) -> Iterator[bool]:
    """Within the block, whether this process has the claim `name`; if not, another one has it just now.

    Raises FileNotFoundError if there is no such folder.
    """
    lock = _lock(folder, name)
    try:
        with naming(Path(lock.lock_file)):
            lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with naming(Path(lock.lock_file)):
            lock.release()


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """As `try_lock`, but waits until it has it."""
    lock = _lock(folder, name)
    with naming(Path(lock.lock_file)):
        lock.acquire()
    try:
        yield
    finally:
        with naming(Path(lock.lock_file)):
            lock.release()


@contextmanager
def liveness_lock(folder: Path) -> Iterator[str]:
    """Within the block this process has a claim of its own; yields its name, for `is_alive`."""
    name = f"command-{uuid4().hex}"
    try:
        with try_lock(folder, name):
            yield name
    finally:
        (folder / CLAIMS / f"{name}.lock").unlink(missing_ok=True)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the claim that `liveness_lock` named is held, and seen to be held from here.

    If not, its process has ended, or file locks do not reach from its machine to this one.
    """
    with try_lock(folder, name) as free:
        return not free


def _lock(folder: Path, name: str) -> FileLock:
    claims = folder / CLAIMS
    claims.mkdir(exist_ok=True)
    return FileLock(claims / f"{name}.lock")


def cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


@contextmanager
def worker_processes(count: int, work: Callable[..., None], *given: Any) -> Iterator[None]:
    """Within the block so many further processes do `work(*given)`.

    It has to be an importable function. The block ends when all work is done, so what still runs is stopped.
    """
    context = multiprocessing.get_context("spawn")  # a process with threads, as this one, cannot be forked
    processes = [context.Process(target=_help, args=(work, *given), daemon=True) for _ in range(count)]
    with _interrupts_ignored():  # helpers inherit that: an interrupt stops this process, and this one them
        for process in processes:
            process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others may not change signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _help(work: Callable[..., None], *given: Any) -> None:
    """A helper's whole life. What stops it stops the others too, or only concerns its own process."""
    tolerate_any_encoding()
    try:
        with stopping_gently():
            work(*given)
    except Stopped as stop:  # its training is saved
        raise SystemExit(128 + stop.number) from None
    except TandemError as error:
        sys.stderr.write(f"tandem: a worker stopped: {one_line(str(error))}\n")
        raise SystemExit(2) from None
