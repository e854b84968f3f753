"""Rows on their way into a file: appended to a draft beside it, which can be continued, and then moved there.

A draft of JSON lines is what the file will be. A draft of a Parquet file holds the rows window by window, as
Arrow streams, since a Parquet file cannot be continued.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tandem.advice import named
from tandem.errors import DataError, SettingsError
from tandem.folders import atomic_write, flush
from tandem.shown import json_for

Rows = list[dict[str, Any]]


class JsonLines:
    """One object a line, in UTF-8."""

    def encode(self, rows: Rows) -> bytes:
        """What is appended to a draft. A value that JSON lacks is written as text, and bytes in base 64."""
        lines = (json_for("utf-8", json.dumps(row, ensure_ascii=False, default=_as_text)) for row in rows)
        return "".join(f"{line}\n" for line in lines).encode()

    def decode(self, file: IO[bytes]) -> Iterator[Rows]:
        """The rows of a draft, in parts."""
        return ([json.loads(line)] for line in file)

    def finish(self, draft: Path, path: Path) -> None:
        """Make the file at `path` of a whole draft, and leave no draft."""
        flush(draft)
        draft.replace(path)
        flush(path.parent)


class Parquet:
    """One row group for each window. Raises DataError where pyarrow is not installed."""

    def __init__(self) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise DataError(
                "writing Parquet needs pyarrow; install it with `pip install tandem-lm[hub]`, or give a file "
                "named .jsonl"
            ) from None
        self._arrow, self._parquet = pyarrow, parquet

    def encode(self, rows: Rows) -> bytes:
        """As of JsonLines."""
        names = dict.fromkeys(name for row in rows for name in row)
        try:
            table = self._arrow.table({name: [row.get(name) for row in rows] for name in names})
        except self._arrow.ArrowException as error:
            raise _mixed(error) from None
        sink = self._arrow.BufferOutputStream()
        with self._arrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        whole: bytes = sink.getvalue().to_pybytes()
        return whole

    def decode(self, file: IO[bytes]) -> Iterator[Rows]:
        """As of JsonLines."""
        return (table.to_pylist() for table in self._tables(file))

    def finish(self, draft: Path, path: Path) -> None:
        """As of JsonLines. A column that a window lacks is null there. Raises DataError."""
        with draft.open("rb") as file, atomic_write(path) as whole:
            schemas = [table.schema for table in self._tables(file)] or [self._arrow.schema([])]
            try:
                schema = self._arrow.unify_schemas(schemas, promote_options="permissive")
            except self._arrow.ArrowException as error:
                raise _mixed(error) from None
            file.seek(0)
            with self._parquet.ParquetWriter(whole, schema) as writer:
                for table in self._tables(file):
                    columns = [
                        table[field.name] if field.name in table.column_names else [None] * len(table)
                        for field in schema
                    ]
                    filled = self._arrow.table(columns, names=schema.names)
                    writer.write_table(filled.cast(schema))
        draft.unlink()

    def _tables(self, file: IO[bytes]) -> Iterator[Any]:
        while file.peek(1):  # type: ignore[attr-defined]
            with self._arrow.ipc.open_stream(file) as stream:
                yield stream.read_all()


Form = JsonLines | Parquet
FORMS: dict[str, type[Form]] = {".jsonl": JsonLines, ".parquet": Parquet}


def form_of(path: Path, setting: str) -> Form:
    """By the name of a file. Raises SettingsError for another one, DataError as Parquet."""
    if (kind := FORMS.get(path.suffix.lower())) is None:
        raise SettingsError(f"{named(setting)} {path} is named neither .jsonl nor .parquet; name it so")
    return kind()


class Draft:
    """The draft of the file at `path`."""

    def __init__(self, path: Path, form: Form, suffix: str = ".partial") -> None:
        self.path, self.form = path, form
        self.place = path.with_name(f"{path.name}{suffix}")
        self.size = 0
        self._file: IO[bytes] | None = None

    def go_on(self, size: int) -> None:
        """Go on after so many bytes; what is beyond is cut off. Raises OSError."""
        self.close()
        self._file = self.place.open("ab")
        self._file.truncate(size)
        self.size = size

    def append(self, rows: Rows) -> None:
        """Write rows, and hand them to the system. Raises OSError."""
        assert self._file is not None
        if rows:
            self.size += self._file.write(self.form.encode(rows))
            self._file.flush()

    def rows(self) -> Iterator[Rows]:
        """All rows so far, in parts."""
        with self.place.open("rb") as file:
            yield from self.form.decode(file)

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()

    def finish(self) -> None:
        """Make the file of it."""
        self.close()
        self.form.finish(self.place, self.path)


def _as_text(value: object) -> str:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def _mixed(error: Exception) -> DataError:
    said = str(error).splitlines()[0].rstrip(".")
    return DataError(
        f"these rows do not fit into the columns of one Parquet table ({said}); give an output named .jsonl"
    )
