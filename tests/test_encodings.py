"""Every file that a user hands over is decoded by one set of rules, whatever it is for."""

import ast
import bz2
import gzip
import json
import lzma
import re
import zipfile
from pathlib import Path

import pyarrow
import pytest
from conftest import sentences
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from report_records import make_record
from syntax import nodes
from test_text import parquet

import tandem
from tandem import decoding
from tandem.decoding import lines, read_text, unpacked
from tandem.errors import DataError, SettingsError, TandemError
from tandem.experiment.artefacts import model_record
from tandem.settings import load_settings
from tandem.text.sources import open_documents
from tandem.tokens.tokenizer import load_tokenizer, train_bpe

TEXT = "naïve café\nΑθήνα 日本語\n🐱 end of it\n"
ENCODINGS = {
    "utf-8": TEXT.encode(),
    "utf-8 with a mark": TEXT.encode("utf-8-sig"),
    "utf-16 with a mark": TEXT.encode("utf-16"),
    "utf-16 with the other mark": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "utf-16-le": TEXT.encode("utf-16-le"),
    "utf-16-be": TEXT.encode("utf-16-be"),
    "utf-32 with a mark": TEXT.encode("utf-32"),
}
PACKED = {
    "": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read(path: Path, how: str = "file", said: list[str] | None = None) -> list[str]:
    return list(open_documents(str(path), how, ([] if said is None else said).append))


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", ENCODINGS)
def test_text_is_read_in_every_encoding_whatever_packs_it(tmp_path: Path, name: str, packed: str) -> None:
    assert read(put(tmp_path / "a.txt", PACKED[packed](ENCODINGS[name]))) == [TEXT]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_lines_settings_and_tokenizers_are_read_alike(tmp_path: Path, encoding: str) -> None:
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in ("日本", "two"))
    assert read(put(tmp_path / "a.jsonl", lines.encode(encoding))) == ["日本", "two"]

    written = put(tmp_path / "mine.yaml", "# café\r\nseeds: [3]\r\n".encode(encoding))
    assert load_settings(str(written)).seeds == (3,)

    train_bpe(sentences(20), 300).save(str(tmp_path / "tokenizer.json"))
    put(tmp_path / "tokenizer.json", (tmp_path / "tokenizer.json").read_text().encode(encoding))
    put(tmp_path / "tokenizer_config.json", '{"eos_token": "é"}'.encode(encoding))
    assert load_tokenizer(str(tmp_path))[0].get_vocab_size() == 300


def test_an_encoding_without_mark_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    path = put(tmp_path / "a.txt", TEXT.encode("utf-16-le"))
    read(path, said=said)
    assert said == [f"read {path}; 1 in UTF-16-LE ({path})"]
    chinese = "人人生而自由，在尊严和权利上一律平等。\n" * 9  # only its line ends have zero bytes
    assert read(put(tmp_path / "b.txt", chinese.encode("utf-16-be"))) == [chinese]


def test_zero_bytes_in_other_text_are_said_and_kept(tmp_path: Path) -> None:
    said: list[str] = []
    path = put(tmp_path / "a.txt", b"one \0 two\nthree words \0 follow\n")
    assert read(path, said=said) == ["one \0 two\nthree words \0 follow\n"]
    assert said == [f"read {path}; 2 zero characters (U+0000), kept as text (such as {path})"]
    said.clear()
    read(put(tmp_path / "b.jsonl", b'{"text": "a \\u0000 b"}\n'), said=said)
    assert "1 zero characters" in said[0]


