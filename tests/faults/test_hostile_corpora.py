"""Text of strangers: read in bounded memory, or refused in one sentence with file and line."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.errors import DataError, SettingsError, TandemError
from tandem.settings import DataSettings, Settings
from tandem.text.files import STRUCTURE_CHARACTERS, read_records, whole_text
from tandem.text.reading import Reading
from tandem.text.sources import open_documents

SMALL = 1 << 16
"""Bytes that a document may have in most of these tests."""


def read(path: Path, how: str = "file", most: int | None = SMALL) -> list[str]:
    return list(open_documents(str(path), how, max_document_bytes=most))


def refused(path: Path, how: str = "file", most: int | None = SMALL) -> str:
    """What is said of a source that cannot be read: one sentence that names the file."""
    with pytest.raises(DataError) as error:
        read(path, how, most)
    said = str(error.value)
    assert path.name in said
    assert "\n" not in said
    assert len(said) < 1000
    return said


class Counted(gzip.GzipFile):
    """A packed file that counts what was unpacked of it."""

    unpacked = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        Counted.unpacked += len(found)
        return found

    def read1(self, size: int = -1) -> bytes:
        found = super().read1(size)
        Counted.unpacked += len(found)
        return found


@pytest.mark.parametrize("name", ["bomb.txt", "bomb.txt.gz", "bomb.jsonl.gz"])
def test_a_bomb_is_unpacked_no_further_than_a_document_may_go(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tandem import decoding

    kinds = [
        (*kind[:2], lambda file: Counted(fileobj=file), Counted) if kind[1] == "gzip" else kind
        for kind in decoding._PACKED
    ]
    monkeypatch.setattr(decoding, "_PACKED", tuple(kinds))
    path, Counted.unpacked = tmp_path / name, 0
    path.write_bytes(gzip.compress(b"x" * 20_000_000))
    said = refused(path)
    assert "line 1 is longer than 65,536 bytes" in said
    assert "data.max_document_bytes" in said
    assert Counted.unpacked < 10 * SMALL


@pytest.mark.parametrize(
    ("name", "content", "how", "line"),
    [
        ("a.txt", "ab\n" * 40_000, "file", "line 21,846"),
        ("a.txt", "ok\n\n" + "ab\n" * 40_000, "blank-line", "line 21,848"),
        ("a.txt", "= one\nx\n= two\n" + "ab\n" * 40_000, "start:^=", "line 21,849"),
        ("a.txt", "é" * 33_000, "file", "line 1"),
        ("a.jsonl", '{"text": "fits"}\n{"text": "' + "a b" * 30_000 + '"}\n', "file", "line 2"),
        ("a.jsonl", '{"messages": [{"content": "' + "a b" * 30_000 + '"}]}\n', "file", "line 1"),
    ],
)
def test_a_long_document_is_refused_with_its_line(
    name: str, content: str, how: str, line: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    said = refused(path, how)
    assert f"{name}, {line}" in said
    assert "data.max_document_bytes" in said
    assert read(path, how, None)  # the default allows it


def test_a_document_of_the_very_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("x" * SMALL, "é" * (SMALL // 2), "ab\n" * 21_845 + "c"):
        path.write_text(text, "utf-8")
        assert read(path) == [text]
        path.write_text(f"{text}y", "utf-8")
        refused(path)


MEASURED = """
import resource, sys
from pathlib import Path
from tandem.text.sources import open_documents
now = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (int(sys.argv[1]) << 20),) * 2)
for path in sys.argv[2:]:
    try:
        for document in open_documents(path, "file"):
            print(len(document))
    except Exception as error:
        print(type(error).__name__, error)
