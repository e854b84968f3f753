"""What all tables share: the names of models, marked where they are untrusted, and the making of a table."""

from collections.abc import Sequence

from tandem.report.blocks import Details, Table
from tandem.report.choice import Choice
from tandem.report.results import Analysis, ModelResult
from tandem.report.wording import Texts

MARK = "†"
"""After the name of a run that the audit failed for, or of a model with such a run."""


def name_text(analysis: Analysis, name: str) -> str:
    """The name of a configuration or baseline, marked if it is untrusted."""
    return f"{name} {MARK}" if analysis.untrusted(name) else name


def baseline_text(analysis: Analysis, baseline: ModelResult, texts: Texts) -> str:
    """The name of a baseline, labelled as one."""
    return texts("baseline_label", name=name_text(analysis, baseline.name))


def make_table(
    texts: Texts,
    name: str,
    columns: str,
    rows: Sequence[Sequence[str]],
    emphasised: frozenset[int] = frozenset(),
    apart: frozenset[int] = frozenset(),
    words: set[int] | None = None,
) -> Table:
    """A table of the named columns, all numeric but the first and those in `words`.

    Its caption says what the mark means if it is there.
    """
    heads = [texts(f"column.{column}") for column in columns.split()]
    numeric = frozenset(range(1, len(heads))) - (words or set())
    caption = texts(f"caption.{name}")
    if any(MARK in row[0] for row in rows):
        caption = texts("sentence_separator").join([caption, texts("audit.mark")])
    return Table(heads, rows, caption, numeric, emphasised, apart)


def folded(table: Table, texts: Texts, rows: int) -> Table | Details:
    """The table, folded away where it has more than so many rows."""
    if len(table.rows) <= rows:
        return table
    return Details(texts("folded", caption=table.caption, rows=str(len(table.rows))), table)


def recommended_rows(models: Sequence[ModelResult], choice: Choice | None) -> frozenset[int]:
    """Where the recommended configuration stands."""
    return frozenset(i for i, c in enumerate(models) if choice and c is choice.recommended)
