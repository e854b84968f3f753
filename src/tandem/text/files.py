"""Documents in local files: `.txt`, `.jsonl` and `.parquet`, each also gzipped as `.gz`."""

import glob
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tandem.errors import DataError, SettingsError
from tandem.text.rows import COLUMNS, record_text

SUFFIXES = (".txt", ".jsonl", ".parquet")
KNOWN = ", ".join(SUFFIXES) + " (each may be gzipped as .gz)"

BinaryFile = BinaryIO | gzip.GzipFile
Splitter = Callable[[Iterable[str]], Iterator[str]]
"""Cuts the lines of a text file (ends included) into documents."""


def read_files(source: str, txt_documents: str) -> Iterator[str]:
    """The documents of a file, of all known files below a directory, or of all that a glob pattern matches.

    Files come in the order of their sorted paths; hidden ones and unknown suffixes are passed over in a
    directory. `txt_documents` is the setting of that name. Text and JSON lines are streamed.

    Raises DataError for a missing, unreadable, damaged or malformed file, naming file and line, and
    SettingsError for an impossible `txt_documents`.
    """
    splitter = txt_splitter(txt_documents)
    for path in find_files(source):
        try:
            yield from _read_file(path, splitter)
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise DataError(
                f"{path} is no gzip file, or not a complete one; fetch it again, or unpack or rename it"
            ) from None
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def find_files(source: str) -> list[Path]:
    """The files that `source` (a file, directory or glob pattern) names, sorted; at least one.

    Raises DataError where there is none of a known kind.
    """
    path = user_path(source)
    if path.is_dir():
        inside = (file for file in path.rglob("*") if not _hidden(file.relative_to(path)))
        files = sorted(file for file in inside if _kind(file) and file.is_file())
        if not files:
            raise DataError(f"the directory {source} holds no file of a known kind: {KNOWN}")
        return files
    if path.exists():
        if not _kind(path):
            raise DataError(f"{source} is of unknown kind; Tandem reads {KNOWN}")
        return [path]
    if glob.has_magic(source):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (may be absolute)
        files = sorted(match for match in matches if _kind(match) and match.is_file())
        if not files:
            raise DataError(f"no file of a known kind matches the pattern {source}; known are {KNOWN}")
        return files
    raise DataError(
        f"there is no file or directory {source}; check the path, or use 'python-docs' or 'hf:NAME'"
    )


def text_lines(source: str) -> Iterator[str]:
    """Lines of one text file, of whatever name, or of standard input where `source` is `-`.

    Raises DataError for a missing or unreadable file, or one that is not text.
    """
    if source == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise DataError("standard input is closed; give a file instead of -")
        yield from _lines(sys.stdin.buffer, Path("standard input"))
        return
    path = user_path(source)
    try:
        with _open(path) as file:
            yield from _lines(file, path)
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}; check the path") from None


def user_path(source: str) -> Path:
    """The path that a source names, `~` and `~name` read as homes; DataError where nobody is called so."""
    try:
        return Path(source).expanduser()
    except RuntimeError as error:
        raise DataError(f"{source} cannot be found ({str(error).rstrip('.')}); give the whole path") from None


def txt_splitter(txt_documents: str) -> Splitter:
    """What the setting `txt_documents` asks for: `file`, `blank-line` or `start:REGEX`.

    Raises SettingsError for another word or an invalid regular expression.
    """
    if txt_documents == "file":
        return lambda lines: iter(["".join(lines)])
    if txt_documents == "blank-line":
        return _paragraphs
    if txt_documents.startswith("start:"):
        try:
            start = re.compile(txt_documents.removeprefix("start:"))
        except re.error as error:
            raise SettingsError(
                f"setting data.txt_documents = {txt_documents!r} is not possible: "
                f"not a valid regular expression ({error})"
            ) from None
        return lambda lines: _sections(lines, start)
    raise SettingsError(
        f"setting data.txt_documents = {txt_documents!r} is not possible: "
        "it must be `file`, `blank-line` or `start:REGEX`"
    )


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines between blank ones, without their last line end."""
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).rstrip("\n")
            paragraph = []
    yield "".join(paragraph).rstrip("\n")


def _sections(lines: Iterable[str], start: re.Pattern[str]) -> Iterator[str]:
    """Runs of lines, each beginning with one that matches `start`; what comes before the first is one too."""
    section: list[str] = []
    for line in lines:
        if start.search(line.rstrip("\n")):
            yield "".join(section)
            section = []
        section.append(line)
    yield "".join(section)


def _kind(path: Path) -> str | None:
    """The known suffix of a file's name, `.gz` apart."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_file(path: Path, splitter: Splitter) -> Iterator[str]:
    with _open(path) as file:
        match _kind(path):
            case ".txt":
                yield from splitter(_lines(file, path))
            case ".jsonl":
                yield from _json_lines(file, path)
            case _:
                yield from _parquet_rows(file, path)


def _open(path: Path) -> BinaryFile:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    return path.open("rb")


def _lines(file: Iterable[bytes], path: Path) -> Iterator[str]:
    """Lines of UTF-8 text, ends included; a byte order mark is dropped and CR LF becomes LF."""
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.endswith(b"\r\n"):
            line = line[:-2] + b"\n"
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number} is not UTF-8 text (byte 0x{line[error.start]:02x} at position "
                f"{error.start + 1}); convert the file to UTF-8"
            ) from None


def _json_lines(file: Iterable[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(file, path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            fault = f"{error.msg.removesuffix(' at')} at column {error.colno}"
            raise DataError(f"{where} is not valid JSON ({fault}); mend that line, or take it out") from None
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where} is JSON beyond what can be read ({type(error).__name__}); simplify it"
            ) from None
        yield record_text(record, where)


def _parquet_rows(file: BinaryFile, path: Path) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"reading {path} needs pyarrow; install it with `pip install tandem-lm[hub]`"
        ) from None
    # Parquet is read from its end, which a gzip stream cannot seek to cheaply.
    seekable = io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file
    try:
        table = parquet.ParquetFile(seekable)
        columns = table.schema_arrow.names
        column = next((name for name in COLUMNS if name in columns), None)
        if column is None:
            found = ", ".join(repr(name) for name in columns) or "none"
            raise DataError(f"{path} has neither a column 'text' nor 'messages' (columns found: {found})")
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for record in batch.to_pylist():
                number += 1
                yield record_text(record, f"{path}, row {number}")
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]})") from None
