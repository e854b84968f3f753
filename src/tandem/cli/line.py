"""A command line in its parts: options, the values they take, and words that no option takes."""

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from tandem.cli.words import HYPHENS
from tandem.settings import OneOf

FREE = {"prompt", "description", "separator", "data.separator", "data.validation-separator"}
"""Options whose value is any text: nothing is read into it."""


@dataclass(frozen=True)
class Option:
    """An option of a command.

    key      dotted name of the setting or argument that it gives.
    kind     `switch` (takes no value), `int`, `float`, `text`, or `choice` (of a few words).
    many     whether it takes any number of values.
    pairs    whether these are taken in pairs.
    none     whether `None` is one of them.
    off      what switches it off, if anything does.
    """

    name: str
    key: str
    kind: str
    many: bool = False
    pairs: bool = False
    none: bool = False
    off: str | None = None

    @property
    def free(self) -> bool:
        """Whether its value is any text."""
        return self.name.removeprefix("--") in FREE


@dataclass(frozen=True)
class Argument:
    """An option as it was given, and the words after it; the first part has those before all options.

    option    none: the first part, or what looks like an option and is none of this command's.
    given     the name as it was typed.
    values    those that the option takes.
    strays    the rest, up to the next option.
    """

    option: Option | None = None
    given: str = ""
    values: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()

    def takes_more(self) -> bool:
        """Whether the option takes another word after those it has."""
        if self.option is None or self.option.kind == "switch" or self.strays:
            return False
        return self.option.many or not self.values

    def words(self) -> tuple[str, ...]:
        """This part as arguments; a value that would be taken for an option is joined by `=`."""
        if not self.given:
            return self.strays
        if len(self.values) == 1 and (not self.values[0] or is_option(self.values[0])):
            return (f"{self.given}={self.values[0]}", *self.strays)
        return (self.given, *self.values, *self.strays)


@dataclass(frozen=True)
class Line:
    """The arguments of one command."""

    command: str
    options: Mapping[str, Option]
    parts: tuple[Argument, ...]

    @classmethod
    def of(cls, command: str, options: Mapping[str, Option], args: Sequence[str]) -> "Line":
        """`args` in parts."""
        parts, current = [], Argument()
        for word in args:
            name, equals, value = word.partition("=")
            if is_option(word) or (looks_like_option(word) and (current.values or not current.takes_more())):
                parts.append(current)
                option = (
                    options.get(name.replace("_", "-")) if is_option(word) else None
                )  # as tyro reads names
                current = Argument(option, name, (value,) if equals else ())
            elif current.takes_more():
                current = replace(current, values=(*current.values, word))
            else:
                current = replace(current, strays=(*current.strays, word))
        return cls(command, options, (*parts, current))

    def args(self) -> list[str]:
        """The arguments again."""
        return [word for part in self.parts for word in part.words()]

    def find(self, name: str) -> Argument | None:
        """The part of the option of this name, where it was given."""
        return next((part for part in self.parts if part.option and part.option.name == name), None)

    def replaced(self, index: int, *parts: Argument) -> "Line":
        """With other parts in place of one."""
        return replace(self, parts=(*self.parts[:index], *parts, *self.parts[index + 1 :]))

    def with_option(self, name: str, *values: str) -> "Line":
        """With another option at the end."""
        return replace(self, parts=(*self.parts, Argument(self.options.get(name), name, values)))


def is_option(word: str) -> bool:
    """Whether a word is read as an option wherever it stands: it begins with a hyphen and is no number."""
    if not word.startswith("-") or word == "-" or " " in word.split("=")[0]:
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def looks_like_option(word: str) -> bool:
    """Whether a word was meant as an option: a letter after hyphens, or what word processors make of them."""
    name = word.split("=")[0]
    return name[:1] in tuple(f"-{HYPHENS}") and name.lstrip(f"-{HYPHENS}")[:1].isalpha() and " " not in name


def options_of(kind: type, hidden: set[str]) -> dict[str, Option]:
    """The options of a command by every name they have, from the types of its fields, less those `hidden`."""
    found = {name: Option(name, "help", "switch") for name in ("--help", "-h")}
    for option in _options(kind, "", hidden):
        found[option.name] = option
        if option.off:
            found[option.off] = option
    return found


def _options(kind: type, path: str, hidden: set[str]) -> Iterator[Option]:
    for key, annotation in _fields(kind):
        if key in hidden and not path:
            continue
        annotation, marks = _plain(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _options(annotation, f"{path}{key}.", hidden)
        elif "Positional" not in marks:
            name = next((mark.split("=")[1] for mark in marks if mark.startswith("name=")), key)
            given = f"--{path}{name}".replace("_", "-")
            yield _option(given, f"{path}{key}", annotation, "PairsOff" in marks)


def _fields(kind: type) -> Iterator[tuple[str, Any]]:
    """Name and type of each field of a pydantic model or dataclass."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        yield from ((one.name, hints[one.name]) for one in fields(kind))
    elif issubclass(kind, BaseModel):
        for name, info in kind.model_fields.items():
            marked = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
            yield name, marked


def _plain(annotation: Any) -> tuple[Any, set[str]]:
    """A type without its marks, and the marks that matter here."""
    marks = set()
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for mark in more:
            marks.add("PairsOff" if "FlagCreatePairsOff" in str(mark) else "")
            marks.add("Positional" if "Positional" in str(mark) else "")
            if name := getattr(mark, "name", None):
                marks.add(f"name={name}")
            if isinstance(mark, OneOf):
                annotation = Literal[mark.choices]
    return annotation, marks


def _option(name: str, key: str, annotation: Any, pairs_off: bool) -> Option:
    branches = [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        branches = [_plain(branch)[0] for branch in get_args(annotation)]
    none = type(None) in branches
    kinds = [branch for branch in branches if branch is not type(None)]
    levels = 0
    while get_origin(kinds[0]) is tuple:
        kinds, levels = [_plain(get_args(kinds[0])[0])[0]], levels + 1
    many, pairs = levels > 0, levels > 1
    if kinds == [bool]:
        section, _, last = name.removeprefix("--").rpartition(".")
        off = f"--{section}.no-{last}" if section else f"--no-{last}"
        return Option(name, key, "switch", off=None if pairs_off else off)
    kind = {int: "int", float: "float"}.get(kinds[0], "text")
    if len(kinds) > 1 or get_origin(kinds[0]) is Literal:
        kind = "choice"
    return Option(name, key, kind, many, pairs, none)
