"""The audit's second reader: of every source it finds what training's reader finds, and mistakes of that."""

import bz2
import gzip
import itertools
import json
import lzma
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import defects
import pyarrow
import pytest
import torch
from conftest import sentences, tiny, write_jsonl
from test_encodings import ENCODINGS
from test_text import parquet

from tandem.audit import audit
from tandem.audit.data import data_checks
from tandem.audit.inputs import AuditInputs
from tandem.audit.reader import plain_documents
from tandem.experiment.runner import run_experiment
from tandem.records import Check
from tandem.settings import Settings
from tandem.text import hub, splits
from tandem.text.sources import SOURCES, Source, open_documents
from tandem.tokens.prepare import default_cache_dir, prepare_corpus
from tandem.training.progress import Watcher


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def data_checks_of(settings: Settings) -> dict[str, Check]:
    """The checks of data as it is read now, by name."""
    found = splits.split_documents(settings.data)
    corpus = prepare_corpus(settings.data, settings.tokenizer, default_cache_dir(), splits=found)
    inputs = AuditInputs.of(settings, corpus, torch.device("cpu"))
    return {check.name: check for check in itertools.islice(data_checks({None: inputs}, found), 3)}


def text_check(train: object, **more: Any) -> Check:
    """The check `text` of them."""
    data = {"train": str(train), "validation_fraction": 0.2, **more}
    return data_checks_of(Settings(data=data, tokenizer={"vocab_size": 260}))["text"]


NESTED = '''"""Half a character: \\ud800."""
try:
    import nothing
except ImportError:
    def f():
        "In a handler."
        with f() as g:
            class C:
                """  In a with.

                    And further.
                """
        return C
else:
    match f:
        case 1:
            async def late(): "In a case."
finally:
    def last(): """   """
if f: pass
else:
    def other():
        "In an else."
'''
Texts = tuple[object, dict[str, Any]]


def rows(folder: Path) -> Texts:
    """Two files of rows, with other columns, blank and equal rows; several row groups."""
    import pyarrow
    from pyarrow import parquet as writer

    table = pyarrow.table({"id": list(range(14)), "text": [*sentences(12), " ", sentences(1)[0]]})
    writer.write_table(table, folder / "rows.parquet", row_group_size=5)
    return folder / "rows.parquet", {}


def packed_rows(folder: Path) -> Texts:
    """A parquet file that is gzipped, and one that is called otherwise."""
    plain = parquet(folder / "b.txt", {"text": sentences(6, seed=3)})
    put(folder / "a.parquet.gz", gzip.compress(plain.read_bytes()))
    parquet(plain, {"text": sentences(6)})
    return folder, {}


def conversations(folder: Path) -> Texts:
    """Messages in rows of both kinds."""
    talks = [[{"content": one}, {"content": f"And so on.\n{one[:9]}"}] for one in sentences(12)]
    parquet(folder / "a.parquet", {"messages": talks[:6]})
    put(folder / "b.jsonl", "\n\n".join(json.dumps({"messages": talk}) for talk in talks[6:]))
    return folder, {}


def linked(folder: Path) -> Texts:
    """A folder with links to files and folders, some of which lead round, hidden files and other kinds."""
    for number, text in enumerate(sentences(8)):
        put(folder / "texts" / f"{'ab'[number % 2]}" / f"{number}.TXT", text)
    put(folder / "elsewhere" / "far.txt", sentences(1, seed=5)[0])
    put(folder / "texts" / ".hidden.txt", sentences(1, seed=6)[0])
    put(folder / "texts" / ".git" / "c.txt", sentences(1, seed=7)[0])
    put(folder / "texts" / "c.txt~", sentences(1, seed=8)[0])
    put(folder / "texts" / "a.pdf", sentences(1, seed=9)[0])
    links = {"far": "elsewhere", "a/up": "texts", "b/out": "", "z": "texts/a", "texts/z.txt": "texts/a/0.TXT"}
    for name, target in links.items():
        (folder / "texts" / name.removeprefix("texts/")).symlink_to(folder / target)
    (folder / "texts" / "gone.txt").symlink_to(folder / "nowhere.txt")
    return folder / "texts", {}


