"""Settings in messages, named as the command at hand takes them; advice that it could not follow is left out.

What `tandem train` takes as `--contexts.method loop`, `tandem evaluate` reads from a file, and an audit takes
as it was recorded. So messages never write an option out: they give the setting's name here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from tandem.shown import command


class _Written(NamedTuple):
    """Settings that were written down before: in which file, and which of its sections may be changed."""

    file: Path | None
    sections: tuple[str, ...]


Options = Mapping[str, str]
"""The option that a command has for a setting, by the setting's dotted name."""
_options: ContextVar[Options | None] = ContextVar("options", default=None)
_written: ContextVar[_Written | None] = ContextVar("written", default=None)


@contextmanager
def in_command(options: Options | None) -> Iterator[None]:
    """Within the block a command with these options is at hand; None: none is, as where Python calls."""
    before = _options.set(options)
    try:
        yield
    finally:
        _options.reset(before)


def command_options() -> Options | None:
    """Those of the command at hand, to hand on to another process."""
    return _options.get()


@contextmanager
def written_settings(file: Path | None = None, sections: tuple[str, ...] = ()) -> Iterator[None]:
    """Within the block settings are those that were written down before, and options do not change them.

    In `file` those of `sections` may be changed by hand; without one, none may.
    """
    before = _written.set(_Written(file, sections))
    try:
        yield
    finally:
        _written.reset(before)


def named(setting: str) -> str:
    """A setting, or one with its value such as "contexts.method loop", as the command at hand takes it.

    Where it takes none of that name, or there is no command, it is `contexts.method = loop`.
    """
    return _followed(setting) or _plain(setting)


def advice(*ways: str | tuple[str, ...]) -> str:
    """What to add to a message: "; one way, another, or a third". Empty where no way is left.

    A way that names settings is a tuple: words with {} for them, and the settings as in `named`. Those that
    cannot be changed by who reads this are left out, and a way with none left too.
    """
    left = [said for way in ways if (said := way if isinstance(way, str) else _said(*way))]
    return f"; {_joined(left)}" if left else ""


def together(words: str, *settings: str) -> str:
    """A way that takes all of these settings; empty where one of them cannot be changed by who reads this."""
    found = [_followed(setting) for setting in settings]
    options = all(part.startswith("--") for part in found)
    return words.replace("{}", (" " if options else ", ").join(found)) if found and all(found) else ""


def _said(words: str, *settings: str) -> str:
    found = [said for setting in settings if (said := _followed(setting))]
    return words.replace("{}", _joined(found)) if found else ""


def _joined(parts: list[str]) -> str:
    """Such as "a", "a or b", "a, b or c"; with a comma before "or" where a part has one itself."""
    if len(parts) < 2:
        return "".join(parts)
    comma = "," if any(" " in part for part in parts) else ""
    return f"{', '.join(parts[:-1])}{comma} or {parts[-1]}"


def _followed(setting: str) -> str:
    """How whoever reads this changes the setting; empty where that cannot be."""
    name, _, value = setting.partition(" ")
    if (written := _written.get()) is not None:
        if written.file is None or not name.startswith(tuple(f"{section}." for section in written.sections)):
            return ""
        return f"{name}{f': {value}' if value else ''} in {written.file}"
    if (options := _options.get()) is None:
        return _plain(setting)
    if name not in options:
        return ""
    option = options[name]
    if value in ("true", "false"):  # a switch, such as --phase2.no-shuffle
        section, dot, last = option.removeprefix("--").rpartition(".")
        return option if value == "true" else f"--{section}{dot}no-{last}"
    return command(option, value) if value else option


def _plain(setting: str) -> str:
    return " = ".join(setting.split(" ", 1))
