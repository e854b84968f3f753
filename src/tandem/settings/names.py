"""Settings that name an alternative: which names there are, a registry says."""

import pkgutil
from collections.abc import Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from tyro.constructors import PrimitiveConstructorSpec


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
