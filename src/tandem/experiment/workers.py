"""Several workers on one run directory: processes of one machine, or of any machines that share it.

What a worker works on it claims by a file lock, which the system takes back from a process that dies: another
worker then makes what is left. Runs that share a phase 1 are claimed together.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tandem.errors import TandemError
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


def _lock(run_dir: Path, name: str) -> FileLock:
    folder = run_dir / CLAIMS
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def threads_each(settings: Settings) -> int | None:
    """CPU threads of every worker: what the settings say, else an equal share; none: as torch chooses."""
    if settings.threads is not None or settings.workers == 1:
        return settings.threads
    return max(1, _cores() // settings.workers)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


@contextmanager
def helped(settings: Settings, run_dir: Path, work: Callable[[Settings, Path], None]) -> Iterator[None]:
    """Within the block `settings.workers` - 1 further processes do `work` on the run directory.

    It has to be an importable function. The block ends when all work is done, so what still runs is stopped.
    """
    context = multiprocessing.get_context("spawn")  # a process with threads, as this one, cannot be forked
    helpers = [
        context.Process(target=_help, args=(settings, run_dir, work), daemon=True)
        for _ in range(settings.workers - 1)
    ]
    with _interrupts_ignored():  # helpers inherit that: an interrupt stops this process, and this one them
        for helper in helpers:
            helper.start()
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()
            helper.join()


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


def _help(settings: Settings, run_dir: Path, work: Callable[[Settings, Path], None]) -> None:
    """A helper's whole life. What stops it stops the others too, or only concerns its own process."""
    try:
        work(settings, run_dir)
    except TandemError as error:
        sys.stderr.write(f"tandem: a worker stopped: {error}\n")
        raise SystemExit(2) from None
