"""Text without natural cuts: nothing unbounded reaches the library, and ordinary text keeps its tokens."""

import contextlib
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, sentences, write_jsonl
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tandem import patience
from tandem.audit.data import _encode_again
from tandem.audit.leakage import measure_leakage
from tandem.errors import DataError
from tandem.patience import patiently
from tandem.settings import DataSettings, TokenizerSettings
from tandem.text import files, splits
from tandem.text.sources import open_documents
from tandem.tokens import encoding, tokenizer
from tandem.tokens.encoding import Encoder
from tandem.tokens.prepare import prepare_corpus, tokenize_for_evaluation
from tandem.tokens.rules import Rules
from tandem.tokens.tokenizer import END_OF_TEXT, cutter, pieces, plain, train_bpe

DRAWS = random.Random(0)
LENGTH = 100_000


def drawn(characters: str) -> str:
    return "".join(DRAWS.choices(characters, k=LENGTH))


HAN = "".join(map(chr, range(0x4E00, 0x4F00)))
LINES = {
    "DNA": drawn("ACGT"),
    "base64": drawn("ABCDEFabcdef0123456789+/"),
    "Chinese": drawn(HAN),
    "Chinese with marks": drawn(HAN + "，。" * 9),
    "digits": drawn("0123456789"),
    "one letter": "a" * LENGTH,
    "spaces": " " * LENGTH,
    "line ends": "\n" * LENGTH,
    "marks": drawn("!?-=*_"),
    "accents": "e" + "\u0301" * LENGTH,
    "words, then spaces": "the next token " * 3000 + " " * LENGTH + "end",
}
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BPE = train_bpe([*sentences(20), *(text[:3000] for text in LINES.values())], 600)


def longest_unit(pieces_given: list[str]) -> int:
    """Characters of the longest word that the library sees."""
    return max(end - start for piece in pieces_given for _, (start, end) in GPT2.pre_tokenize_str(piece))


# --- what the library is given ---------------------------------------------------------------------


@pytest.mark.parametrize("name", LINES)
def test_the_library_is_given_bounded_units_in_training_and_encoding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BPE training takes the square of each unit's length: with bounded ones, time linear in the text."""
    text, fed, batches = LINES[name], [], []

    def spied(document: str) -> Iterator[str]:
        for piece in pieces(document):
            fed.append(piece)
            yield piece

    real = Encoder._encode_batch
    monkeypatch.setattr(
        Encoder, "_encode_batch", lambda self, texts: batches.append(texts) or real(self, texts)
    )
    stream = Encoder(BPE, END_OF_TEXT, "eos").encode_all([text], "chain", "here")
    monkeypatch.setattr(tokenizer, "pieces", spied)
    with contextlib.suppress(DataError):  # few merges are to be had of one letter
        train_bpe([text], 270)
    for given_pieces in (fed, list(itertools.chain(*batches))):
        assert "".join(given_pieces) == text
        assert longest_unit(given_pieces) <= tokenizer.UNIT_CHARACTERS + 1  # and a space before
        assert max(map(len, given_pieces)) <= 2 * tokenizer.PIECE_CHARACTERS
    assert BPE.decode(stream.ids[1:].tolist(), skip_special_tokens=False) == text
    assert stream.scored_bytes == len(text.encode())


def test_a_large_document_is_encoded_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = Encoder._encode_batch
    monkeypatch.setattr(
        Encoder,
        "_encode_batch",
        lambda self, texts: sizes.append(sum(map(len, texts))) or real(self, texts),
    )
    told: list[int] = []
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 100_000)
    text = LINES["base64"] * 4
    Encoder(BPE, None, "", told.append).encode([text])
    assert told == sizes
    assert sum(told) == len(text)
    assert max(sizes) <= encoding.BATCH_CHARACTERS + 2 * tokenizer.PIECE_CHARACTERS


# --- ordinary text keeps its tokens ----------------------------------------------------------------

KINDS = ["aéß日Б", "07", "  \n\t\u3000", "'.,!_<|。\u0301🐱"]