# --- line ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_ends_lines_everywhere(tmp_path: Path, end: str) -> None:
    text = "= One =\nfirst\n\n= Two =\nlast".replace("\n", end).encode()
    path = put(tmp_path / "a.txt", text)
    assert read(path) == ["= One =\nfirst\n\n= Two =\nlast"]
    assert read(path, "blank-line") == ["= One =\nfirst", "= Two =\nlast"]
    assert read(path, "start:^= ") == ["= One =\nfirst\n\n", "= Two =\nlast"]
    assert read(put(tmp_path / "a.jsonl", f'{{"text": "a"}}{end}{end}{{"text": "b"}}'.encode())) == ["a", "b"]
    assert load_settings(str(put(tmp_path / "a.yaml", f"seeds: [1]{end}name: x".encode()))).seeds == (1,)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(["a", "é", "日", "\u2028", "\x85", "\f", "\x0b", "\x1c", "\n", "\r", "\r\n", ""])
    ),
    st.integers(8180, 8200),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_line_ends_are_those_of_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], before: int, encoding: str
) -> None:
    """Also where a buffer ends between CR and LF, or within a character."""
    text = "x" * before + "".join(parts) + "\r\n" + "".join(parts)
    path = put(tmp_path_factory.mktemp("ends") / "a.txt", text.encode(encoding))
    wanted = text.replace("\r\n", "\n").replace("\r", "\n")
    assert read(path) == [wanted]
    with decoding.opened(path) as file:
        lines = list(decoding.lines(file, path))
    assert lines == [line + "\n" for line in wanted.split("\n")[:-1]] + [wanted.split("\n")[-1]] * (
        not wanted.endswith("\n")
    )