def matched(pattern: str) -> Callable[[Path], Texts]:
    """The same by a pattern."""
    return lambda folder: (Path(linked(folder)[0].parent, pattern), {})  # type: ignore[attr-defined]


def in_encodings(folder: Path) -> Texts:
    """A file in each encoding, with each line end."""
    for number, name in enumerate(ENCODINGS):
        text = "\r".join([f"{number}: naïve 日本語 🐱", "of it\n", "the end\r\n"])
        encoded = text.encode(name.split()[0])
        put(folder / f"{number}.txt", {"utf-8 with a mark": text.encode("utf-8-sig")}.get(name, encoded))
    put(folder / "8.txt", b"\xfe\xff" + "eight: 日本語".encode("utf-16-be"))
    put(folder / "9.jsonl", json.dumps({"text": "nine 九の"}, ensure_ascii=False).encode("utf-16-le"))
    put(folder / "zero.txt", "zero characters\0 are text, too, where there are few of them")
    return folder, {}


def accented(folder: Path) -> Texts:
    """Text in UTF-8 that is not ASCII alone."""
    lines = [f"naïve {one}\n\n" for one in sentences(12)]
    return put(folder / "text.txt", "".join(lines)), {"txt_documents": "blank-line"}


def wide(folder: Path) -> Texts:
    """Text in UTF-16, with a mark, of JSON lines."""
    lines = "".join(json.dumps({"text": one}) + "\r\n" for one in sentences(12))
    return put(folder / "text.jsonl", lines.encode("utf-16")), {}


def packed(folder: Path) -> Texts:
    """Files that are packed, whatever they are called."""
    for number, (text, pack) in enumerate(
        zip(sentences(8), [gzip.compress, bz2.compress, lzma.compress, bytes] * 2, strict=True)
    ):
        put(folder / f"{number}.txt", pack(text.encode()))
    put(folder / "c.txt.gz", gzip.compress(b"nine"))
    put(folder / "d.txt.zst", pyarrow.compress(b"ten", codec="zstd", asbytes=True))
    return folder, {}


def paragraphs(folder: Path) -> Texts:
    """Runs of lines between blank ones."""
    text = "\n \n" + "\r\n\t\r\n\n".join(one.replace(" ", "\n", 3) for one in sentences(12)) + "\n\n"
    return put(folder / "text.txt", text), {"txt_documents": "blank-line"}


def sections(folder: Path) -> Texts:
    """Documents that begin where an expression matches; something stands before the first."""
    text = "".join(f"== {number} ==\n\n{one} == \n" for number, one in enumerate(sentences(12)))
    late = "x" * 5000 + "== no start\n"
    return put(folder / "text.txt", f"before\n{text}{late}"), {"txt_documents": "start:== "}


def data_set(folder: Path) -> Texts:
    """Slices of a data set in a folder."""
    place = folder / "some_data"
    place.mkdir()
    write_jsonl(place / "train.jsonl", sentences(14))
    return f"hf:{place}:train[:10]", {"validation": f"hf:{place}:train[10:12]+train[13:]"}


def python_docs(_: Path) -> Texts:
    """Python's own, of a library that is shorter."""
    return "python-docs", {"max_train_bytes": 30_000}


@pytest.fixture(autouse=True)
def own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's documentation comes from a part of it and modules of our own. Copies of data sets go there."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "copies")
    whole, part = Path(json.__file__).parents[1], tmp_path / "library"
    for name in ("json", "email", "json/tests", "json/__pycache__"):
        shutil.copytree(whole / "json", part / name, dirs_exist_ok=True)
    for name in ("ast.py", "contextlib.py", "this.py", "typing.py"):
        shutil.copy(whole / name, part / name)
    put(part / "broken.py", "def f(:")
    put(part / "nested.py", NESTED)
    real = sysconfig.get_path
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(part) if name == "stdlib" else real(name))


def limited(folder: Path) -> Texts:
    """More text than is used, with other validation text."""
    return write_jsonl(folder / "text.jsonl", sentences(20)), {
        "max_train_bytes": 3000,
        "validation": str(parquet(folder / "valid.parquet", {"text": sentences(4, seed=3)})),
    }


def broken(content: bytes) -> Callable[[Path], Texts]:
    """JSON lines one of which cannot be read."""
    good = "".join(json.dumps({"text": one}) + "\n" for one in sentences(12)).encode()
    return lambda folder: (put(folder / "text.jsonl", good + content), {})


