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
            text = read_text(path)
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
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise SettingsError(
            f"{preset_or_file}{line} is not valid YAML ({problem}); compare it with `tandem config`"
        ) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise SettingsError(f"{preset_or_file} must hold settings as `key: value` lines; see `tandem config`")
    try:
        return Settings.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        raise SettingsError(f"{preset_or_file}: {sentence(error)}") from None


class _Loader(yaml.SafeLoader):
    """As the library's, but a name that stands twice in a mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    said = f"it gives '{key.value}' a second time"
                    raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def dump_settings(settings: Settings, escaped: bool = False) -> str:
    """The settings as YAML that `load_settings` reads back; `escaped`: of ASCII alone, for any encoding."""
    values = settings.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=not escaped, width=100)
