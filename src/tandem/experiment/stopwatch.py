"""How long work takes, by its first moments, and how much memory."""

import contextlib
import time
import tracemalloc
from collections.abc import Callable

from tandem.training.progress import OnTick, Tick

MOMENT_S = 2.0
"""How long each kind of work is timed, and at least so many of its steps."""
LEAST_TICKS = 4


class _Enough(Exception):
    """The work has been watched for long enough."""


class _Watch:
    """Stops a training after a moment, and tells what all of it would take."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._ticks: list[tuple[float, float]] = []  # when, and what was done by then
        self._limit = 1

    def __call__(self, tick: Tick) -> None:
        now = time.perf_counter()
        self._limit = tick.limit
        self._ticks.append((now, tick.done))
        if len(self._ticks) >= LEAST_TICKS and now - self._began > MOMENT_S:
            raise _Enough

    def seconds(self) -> float:
        """Of the whole training, to its limit. The first step, which also sets up, is left out."""
        ticks = [(when, done) for when, done in self._ticks if done < 1] or self._ticks
        (first, before), (last, after) = ticks[0], ticks[-1]
        if len(ticks) < 2 or after <= before:
            return (ticks[-1][0] - self._began) * self._limit / ticks[-1][1]
        return (last - first) / (after - before) * self._limit


def seconds_of(train: Callable[[OnTick], object]) -> float:
    """Of a whole training that tells a watcher how far it is, by its first moments."""
    watch = _Watch()
    with contextlib.suppress(_Enough):
        train(watch)
    return watch.seconds()


def timed(work: Callable[[], object]) -> float:
    """Seconds of the work, to its end."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def allocated(work: Callable[[], object]) -> int:
    """Bytes of Python and numpy at the peak of the work, which takes longer for being watched."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