READ = {
    "parquet": rows,
    "packed parquet": packed_rows,
    "conversations": conversations,
    "a folder with links": linked,
    "a pattern with folders": matched("texts/**/*.[tT][xX][tT]"),
    "a pattern within a folder": matched("t*s/[ab]/?.TXT"),
    "a pattern through a link": matched("*/far/../t*s/z*/*.TXT"),
    "a pattern that ends in folders": matched("texts/**"),
    "a hidden folder": lambda folder: (
        matched("texts/.g*/*")(folder)[0],
        {"validation": str(folder / "texts")},
    ),
    "encodings": in_encodings,
    "UTF-16": wide,
    "packed files": packed,
    "paragraphs": paragraphs,
    "sections": sections,
    "a data set": data_set,
    "python-docs": python_docs,
    "a limit": limited,
}
"""Sources of each kind."""


@pytest.mark.parametrize("name", READ)
def test_the_second_reader_finds_the_same(name: str, tmp_path: Path) -> None:
    """The same text in the same order, and the check passes."""
    train, more = READ[name](tmp_path)
    how = more.get("txt_documents", "file")
    found = plain_documents(str(train), how, tmp_path)
    assert found is not None
    assert list(found) == list(open_documents(str(train), how))
    check = text_check(train, **more)
    assert (check.status, "documents read" in check.figure) == ("pass", True), check.figure


MISREAD: dict[str, tuple[Callable[[defects.Patch], None], Callable[[Path], Texts], str]] = {
    "last row lost": (defects.last_row_lost, rows, "0 duplicates"),
    "last row of messages lost": (defects.last_row_lost, conversations, "1 documents of"),
    "last file lost": (defects.last_file_lost, READ["a pattern with folders"], "are in no split"),
    "last file of a folder lost": (defects.last_file_lost, packed, "1 documents of"),
    "another order": (defects.files_in_another_order, packed, "in another order"),
    "hidden files": (defects.hidden_files_read, linked, "are in no file of"),
    "linked twice": (defects.linked_files_read_twice, linked, "duplicates are said to be dropped"),
    "links not followed": (defects.links_not_followed, linked, "1 documents of"),
    "latin-1": (defects.always_latin_1, accented, "are in no file of"),
    "replaced": (defects.undecodable_replaced, broken(b'{"text": "caf\xe9"}\n'), "no such text as is read"),
    "skipped": (defects.broken_lines_skipped, broken(b'{"text": "caf}\n'), "no such text as is read"),
    "cut rows": (defects.long_documents_cut, rows, "are in no file of"),
    "cut rows of a data set": (defects.long_documents_cut, data_set, "are in no file of"),
    "cut lines": (defects.long_documents_cut, wide, "are in no file of"),
    "first message": (defects.first_message_only, conversations, "are in no file of"),
    "line ends": (defects.lines_joined_by_spaces, sections, "have other white space"),
    "lines": (defects.every_line_a_document, paragraphs, "are in no file of"),
    "before the first": (defects.text_before_the_first_match_lost, sections, "1 documents of"),
    "slice ignored": (
        defects.slice_ignored,
        lambda folder: (data_set(folder)[0], {}),
        "4 documents are in no file of",
    ),
    "docstrings": (defects.docstrings_of_modules_only, python_docs, "are in no file of python-docs"),
    "topics": (defects.topics_lost, python_docs, "documents of python-docs are in no split"),
    "limit ignored": (defects.limit_ignored, limited, "the settings allow 3000"),
    "too much left out": (defects.too_much_left_out, limited, "for which there was room"),
    "left out unasked": (defects.left_out_unasked, rows, "which no setting asks for"),
}
"""Mistakes of training's reader, the text that shows them, and words of what is found."""


@pytest.mark.parametrize("name", MISREAD)
def test_what_was_read_otherwise_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, source, words = MISREAD[name]
    train, more = source(tmp_path)
    plant(monkeypatch)
    check = text_check(train, **more)
    assert check.status == "fail", check.figure
    assert words in check.figure


