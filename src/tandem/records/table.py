"""The records of an experiment as one flat table, for pandas."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from tandem.errors import RunDirError
from tandem.records.files import read_experiment
from tandem.records.run import DocumentScores, Record, RunRecord

if TYPE_CHECKING:
    import pandas as pd


def records_table(run_dir: str | Path) -> "pd.DataFrame":
    """A row for each run, in the order in which they were recorded.

    A column is called by its place in `records.jsonl`, such as `validation.nll_nats`. Histories, parts of
    models and scores of documents are left out. Raises RunDirError without pandas, and without records.
    """
    try:
        import pandas as pd
    except ImportError:
        raise RunDirError("tandem.records needs pandas: `pip install 'tandem-lm[pandas]'`") from None
    runs = [[*_cells(RunRecord, record)] for record in read_experiment(Path(run_dir))]
    rows = [{name: value for name, _, value in run} for run in runs]
    with_gaps = {int: "Int64", bool: "boolean"}  # numpy's own have none
    kinds = {name: with_gaps[kind] for run in runs for name, of, _ in run for kind in of if kind in with_gaps}
    return pd.DataFrame(rows).astype(kinds)


def _cells(kind: type[Record], record: Record | None, path: str = "") -> Iterator[tuple[str, list[Any], Any]]:
    """Name, types and value of every single figure, those of records within it included."""
    for name, field in kind.model_fields.items():
        value, kinds = getattr(record, name, None), _types(field.annotation)
        within = next((k for k in kinds if isinstance(k, type) and issubclass(k, Record)), None)
        if within is not None and within is not DocumentScores:
            yield from _cells(within if value is None else type(value), value, f"{path}{name}.")
        elif within is None and all(get_origin(k) in (None, Literal) for k in kinds):
            yield f"{path}{name}", kinds, value


def _types(annotation: Any) -> list[Any]:
    """The types of a union, or the one type, without marks."""
    origin, parts = get_origin(annotation), get_args(annotation)
    parts = parts[:1] if origin is Annotated else parts if origin in (Union, types.UnionType) else ()
    return [kind for part in parts for kind in _types(part)] or [annotation]
