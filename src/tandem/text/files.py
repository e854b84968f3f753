"""Documents in local files: `.txt`, `.jsonl` and `.parquet`, each also packed as `.gz` or `.zst`."""

import codecs
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO

from tandem.decoding import PARQUET, STANDARD_INPUT, head, lines, opened, unpacked
from tandem.errors import DataError, MisfitError, SettingsError
from tandem.text.listing import find_files, known_kind
from tandem.text.places import user_path
from tandem.text.reading import Reading
from tandem.text.rows import record_text, text_column

START_CHARACTERS = 4096
"""Of a line so much is looked at for the start of a document: an expression may take quadratic time."""

Splitter = Callable[[Iterable[str]], Iterator[str]]
"""Cuts the lines of a text file (ends included) into documents."""


def read_files(source: str, splitter: Splitter, reading: Reading) -> Iterator[str]:
    """The documents of a file, of all known files below a directory, or of all that a glob pattern matches.

    Files come in the order of their sorted paths. Text and JSON lines are streamed. `reading` is told what is
    met. `tandem.text.listing` and `tandem.decoding` have the rules.

    Raises DataError for a missing, unreadable, damaged or malformed file, naming file and line.
    """
    for path in find_files(source, reading):
        reading.files, reading.place = reading.files + 1, str(path)
        with _open_named(path) as file:
            if _is_parquet(file, path):
                yield from _texts(_parquet_records(file, path, text_column))
                continue
            text = lines(file, path, reading.encoded)
            yield from splitter(text) if known_kind(path) == ".txt" else _texts(_json_records(text, path))


def read_records(sources: Sequence[str], reading: Reading, field: str) -> Iterator[tuple[object, str]]:
    """Records of files one after the other, and where each stands: JSON lines, rows of tables, lines of text.

    A source is named as for `read_files`, or `-`: standard input, which is read as it comes. A line of text
    is a record with this single `field`, also where it is blank. Standard input holds JSON lines where
    its first line begins with a brace. Raises DataError as `read_files`.
    """
    for source in sources:
        try:
            paths = [STANDARD_INPUT] if source == "-" else find_files(source, reading)
        except MisfitError as error:
            raise DataError(f"{error.said}; check the path") from None
        for path in paths:
            reading.files, reading.place = reading.files + 1, str(path)
            with _standard_input() if source == "-" else _open_named(path) as file:
                if _is_parquet(file, path):
                    yield from _parquet_records(file, path)
                    continue
                kind = ".txt" if source == "-" else known_kind(path)
                if source == "-" and head(file).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
                    kind = ".jsonl"
                text = lines(file, path, reading.encoded)
                if kind == ".txt":
                    numbered = enumerate(text, start=1)
                    yield from (({field: line.rstrip("\n")}, f"{path}, line {n}") for n, line in numbered)
                else:
                    yield from _json_records(text, path)


@contextmanager
def _open_named(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked. Raises DataError."""
    try:
        with opened(path, gzipped=path.name.lower().endswith(".gz")) as file:
            yield file
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


@contextmanager
def _standard_input(as_it_comes: bool = True) -> Iterator[IO[bytes]]:
    """Its bytes, unpacked. Raises DataError where it is closed."""
    if sys.stdin is None or sys.stdin.closed:
        raise DataError("standard input is closed; give a file instead of -")
    with unpacked(sys.stdin.buffer, STANDARD_INPUT, as_it_comes=as_it_comes) as file:
        yield file


def _is_parquet(file: IO[bytes], path: Path) -> bool:
    return head(file).startswith(PARQUET) or known_kind(path) == ".parquet"


def _texts(records: Iterable[tuple[object, str]]) -> Iterator[str]:
    return (record_text(record, where) for record, where in records)


def text_lines(source: str, on_encoding: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Lines of one text file, of whatever name, or of standard input where `source` is `-`.

    `on_encoding` is told of one other than UTF-8.
    Raises DataError for a missing or unreadable file, or one that is not text.
    """
    if source == "-":
        with _standard_input(as_it_comes=False) as file:
            yield from lines(file, STANDARD_INPUT, on_encoding)
        return
    path = user_path(source)
    try:
        with opened(path) as file:
            yield from lines(file, path, on_encoding)
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}; check the path") from None


def txt_splitter(txt_documents: str) -> Splitter:
    """What the setting `txt_documents` asks for: `file`, `blank-line` or `start:REGEX`.

    Raises SettingsError for another word or an invalid regular expression.
    """
    if txt_documents == "file":
        return lambda lines: iter(["".join(lines)])
    if txt_documents == "blank-line":
        return _paragraphs
    wrong = "it must be `file`, `blank-line` or `start:REGEX`"
    if txt_documents.startswith("start:"):
        try:
            return partial(_sections, re.compile(txt_documents.removeprefix("start:")))
        except re.error as error:
            wrong = f"not a valid regular expression ({error})"
    raise SettingsError(f"setting data.txt_documents = {txt_documents!r} is not possible: {wrong}")


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines between blank ones, without their last line end."""
    for blank, run in groupby(lines, str.isspace):
        if not blank:
            yield "".join(run).rstrip("\n")


def _sections(start: re.Pattern[str], lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines, each beginning with one that matches `start`; what comes before the first is one too."""
    section: list[str] = []
    started = False
    for line in lines:
        if start.search(line.rstrip("\n"), 0, START_CHARACTERS):
            if started or any(not before.isspace() for before in section):
                yield "".join(section)
            section, started = [], True
        section.append(line)
    yield "".join(section)


def _json_records(lines: Iterable[str], path: Path) -> Iterator[tuple[object, str]]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault = getattr(error, "msg", type(error).__name__).removesuffix(" at")
            raise DataError(f"{where} is not valid JSON ({fault}); mend that line, or take it out") from None
        yield record, where


def _parquet_records(
    file: IO[bytes], path: Path, column_of: Callable[[Sequence[str], str], str] | None = None
) -> Iterator[tuple[object, str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"reading {path} needs pyarrow; install it with `pip install tandem-lm[hub]`"
        ) from None
    # Parquet is read from its end, which a packed stream cannot seek to cheaply.
    seekable = file if type(file) in (io.BufferedReader, io.BytesIO) else io.BytesIO(file.read())
    try:
        table = parquet.ParquetFile(seekable)
        names = table.schema_arrow.names
        columns = names if column_of is None else [column_of(names, str(path))]
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield record, f"{path}, row {number}"
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]})") from None