@st.composite
def ordinary(draw: st.DrawFn) -> str:
    """Runs of one kind of character, none longer than eight."""
    kinds = draw(st.lists(st.integers(0, 3), max_size=60))
    kinds = [kind for kind, _ in itertools.groupby(kinds)]
    return "".join(draw(st.text(KINDS[kind], min_size=1, max_size=8)) for kind in kinds)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "UNIT_CHARACTERS", 8)
    monkeypatch.setattr(tokenizer, "LOADED_UNIT_CHARACTERS", 8)
    monkeypatch.setattr(tokenizer, "PIECE_CHARACTERS", 16)


def ids(text: str, model: Tokenizer = BPE) -> list[int]:
    return [token for piece in cutter(model)(text) for token in model.encode(piece).ids]


OFTEN = hypothesis_settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CLASHES = st.lists(st.sampled_from(["'s", "'ve", "x", "日", ".", "7"]), max_size=40).map("".join)
REPEATED = st.tuples(st.text("aб日7 \n'!_\u0301", min_size=1, max_size=3), st.integers(1, 30)).map(
    lambda drawn: drawn[0] * drawn[1]
)


@pytest.mark.usefixtures("small")
@OFTEN
@given(st.one_of(ordinary(), CLASHES))
def test_text_without_long_runs_has_the_tokens_of_the_whole(text: str) -> None:
    if max((len(run) for run in tokenizer.RUN.findall(text)), default=0) <= 8:
        assert ids(text) == BPE.encode(text).ids


@pytest.mark.usefixtures("small")
@OFTEN
@given(st.lists(REPEATED, max_size=6).map("".join))
def test_any_text_round_trips_and_its_runs_are_cut(text: str) -> None:
    parts = list(pieces(text))
    assert "".join(parts) == text
    assert BPE.decode(ids(text), skip_special_tokens=False) == text
    for part in parts:
        assert max((len(run) for run in tokenizer.RUN.findall(part)), default=0) <= 8


def test_shared_text_is_cut_nowhere_new() -> None:
    text = " ".join(WORDS * 3000) + "\n" + "，".join([HAN] * 300)
    assert ids(text) == BPE.encode(text).ids
    assert list(tokenizer._run_cuts(text, tokenizer.UNIT_CHARACTERS)) == []


# --- one rule everywhere ---------------------------------------------------------------------------


def test_training_evaluation_prompts_and_audit_cut_alike(tmp_path: Path) -> None:
    long = "".join(DRAWS.choices("ACGT", k=5000))
    train = write_jsonl(tmp_path / "t.jsonl", [*sentences(20), long])
    validation = write_jsonl(tmp_path / "v.jsonl", [long + "T", "and a sentence"])
    data = DataSettings(train=str(train), validation=str(validation))
    corpus = prepare_corpus(data, TokenizerSettings(vocab_size=300), tmp_path / "cache")
    again = tokenize_for_evaluation(str(validation), data, corpus.tokenizer)
    assert np.array_equal(again.ids, corpus.validation.ids)
    ends = corpus.validation.document_starts[1]
    prompt = Encoder(plain(corpus.tokenizer), None, "").encode([long + "T"])
    assert prompt.ids.tolist() == corpus.validation.ids[1:ends].tolist()
    whole = corpus.tokenizer.backend_tokenizer
    assert len(whole.encode(long + "T").ids) <= ends - 1
    model = Tokenizer.from_str(whole.to_str())
    assert _encode_again(model, [long + "T", "and a sentence"], corpus.validation, "eos", 0) == (2, None)


def byte_level(**changed: bool) -> Tokenizer:
    rules = json.loads(BPE.to_str())
    rules["pre_tokenizer"].update(changed)
    return Tokenizer.from_str(json.dumps(rules))


def metaspace() -> Tokenizer:
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    model.train_from_iterator(
        sentences(20), trainers.BpeTrainer(special_tokens=["<unk>"], show_progress=False)
    )
    return model


def word_piece() -> Tokenizer:
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    model.train_from_iterator(
        sentences(20), trainers.WordPieceTrainer(special_tokens=["[UNK]"], show_progress=False)
    )
    return model


