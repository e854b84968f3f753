"""Values as people write them elsewhere, and how they are written here."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tandem.cli.line import Argument, Option
from tandem.cli.words import CONFIGURATION, HYPHENS

YES, NO = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
SIZES = {"k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}


def as_meant(part: Argument) -> tuple[str, Argument | None] | None:
    """What is wrong with the values of an option, and the option as it was meant (none: leave it out).

    None where they can be read as they are, or where nothing is known to have been meant.
    """
    option = part.option
    assert option is not None
    if option.kind == "switch":
        return _switch(option, part)
    if "separator" in option.name and "\\n" in "".join(part.values):
        what = f"{part.given} {part.values[0]} is no line end but a backslash and a letter"
        return what, replace(part, values=(part.values[0].replace("\\n", "\n"),))
    if option.free:
        return None
    given = (*part.values, *part.strays)
    if option.none and len(given) == 1 and given[0].lower() in {"none", "null", "~"}:
        if given[0] != "None" and not Path(given[0]).exists():
            return f"the value for nothing is written None, not {given[0]}", replace(part, values=("None",))
        return None
    if option.many and option.kind in {"int", "choice"}:
        return _list(option, part)
    if option.kind in {"int", "float"} and part.values:
        return _number(option, part)
    return None


def _switch(option: Option, part: Argument) -> tuple[str, Argument | None] | None:
    """`--phase2.shuffle true`, where the name alone says it."""
    value = (part.values or part.strays[:1] or ("",))[0].lower()
    if value not in YES | NO:
        return None
    on = (value in YES) == (part.given.replace("_", "-") == option.name)
    strays = part.strays if part.values else part.strays[1:]
    what = f"{part.given} is a switch and takes no value"
    if not on and option.off is None:
        return f"{what}; leave it out", None
    return what, Argument(option, option.name if on else str(option.off), (), strays)


def _list(option: Option, part: Argument) -> tuple[str, Argument] | None:
    """`[0,1]`, `0,1,2` or `C2T1`, where values stand apart."""
    meant: list[str] = []
    named = False
    for word in re.split(r"[\s,;]+", " ".join(part.values)):
        piece = word.strip("[](){}'\"")
        configuration = CONFIGURATION.fullmatch(piece) if option.kind == "int" else None
        named = named or configuration is not None
        meant += configuration.groups() if configuration else [piece] if piece else []
    if tuple(meant) == part.values or not meant:
        return None
    what = (
        "a configuration is given as two numbers, context layers and token layers"
        if named
        else f"{part.given} takes its values one by one, with blanks between and without commas or brackets"
    )
    return what, replace(part, values=tuple(meant))


def _number(option: Option, part: Argument) -> tuple[str, Argument] | None:
    """A number with another minus, with commas, with a unit, or a whole one as `1e6`."""
    word = part.values[0]
    read: Callable[[str], float] = int if option.kind == "int" else float
    if reads(read, word):
        return None
    text = word.strip().strip("[](){}'\"")
    for hyphen in HYPHENS:
        text = text.replace(hyphen, "-")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+", text):
        text = text.replace(",", "")
    elif re.fullmatch(r"-?\d*,\d+", text):
        text = text.replace(",", ".")
    sized = re.fullmatch(r"([\d.]+)\s*([kmg]b?)", text, re.IGNORECASE)
    if sized and reads(float, sized[1]):
        text = str(float(sized[1]) * SIZES[sized[2].lower()])
    if option.kind == "int" and reads(float, text) and float(text).is_integer():
        text = str(int(float(text)))
    if text == word or not reads(read, text):
        return None
    kind = "a whole number in digits" if option.kind == "int" else "a number with a point"
    return f"{part.given} takes {kind}, not {word}", replace(part, values=(text,))


def reads(read: Callable[[str], float], text: str) -> bool:
    """Whether a text is a number of the kind that `read` makes."""
    try:
        read(text)
    except (ValueError, OverflowError):
        return False
    return True
