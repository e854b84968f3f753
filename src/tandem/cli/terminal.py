"""Where the command line writes: two consoles that show every text as it is."""

import sys
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tandem.shown import one_line

PIPE_COLUMNS = 160
"""A pipe or file has no width of its own; the summary table needs about this much."""

Part = str | tuple[str, str]
"""Text, alone or with a style."""


class Terminal(Console):
    """A console that takes no text for markup, emoji codes or control characters.

    A broken pipe is left to the caller; rich would exit with 1 by itself.
    """

    def __init__(self, stderr: bool = False, file: IO[str] | None = None) -> None:
        stream = file or (sys.stderr if stderr else sys.stdout)
        width = None if stream is not None and stream.isatty() else PIPE_COLUMNS
        super().__init__(stderr=stderr, file=file, markup=False, emoji=False, highlight=False, width=width)

    def on_broken_pipe(self) -> None:
        """The reader of our output went away."""
        raise BrokenPipeError

    def say(self, *parts: Part) -> None:
        """Print these one after the other on one line, which is never broken."""
        self.print(Text.assemble(*map(_shown, parts)), soft_wrap=True)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[Part]], right: range = range(0)) -> None:
        """Print rows of cells under their heads; the columns of `right` stand flush right."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column, head in enumerate(heads):
            table.add_column(
                Text(one_line(head)), justify="right" if column in right else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*(Text.assemble(_shown(cell)) for cell in row))
        self.print(table)


def _shown(part: Part) -> Part:
    return one_line(part) if isinstance(part, str) else (one_line(part[0]), part[1])


OUT = Terminal()
ERR = Terminal(stderr=True)
