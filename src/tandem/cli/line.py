"""A command line, read word by word. The first mistake in it is one sentence: what, where, and what to do."""

import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tandem.cli.options import Option
from tandem.errors import SettingsError
from tandem.settings import Settings, preset_names
from tandem.shown import command as typed

OF_SETTINGS = ("train", "experiment", "config")
"""Commands whose own word stands before all options; that of the others stands anywhere."""
PLACES = {
    **dict.fromkeys(OF_SETTINGS, "a preset or settings file"),
    **dict.fromkeys(("adapt", "evaluate", "score", "generate", "quantize"), "a model folder"),
    "ensemble": "two model folders or more",
    "audit": "a run directory or model folder",
    "report": "a run directory",
    "compare": "two run directories",
    "doctor": "",
    "completion": "a shell (bash, zsh or fish)",
}
"""By command, its own word: what it takes besides options; empty for nothing."""
SEVERAL = {"score": "files", "compare": "others", "ensemble": "others"}
"""Commands that take more words after their own, and the argument that these are."""
TEXTS = {
    **dict.fromkeys(OF_SETTINGS, "a text stands after --data.train"),
    **dict.fromkeys(("adapt", "evaluate"), "a text stands after --data"),
    "generate": "a prompt stands after --prompt, in quotes",
}
"""Where a text belongs, which people give without its option."""
NEEDED = {
    "adapt": ("the text to adapt to", ("--data",)),
    "evaluate": ("the text to score", ("--data",)),
    "generate": ("the text to continue (`-`: standard input)", ("--prompt", "--prompt-file")),
}
"""What a command cannot do without, and the options of which exactly one gives it."""
FREE = {"prompt", "description", "separator", "data.separator", "data.validation_separator"}
"""Options that take any text, also an empty one or `none`."""
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
"""What word processors make of hyphens."""
ALSO = {
    **dict.fromkeys(("data", "text", "input", "file"), ("--data.train", "--data", "--prompt-file")),
    "configurations": ("--context-layers", "--token-layers"),
    "learning-rate": ("lr",),
    "batch-size": ("batch-positions",),
    "max-length": ("max-new-tokens",),
    "out": ("output",),
    "gpu": ("device",),
}
"""What other programs call an option: what it is called here, as a whole or after its section."""


def read(
    command: str, options: Mapping[str, Option], args: Sequence[str]
) -> tuple[str | None, dict[str, Any]]:
    """The command's own word, and values by the keys of their options.

    A value stays a text where it is not of its option's type. Raises SettingsError for the first mistake.
    """
    own, before = None, ""
    values: dict[str, Any] = {}
    rest = list(args)
    while rest:
        first, word = len(rest) == len(args), rest.pop(0)
        if not _is_option(word):
            if own is not None and command in SEVERAL:
                values.setdefault(SEVERAL[command], []).append(word)
                continue
            if own is not None or not PLACES[command] or (command in OF_SETTINGS and not first):
                raise SettingsError(_stray(command, options, word, before))
            own, before = word, ""
            continue
        before, equals, value = word.partition("=")
        if (option := options.get(before.replace("_", "-"))) is None:
            raise SettingsError(_unknown(command, options, before))
        given = [value] if equals else []
        # A word that begins with a dash is taken as the first value, and as a further one it is an option.
        while rest and option.takes_more(given) and not _is_option(rest[0], dashes=bool(given)):
            given.append(rest.pop(0))
        if (wrong := _wrong(option, before, given)) is not None:
            raise SettingsError(wrong)
        meant = _value(option, before, given)
        if option.depth and values.get(option.key, meant) != meant:
            raise SettingsError(f"{before} is given twice; give all its values to one")
        values[option.key] = meant
    if (wrong := _missing(command, options, own, values)) is not None:
        raise SettingsError(wrong)
    return own, values


