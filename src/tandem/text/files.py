"""Documents in local files: `.txt`, `.jsonl` and `.parquet`, each also packed as `.gz` or `.zst`."""

import codecs
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any

from tandem.decoding import PARQUET, STANDARD_INPUT, WHOLE_BYTES, head, lines, opened, unpacked
from tandem.errors import DataError, MisfitError, SettingsError
from tandem.text.listing import find_files, known_kind
from tandem.text.places import user_path
from tandem.text.reading import Reading
from tandem.text.rows import record_text, text_column

START_CHARACTERS = 4096
"""Of a line so much is looked at for the start of a document: an expression may take quadratic time."""

STRUCTURE_CHARACTERS = 1 << 24
"""The most characters of a line of JSON that stand outside of its strings: values take far more memory."""
STRING = re.compile(r'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+"?')
"""Of JSON; one that has no end counts too, so that looking for all takes linear time."""
LINES = 4096
"""So many lines are held one by one."""
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
            text = lines(file, path, reading.encoded, reading.longest, reading.mend)
            if known_kind(path) == ".txt":
                yield from cut(text, splitter, reading)
            else:
                yield from _texts(_json_records(text, path))


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
                text = lines(file, path, reading.encoded, reading.longest, reading.mend)
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


def cut(text: Iterable[str], splitter: Splitter, reading: Reading) -> Iterator[str]:
    """The documents that `splitter` makes of lines. Raises DataError where one is too long, with its line."""
    characters = number = 0
    longest = reading.longest

    def counted() -> Iterator[str]:
        nonlocal characters, number
        for line in text:
            number += 1
            characters += len(line)
            if characters > longest:
                check(characters)
            yield line

    def check(size: int) -> None:
        reading.check_size(size, f"{reading.place or STANDARD_INPUT}, line {number:,}")

    for document in splitter(counted()):
        if 4 * len(document) > longest:
            check(len(document.encode()))
        characters = 0
        yield document


def whole_text(source: str) -> str:
    """All of one text file, of whatever name, or of standard input. Raises DataError as `text_lines`."""
    reading = Reading(source, "" if source == "-" else source)
    return "".join(cut(text_lines(source, reading), txt_splitter("file"), reading))


def text_lines(source: str, reading: Reading | None = None) -> Iterator[str]:
    """Lines of one text file, of whatever name, or of standard input where `source` is `-`.

    `reading` is told of an encoding other than UTF-8.
    Raises DataError for a missing or unreadable file, one that is not text, or a line that is too long.
    """
    reading = reading or Reading(source)
    if source == "-":
        with _standard_input(as_it_comes=False) as file:
            yield from lines(file, STANDARD_INPUT, reading.encoded, reading.longest, reading.mend)
        return
    path = user_path(source)
    try:
        with opened(path) as file:
            yield from lines(file, path, reading.encoded, reading.longest, reading.mend)
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}; check the path") from None


def txt_splitter(txt_documents: str) -> Splitter:
    """What the setting `txt_documents` asks for: `file`, `blank-line` or `start:REGEX`.

    Raises SettingsError for another word or an invalid regular expression.
    """
    if txt_documents == "file":
        return lambda lines: iter([_joined(lines)])
    if txt_documents == "blank-line":
        return _paragraphs
    wrong = "it must be `file`, `blank-line` or `start:REGEX`"
    if txt_documents.startswith("start:"):
        try:
            return partial(_sections, re.compile(txt_documents.removeprefix("start:")))
        except re.error as error:
            wrong = f"not a valid regular expression ({error})"
    raise SettingsError(f"setting data.txt_documents = {txt_documents!r} is not possible: {wrong}")


def _joined(lines: Iterable[str]) -> str:
    """As `"".join`, which would hold every line by itself: of short ones that takes 60 times as much."""
    left, parts = iter(lines), list[str]()
    while len(some := list(islice(left, LINES))) == LINES:
        parts.append("".join(some))
    return "".join((*parts, *some))


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines between blank ones, without their last line end."""
    for blank, run in groupby(lines, str.isspace):
        if not blank:
            yield _joined(run).rstrip("\n")


def _sections(start: re.Pattern[str], lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines, each beginning with one that matches `start`; what comes before the first is one too."""
    parts: list[str] = []  # each of many lines, as in `_joined`
    section: list[str] = []
    started = False
    for line in lines:
        if start.search(line.rstrip("\n"), 0, START_CHARACTERS):
            if started or any(not before.isspace() for before in (*parts, *section)):
                yield "".join((*parts, *section))
            parts, section, started = [], [], True
        elif len(section) == LINES:
            parts.append("".join(section))
            section = []
        section.append(line)
    yield "".join((*parts, *section))


def _json_records(lines: Iterable[str], path: Path) -> Iterator[tuple[object, str]]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        where = f"{path}, line {number}"
        if _is_too_large(line):
            raise DataError(f"{where} has too many values for one record; take out what is no text")
        try:
            record = _RECORDS.decode(line)
        except _TwiceError as error:
            raise DataError(f"{where} gives {error.args[0][:60]!r} twice; take out one of the two") from None
        except RecursionError:
            raise DataError(f"{where} is JSON that is nested too deeply; mend that line") from None
        except ValueError as error:
            fault = getattr(error, "msg", "a number with too many digits").removesuffix(" at")
            raise DataError(f"{where} is not valid JSON ({fault}); mend that line, or take it out") from None
        yield record, where


class _TwiceError(ValueError):
    """A name stands twice in one object."""


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises _TwiceError, as which value is meant cannot be told."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise _TwiceError(names.most_common(1)[0][0])
    return found


_RECORDS = json.JSONDecoder(object_pairs_hook=_mapping)


def _is_too_large(line: str) -> bool:
    """Whether a line of JSON has so much beside its strings that its values would fill the memory."""
    left = len(line)
    if left <= STRUCTURE_CHARACTERS:
        return False
    strings = 0
    for found in STRING.finditer(line):
        strings += found.end() - found.start()
        if found.end() - strings > STRUCTURE_CHARACTERS:
            return True
    return left - strings > STRUCTURE_CHARACTERS


def _whole(file: IO[bytes], path: Path) -> bytes:
    """What a packed file holds. Raises DataError where that is more than fits the memory of any machine."""
    found = file.read(WHOLE_BYTES + 1)
    if len(found) > WHOLE_BYTES:
        raise DataError(f"{path} holds a parquet file of more than {WHOLE_BYTES:,} bytes; unpack it first")
    return found


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
    seekable = file if type(file) in (io.BufferedReader, io.BytesIO) else io.BytesIO(_whole(file, path))
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
