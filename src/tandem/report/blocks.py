"""The parts a report is made of. Both templates render these and nothing else, so both say the same.

All strings are light Markdown (see `wording`), except those of `Code`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str
    kind: Literal["paragraph"] = "paragraph"


@dataclass(frozen=True)
class Callout:
    """A sentence that must not be overlooked: the result, or a warning."""

    text: str
    tone: Literal["result", "warning"]
    kind: Literal["callout"] = "callout"


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]
    ordered: bool = False
    kind: Literal["items"] = "items"


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of each naming its row; `numeric` columns are set flush right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    numeric: frozenset[int] = frozenset()
    emphasised: frozenset[int] = frozenset()
    """Rows that stand out: the recommended configuration."""
    apart: frozenset[int] = frozenset()
    """Rows of another kind than the rest: baselines."""
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class FigureBlock:
    """A figure by name, with its caption."""

    name: str
    caption: str
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True)
class Code:
    """Code or settings, as they are."""

    text: str
    language: str
    kind: Literal["code"] = "code"


@dataclass(frozen=True)
class Details:
    """Long matter, folded away."""

    summary: str
    body: Code | Table
    kind: Literal["details"] = "details"


Block = Paragraph | Callout | Items | Table | FigureBlock | Code | Details


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, up to the next heading."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    level: int = 2


@dataclass(frozen=True)
class Document:
    """A whole report."""

    language: str
    title: str
    subtitle: str
    sections: Sequence[Section]
    footer: str
