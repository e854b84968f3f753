"""Text: every kind of source, how it is cut into documents, and how it is split."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import DataError, SettingsError
from tandem.fingerprint import fingerprint
from tandem.settings import DataSettings
from tandem.text import files, hub
from tandem.text.hub import parse_hub_source
from tandem.text.rows import record_text
from tandem.text.sources import open_documents
from tandem.text.splits import split_documents

shared = pytest.mark.skipif(
    "TANDEM_SHARED" not in os.environ, reason="TANDEM_SHARED names no folder of corpora"
)


def read(source, txt_documents="file"):
    return list(open_documents(str(source), txt_documents))


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


# --- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text_files_are_cut_as_asked(tmp_path, suffix):
    text = "preface\n\n = One = \nfirst\n \t\nstill first\n = Two = \nlast\n"
    path = put(tmp_path / f"a.txt{suffix}", text)
    assert read(path) == [text]
    assert read(path, "blank-line") == ["preface", " = One = \nfirst", "still first\n = Two = \nlast"]
    sections = read(path, "start:^ = [^=]")
    assert sections == ["preface\n\n", " = One = \nfirst\n \t\nstill first\n", " = Two = \nlast\n"]
    assert "".join(sections) == text


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    assert read(put(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")) == ["one\ntwo\n"]
    assert read(put(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "x"}\r\n')) == ["x"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines(tmp_path, suffix):
    messages = [
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "So.\n"},
        {"content": "Ah"},
    ]
    content = jsonl({"text": "plain"}, {"messages": messages, "id": 3}) + "\n" + jsonl({"text": "  \n"})
    assert read(put(tmp_path / f"a.jsonl{suffix}", content)) == ["plain", "How?\nSo.\n\nAh"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_parquet(tmp_path, suffix):
    plain = parquet(tmp_path / "plain.parquet", {"id": [1, 2, 3], "text": ["a", " ", "b"]})
    talks = parquet(tmp_path / "talks.parquet", {"messages": [[{"content": "x"}, {"content": "y"}]]})
    if suffix:
        plain, talks = (put(path.with_suffix(".parquet.gz"), path.read_bytes()) for path in (plain, talks))
    assert read(plain) == ["a", "b"]
    assert read(talks) == ["x\ny"]


def test_directory_and_glob_read_known_files_in_sorted_order(tmp_path):
    put(tmp_path / "data" / "b.txt", "b")
    put(tmp_path / "data" / "a" / "z.jsonl.gz", jsonl({"text": "z"}))
    put(tmp_path / "data" / "a" / "README.md", "not data")
    put(tmp_path / "data" / ".hidden" / "c.txt", "hidden")
    assert read(tmp_path / "data") == ["z", "b"]
    assert read(tmp_path / "data" / "**" / "*") == ["z", "b"]
    assert read(tmp_path / "data" / "*.txt") == ["b"]
    odd = put(tmp_path / "data" / "odd[1].txt", "odd")
    assert read(odd) == ["odd"]


def test_json_lines_are_streamed(tmp_path):
    path = put(tmp_path / "a.jsonl", jsonl({"text": "first"}) + "broken\n")
    documents = open_documents(str(path), "file")
    assert next(documents) == "first"
    with pytest.raises(DataError, match="line 2"):
        next(documents)


BAD_FILES = {
    "empty.txt": (b"", "holds no text"),
    "blank.jsonl": (b"\n\n", "holds no text"),
    "latin.txt": (b"ok\ncaf\xe9 au lait\n", "line 2 is not UTF-8 text (byte 0xe9"),
    "wide.txt": ("text".encode("utf-16")[:-1], "is not whole UTF-16 text"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "caf\xe9"}\n', "line 2 is not UTF-8"),
    "syntax.jsonl": (b'{"text": "a"}\n\n{"text": \n', "line 3 is not valid JSON"),
    "deep.jsonl": (b"[" * 200_000, "line 1"),
    "list.jsonl": (b"[1]\n", "line 1 holds no document (fields found: none)"),
    "fields.jsonl": (b'{"prompt": "a", "id": 1}\n', "fields found: 'prompt', 'id'"),
    "number.jsonl": (b'{"text": 3}\n', "give an object with a string 'text'"),
    "messages.jsonl": (b'{"messages": "hi"}\n', "line 1 holds no document (fields found: 'messages')"),
    "content.jsonl": (b'{"messages": [{"content": "a"}, {"content": null}]}\n', "a string 'content'"),
    "surrogate.jsonl": (b'{"text": "a"}\n{"text": "x \\ud800 y"}\n', "line 2 holds half a character"),
    "torn.parquet": (b"PAR1 nothing", "not a readable parquet file"),
    "note.md": (b"text", "of unknown kind"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_one_sentence_naming_it(tmp_path, name):
    content, expected = BAD_FILES[name]
    path = put(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert expected in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_gzip(tmp_path):
    whole = gzip.compress(os.urandom(5000).hex().encode())
    for number, content in enumerate(
        (b"not gzip at all", whole[: len(whole) // 2], whole[:50] + b"x" + whole[51:])
    ):
        path = tmp_path / f"{number}.txt.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match="no gzip file, or not a complete one"):
            read(path)


def test_missing_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, expected in {
        tmp_path / "none.txt": "there is no file or directory",
        tmp_path / "empty": "holds no file of a known kind",
        tmp_path / "*.txt": "matches the pattern",
        "": "name of a text source is empty",
    }.items():
        with pytest.raises(DataError, match=expected):
            read(source)


def test_missing_texts_are_told_together(tmp_path):
    there = put(tmp_path / "a.txt", "some text")
    for train, validation in (("none.txt", "no*.txt"), ("none.txt", there), (there, "none.txt")):
        with pytest.raises(DataError) as refused:
            split_documents(DataSettings(train=str(train), validation=str(validation)))
        said = str(refused.value)
        assert said.count("no file or directory none.txt; ") == 1
        assert said.count("matches the pattern no*.txt") == (validation == "no*.txt")
        assert said.count("check the path") == 1


def test_unreadable_file(tmp_path, monkeypatch):
    path = put(tmp_path / "a.txt", "text")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "opened", refuse)  # the superuser may read everything
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: Permission denied"):
        read(path)


def test_parquet_without_text_column(tmp_path):
    with pytest.raises(DataError, match="columns found: 'body', 'id'"):
        read(parquet(tmp_path / "a.parquet", {"body": ["x"], "id": [1]}))
    with pytest.raises(DataError, match="row 2 holds no document"):
        read(parquet(tmp_path / "b.parquet", {"text": ["x", None]}))


@pytest.mark.parametrize(("source", "library"), [("a.parquet", "pyarrow"), ("hf:some/name", "datasets")])
def test_missing_library_names_the_extra(tmp_path, monkeypatch, source, library):
    put(tmp_path / "a.parquet", "x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=r"pip install tandem-lm\[hub\]"):
        read(source)


@pytest.mark.parametrize("rule", ["paragraph", "start:(", ""])
def test_impossible_txt_documents(rule):
    with pytest.raises(SettingsError, match=r"data\.txt_documents"):
        read("python-docs", rule)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(), min_size=1))
def test_joining_rule(contents):
    record = {"messages": [{"content": content} for content in contents]}
    try:
        "".join(contents).encode()
    except UnicodeEncodeError:
        with pytest.raises(DataError, match="half a character"):
            record_text(record, "here")
    else:
        assert record_text(record, "here") == "\n".join(contents)


# --- python-docs -----------------------------------------------------------------------------------


def test_python_docs_are_prose_and_the_same_in_another_process():
    code = (
        "from itertools import islice\n"
        "from tandem.fingerprint import fingerprint\n"
        "from tandem.text.python_docs import python_docs\n"
        "print(fingerprint('test', *islice(python_docs(), 50)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    documents = list(open_documents("python-docs", "file"))
    assert done.stderr == ""
    assert done.stdout.strip() == fingerprint("test", *documents[:50])
    assert len(documents) > 500
    assert sum(len(document.encode()) for document in documents) > 1_000_000
    assert any("argparse" in document for document in documents)


# --- hub -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:gpt/x", ("gpt/x", "train")),
        ("hf:gpt/x:test", ("gpt/x", "test")),
        ("hf:gpt/x:train_sft[:2000]", ("gpt/x", "train_sft[:2000]")),
        ("hf:gpt/x:train[10:20]+test[:5%]", ("gpt/x", "train[10:20]+test[:5%]")),
        ("hf:./data", ("./data", "train")),
        (r"hf:C:\data\x", (r"C:\data\x", "train")),
        (r"hf:C:\data\x:test", (r"C:\data\x", "test")),
    ],
)
def test_hub_source_is_parsed(source, expected):
    assert parse_hub_source(source) == expected


@pytest.mark.parametrize("source", ["hf:", "hf::train", "hf:name:"])
def test_malformed_hub_source(source):
    with pytest.raises(DataError, match="hf:NAME"):
        read(source)


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A local folder in the shape of the seed's data set, and a cache of its own for the library."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    folder = tmp_path / "ultrachat"
    talks = [
        {"messages": [{"role": "user", "content": f"Q{n}"}, {"content": f"A{n}", "role": "x"}]}
        for n in range(9)
    ]
    put(folder / "data" / "train_sft.jsonl", jsonl(*talks))
    put(folder / "README.md", "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train_sft, path: data/train_sft.jsonl}\n---\n")  # fmt: skip
    return folder


def test_seed_recipe_from_a_local_folder(hub_folder, capfd):
    import datasets

    train = f"hf:{hub_folder}:train_sft[:4]"
    validation = f"hf:{hub_folder}:train_sft[7:9]"
    splits = split_documents(DataSettings(train=train, validation=validation))
    assert list(splits.train) == ["Q0\nA0", "Q1\nA1", "Q2\nA2", "Q3\nA3"]
    assert list(splits.validation) == ["Q7\nA7", "Q8\nA8"]
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr().err == ""


def test_hub_parquet_folder_and_errors(tmp_path, hub_folder):
    parquet_folder = tmp_path / "parquet"
    parquet_folder.mkdir()
    parquet(parquet_folder / "train-00000-of-00001.parquet", {"text": ["one", "two"]})
    assert read(f"hf:{parquet_folder}") == ["one", "two"]
    with pytest.raises(DataError, match="cannot load the data set"):
        read(f"hf:{hub_folder}:train")
    with pytest.raises(DataError, match="there is no folder"):
        read(f"hf:{tmp_path}/nowhere")
    parquet(parquet_folder / "train-00000-of-00001.parquet", {"body": ["one"]})
    with pytest.raises(DataError, match="columns found: 'body'"):
        read(f"hf:{parquet_folder}")


def test_unreachable_hub_is_said_at_once(tmp_path, monkeypatch, capfd):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(DataError, match=r"cannot be reached.*local file"):
        read("hf:someone/some_data:train[:5]")
    assert before == datasets.config.HF_HUB_OFFLINE
    assert capfd.readouterr().err == ""


# --- splits ----------------------------------------------------------------------------------------


@pytest.fixture
def forty(tmp_path):
    """Forty documents of some 100 bytes each."""
    documents = [f"Document {n}: " + "word " * (15 + n % 7) for n in range(40)]
    return put(tmp_path / "forty.jsonl", jsonl(*({"text": document} for document in documents))), documents


def test_held_out_documents_are_whole_apart_and_deterministic(forty):
    path, documents = forty
    data = DataSettings(train=str(path), validation_fraction=0.2)
    splits = split_documents(data)
    assert splits.fingerprint == split_documents(data).fingerprint
    train, validation = list(splits.train), list(splits.validation)
    assert sorted(train + validation) == sorted(documents)
    assert train == [document for document in documents if document in train]
    held = sum(map(len, validation)) / sum(map(len, documents))
    assert 0.2 <= held < 0.25
    assert splits.validation_source == f"20% of {path}"
    other = split_documents(DataSettings(train=str(path), validation_fraction=0.2, split_seed=1))
    assert list(other.validation) != validation
    assert other.fingerprint != splits.fingerprint


def test_max_train_bytes_leaves_validation_alone(forty):
    path, _ = forty
    whole = split_documents(DataSettings(train=str(path)))
    part = split_documents(DataSettings(train=str(path), max_train_bytes=1000))
    one = split_documents(DataSettings(train=str(path), max_train_bytes=1))
    assert list(part.validation) == list(whole.validation) == list(one.validation)
    assert 800 < sum(map(len, part.train)) <= 1000
    assert list(part.train) == [document for document in whole.train if document in part.train]
    assert len(one.train) == 1
    assert len({whole.fingerprint, part.fingerprint, one.fingerprint}) == 3


def test_split_does_not_depend_on_the_order_of_documents(tmp_path, forty):
    path, documents = forty
    turned = put(tmp_path / "turned.jsonl", jsonl(*({"text": document} for document in reversed(documents))))
    assert set(split_documents(DataSettings(train=str(path))).validation) == set(
        split_documents(DataSettings(train=str(turned))).validation
    )


def test_duplicates_are_dropped(tmp_path):
    path = put(tmp_path / "a.jsonl", jsonl(*({"text": text} for text in ("a b", "c", " a\n b ", "d", "c"))))
    splits = split_documents(DataSettings(train=str(path)))
    assert splits.duplicates_dropped == 2
    assert sorted([*splits.train, *splits.validation]) == ["a b", "c", "d"]


def test_overlap_is_refused_unless_allowed_by_name(tmp_path):
    train = put(tmp_path / "t.txt", "one\n\ntwo\n\nthree")
    validation = put(tmp_path / "v.txt", "new\n\n two \n\none")
    data = {"train": str(train), "validation": str(validation), "txt_documents": "blank-line"}
    with pytest.raises(DataError, match=r"2 of 3 .*the first: 'two'.*data\.allow_overlap = .*v\.txt"):
        split_documents(DataSettings(**data))
    with pytest.raises(DataError, match="2 of 3"):
        split_documents(DataSettings(**data, allow_overlap=("other.txt",)))
    assert split_documents(DataSettings(**data, allow_overlap=(str(validation),))).overlap_documents == 2


def test_single_document_cannot_be_split(tmp_path):
    path = put(tmp_path / "a.txt", "all of it")
    with pytest.raises(DataError, match=r"single document.*data\.validation.*data\.txt_documents"):
        split_documents(DataSettings(train=str(path)))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text("abc \n", min_size=1), min_size=2, max_size=8), st.floats(0.01, 0.99), st.integers(0, 3)
)
def test_no_document_is_in_both_splits(tmp_path_factory, texts, fraction, seed):
    path = put(tmp_path_factory.mktemp("split") / "a.jsonl", jsonl(*({"text": text} for text in texts)))
    distinct = {" ".join(text.split()) for text in texts} - {""}
    data = DataSettings(train=str(path), validation_fraction=fraction, split_seed=seed)
    if len(distinct) < 2:
        with pytest.raises(DataError):
            split_documents(data)
        return
    splits = split_documents(data)
    train, validation = (
        [" ".join(text.split()) for text in part] for part in (splits.train, splits.validation)
    )
    assert train
    assert validation
    assert sorted(train + validation) == sorted(distinct)


@shared
def test_real_dialogues_do_not_overlap():
    folder = Path(os.environ["TANDEM_SHARED"]) / "corpora" / "dialogue_sgd"
    data = DataSettings(train=str(folder / "train.jsonl.gz"), validation=str(folder / "valid.jsonl.gz"))
    splits = split_documents(data)
    assert (len(splits.train), len(splits.validation), splits.overlap_documents) == (11604, 111, 0)
