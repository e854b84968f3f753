"""What all sections of the settings share: types of values, names, and errors as one sentence."""

import difflib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema
from tyro.constructors import PrimitiveConstructorSpec

from tandem.errors import SettingsError

Positive = Annotated[int, Field(gt=0, lt=1 << 63)]
Place = Annotated[str, AfterValidator(lambda value: _without_zeros(value))]
"""A path, a pattern or a name of a source."""
Width = Annotated[int, Field(ge=2, le=1 << 20)]
Depth = Annotated[int, Field(gt=0, le=1 << 10)]
"""Of a block. More is refused, as is a wider one, before anything is built of it."""
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]


NOT_UTF8 = "it holds bytes that are not UTF-8; rename or rewrite it in UTF-8" + (
    ""
    if sys.getfilesystemencoding() == "utf-8"
    else ", or set PYTHONUTF8=1, as this locale has another encoding"
)


def _without_zeros(value: str) -> str:
    """The value itself. Raises ValueError where it cannot be a path."""
    if "\0" in value:
        raise ValueError("no path has a zero character (U+0000)")
    return value


def check_arguments(words: Iterable[str]) -> None:
    """Raises SettingsError for an argument that is not UTF-8, which a terminal hands over as surrogates."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise SettingsError(f"argument {word!r} is not possible: {NOT_UTF8}") from None


NAME, VARIANT_NAME, OPTION = r"^[\w][\w.\-]*$", r"^[A-Za-z][\w.]*$", r"^[A-Za-z][\w-]*(=.*)?$"
PROBLEMS, SHOWN_CHARACTERS = 20, 200
"""A message names so many problems, and so much of each name and value."""
_PATTERNS = {
    NAME: "it may hold letters, digits, `_`, `-` and `.` only, and begin with neither of the last two",
    VARIANT_NAME: "it may hold letters, digits, `_` and `.` only, and begins with a letter",
    OPTION: "it must be NAME or NAME=VALUE, without hyphens before it",
}
"""Of strings, and what they ask for in words."""


class OneOf(PrimitiveConstructorSpec[str]):
    """Marks a text that must be a name of a registry: `Annotated[str, OneOf("tandem.baselines:BASELINES")]`.

    The registry is a mapping, or says where one is as "module:name". Settings import no module below them, so
    that one is imported when a name is checked or shown. For tyro this describes an option with choices.
    """

    nargs = 1
    __eq__, __hash__ = object.__eq__, object.__hash__  # not by the choices, which come later
    _registry: str | Mapping[str, Any]

    def __init__(self, registry: str | Mapping[str, Any]) -> None:
        vars(self).update(_registry=registry)

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that there are now."""
        registry = self._registry
        return tuple(pkgutil.resolve_name(registry) if isinstance(registry, str) else registry)

    @property
    def metavar(self) -> str:
        """The choices, as `--help` shows them."""
        return f"{{{','.join(self.choices)}}}"

    def check(self, value: Any) -> Any:
        """The value itself. Raises ValueError where it is none of the names."""

        *others, last = map(repr, choices := self.choices)
        if value not in choices:
            raise ValueError(f"it must be {', '.join(others)}{' or ' * bool(others)}{last}")
        return value

    def instance_from_str(self, args: list[str]) -> str:
        return args[0]

    def is_instance(self, value: Any) -> bool:
        return isinstance(value, str)

    def str_from_instance(self, value: str) -> list[str]:
        return [value]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.check, handler(source))


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, errors as one sentence."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    path: ClassVar[str] = ""
    """Where this section stands in the whole, for error messages; the whole itself is ''."""
    changes_results: ClassVar[bool] = True
    """Whether results depend on this section. If not, no fingerprint has it, and no single training."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.model_fields.values():  # `--help` wraps lines itself
            field.description = " ".join((field.description or "").split())

    @classmethod
    def subsections(cls) -> dict[str, type["Section"]]:
        """The sections within this one, by name."""
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {n: kind for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}

    def section(self, name: str) -> Any:
        """The section within this one of a dotted name, such as "baselines.lstm"."""
        return attrgetter(name)(self)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(sentence(error, self.path)) from None

    # Pydantic calls an `__init__` of our own for sections within others too, and ends at the first error of
    # the first one, unless it is marked as pydantic's: then only the outermost is called, and has all errors.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def known_keys() -> Iterator[str]:
    """Dotted names of all settings: `seeds`, `data.train`, `phase2.lr`, …"""
    # The sections are the direct subclasses; arguments of commands are further down.
    for section in Section.__subclasses__():
        sections = section.subsections()
        for name in section.model_fields:
            if name not in sections:
                yield f"{section.path}.{name}" if section.path else name


def nearest_key(key: str) -> str | None:
    """The known dotted name nearest to `key`, if any is near."""
    keys = list(known_keys())
    if near := difflib.get_close_matches(key, keys, n=1, cutoff=0.6):
        return near[0]
    last = key.rsplit(".", 1)[-1]
    by_last = {name.rsplit(".", 1)[-1]: name for name in keys}
    near = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)
    return by_last[near[0]] if near else None


_PLAIN = {
    "dict_type": "it must be a section: `name: value` lines",
    "model_type": "it must be a section: `name: value` lines",
    "tuple_type": "it must be a list of values",
    "missing": "values are missing",
    "too_long": "it has too many values",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "it must be a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "it must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "it must be true or false"),
    "string_type": "it must be a text",
    "invalid_key": "a name must be a text",
    "string_unicode": NOT_UTF8,
}
"""What pydantic says in words of Python, by its type of error."""


def sentence(
    error: ValidationError, path: str = "", shown_as: Callable[[str], str] = "setting {} =".format
) -> str:
    """All problems of a pydantic error, each with the setting's dotted name; `path` is its section's.

    `shown_as` gives what stands for a name before its value.
    """
    problems: dict[str, list[ErrorDetails]] = {}
    for one in error.errors(include_url=False):
        parts = [str(part) for part in one["loc"] if not _is_union_branch(part)]
        if one["type"] == "missing":
            parts = parts[:-1]  # what is shown is that in which something is missing
        name = ".".join(([path] if path else []) + parts).removesuffix(".[key]")
        problems.setdefault(name, []).append(one)
    # A list whose items are wrong counts as too short besides.
    around: set[str] = set()
    for name in problems:
        parts = name.split(".")
        around.update(".".join(parts[:count]) for count in range(1, len(parts)))
    said = [(name, own) for name, own in problems.items() if name not in around]
    more = f"; and {len(said) - PROBLEMS:,} more" if len(said) > PROBLEMS else ""
    return "; ".join(_problem(name, own, shown_as) for name, own in said[:PROBLEMS]) + more


def _problem(name: str, own: list[ErrorDetails], shown_as: Callable[[str], str]) -> str:
    """What is wrong with one setting."""
    first = own[0]
    if len(name) > SHOWN_CHARACTERS:
        return f"there is no setting '{name[:SHOWN_CHARACTERS]}…'; `tandem config` lists all settings"
    if first["type"] == "extra_forbidden":
        near = nearest_key(name)
        hint = f"; did you mean '{near}'?" if near else "; `tandem config` lists all settings"
        return f"there is no setting '{name}'{hint}"
    if first["type"] == "too_short" and not first["input"]:
        return f"setting {name} is empty; give at least one value"
    # Each branch of a union has its own objection.
    message = " or ".join(dict.fromkeys(map(_plain, own))).replace(" or it must be ", " or ")
    if not name:
        return message
    shown = first["input"] if not isinstance(first["input"], Mapping) else "a mapping"
    return f"{shown_as(name)} {_shown(shown)} is not possible: {message}"


def _shown(value: Any) -> str:
    """A value in a message, of a long one the beginning."""
    try:
        whole = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return whole if len(whole) <= SHOWN_CHARACTERS else f"{whole[:SHOWN_CHARACTERS]}…"


def _plain(problem: ErrorDetails) -> str:
    """What one problem is, in words that need no Python."""
    if problem["type"] == "string_pattern_mismatch":
        return _PATTERNS[problem["ctx"]["pattern"]]
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    message = message.replace("input should be ", "it must be ").replace(
        "greater than or equal to", "at least"
    )
    message = message.replace("less than or equal to", "at most")
    return _PLAIN.get(problem["type"], message)


def _is_union_branch(part: Any) -> bool:
    """Pydantic puts the branch of a union (`int`, `literal[...]`, `constrained-int`) into the location."""
    return isinstance(part, str) and (
        part in {"int", "str", "float", "none", "constrained-int"}
        or part.startswith(("literal[", "function-"))
    )
