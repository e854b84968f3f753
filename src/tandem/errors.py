"""The errors that a person using Tandem is meant to read.

Every one is a single sentence (or two) that says what was wrong, where, and what to do. The command line
prints it without a traceback and exits with code 2; as a library they are ordinary exceptions.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tandem.advice import advice, together

SAID_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "could not create a primitive")
"""How libraries say that memory ran out; the last one is oneDNN."""


class TandemError(Exception):
    """Something the user can mend: bad input, an impossible setting, an unwritable place."""


class SettingsError(TandemError):
    """A setting is unknown, of the wrong type, or impossible together with another one."""


class DataError(TandemError):
    """A text, tokenizer or embedding source is missing, malformed, or does not fit the settings."""


class StorageError(DataError):
    """What is made of a text cannot be written down: there is no room, or the place cannot be written to."""


class MisfitError(SettingsError, DataError):
    """Settings that do not fit the text or each other, and the settings that do.

    said       what does not fit.
    fitting    settings by dotted name, such as `phase2.batch_positions`, each with a value that fits.
    or_else    what else would mend it.
    """

    said: str
    fitting: Mapping[str, int | str]
    or_else: str

    @classmethod
    def of(cls, said: str, fitting: Mapping[str, int | str], or_else: str = "") -> "MisfitError":
        """One misfit. (No __init__, as in NonFiniteLossError.)"""
        settings = (f"{name} {value}" for name, value in fitting.items())
        error = cls(said + advice(together("add {}", *settings), or_else))
        error.said, error.fitting, error.or_else = said, fitting, or_else
        return error

    @classmethod
    def of_all(cls, found: Sequence["MisfitError"]) -> "MisfitError":
        """Several as one, with all settings that mend them; of one that several name, the smallest value."""
        fitting: dict[str, int | str] = {}
        for name, value in (item for error in found for item in error.fitting.items()):
            before = fitting.get(name, value)
            smaller = isinstance(before, int) and isinstance(value, int) and before < value
            fitting[name] = before if smaller else value
        others = dict.fromkeys(error.or_else for error in found if error.or_else)
        return cls.of("; ".join(dict.fromkeys(error.said for error in found)), fitting, ", or ".join(others))


class ScanError(TandemError):
    """The segment-parallel scan disagrees with the sequential loop by more than its tolerance."""


class NonFiniteLossError(TandemError):
    """A loss or gradient was NaN or infinite; the step was refused before the optimizer saw it."""

    @classmethod
    def check(cls, loss: float, gradient_norm: float, stopped: str, last: str, *lower: str) -> None:
        """Raise it where either is not finite: what was stopped where, the last good values, what to lower.

        No __init__, as errors of workers are pickled, which calls that with the sentence alone.
        """
        if not is_finite(loss, gradient_norm):
            raise cls(
                f"{stopped}: the loss or its gradient is not finite (loss {loss}); {last}"
                + advice(("try a lower {}", *lower))
            )


def is_finite(loss: float, gradient_norm: float) -> bool:
    """Whether a step may be made."""
    return loss < math.inf and math.isfinite(gradient_norm)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory did not suffice."""
    # torch raises a RuntimeError; that of the allocator for CPUs is told by its words alone.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in SAID_OF_MEMORY)
    )


def out_of_memory(error: BaseException, *settings: str) -> str:
    """What to tell of such an error, where lower values of these settings need less memory."""
    said = str(error).strip().split("\n")[0]
    ways = ("make room", ("lower {}", *settings), ("give {}", "contexts.keep recompute"))
    return f"memory ran out{f' ({said})' if said else ''}" + advice(*ways)


def is_out_of_storage(error: BaseException) -> bool:
    """Whether an error says that a file could not be written or read."""
    # Libraries written in Rust raise what they please; what the system said stands in its words.
    return isinstance(error, OSError) or "(os error " in str(error)


def storage_reason(error: BaseException) -> str:
    """What the system said in such an error, for a message."""
    said = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
    return re.sub(r" \(os error \d+\)", "", said.rpartition("I/O error: ")[2])


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block an error of the system that names no file, as of closing one, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None


class RunDirError(TandemError):
    """A run directory cannot be used: unwritable, too little disk, or of another experiment."""


class UnsavedError(RunDirError):
    """A trained model could not be saved where it was to be; the message says where it is instead."""


class DamageError(TandemError):
    """A file is not the one that was written: its checksum is another one."""
