"""The Markdown that the report is made of. `render` makes the page from it and from nothing else.

A section yields blocks, which are strings of Markdown. Some of their forms mean more in the page:

- A quote is a callout. One that begins with `[!WARNING]` is a warning.
- A table follows its caption in bold.
- A row with its name in bold stands out, one in italics stands apart.
- An image, followed by its caption in italics, is a figure.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from tandem.report.statistics import Spread
from tandem.report.wording import Texts, literal, longest_run, plus_minus

Row = TypeVar("Row")
Mark = Literal["", "*", "**"]
"""Around the name of a row: in bold the recommended configuration, in italics a baseline."""
UNTRUSTED = "†"
"""After the name of a run that the audit failed for, or of a model with such a run."""


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {item}" for item in items)


def numbered(items: Iterable[str]) -> str:
    """An ordered list."""
    return "\n".join(f"{place}. {item}" for place, item in enumerate(items, 1))


def warning(text: str) -> str:
    """A callout that weakens what the report says."""
    return f"> [!WARNING]\n> {text}"


def fenced(text: str, language: str) -> str:
    """Code or settings as they are, between fences longer than any in them."""
    fence = "`" * max(3, longest_run("`", text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def figure(file: str, caption: str) -> str:
    """A figure of the folder figures/, and its caption."""
    return f"![{caption}](figures/{file})\n\n*{caption}*"


def details(summary: str, body: str) -> str:
    """A block that is folded away."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table: the key of its head in the texts (`column.KEY`), and the cell of a row."""

    key: str
    cell: Callable[[Row], str]
    numeric: bool = True
    """Set flush right; never the first column of a table, which names its rows."""


def spread_column(
    key: str, figure: Callable[[Row], Spread | None], text: Callable[[float | None], str]
) -> Column[Row]:
    """A figure over seeds as `mean ± sd`."""
    return Column(key, lambda row: plus_minus(figure(row), text))


def word_column(key: str, cell: Callable[[Row], str]) -> Column[Row]:
    """A column of words."""
    return Column(key, cell, numeric=False)


@dataclass(frozen=True)
class Table:
    """Heads and rows of cells, all in Markdown, the first cell of each row naming it."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    marks: Sequence[Mark]

    def __str__(self) -> str:
        rules = ["---:" if numeric else "---" for numeric in self.numeric]
        rows = [
            [f"{mark}{_cell(name)}{mark}", *map(_cell, cells)]
            for mark, (name, *cells) in zip(self.marks, self.rows, strict=True)
        ]
        lines = [f"| {' | '.join(cells)} |" for cells in ([_cell(head) for head in self.heads], rules, *rows)]
        return "\n".join([f"**{self.caption}**", "", *lines])


def make_table(
    texts: Texts,
    name: str,
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    mark: Callable[[Row], Mark] = lambda _: "",
    **values: str,
) -> Table:
    """The table of these rows, with the caption `caption.NAME`, which also explains † where it is there.

    `values` are those that the caption names. Where the texts have no such caption or no head for a column,
    the name or the key stands there itself: the words of an addition.
    """
    cells = [[column.cell(row) for column in columns] for row in rows]
    key = f"caption.{name}"
    caption = [texts(key, **values) if texts.of(key) else name]
    if any(UNTRUSTED in row[0] for row in cells):
        caption.append(texts("audit.mark"))
    return Table(
        caption=texts("sentence_separator").join(caption),
        heads=[texts.of(f"column.{column.key}") or literal(column.key) for column in columns],
        rows=cells,
        numeric=[place > 0 and column.numeric for place, column in enumerate(columns)],
        marks=[mark(row) for row in rows],
    )


def fold(table: Table, texts: Texts, longest: int) -> str:
    """The table, folded away where it has more rows than `longest`."""
    if len(table.rows) <= longest:
        return str(table)
    return details(texts("folded", caption=table.caption, rows=str(len(table.rows))), str(table))


def _cell(text: str) -> str:
    """A cell of a Markdown table: no line breaks, no bare pipes."""
    return " ".join(text.split()).replace("|", "\\|")
