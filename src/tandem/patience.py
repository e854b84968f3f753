"""Long work: it says how far it is every few seconds, and Ctrl-C stops it even within a library."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

EVERY_S = 4.0
"""Seconds between two lines of progress."""
LOOK_S = 0.1
"""Seconds between two looks at work in a library; an interrupt is noticed at once on most systems."""
LAST_S = 0.5
"""Seconds that interrupted work is given to end by itself."""


class Pace:
    """Tells how far long work is: not at once, and then every few seconds."""

    def __init__(self, on_progress: Callable[[str], None]) -> None:
        self._say = on_progress
        self._next = time.monotonic() + EVERY_S

    def __call__(self, how_far: Callable[[], str]) -> None:
        """Say `how_far` if it is time."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + EVERY_S
            self._say(how_far())


def patiently(work: Callable[[threading.Event], T], meanwhile: Callable[[], None] = lambda: None) -> T:
    """What `work` returns or raises, done in a thread while this one can be interrupted.

    A library that computes for minutes does not look for Ctrl-C; the thread that waits for it does. `work`
    is given an event that is set when nobody waits any longer: what it feeds to a library should end then.
    `meanwhile` is called while it runs, some ten times a second.
    """
    left = threading.Event()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(left))
        except BaseException as error:  # it is raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a process that ends does not wait for it
    try:
        while not wait([future], LOOK_S).done:
            meanwhile()
    except BaseException:
        left.set()
        wait([future], LAST_S)
        raise
    return future.result()
