"""The Markdown that the report is made of. `render` makes the page from it and from nothing else.

A section yields blocks, which are strings of Markdown. Some of their forms mean more in the page:

- A quote is a callout. One that begins with `[!WARNING]` is a warning.
- A table follows its caption in bold.
- A row with its name in bold stands out, one in italics stands apart.
- An image, followed by its caption in italics, is a figure.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem.report.analysis import Analysis
from tandem.report.statistics import Spread
from tandem.report.wording import Message, Texts, literal, longest_run, plus_minus
from tandem.shown import several_lines

Row = TypeVar("Row")
UNTRUSTED = "†"
"""After the name of a run that the audit failed for, or of a model with such a run."""


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {item}" for item in items)


def warning(text: str) -> str:
    """A callout that weakens what the report says."""
    return f"> [!WARNING]\n> {text}"


def fenced(text: str, language: str) -> str:
    """Code or settings as they are, between fences longer than any in them."""
    text = several_lines(text)
    fence = "`" * max(3, longest_run("`", text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def folded(summary: str, body: str) -> str:
    """A block that is folded away."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table: the key of its head in the texts (`column.KEY`), and the cell of a row.

    Where the texts have no such head, the key stands there itself: the words of an addition.
    """

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
class Report:
    """What every section is written from, and the blocks that need words of the texts."""

    analysis: Analysis
    texts: Texts
    figures: Set[str]
    """Names of the figures there are."""

    def heading(self, section: str, level: int = 2, **values: str) -> str:
        """The heading of a section, from the text `section.NAME`."""
        return f"{'#' * level} {self.texts(f'section.{section}', **values)}"

    def list_of(self, messages: Iterable[Message]) -> str:
        """The messages as a list."""
        return bullets(map(self.texts.say, messages))

    def findings(self, messages: Iterable[Message]) -> Iterator[str]:
        """The findings of a section, if there are any."""
        if said := self.list_of(messages):
            yield self.texts("findings_lead")
            yield said

    def figure(self, name: str) -> Iterator[str]:
        """The figure of this name and its caption `figure.NAME`, if there is one."""
        if name in self.figures:
            caption = self.texts(f"figure.{name}")
            yield f"![{caption}](figures/{name}{self.texts.suffix}.svg)\n\n*{caption}*"

    def name(self, name: str) -> str:
        """The name of a configuration or baseline, marked if it is untrusted."""
        return f"{name} {UNTRUSTED}" if self.analysis.untrusted(name) else name

    def run(self, run: str) -> str:
        """The name of a run, marked if it is untrusted."""
        return literal(run) + (f" {UNTRUSTED}" if run in self.analysis.audit.untrusted else "")

    def head(self, column: Column[Row]) -> str:
        """The head of a column."""
        return self.texts.of(f"column.{column.key}") or literal(column.key)

    def table(
        self,
        name: str,
        columns: Sequence[Column[Row]],
        rows: Sequence[Row],
        mark: Callable[[Row], str] = lambda _: "",
        longest: int | None = None,
        **values: str,
    ) -> str:
        """The table of these rows, with the caption `caption.NAME` and its `values`, or NAME itself.

        The caption also explains † where it is there. `mark` gives what stands around a row's name: `**`,
        `*` or nothing. A table of more than `longest` rows is folded away.
        """
        cells = [[_cell(column.cell(row)) for column in columns] for row in rows]
        caption = self.texts(f"caption.{name}", **values) if self.texts.of(f"caption.{name}") else name
        if any(UNTRUSTED in row[0] for row in cells):
            caption += self.texts("sentence_separator") + self.texts("audit.mark")
        for row, own in zip(rows, cells, strict=True):
            own[0] = f"{mark(row)}{own[0]}{mark(row)}"
        heads = [_cell(self.head(column)) for column in columns]
        rules = ["---", *("---:" if column.numeric else "---" for column in columns[1:])]
        lines = [f"| {' | '.join(line)} |" for line in (heads, rules, *cells)]
        table = "\n".join([f"**{caption}**", "", *lines])
        if longest is None or len(rows) <= longest:
            return table
        return folded(self.texts("folded", caption=caption, rows=str(len(rows))), table)


def _cell(text: str) -> str:
    """A cell of a Markdown table: no line breaks, no bare pipes."""
    return " ".join(text.split()).replace("|", "\\|")