def test_a_loaded_tokenizer_is_cut_in_long_runs_only_and_where_nobody_sees_it() -> None:
    text = "some words " * 9000
    run = "e" * 200_000
    for model, cut in (
        (byte_level(use_regex=False), True),
        (byte_level(add_prefix_space=True), False),
        (metaspace(), False),
        (word_piece(), False),
    ):
        assert not Rules(model).may_be_cut
        assert list(cutter(model)(text)) == [text]
        assert [len(piece) for piece in cutter(model)(run)] == ([1 << 16] * 3 + [3392] if cut else [200_000])
        if cut:
            assert model.decode(ids(run, model)) == run


# --- progress and interrupts -----------------------------------------------------------------------


def test_long_preparation_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "EVERY_S", 0.0)
    monkeypatch.setattr(patience, "LOOK_S", 0.001)
    said: list[str] = []
    path = write_jsonl(tmp_path / "t.jsonl", sentences(300))
    prepare_corpus(DataSettings(train=str(path)), TokenizerSettings(vocab_size=400), tmp_path, said.append)
    for wanted in (
        rf"reading {path}: 7 documents, 0\.0 million characters",
        r"training a BPE: (read|learning merges of) 0\.\d million characters",
        r"encoded 0\.\d million characters",
    ):
        assert any(re.match(wanted, line) for line in said), (wanted, said[-5:])


def test_progress_comes_every_few_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 5.0, 6.0, 9.5])
    monkeypatch.setattr(patience.time, "monotonic", lambda: next(now))
    said: list[str] = []
    pace = patience.Pace(said.append)
    for number in range(4):
        pace(lambda number=number: f"{number}")
    assert said == ["1", "3"]


def test_work_in_a_thread_returns_raises_and_learns_that_nobody_waits() -> None:
    assert patiently(lambda left: left.is_set()) is False
    with pytest.raises(ZeroDivisionError):
        patiently(lambda _: 1 // 0)
    ended = threading.Event()

    def work(left: threading.Event) -> None:
        left.wait(30)
        ended.set()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patiently(work, interrupt)
    assert ended.wait(5)


def test_an_interrupt_stops_the_library_within_its_longest_call() -> None:
    """One unit that the library needs minutes for, handed over on purpose."""
    code = (
        "import random, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from tandem.tokens import tokenizer\n"
        "tokenizer.UNIT_CHARACTERS = tokenizer.PIECE_CHARACTERS = 1 << 30\n"
        "text = ''.join(map(chr, random.Random(0).choices(range(0x4E00, 0x5200), k=400_000)))\n"
        "def documents():\n"
        "    yield text\n"
        "    print('handed over', flush=True)\n"
        "try:\n"
        "    tokenizer.train_bpe(documents(), 2000)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "handed over\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130  # the work itself takes minutes
        finally:
            process.kill()


# --- siblings: other places that see a whole document or line --------------------------------------


def test_an_expression_for_starts_looks_at_the_start_of_a_line(tmp_path: Path) -> None:
    """`\\d+x` on a line of digits takes the square of what it looks at."""
    path = tmp_path / "a.txt"
    path.write_text("7" * 300_000 + "\n" + "7" * 10 + "x\nbody\n" + " " * files.START_CHARACTERS + "7x\n")
    documents = list(open_documents(str(path), r"start:\d+x"))
    assert [len(document) for document in documents] == [300_001, 12 + 5 + files.START_CHARACTERS + 3]


def test_leakage_reads_long_documents_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(1)
    documents = ["  ".join(draws.choices(WORDS, k=400)) + "\n" for _ in range(6)]
    train, validation = documents[:4], [*documents[3:], " ".join(documents[0].split()[20:200])]
    plain = measure_leakage(train, validation)
    longest = 0
    real = splits.document_parts

    def spied(document: str) -> Iterator[str]:
        nonlocal longest
        for part in real(document):
            longest = max(longest, len(part))
            yield part

    monkeypatch.setattr(splits, "PART_CHARACTERS", 60)
    monkeypatch.setattr("tandem.audit.leakage.document_parts", spied)
    assert measure_leakage(train, validation) == plain
    assert plain.contained == 2
    assert longest < 100


def test_millions_of_line_ends_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first" + "\n" * 1_000_000 + "last")
    assert list(open_documents(str(path), "blank-line")) == ["first", "last"]
    (whole,) = open_documents(str(path), "file")
    cut = list(pieces(whole))
    assert "".join(cut) == whole
    assert longest_unit(cut) <= tokenizer.UNIT_CHARACTERS
