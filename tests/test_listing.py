"""Which files a source names, by folder and by pattern alike, and what is said of those passed over."""

import os
from pathlib import Path

import pytest
from conftest import write_jsonl

from tandem.errors import DataError
from tandem.settings import DataSettings
from tandem.text import listing
from tandem.text.listing import find_files
from tandem.text.reading import Reading
from tandem.text.sources import open_documents
from tandem.text.splits import split_documents


def put(path: Path, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name if text is None else text, "utf-8")
    return path


def read(source: object) -> tuple[list[str], list[str]]:
    """Its documents and what was said."""
    said: list[str] = []
    return list(open_documents(str(source), "file", said.append)), said


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with everything that a folder of texts may hold."""
    put(tmp_path / "elsewhere" / "far.txt")
    put(tmp_path / "elsewhere" / "deep" / "deeper.TXT")
    put(tmp_path / "one.txt")
    folder = tmp_path / "texts"
    put(folder / "b.txt")
    put(folder / "a" / "c.txt")
    put(folder / "a" / "c.txt~", "backup")
    put(folder / "#c.txt#", "backup")
    put(folder / "a.pdf", "no text")
    put(folder / ".git" / "hidden.txt")
    put(folder / ".b.txt.swp")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "one.txt").symlink_to(tmp_path / "one.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    return folder


WANTED = ["c.txt", "b.txt", "deeper.TXT", "far.txt", "one.txt"]


def test_a_folder_and_a_pattern_read_the_same_files_and_say_the_same(texts: Path) -> None:
    documents, said = read(texts)
    assert documents == WANTED
    sentence = (
        f"read 5 files of {texts}; passed over 6: 2 hidden (such as .b.txt.swp), "
        "3 of unknown kind (such as #c.txt#), 1 linked to nothing (gone.txt)"
    )
    assert said == [sentence]
    for pattern in ("**/*", "**"):
        assert read(texts / pattern) == (documents, [sentence.replace(str(texts), str(texts / pattern))])
    matching, said = read(texts / "**" / "*.[tT][xX][tT]")
    assert matching == WANTED
    assert "passed over 2: 1 hidden (.git), 1 linked to nothing (gone.txt)" in said[0]


def test_relative_sources_read_the_same(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(texts)
    assert read(".")[0] == read("**/*")[0] == WANTED
    assert read("*.txt")[0] == ["b.txt", "one.txt"]
    assert read("./*/c.txt")[0] == ["c.txt"]
    assert read("../texts/linked/*.txt")[0] == ["far.txt"]


def test_loops_of_links_end_and_no_file_is_read_twice(texts: Path) -> None:
    (texts / "a" / "up").symlink_to(texts)
    (texts / "a" / "far_up").symlink_to(texts.parent)
    (texts / "again").symlink_to(texts / "a")
    (texts / "self").symlink_to(texts / "self")
    (texts / "z.txt").symlink_to(texts / "b.txt")
    for source in (texts, texts / "**" / "*"):
        documents, said = read(source)
        assert documents == WANTED
        assert "3 linked to a folder seen before (such as a/far_up)" in said[0]
        assert "1 read under another name (z.txt)" in said[0]


def test_hidden_files_are_read_where_the_pattern_spells_the_dot(texts: Path) -> None:
    assert read(texts / ".git" / "*")[0] == ["hidden.txt"]
    assert read(texts / ".g*" / "*")[0] == ["hidden.txt"]
    assert read(texts / ".git")[0] == ["hidden.txt"]


def test_folders_that_a_pattern_names_are_said(texts: Path) -> None:
    documents, said = read(texts / "*")
    assert documents == ["b.txt", "one.txt"]
    assert "2 being a folder (such as a)" in said[0]


def test_a_folder_that_cannot_be_read_is_one_sentence(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.iterdir

    def refuse(self: Path) -> object:
        if self.name == "a":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", refuse)  # the superuser may read everything
    for source in (texts, texts / "**" / "*.txt"):
        with pytest.raises(
            DataError, match=r"cannot read the folder .*a: Permission denied; make it readable"
        ):
            read(source)


def test_nothing_to_read_says_what_there_is(tmp_path: Path) -> None:
    put(tmp_path / "d" / "a.pdf")
    put(tmp_path / "d" / "b.md")
    with pytest.raises(DataError, match=r"no file of a known kind: .*passed over 2 of unknown kind"):
        read(tmp_path / "d")
    with pytest.raises(DataError, match=r"matches the pattern .*passed over 1 of unknown kind \(a\.pdf\)"):
        read(tmp_path / "d" / "*.pdf")


def test_a_pattern_looks_no_further_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a" / "b" / "c.txt")
    put(tmp_path / "x.txt")
    looked: list[Path] = []
    real = listing._Listing._entries
    monkeypatch.setattr(
        listing._Listing, "_entries", lambda self, folder: looked.append(folder) or real(self, folder)
    )
    assert find_files(str(tmp_path / "*.txt"), Reading("")) == [tmp_path / "x.txt"]
    assert looked == [tmp_path]


def test_blank_documents_are_counted_in_every_kind_of_source(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", " ", "\n\n", "two"])
    assert read(path) == (["one", "two"], [f"read {path}; passed over 2 blank documents"])
    put(tmp_path / "d" / "empty.txt", "")
    put(tmp_path / "d" / "full.txt", "text")
    assert read(tmp_path / "d")[1] == [f"read 2 files of {tmp_path / 'd'}; passed over 1 blank document"]
    said: list[str] = []
    cut = put(tmp_path / "b.txt", "\n\none\n\n\n\ntwo\n\n")
    assert list(open_documents(str(cut), "blank-line", said.append)) == ["one", "two"]
    assert list(open_documents(str(cut), "start:^[ot]", said.append)) == ["one\n\n\n\n", "two\n\n"]
    assert said == []  # what stands between documents is none of them


def test_blank_rows_of_a_data_set_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", ["one", "", " "])
    assert read(f"hf:{tmp_path / 'set'}")[1] == [f"read hf:{tmp_path / 'set'}; passed over 2 blank documents"]


def test_training_and_validation_are_both_told(tmp_path: Path) -> None:
    for name in ("t", "v"):
        for number in range(3):
            put(tmp_path / name / f"{number}.txt", f"text {name} {number}")
        put(tmp_path / name / "notes.md", "no text")
    said: list[str] = []
    split_documents(
        DataSettings(train=str(tmp_path / "t"), validation=str(tmp_path / "v")), None, said.append
    )
    assert said == [
        f"read 3 files of {tmp_path / name}; passed over 1 of unknown kind (notes.md)" for name in ("t", "v")
    ]


def test_a_named_pipe_is_passed_over(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    put(tmp_path / "d" / "a.txt", "text")
    os.mkfifo(tmp_path / "d" / "pipe.txt")
    assert "passed over 1 of unknown kind (pipe.txt)" in read(tmp_path / "d")[1][0]