def test_only_line_ends_end_json_lines(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\u2029d"
    line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    assert read(put(tmp_path / "a.jsonl", (line + "\x0c\n").encode())) == [text]


def test_a_long_file_is_not_held_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = put(tmp_path / "a.jsonl", gzip.compress(b'{"text": "some words of text"}\n' * 50_000))
    tracemalloc.start()
    count = sum(1 for _ in open_documents(str(path), "file"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 50_000
    assert peak < 1_000_000


# --- what is refused -------------------------------------------------------------------------------

GUESSED = {
    "CP1252": "Le café était fermé, l'été à Nîmes où ça brûle. ",
    "CP932": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "EUC-JP": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "CP949": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. ",
    "GB18030": "人人生而自由，在尊严和权利上一律平等。我们的国家是很大的国家，他在这里。",
    "BIG5": "人人生而自由，在尊嚴和權利上一律平等。我們的國家是很大的國家，他在這裡。",
    "CP1251": "Все счастливые семьи похожи друг на друга, каждая несчастливая по-своему. ",
    "KOI8-R": "Все счастливые семьи похожи друг на друга, каждая несчастливая по-своему. ",
}


@pytest.mark.parametrize("encoding", GUESSED)
def test_other_encodings_are_named_with_the_command_that_converts(tmp_path: Path, encoding: str) -> None:
    path = put(tmp_path / "a b.txt", ("plain\nplain, too\n" + GUESSED[encoding] * 3).encode(encoding))
    with pytest.raises(DataError) as caught:
        read(path)
    said = str(caught.value)
    assert f"{path}, line 3 is not UTF-8 text (byte 0x" in said
    assert (
        f"probably {encoding}; convert the file to UTF-8: `iconv -f {encoding} -t UTF-8 '{path}' > '" in said
    )


REFUSED = {
    "which it is not": (b"text \xff\xfe\xfd\xfc\xfb more\n", r"line 1 .*0xff at position 6.*-f ENCODING"),
    "within UTF-8": ("日本\r\rcafé\r\nab".encode() + b"\xe9c\n", r"line 4 .*, while text before"),
    "a torn end": ("ab\n日本".encode()[:-1], r"line 2 .*the file ends within a character"),
    "a torn UTF-16": (TEXT.encode("utf-16")[:-1], r"is not whole UTF-16 text"),
    "UTF-7": (b"+/v8-caf+AOk-", "is in UTF-7, not UTF-8; convert it first: `iconv -f UTF-7 -t UTF-8"),
    "ISO-2022-KR": ("한국".encode("iso2022-kr"), "is in ISO-2022-KR, not UTF-8"),
    "zip": (b"PK\x03\x04 and more", "is a zip archive or an office document, not text; unpack it"),
    "bad zstd": (b"\x28\xb5\x2f\xfd more", "is no zstd file, or not a complete one"),
    "pdf": (b"%PDF-1.7 more", "is a PDF document, not text; .*pdftotext"),
    "tar": (gzip.compress(b"a".ljust(257, b"\0") + b"ustar"), "is a tar archive, not text"),
    "twice": (gzip.compress(gzip.compress(b"text")), "is packed twice"),
    "torn gzip": (gzip.compress(b"text" * 99)[:-9], "is no gzip file, or not a complete one"),
    "torn bzip2": (bz2.compress(b"text" * 99)[:-9], "is no bzip2 file, or not a complete one"),
    "bad bzip2": (b"BZh91AY&SYhello, said the text", "is no bzip2 file, or not a complete one"),
    "torn xz": (lzma.compress(b"text" * 99)[:-9], "is no xz file, or not a complete one"),
    "numbers": (bytes(range(256)) * 20, "holds zero bytes, so it is no text"),
}  # fmt: skip


def test_the_command_that_converts_unpacks_too(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt.gz", gzip.compress("café au lait".encode("cp1252")))
    command = f"`gzip -dc < {path} | iconv -f CP1252 -t UTF-8 > {tmp_path / 'utf8-a.txt'}`"
    with pytest.raises(DataError, match=re.escape(command)):
        read(path)


def test_text_that_begins_like_a_kind_of_file_is_text(tmp_path: Path) -> None:
    for text in ("BZhang wrote this", "PAR1 of the text", "ARROW1 flies", "7z is a program", "PK said so"):
        assert read(put(tmp_path / "a.txt", text.encode())) == [text]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("suffix", ["txt", "yaml"])
def test_what_cannot_be_read_is_named_in_one_sentence(tmp_path: Path, name: str, suffix: str) -> None:
    content, expected = REFUSED[name]
    path = put(tmp_path / f"it.{suffix}", content)
    with pytest.raises(TandemError, match=expected) as caught:
        load_settings(str(path)) if suffix == "yaml" else read(path)
    assert type(caught.value) is (SettingsError if suffix == "yaml" else DataError)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_fault_is_found_far_into_a_file(tmp_path: Path) -> None:
    lines = "line one\r\nzwölf\rdrei\n" * 4000  # buffers end between CR and LF and within characters
    path = put(tmp_path / "a.txt", lines.encode() + b"the \xff end")
    with pytest.raises(DataError, match=r"line 12001 is not UTF-8 text \(byte 0xff at position 5\)"):
        read(path)


def test_parquet_is_read_whatever_its_name(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    whole = parquet(tmp_path / "a.parquet", {"text": ["one", "two"]}).read_bytes()
    for name in ("a.txt", "a.jsonl", "b.parquet"):
        assert read(put(tmp_path / name, whole)) == ["one", "two"]
        assert read(put(tmp_path / name, gzip.compress(whole))) == ["one", "two"]


def test_zip_archives_as_tools_make_them_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.txt", "w") as archive:
        archive.writestr("text.txt", "text")
    with pytest.raises(DataError, match="is a zip archive"):
        read(tmp_path / "a.txt")


def test_records_of_models_are_read_alike(tmp_path: Path) -> None:
    record = make_record()
    put(tmp_path / "record.json", record.model_dump_json().encode("utf-16"))
    assert model_record(tmp_path) == record
    put(tmp_path / "record.json", b"%PDF-")
    assert model_record(tmp_path) is None


def test_a_pipe_is_read(tmp_path: Path) -> None:
    import os
    import threading

    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(TEXT.encode("utf-16"),))
    thread.start()
    with (tmp_path / "pipe").open("rb") as raw, unpacked(raw, tmp_path / "pipe") as file:
        assert "".join(lines(file, tmp_path / "pipe")) == TEXT
    thread.join()
    with pytest.raises(DataError, match="is a named pipe, not a file"):
        read_text(tmp_path / "pipe")  # standard input may be one, a file is none


OWN = {
    ("decoding.py", "read_text"),
    ("settings/files.py", "resources"),
    ("report/wording.py", "resources"),
    ("experiment/machine.py", "what the system says of itself"),
    ("tokens/store.py", "the cache"),
}
"""Where files that nobody hands over are read as text."""


def test_no_other_place_decodes_files() -> None:
    root = Path(tandem.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                reads = node.func.attr == "read_text"
                flushes = ast.dump(node.func.value).startswith("Name(id='os'")
                opens = (
                    node.func.attr == "open"
                    and not flushes
                    and not any(
                        isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in node.args
                    )
                )
                if reads or (opens and "gzip" not in ast.dump(node.func)):
                    found.add(path.relative_to(root).as_posix())
    assert found <= {place for place, _ in OWN} | {"cli/main.py", "shown.py"}  # which open the null device
