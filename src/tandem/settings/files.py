"""Settings in files: the shipped presets, YAML in and out; and packages that extend Tandem.

Each of these registers what it brings when it is imported.
"""

import difflib
from functools import cache
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tandem.decoding import read_text
from tandem.errors import DataError, SettingsError
from tandem.folders import SETTINGS, look
from tandem.settings.experiment import Settings
from tandem.settings.section import sentence

GROUP = "tandem"
"""Entry points of this group name modules to import."""
FILE_BYTES = 1 << 16
"""A settings file may have so many bytes; all settings with their defaults take a tenth of it."""
DEPTH, VALUES, SIZE, NUMBER_CHARACTERS = 32, 5_000, 100_000, 64
"""How deep it may be nested, how many values may stand in it, how many characters and values it may stand
for, where every alias counts as all that it names, and how long a number may be."""


@cache
def load_extensions() -> None:
    """Import every installed extension; only the first call does. Raises SettingsError for a broken one."""
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else entry.value
            raise SettingsError(
                f"the extension {entry.name} of package {package} cannot be imported "
                f"({type(error).__name__}: {error}); mend or uninstall it"
            ) from error


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("tandem") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_settings(preset_or_file: str) -> Settings:
    """Settings of a shipped preset, by name, or of a YAML file.

    Raises SettingsError for an unknown preset, a file that is not YAML, an unknown key (with the nearest
    known one) or an impossible value.
    """
    load_extensions()
    path = Path(preset_or_file)
    if preset_or_file in preset_names():
        text = (resources.files("tandem") / "presets" / f"{preset_or_file}.yaml").read_text("utf-8")
    elif path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            text = read_text(path, FILE_BYTES)
        except FileNotFoundError:
            raise SettingsError(
                f"there is no settings file {path}; `tandem config` lists the presets"
            ) from None
        except DataError as error:
            raise SettingsError(str(error)) from None
        except OSError as error:
            raise SettingsError(f"cannot read the settings file {path}: {error}") from None

    elif path.is_dir():
        found = look(path)
        own = f"; its settings are in {path / SETTINGS}" if (path / SETTINGS).is_file() else ""
        raise SettingsError(f"{path} is {found.what}, and no settings file{own}")
    else:
        near = difflib.get_close_matches(preset_or_file, preset_names(), n=1)
        raise SettingsError(
            f"there is no preset or settings file '{preset_or_file}'"
            + (f"; did you mean '{near[0]}'?" if near else "")
            + f" (presets: {', '.join(preset_names())})"
        )
    values = read_yaml(text, preset_or_file)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise SettingsError(f"{preset_or_file} must hold settings as `key: value` lines; see `tandem config`")
    try:
        return Settings.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        raise SettingsError(f"{preset_or_file}: {sentence(error)}") from None


def read_yaml(text: str, source: str) -> Any:
    """What a settings file says: plain values, of a bounded size.

    Raises SettingsError, with the line, for what is no YAML, has tags, or is too large or too deep.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise SettingsError(
            f"{source}{line} is not valid YAML ({problem}); compare it with `tandem config`"
        ) from None


class _Loader(yaml.SafeLoader):
    """As the library's, but what it loads is bounded, and a name that stands twice in a mapping is an error.

    Tags are refused: they ask for values that no setting has.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self._depth, self._values = self._depth + 1, self._values + 1
        if self._values > VALUES:
            raise _refused("it holds too many values", event.start_mark)
        if self._depth > DEPTH:
            raise _refused("it is nested too deeply", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _refused(f"it has a tag, {event.tag!r}", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _measured(node, {})[0] > SIZE:
            raise _refused("its aliases stand for too many values", node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_number = isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:str"
        if is_number and len(node.value) > NUMBER_CHARACTERS:
            raise _refused("a number in it is too long", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a date that is none
            raise _refused(str(error), node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _refused(f"it gives '{key.value}' a second time", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refused(problem: str, mark: yaml.Mark) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _measured(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Characters and values of a node, and its depth, where every alias counts as all that it stands for.

    Raises ConstructorError for a node that stands within itself, or is too deep.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value), 1
    if id(node) not in known:
        known[id(node)] = None
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        found = [(1, 0), *(_measured(part, known) for part in parts)]
        known[id(node)] = sum(size for size, _ in found), 1 + max(depth for _, depth in found)
    measured = known[id(node)]
    if measured is None:
        raise _refused("an alias in it stands for itself", node.start_mark)
    if measured[1] > DEPTH:
        raise _refused("its aliases are nested too deeply", node.start_mark)
    return measured


def dump_settings(settings: Settings, escaped: bool = False) -> str:
    """The settings as YAML that `load_settings` reads back; `escaped`: of ASCII alone, for any encoding."""
    values = settings.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=not escaped, width=100)