def test_a_data_set_of_the_hub_is_read_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for it again; where there is no copy any more, nothing is checked."""
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    source, _ = data_set(tmp_path)
    list(open_documents(str(source), "file"))
    (copy,) = (path for path in (tmp_path / "copies").iterdir() if path.is_dir())
    (version,) = (path for path in copy.iterdir() if path.is_dir())
    shutil.copytree(version, tmp_path / "copies" / "someone___some_data" / version.name)
    name = "hf:someone/some_data:train[:12]"
    assert text_check(name).figure == "12 documents read, 0 dropped as duplicates, 0 left out"
    monkeypatch.setattr(splits, "open_documents", lambda *_: iter(sentences(12)))
    shutil.rmtree(tmp_path / "copies")
    check = text_check(name)
    assert check.status == "skip"
    assert f"{name} cannot be read again" in check.figure


@pytest.mark.parametrize("name", ["parquet", "a data set", "a pattern with folders"])
def test_a_run_on_it_passes_its_audit(name: str, tmp_path: Path) -> None:
    train, more = READ[name](tmp_path)
    settings = tiny(
        Path("x"),
        **{"configurations": ((1, 1),), "seeds": (0,), "output": str(tmp_path / "run")},
        tokenizer={"vocab_size": 260},
        data={"train": str(train), **more},
    )
    found = audit(run_experiment(settings, Watcher())[0])
    assert not found.failed()
    (check,) = (check for check in found.runs[0].checks if check.name == "text")
    assert (check.status, "documents read" in check.figure) == ("pass", True), check.figure


def test_a_folder_is_read_by_the_second_reader_too(tmp_path: Path) -> None:
    """With text of each kind, gzipped or not, messages, and a file that is no text."""
    folder = tmp_path / "text" / "deeper"
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": one}) for one in sentences(20)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    messages = [{"messages": [{"content": one}, {"content": "and so on"}]} for one in sentences(12, seed=5)]
    (folder.parent / "b.jsonl").write_text("\ufeff" + "\r\n".join(map(json.dumps, messages)), "utf-8")
    (folder.parent / "c.txt").write_text("\n\n".join(sentences(6, seed=6)), "utf-8")
    (folder.parent / "notes.md").write_text("no text", "utf-8")
    settings = tiny(
        folder.parent,
        configurations=((1, 1),),
        seeds=(0,),
        output=str(tmp_path / "run"),
        data={"txt_documents": "blank-line"},
    )
    found = audit(run_experiment(settings, Watcher())[0])
    assert not found.failed()
    (figure,) = (check.figure for check in found.runs[0].checks if check.name == "text")
    assert figure.startswith("38 documents read")


def test_a_source_of_another_package_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit then keeps to training's reader, and says so; the other source is checked all the same."""
    monkeypatch.setitem(SOURCES, "drawn:", Source(lambda *_: iter(sentences(20))))
    check = text_check("drawn:20")
    assert check.status == "skip"
    assert check.figure.startswith("not checked: only training's own reader knows drawn:20;")
    validation = str(parquet(tmp_path / "valid.parquet", {"text": sentences(4, seed=3)}))
    assert text_check("drawn:20", validation=validation).status == "skip"
    defects.last_row_lost(monkeypatch)
    assert "1 documents of" in text_check("drawn:20", validation=validation).figure


def test_of_much_text_the_first_merges_are_learned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the whole text, and others are named."""
    monkeypatch.setattr("tandem.audit.data.TRAINED_BYTES", 100)
    monkeypatch.setattr("tandem.audit.data.FIRST_MERGES", 9)
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    train, _ = rows(tmp_path)
    checks = data_checks_of(Settings(data={"train": str(train)}, tokenizer={"vocab_size": 280}))
    tokens = checks["tokens"]
    assert tokens.status == "pass"
    assert tokens.looked_at.endswith("which was trained again as far as its first 9 merges")
    shutil.rmtree(tmp_path / "cache")
    defects.tokenizer_of_another_text(monkeypatch)
    checks = data_checks_of(Settings(data={"train": str(train)}, tokenizer={"vocab_size": 280}))
    assert "is not the BPE of the training text" in checks["tokens"].figure


def test_the_second_reader_shares_nothing() -> None:
    assert (
        "tandem"
        not in Path(plain_documents.__code__.co_filename).read_text("utf-8").lower().split('"""', 2)[2]
    )
