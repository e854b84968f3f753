"""Signals that ask a command to stop. A training finishes its step and is saved; all else stops at once.

Contexts and scores, which a training waits for, are computed again: they stop between two of their parts.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP
SAYS = b"tandem: finishing the step, then saving; the same signal again stops at once\n"


class Stopped(KeyboardInterrupt):
    """A signal asked to stop. Those that look for Ctrl-C see this, too."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    """Of this process.

    looked_at    whether a training looks at signals after its steps.
    save         saves that training between two steps; none where it is not alone.
    number       the signal that came.
    """

    looked_at = False
    save: Callable[[], None] | None = None
    number: int | None = None


@contextmanager
def stopping_gently() -> Iterator[None]:
    """Within the block these signals raise Stopped: at once, or after the step of a training that is saved.

    Outside the main thread it changes nothing, since signals cannot be changed there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that is ignored stays so: helpers ignore Ctrl-C, and `nohup` ignores SIGHUP.
    ours = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in ours}
    # Of a training that a program ran before, and that it did not put into `until_saved`.
    _State.number, _State.looked_at, _State.save = None, False, None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.number = None


@contextmanager
def until_saved() -> Iterator[None]:
    """Around a training and what saves its result. A signal that came meanwhile is raised at the end."""
    before = _State.looked_at, _State.save
    try:
        yield
    finally:
        _State.looked_at, _State.save = before
    raise_if_requested()


def look_after_steps(save: Callable[[], None] | None = None) -> None:
    """From now on, up to the end of `until_saved`, a training looks at `stop_requested` after its steps.

    With `save`, which saves it, `stop_between_parts` stops it, too.
    """
    _State.looked_at, _State.save = True, save


def stop_between_parts() -> None:
    """Between two parts of contexts or scores. Where a signal asked to stop, the training is saved.

    Raises Stopped then. It does nothing where several processes train together: others would wait for it.
    """
    if _State.number is not None and _State.looked_at and _State.save is not None:
        _State.save()
        raise Stopped(_State.number)


@contextmanager
def nothing_to_save() -> Iterator[None]:
    """Within the block `stop_between_parts` saves nothing: what was saved is still all that there is."""
    before = _State.save
    _State.save = before and (lambda: None)
    try:
        yield
    finally:
        _State.save = before


def stop_requested() -> int | None:
    """The signal that asked this process to stop, if one did."""
    return _State.number


def raise_if_requested() -> None:
    """Raises Stopped where a signal has asked to stop."""
    if _State.number is not None:
        raise Stopped(_State.number)


def _on_signal(number: int, _: FrameType | None) -> None:
    again = _State.number is not None
    _State.number = number
    if again or not _State.looked_at:
        raise Stopped(number)
    os.write(2, SAYS)  # sys.stderr may be in the middle of a line of its own
