"""The options of a command, by the types of its arguments."""

import types
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Option:
    """An option of a command.

    name     such as `--phase2.lr`.
    key      dotted name of the setting or argument that it gives.
    kind     type of one value; `bool`: a switch, which takes none.
    depth    1: it takes any number of values, and 2: in pairs.
    none     whether `None` is a value, too.
    off      the name that switches it off, if there is one.
    """

    name: str
    key: str
    kind: type[bool] | type[int] | type[float] | type[str]
    depth: int = 0
    none: bool = False
    off: str | None = None

    def takes_more(self, given: list[str]) -> bool:
        """Whether it takes another value after those that are `given`."""
        return self.kind is not bool and (self.depth > 0 or not given)


def options_of(kind: type[BaseModel], hidden: Set[str]) -> dict[str, Option]:
    """The options of a command by every name they have, less those that are `hidden`."""
    found = {name: Option(name, "help", bool) for name in ("--help", "-h")}
    for option in _options(kind, hidden):
        found |= {name: option for name in (option.name, option.off) if name}
    return found


def _options(kind: type[BaseModel], hidden: Set[str], path: str = "") -> Iterator[Option]:
    for key, field in kind.model_fields.items():
        section = field.annotation
        if key in hidden or tyro.conf.Positional in field.metadata:
            continue
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _options(section, set(), f"{path}{key}.")
        else:
            yield _option(path, key, field)


def _option(path: str, key: str, field: FieldInfo) -> Option:
    last = next((mark.name for mark in field.metadata if getattr(mark, "name", None)), key).replace("_", "-")
    start, key = f"--{path}".replace("_", "-"), f"{path}{key}"
    branches = _branches(field.annotation)
    kinds, depth = [branch for branch in branches if branch is not types.NoneType], 0
    while get_origin(kinds[0]) is tuple:
        kinds, depth = _branches(get_args(kinds[0])[0]), depth + 1
    if kinds == [bool]:
        has_off = tyro.conf.FlagCreatePairsOff not in field.metadata
        return Option(f"{start}{last}", key, bool, off=f"{start}no-{last}" if has_off else None)
    kind = kinds[0] if kinds in ([int], [float]) else str
    return Option(f"{start}{last}", key, kind, depth, types.NoneType in branches)


def _branches(annotation: Any) -> list[Any]:
    """The types of a union, or the one type, without marks."""
    if get_origin(annotation) is Annotated:
        return _branches(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [branch for part in get_args(annotation) for branch in _branches(part)]
    return [annotation]
