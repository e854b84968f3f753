"""The errors that a person using Tandem is meant to read.

Every one is a single sentence (or two) that says what was wrong, where, and what to do. The command line
prints it without a traceback and exits with code 2; as a library they are ordinary exceptions.
"""

from collections.abc import Mapping, Sequence

from tandem.shown import command


class TandemError(Exception):
    """Something the user can mend: bad input, an impossible setting, an unwritable place."""


class SettingsError(TandemError):
    """A setting is unknown, of the wrong type, or impossible together with another one."""


class DataError(TandemError):
    """A text, tokenizer or embedding source is missing, malformed, or does not fit the settings."""


class MisfitError(SettingsError, DataError):
    """Settings that do not fit the text or each other; what would mend them is options of the command.

    said       what does not fit
    options    by name, such as `--phase2.batch-positions`, with the value that fits; None for one without
    or_else    what else would mend it
    """

    said: str
    options: Mapping[str, object | None]
    or_else: str

    @classmethod
    def of(cls, said: str, options: Mapping[str, object | None], or_else: str = "") -> "MisfitError":
        """One misfit. (No __init__, as in NonFiniteLossError.)"""
        words = [word for name, value in options.items() for word in (name, value) if word is not None]
        ways = [f"add {command(*words)}"] if words else []
        error = cls(f"{said}; {', or '.join([*ways, *([or_else] if or_else else [])])}".removesuffix("; "))
        error.said, error.options, error.or_else = said, options, or_else
        return error

    @classmethod
    def of_all(cls, found: Sequence["MisfitError"]) -> "MisfitError":
        """Several as one, with all options that mend them; of one that several name, the smallest value."""
        options: dict[str, object | None] = {}
        for name, value in (item for error in found for item in error.options.items()):
            before = options.get(name, value)
            options[name] = (
                min(before, value) if isinstance(before, int) and isinstance(value, int) else value
            )
        others = dict.fromkeys(error.or_else for error in found if error.or_else)
        return cls.of("; ".join(dict.fromkeys(error.said for error in found)), options, ", or ".join(others))


class ScanError(TandemError):
    """The segment-parallel scan disagrees with the sequential loop by more than its tolerance."""


class NonFiniteLossError(TandemError):
    """A loss or gradient was NaN or infinite; the step was refused before the optimizer saw it."""

    @classmethod
    def of(cls, stopped: str, loss: float, last: str, lower: str) -> "NonFiniteLossError":
        """What was stopped where, the loss there, the last good values if any, and the setting to lower.

        No __init__, as errors of workers are pickled, which calls that with the sentence alone.
        """
        return cls(
            f"{stopped}: the loss or its gradient is not finite (loss {loss}); {last}; try a lower {lower}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory did not suffice."""
    # torch raises a RuntimeError; that of the allocator for CPUs is told by its words alone.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(said in str(error) for said in ("can't allocate memory", "out of memory", "bad_alloc"))
    )


def out_of_memory(error: BaseException, training: bool = True) -> str:
    """What to tell of such an error."""
    said = str(error).strip().split("\n")[0]
    advice = (
        ", or hold less at once: lower --prediction.streams, --phase1.batch-positions, "
        "--phase2.batch-positions or the sizes of --model, or give --contexts.keep recompute"
    )
    return f"memory ran out{f' ({said})' if said else ''}; make room{advice if training else ''}"


class RunDirError(TandemError):
    """A run directory cannot be used: unwritable, too little disk, or of another experiment."""