def no_such_command(word: str, commands: Sequence[str]) -> str:
    """What to say of a first word that is no command."""
    near = difflib.get_close_matches(word, commands, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "a command comes before all files and options"
    return f"there is no command '{word}'; {hint} (commands: {', '.join(commands)})"


def _is_option(word: str, dashes: bool = True) -> bool:
    """Whether a word begins as an option does and is no number; `dashes`: a dash is meant as a hyphen."""
    name = word.split("=")[0]
    if " " in name or word == "-":
        return False
    if not name.startswith("-"):
        return dashes and name[:1] in tuple(DASHES) and name.lstrip(f"-{DASHES}")[:1].isalpha()
    try:
        float(word)
    except ValueError:
        return True
    return False


def _value(option: Option, name: str, given: list[str]) -> Any:
    if option.kind is bool:
        return name.replace("_", "-") == option.name
    if option.none and given == ["None"]:
        return None
    values: list[Any] = list(given)
    with suppress(ValueError, OverflowError):  # whose text the settings then refuse by their own name
        values = [option.kind(word) for word in given]
    pairs = [values[first : first + 2] for first in range(0, len(values), 2)]
    return values[0] if option.depth == 0 else values if option.depth == 1 else pairs


def _wrong(option: Option, name: str, given: list[str]) -> str | None:
    """What is wrong with the values of an option, as far as its type does not say it."""
    text = " ".join(given)
    if option.kind is bool:
        off = f" ({option.name} or {option.off})" if option.off else ""
        return f"{name} is a switch and takes no value{off}" if given else None
    if not given and not option.depth:
        return f"{name} has no value (one that begins with a hyphen is written --option=-value)"
    if "separator" in option.key and "\\n" in text:
        right = typed(name, text.replace("\\n", "\n"))
        return f"{name} {text} is no line end but a backslash and a letter; give {right}"
    if option.key in FREE:
        return None
    if "" in given:
        return f"{name} is empty; give it a value, or leave it out"
    if option.none and text.lower() in {"none", "null", "~"} and text != "None" and not Path(text).exists():
        return f"{name} {text} is not possible; the value for nothing is written None"
    if option.depth and option.kind is int and re.search(r"[][,;]|C\d+T\d+", text, re.IGNORECASE):
        numbers = typed(name, *re.findall(r"\d+", text))
        return f"{name} takes numbers with blanks between, not {text}; give {numbers}"
    return None


def _stray(command: str, options: Mapping[str, Option], word: str, before: str) -> str:
    """What to say of a word that is neither a value of the option before it nor the command's own word."""
    text, option = TEXTS.get(command, ""), options.get(before.replace("_", "-"))
    own = f"one word besides options, {PLACES[command]}" if PLACES[command] else "options alone"
    place = f"`tandem {command}` takes {own}"
    if (name := f"--{word.partition('=')[0]}".replace("_", "-")) in options:
        why = f"options begin with two hyphens, as in {name}"
    elif command in OF_SETTINGS and (word in preset_names() or Path(word).suffix in {".yaml", ".yml"}):
        why = f"{place}, which comes first"
    elif option is not None and option.kind is bool:
        why = f"{_wrong(option, before, [word])}"
    elif option is not None and option.kind is str:
        why = f"{before} takes one value, so put several words, or a pattern of files, in quotes"
        why += f"; {text}" if before not in text else ""
    else:
        why = f"{place}; {text}" if text else place
    return f"{word} belongs to no option: {why}"


def _unknown(command: str, options: Mapping[str, Option], given: str) -> str:
    """What to say of an option that the command does not have."""
    name = given.lstrip(f"-{DASHES}").translate(dict.fromkeys(map(ord, f"_{DASHES}"), "-"))
    if f"--{name}" in options:
        return f"{given} does not begin with two hyphens, as options do: --{name}"
    said = f"there is no option {given}"
    if near := _similar(name, options):
        said += f"; did you mean {'' if len(near) == 1 else 'one of '}{', '.join(near)}?"
    elif name.split(".")[0] in Settings.model_fields:
        said += "; `tandem experiment` has it"
    return f"{said} (`tandem {command} --help` lists all)"


def _similar(name: str, options: Mapping[str, Option]) -> list[str]:
    """Options that may be meant by a name: by the whole name, or by its end."""
    lasts = {option: option.rsplit(".", 1)[-1].lstrip("-") for option in sorted(options)}
    if len(name) == 1:
        return [option for option in lasts if option.startswith(f"--{name}") and "." not in option]
    if also := [o for o, last in lasts.items() if {o, last} & set(ALSO.get(name, ()))]:
        return also
    if near := difflib.get_close_matches(f"--{name}", lasts, n=1, cutoff=0.7):
        return near
    own = name.rsplit(".", 1)[-1]
    within = [option for option, last in lasts.items() if set(own.split("-")) <= set(last.split("-"))]
    similar = difflib.get_close_matches(own, lasts.values(), n=1, cutoff=0.75)
    same = [option for option in within if lasts[option] == own]
    return same or within or [option for option, last in lasts.items() if last in similar]


def _missing(
    command: str, options: Mapping[str, Option], own: str | None, values: dict[str, Any]
) -> str | None:
    """What the command cannot do without, or has in two ways."""
    if own is None and PLACES[command] and command not in OF_SETTINGS:
        return f"`tandem {command}` needs {PLACES[command]}"
    what, ways = NEEDED.get(command, ("", ()))
    given = [way for way in ways if options[way].key in values]
    if ways and not given:
        return f"`tandem {command}` needs {' or '.join(ways)}, {what}"
    return f"{' and '.join(given)} each give {what}; keep one of them" if len(given) > 1 else None