"""
LARGE = {
    "long.jsonl": ('{"text": "' + "a b " * 2_000_000 + '"}\n', "8000000"),
    "long.txt": ("a b " * 2_000_000, "8000000"),
    "lines.txt": ("a\n" * 1_000_000, "2000000"),
    "values.jsonl": ('{"text": "", "a": [' + "[]," * 6_000_000 + "1]}\n", "has too many values"),
    "keys.jsonl": (json.dumps({f"k{n}": n for n in range(100_000)}) + "\n", "and 99,980 more"),
}
"""Files of up to 18 MB, and what is said of each; lines and values by themselves would take 60 to 400 MB."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is bounded as Linux does")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A process that may have 90 MB more than it has reads a file, or refuses it."""
    for name, (content, _) in LARGE.items():
        (tmp_path / name).write_text(content, "utf-8")
    words = [sys.executable, "-c", MEASURED, "90", *(str(tmp_path / name) for name in LARGE)]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", check=True)
    for said, (_, says) in zip(done.stdout.splitlines(), LARGE.values(), strict=True):
        assert says in said, said[-500:]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a link to a device", "a link to a pipe"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.jsonl.gz", "x.parquet"])
def test_pipes_and_devices_are_not_opened(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "a device":
        path = Path("/dev/zero")
    elif kind == "a link to a device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe" if "link" in kind else path)
        if "link" in kind:
            path.symlink_to(tmp_path / "pipe")
    said = refused(path)
    assert "is of unknown kind" in said or "not a file" in said
    for read_other in (
        lambda: list(read_records([str(path)], Reading("x"), "text")),
        lambda: whole_text(str(path)),
    ):
        with pytest.raises(DataError, match=r"not a file|of unknown kind"):
            read_other()
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("text", "utf-8")
    (folder / "b.txt").symlink_to(path)
    assert read(folder) == ["text"]


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("change", ["grown", "truncated", "rewritten"])
def test_a_file_that_changes_while_it_is_read_is_refused(kind: str, change: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{kind}"
    lines = [f"document {number} of text, some noise {hash(str(number))}" for number in range(20_000)]
    content = (
        "\n".join(json.dumps({"text": line}) for line in lines) if "json" in kind else "\n\n".join(lines)
    )
    path.write_bytes(gzip.compress(content.encode()) if kind.endswith(".gz") else content.encode())
    before = path.stat()
    documents: Iterator[str] = open_documents(str(path), "blank-line")
    next(documents)
    if change == "grown":
        with path.open("ab") as file:
            file.write(b"\nmore")
    elif change == "truncated":
        os.truncate(path, before.st_size // 2)
    else:
        with path.open("r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(DataError, match="changed while it was read"):
        list(documents)


def test_a_file_that_is_replaced_is_read_as_it_was(tmp_path: Path) -> None:
    """An editor writes another file and renames it; the one that is open stays whole."""
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo", "utf-8")
    documents = open_documents(str(path), "blank-line")
    assert next(documents) == "one"
    (tmp_path / "b").write_text("other", "utf-8")
    (tmp_path / "b").replace(path)
    assert list(documents) == ["two"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "one", "text": "two"}', "gives 'text' twice"),
        ('{"text": "one", "a": {"b": 1, "b": 1}}', "gives 'b' twice"),
        ('{"messages": [{"content": "x", "content": "y"}]}', "gives 'content' twice"),
        ('{"te\\u0078t": "one", "text": "two"}', "gives 'text' twice"),
        (json.dumps({"a": 1})[:-1] + f', "{"k" * 5000}": 1, "{"k" * 5000}": 2}}', "twice"),
        ('{"text": "x", "a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": "x", "n": ' + "9" * 5000 + "}", "too many digits"),
        ('{"text": "half \\ud800 a character"}', "lone surrogate"),
        ('{"text": ["x"]}', "holds no document"),
        ('{"text": "x"', "is not valid JSON"),
        ('"text"', "holds no document"),
        ("NaN", "holds no document"),
    ],
)
def test_a_line_that_is_no_record_is_refused(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "first"}}\n{line}\n', "utf-8")
    said = refused(path, most=None)
    assert says in said
    assert "line 2" in said


def test_zeros_are_text_and_are_said(tmp_path: Path) -> None:
    path, told = tmp_path / "a.jsonl", list[str]()
    path.write_text('{"text": "x\\u0000y", "\\u0000": 1}\n{"text": "b"}\n', "utf-8")
    assert list(open_documents(str(path), "file", told.append)) == ["x\0y", "b"]
    assert "1 zero characters" in told[-1]


def test_strings_are_no_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what stands outside of strings, also where those have quotes or no end."""
    from tandem.text import files

    assert DataSettings().max_document_bytes > STRUCTURE_CHARACTERS
    monkeypatch.setattr(files, "STRUCTURE_CHARACTERS", 1000)
    text = '[1, "2", {}] \\" ' * 1000
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": text}), "utf-8")
    assert read(path) == [text]
    for line, says in (
        (json.dumps({"text": "x", "a": [1] * 1000}), "has too many values"),
        ('{"text": "' + '\\"' * 20_000, "is not valid JSON"),
        ('"' * 20_001, "is not valid JSON"),
        ('{"text": "x"' + " " * 2000 + "}", "has too many values"),
    ):
        path.write_text(line, "utf-8")
        assert says in refused(path)


def test_the_bound_decides_no_result() -> None:
    """So it has no part in fingerprints: runs of before are continued."""
    one, other = (Settings(data={"max_document_bytes": size}) for size in (100, 1 << 30))
    assert one.fingerprint() == other.fingerprint() == Settings().fingerprint()
    for size in (0, -1, 1 << 60):
        with pytest.raises(SettingsError, match=r"data\.max_document_bytes"):
            Settings(data={"max_document_bytes": size})


def test_a_path_of_any_characters_is_one_sentence(tmp_path: Path) -> None:
    for name in ("\x1b[31mred", "a\nb", "‮txt", "../" * 2000 + "x", "x" * 5000, "~nobody-here/x", "[", "**"):
        with pytest.raises(TandemError):
            list(open_documents(str(tmp_path / name / "none.txt"), "file"))
