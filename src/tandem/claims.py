"""Several processes on one folder, of one machine or of any machines that share it.

What a process works on it claims by a file lock, which the system takes back from a process that dies:
another one then makes what is left.
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

from filelock import FileLock, Timeout

from tandem.errors import TandemError

CLAIMS = "claims"
"""The folder of the locks within that folder; it may be deleted when nobody works there."""


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Within the block, whether this process has the claim `name`; if not, another one has it just now.

    Raises FileNotFoundError if there is no such folder.
    """
    lock = _lock(folder, name)
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
def in_turn(folder: Path, name: str) -> Iterator[None]:
    """As `claimed`, but waits until it has it."""
    with _lock(folder, name):
        yield


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
def helped(helpers: int, work: Callable[..., None], *given: Any) -> Iterator[None]:
    """Within the block so many further processes do `work(*given)`.

    It has to be an importable function. The block ends when all work is done, so what still runs is stopped.
    """
    context = multiprocessing.get_context("spawn")  # a process with threads, as this one, cannot be forked
    processes = [context.Process(target=_help, args=(work, *given), daemon=True) for _ in range(helpers)]
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
    try:
        work(*given)
    except TandemError as error:
        sys.stderr.write(f"tandem: a worker stopped: {error}\n")
        raise SystemExit(2) from None
