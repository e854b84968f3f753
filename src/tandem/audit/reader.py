"""A second, plain reader of text sources, written from what the documentation says of them.

It imports nothing of Tandem, so no mistake of training's reader can be its own. It does not explain what it
cannot read: training has done so before.
"""

import ast
import bz2
import codecs
import gzip
import inspect
import io
import json
import lzma
import os
import re
import sysconfig
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatch
from itertools import chain, groupby
from pathlib import Path
from statistics import fmean
from typing import IO, Any

KINDS = (".txt", ".jsonl", ".parquet")


def _zstd_open(raw: Any, _mode: str) -> IO[bytes]:
    """In memory, as the library's stream cannot go back."""
    import pyarrow

    return io.BytesIO(pyarrow.input_stream(raw, compression="zstd").read())


PACKED = (
    (rb"\x1f\x8b", gzip.open),
    (rb"BZh[1-9]1AY&SY", bz2.open),
    (rb"\xfd7zXZ\x00", lzma.open),
    (rb"\x28\xb5\x2f\xfd", _zstd_open),
)
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),  # with which the mark of UTF-32 begins, too
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
HEAD_BYTES = 1 << 16
"""From so many bytes the encoding of a file is told."""
SOME_ODD = 0.2
"""Text with a smaller share of characters such as zeros is UTF-8 all the same."""
PYTHON_DOCS_WITHOUT = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
HubAccess = Callable[[], AbstractContextManager[object]]


def plain_documents(
    source: str, txt_documents: str, folder: Path, hub_access: HubAccess = nullcontext
) -> Iterator[str] | None:
    """The documents of a source in order, blank ones left out; equal ones stay.

    Relative paths count from `folder`, and `txt_documents` is the setting. `hub_access` is entered while the
    hub is asked. None where the name is neither `python-docs`, `hf:NAME[:SPLIT]`, a file, a folder nor a
    pattern that matches. The iterator raises OSError where something is not there, ValueError where it is
    not as documented.
    """
    if source == "python-docs":
        found: Iterable[str] = _python_docs()
    elif source.startswith("hf:"):
        found = _data_set(source.removeprefix("hf:"), folder, hub_access)
    elif files := _files(folder / Path(source).expanduser()):
        found = chain.from_iterable(_file_documents(path, txt_documents) for path in files)
    else:
        return None
    return (document for document in found if document.strip())


def _files(path: Path) -> list[Path]:
    """The files of a known kind that a path or pattern names, sorted; each once, under its first name."""
    if path.is_file():
        return [path]
    base = path if path.is_dir() else next(parent for parent in path.parents if parent.is_dir())
    found = {file for file in _matches(base, path.relative_to(base).parts or ("**",)) if file.is_file()}
    first: dict[str, Path] = {}
    for file in sorted(file for file in found if _kind(file)):
        first.setdefault(os.path.realpath(file), file)
    return [*first.values()]


def _kind(path: Path) -> str:
    """One of KINDS; '' for any other file."""
    name = re.sub(r"\.(gz|zst)$", "", path.name.lower())
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """What a pattern's parts match, from a folder on."""
    if not parts:
        yield folder
    elif parts[0] == "**":
        for below in _folders(folder, {*map(os.path.realpath, Path(os.path.realpath(folder)).parents)}):
            yield from _matches(below, parts[1:] or ("*",))
    elif folder.is_dir():
        for entry in _entries(folder, parts[0]):
            yield from _matches(entry, parts[1:])


def _folders(folder: Path, seen: set[str]) -> Iterator[Path]:
    """`folder` and those below it, in order, also behind links, which may lead round: each one once."""
    if folder.is_dir() and (real := os.path.realpath(folder)) not in seen:
        seen.add(real)
        yield folder
        for entry in _entries(folder, "*"):
            yield from _folders(entry, seen)


def _entries(folder: Path, pattern: str) -> list[Path]:
    """Those of one folder, sorted; a pattern means a hidden one only where it begins with a dot itself."""
    if pattern == "..":
        return [folder / pattern]
    meant = (entry for entry in folder.iterdir() if pattern[0] == "." or entry.name[0] != ".")
    return sorted(entry for entry in meant if fnmatch(entry.name, pattern))


