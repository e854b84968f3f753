"""docs/settings.md says what the settings are: it is written from their schema.

python tests/test_settings_page.py > docs/settings.md
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from tandem.settings import Settings
from tandem.settings.section import Section

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

HEAD = """\
# Every setting

A settings file is YAML. `tandem config demo` prints one with every setting of a preset. On the command line a
setting is an option: `phase2.lr` is `--phase2.lr`. Words there take hyphens: `--model.embed-dim`.

`null` means that a setting has no value; on the command line it is `None`. This page is written from the
settings themselves: `python tests/test_settings_page.py > docs/settings.md`.
"""


def page() -> str:
    return "\n\n".join([HEAD.rstrip(), *sections(Settings, "")]) + "\n"


def sections(section: type[Section], path: str) -> Iterator[str]:
    """The table of a section, then those of the sections within it."""
    within = {name: inner for name, field in section.model_fields.items() if (inner := section_of(field))}
    yield f"## `{path}`" if path else "## The experiment"
    if path:
        yield sentence(section.__doc__)
    rows = [row(name, field) for name, field in section.model_fields.items() if name not in within]
    yield "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])
    for name, inner in within.items():
        yield from sections(inner, f"{path}.{name}" if path else name)


def section_of(field: FieldInfo) -> type[Section] | None:
    kinds = (field.annotation, *get_args(field.annotation))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)


def row(name: str, field: FieldInfo) -> str:
    default = shown(field.get_default(call_default_factory=True))
    return f"| `{name}` | `{default}` | {sentence(field.description)} |"


def shown(value: Any) -> str:
    """A default as YAML has it, on one line."""
    plain = (
        [list(part) if isinstance(part, tuple) else part for part in value]
        if isinstance(value, tuple)
        else value
    )
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def test_the_page_of_settings_is_what_the_settings_are() -> None:
    assert PAGE.read_text("utf-8") == page()


if __name__ == "__main__":
    print(page(), end="")