def _file_documents(path: Path, txt_documents: str) -> Iterator[str]:
    """Of one file, which may be packed, whatever it is called."""
    try:
        with path.open("rb") as raw:
            start = raw.read(16)
            raw.seek(0)
            opener = next((opener for mark, opener in PACKED if re.match(mark, start)), None)
            with nullcontext(raw) if opener is None else opener(raw, "rb") as file:
                head = file.read(HEAD_BYTES)
                file.seek(0)
                if _kind(path) == ".parquet" or head.startswith(b"PAR1\x15"):
                    yield from _parquet_rows(raw if opener is None else io.BytesIO(file.read()))
                else:
                    lines = io.TextIOWrapper(file, _encoding(head))  # which reads every line end as \n
                    yield from _documents(lines, None if _kind(path) == ".jsonl" else txt_documents)
    except (EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _encoding(head: bytes) -> str:
    """By its mark; without one it is UTF-8, unless zero bytes say that it has more bytes a character."""
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    narrow = _decoded(head, "utf-8")
    if 0 not in head or (narrow and fmean(map(_is_odd, narrow)) < SOME_ODD):
        return "utf-8"
    wide = {encoding: text for encoding in WIDE if (text := _decoded(head, encoding))}
    likeness = {e: fmean((" " <= one <= "ÿ") - _is_odd(one) for one in text) for e, text in wide.items()}
    return max(likeness, key=likeness.__getitem__, default="utf-8")


def _decoded(head: bytes, encoding: str) -> str:
    """The text of these bytes, which may end within a character; '' where they are of another encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return ""


def _is_odd(character: str) -> bool:
    """Whether it is a sign that text was read in another encoding than its own."""
    return unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs") and character not in "\t\n\f\r"


def _documents(lines: IO[str], txt_documents: str | None) -> Iterator[str]:
    """Of a text file, as `data.txt_documents` says; None: each line is JSON."""
    if txt_documents is None:
        yield from (_row_text(json.loads(line)) for line in lines if line.strip())
    elif txt_documents == "file":
        yield lines.read()
    elif txt_documents == "blank-line":
        for blank, paragraph in groupby(lines, str.isspace):
            yield "" if blank else "".join(paragraph).rstrip("\n")
    else:
        start, document = re.compile(txt_documents.removeprefix("start:")), list[str]()
        for line in lines:
            if start.search(line.rstrip("\n")[:4096]):
                yield "".join(document)
                document = []
            document.append(line)
        yield "".join(document)


def _row_text(row: Any) -> str:
    """The `text` of a row, or the contents of its `messages`, a line each. Raises ValueError."""
    try:
        text = row["text"] if "text" in row else "\n".join(message["content"] for message in row["messages"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"a row without text ({error})") from None
    if not isinstance(text, str):
        raise ValueError(f"a text that is a {type(text).__name__}")
    return text


def _parquet_rows(file: IO[bytes]) -> Iterator[str]:
    from pyarrow import parquet

    table = parquet.ParquetFile(file)
    column = "text" if "text" in table.schema_arrow.names else "messages"
    for group in range(table.num_row_groups):
        yield from map(_row_text, table.read_row_group(group, columns=[column]).to_pylist())


def _data_set(name: str, folder: Path, hub_access: HubAccess) -> Iterator[str]:
    """Of `NAME[:SPLIT]`, a folder or the hub's."""
    import datasets

    split, named = "train", re.fullmatch(r"(.+):((?:[^:/\\\[\]]|\[[^\]]*\])+)", name)
    if named and not (folder / Path(name).expanduser()).is_dir():
        name, split = named.groups()
    local = folder / Path(name).expanduser()
    try:
        with nullcontext() if local.is_dir() else hub_access():
            rows = datasets.load_dataset(str(local) if local.is_dir() else name, split=split)
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    column = "text" if "text" in rows.column_names else "messages"
    yield from map(_row_text, rows.select_columns([column]))


def _python_docs() -> Iterator[str]:
    """The docstrings of each module of the standard library, then the help topics that no other one holds."""
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if PYTHON_DOCS_WITHOUT.isdisjoint(path.relative_to(library).parts):
            yield _encodable("\n\n".join(_docstrings(path)))
    words = {name: " ".join(["", *re.findall(r"\w+", text), ""]) for name, text in topics.items()}
    for name in sorted(topics):
        others = (other for other in topics if other != name and words[name] in words[other])
        if all(words[other] == words[name] and other > name for other in others):
            yield _encodable(topics[name])


def _docstrings(path: Path) -> list[str]:
    """Of a module and all that it defines, in order; none where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = _statements(ast.parse(path.read_bytes()))
            documented = (node for node in nodes if isinstance(node, DOCUMENTED))
            texts = [ast.get_docstring(node, clean=False) for node in documented]
    except (SyntaxError, ValueError, RecursionError, OSError):
        return []
    return [inspect.cleandoc(text) for text in texts if text]


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and whatever stands in it as a statement, in order."""
    yield node
    for block in ("body", "handlers", "cases", "orelse", "finalbody"):
        for statement in getattr(node, block, ()):
            yield from _statements(statement)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
