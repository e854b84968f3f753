"""Tokens: tokenizers, streams, their accounting in bytes, and the cache."""

import itertools
import json
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import warm
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from tandem.errors import DataError
from tandem.settings import DataSettings, TokenizerSettings
from tandem.text import hub
from tandem.tokens import encoding, store, tokenizer
from tandem.tokens.encoding import Encoder
from tandem.tokens.prepare import default_cache_dir, prepare_corpus, tokenize_for_evaluation
from tandem.tokens.store import ids_dtype
from tandem.tokens.tokenizer import END_OF_TEXT, literal, load_tokenizer, pieces, to_transformers, train_bpe

TEXTS = [
    f"The {animal} sat on the {place} and said: 'it's {number} o'clock, wonderful weather for walking'.\n"
    for number in ("one", "seven", "eleven", "twelve")
    for animal in ("cat", "dog", "ant", "badger")
    for place in ("mat", "log", "hill", "mountain")
]
MIXED = "Naïve café 🐱‍👤 日本語、\r\n\t<|endoftext|> don't  stop \x00\x85 end"
shared = pytest.mark.skipif(
    "TANDEM_SHARED" not in os.environ, reason="TANDEM_SHARED names no folder of corpora"
)

BPE = train_bpe(TEXTS, 300)
BPE_SETTINGS = TokenizerSettings(vocab_size=300)


def decoded_bytes(ids, model: Tokenizer) -> bytes:
    """The bytes that byte-level tokens stand for, by GPT-2's table; the end-of-text token stands for none."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    table = {chr(byte): byte for byte in kept} | {chr(256 + n): byte for n, byte in enumerate(others)}
    tokens = (model.id_to_token(int(token)) for token in ids)
    return b"".join(bytes(table[c] for c in token) for token in tokens if token != END_OF_TEXT)


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


# --- tokenizers ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(min_size=1))
def test_bpe_round_trips_any_text(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert BPE.decode(BPE.encode(text).ids, skip_special_tokens=False) == text


def test_bpe_of_mixed_scripts():
    assert BPE.decode(BPE.encode(MIXED).ids, skip_special_tokens=False) == MIXED
    assert BPE.get_vocab_size() == 300
    assert BPE.token_to_id(END_OF_TEXT) == 0


def test_bpe_is_the_same_in_another_process():
    code = (
        "import test_tokens as t\n"
        "from tandem.tokens.tokenizer import tokenizer_fingerprint as f\n"
        "print(f(t.BPE))"
    )
    done = subprocess.run(
        [warm.python(), "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert done.stdout.strip() == tokenizer.tokenizer_fingerprint(BPE)


def test_vocabulary_beyond_the_text_says_how_many_it_supports():
    with pytest.raises(
        DataError, match=r"supports a BPE vocabulary of (\d+) entries only, not 9000"
    ) as caught:
        train_bpe(TEXTS, 9000)
    supported = int(str(caught.value).split("tokenizer.vocab_size = ")[1].split(",")[0])
    assert train_bpe(TEXTS, supported).get_vocab_size() == supported


@settings(deadline=None)
@given(st.text(" \n\t\r\x1c\x85\u3000abX9'é日.<|s", max_size=60))
def test_pieces_encode_as_the_whole(text):
    before = tokenizer.PIECE_CHARACTERS
    tokenizer.PIECE_CHARACTERS = 1
    try:
        cut = list(pieces(text))
    finally:
        tokenizer.PIECE_CHARACTERS = before
    assert "".join(cut) == text
    assert [token for piece in cut for token in BPE.encode(piece).ids] == BPE.encode(text).ids


def word_piece(eos: str | None, **added) -> Tokenizer:
    """A tokenizer that is not byte-level, with truncation, padding and a template that adds tokens."""
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.decoder = decoders.WordPiece()
    special = ["[UNK]", *([eos] if eos else [])]
    model.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(special_tokens=special, show_progress=False, **added)
    )
    model.enable_truncation(4)
    model.enable_padding(length=8)
    return model


@pytest.mark.parametrize("eos", [END_OF_TEXT, "</s>", "[SEP]", None])
def test_end_of_text_is_found_by_its_name(tmp_path, eos):
    word_piece(eos).save(str(tmp_path / "tokenizer.json"))
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        model, found = load_tokenizer(str(place))
        assert found == eos
        assert len(model.encode("the cat and the dog and the ant").ids) > 4  # no truncation


@pytest.mark.parametrize("form", ["<stop>", {"content": "<stop>"}])
def test_end_of_text_of_the_configuration_comes_first(tmp_path, form):
    model = train_bpe(TEXTS, 300)
    model.add_special_tokens(["<stop>"])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": form}))
    assert load_tokenizer(str(tmp_path))[1] == "<stop>"
    assert tokenizer.vocab_size(load_tokenizer(str(tmp_path))[0]) == 301


def test_saved_tokenizer_is_loaded_by_auto_tokenizer(tmp_path):
    ours = to_transformers(BPE, END_OF_TEXT)
    ours.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(MIXED)["input_ids"] == ours(MIXED)["input_ids"] == BPE.encode(MIXED).ids
    assert loaded.decode(loaded(TEXTS[0])["input_ids"]) == TEXTS[0]
    assert (loaded.eos_token, loaded.eos_token_id, len(loaded)) == (END_OF_TEXT, 0, 300)
    assert load_tokenizer(str(tmp_path))[1] == END_OF_TEXT


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_bad_tokenizer_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer\.json that can be read"):
        load_tokenizer(str(tmp_path))


def test_missing_tokenizer(tmp_path):
    with pytest.raises(DataError, match="no tokenizer file or folder"):
        load_tokenizer(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="no tokenizer that can be loaded"):
        load_tokenizer(str(tmp_path))


def test_hub_tokenizer_offline(tmp_path, monkeypatch):
    """A kept copy is used; without one, a sentence says that the hub cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    with pytest.raises(DataError, match="cannot be reached and no usable copy is kept"):
        load_tokenizer("someone/bpe")
    kept = tmp_path / "models--someone--bpe"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
    BPE.save(str(kept / "snapshots" / ("0" * 40) / "tokenizer.json"))
    model, eos = load_tokenizer("someone/bpe")
    assert (model.to_str(), eos) == (BPE.to_str(), END_OF_TEXT)


# --- streams ---------------------------------------------------------------------------------------


def encode(documents, separator="eos", model=BPE, eos=END_OF_TEXT):
    return Encoder(model, eos, separator).encode_all(documents, "chain", "here")


def test_end_of_text_stands_before_each_document():
    stream = encode(["one two", "three", MIXED])
    assert list(np.flatnonzero(stream.ids == 0)) == list(stream.document_starts)
    assert list(stream.document_bytes) == [7, 5, len(MIXED.encode())]
    assert stream.scored_bytes == stream.document_bytes.sum()
    assert decoded_bytes(stream.ids, BPE) == ("one twothree" + MIXED).encode()


def test_tokenizers_that_are_alike_encode_with_one():
    """The library keeps the words of each that encoded anything (LOG.md)."""
    one = literal(BPE)
    assert one is literal(tokenizer.plain(BPE)) is literal(to_transformers(BPE, END_OF_TEXT))
    assert one is not literal(train_bpe(TEXTS, 301))
    assert one.encode(END_OF_TEXT).ids != BPE.encode(END_OF_TEXT).ids == [0]


def test_text_separator_stands_between_documents():
    stream = encode(["one two", "three", MIXED], "\n\n")
    text = "one two\n\nthree\n\n" + MIXED
    assert decoded_bytes(stream.ids, BPE) == text.encode()
    assert list(stream.document_bytes) == [9, 7, len(MIXED.encode())]
    starts = [*stream.document_starts, len(stream)]
    parts = [decoded_bytes(stream.ids[a:b], BPE).decode() for a, b in itertools.pairwise(starts)]
    assert parts == ["one two\n\n", "three\n\n", MIXED]


@settings(deadline=None)
@given(
    st.lists(st.text("aé日🐱 \nthe", min_size=1), min_size=1, max_size=4),
    st.sampled_from(["eos", "", "\n", "🐱"]),
)
def test_scored_bytes_are_those_of_all_tokens_but_the_first(documents, separator):
    if sum(map(len, documents)) < 9:
        documents = [*documents, "the end is long enough"]
    stream = encode(documents, separator)
    assert stream.scored_bytes == len(decoded_bytes(stream.ids[1:], BPE))
    assert len(decoded_bytes(stream.ids, BPE)) == stream.document_bytes.sum()


def test_scored_bytes_of_a_tokenizer_that_is_not_byte_level():
    stream = encode(["  cat sat", "dog"], " ", word_piece(None), None)
    assert stream.scored_bytes == len("sat dog")  # the white space before "sat" goes with "cat"


def test_special_tokens_in_text_are_taken_literally():
    stream = encode([f"a {END_OF_TEXT} b"])
    assert list(stream.ids == 0) == [True] + [False] * (len(stream) - 1)
    assert decoded_bytes(stream.ids, BPE) == f"a {END_OF_TEXT} b".encode()
    assert not BPE.encode_special_tokens  # the caller's tokenizer is left as it was


def test_batches_and_pieces_change_nothing(monkeypatch):
    documents = [*TEXTS, "\n".join(TEXTS)]
    whole = encode(documents)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 100)
    monkeypatch.setattr(tokenizer, "PIECE_CHARACTERS", 30)
    assert encode(documents).fingerprint == whole.fingerprint


def test_too_few_tokens_and_no_end_of_text():
    with pytest.raises(DataError, match=r"here gives 1 token\(s\)"):
        encode(["a"], "")
    assert len(encode(["a"])) == 2
    with pytest.raises(DataError, match=r"data\.separator"):
        encode(["some text"], model=word_piece(None), eos=None)


def test_ids_are_as_small_as_they_can_be():
    assert (ids_dtype(65_536), ids_dtype(65_537)) == (np.uint16, np.int32)


# --- corpora and their cache -----------------------------------------------------------------------


def test_corpus_counts(tmp_path, source):
    corpus = prepare_corpus(DataSettings(train=str(source)), BPE_SETTINGS, tmp_path / "cache")
    train, validation = corpus.train, corpus.validation
    assert len(train.document_starts) + len(validation.document_starts) == len(TEXTS)
    assert train.text_bytes + validation.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert corpus.validation_source == f"5% of {source}"
    assert (corpus.vocab_size, corpus.eos_token_id, corpus.train.ids.dtype) == (300, 0, np.uint16)
    assert isinstance(corpus.train.ids, np.memmap)
    assert corpus.train.fingerprint != corpus.validation.fingerprint


def test_bpe_sees_training_text_only(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    (tmp_path / "v.txt").write_text("zq" * 500)
    data = DataSettings(train=str(tmp_path / "t.txt"), validation=str(tmp_path / "v.txt"))
    corpus = prepare_corpus(data, BPE_SETTINGS, tmp_path / "cache")
    assert "zq" not in corpus.tokenizer.get_vocab()
    assert len(corpus.validation) == 1001


def test_cache_is_used_and_follows_every_input(tmp_path, source):
    cache, said = tmp_path / "cache", []
    data = DataSettings(train=str(source))

    def prepared(data=data, tokenizer=BPE_SETTINGS):
        said.clear()
        corpus = prepare_corpus(data, tokenizer, cache, said.append)
        return corpus, any("using the prepared" in line for line in said)

    first, reused = prepared()
    assert not reused
    again, reused = prepared()
    assert reused
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.train.ids, first.train.ids)
    assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    others = [
        prepared(DataSettings(train=str(source), separator="\n")),
        prepared(DataSettings(train=str(source), validation_separator="\n")),
        prepared(DataSettings(train=str(source), split_seed=5)),
        prepared(tokenizer=TokenizerSettings(vocab_size=290)),
    ]
    source.write_text(source.read_text().replace("cat", "cow"))
    others.append(prepared())
    assert not any(reused for _, reused in others)
    assert len({first.fingerprint, *(corpus.fingerprint for corpus, _ in others)}) == 6


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "one bit of the ids": lambda folder: damage(folder / "train.ids.npy"),
    "one bit of the document starts": lambda folder: damage(folder / "validation.document_starts.npy"),
    "a torn array": lambda folder: (folder / "train.ids.npy").write_bytes(b"\x93NUMPY"),
    "an empty array": lambda folder: (folder / "train.ids.npy").write_bytes(b""),
    "a lost array": lambda folder: (folder / "train.document_bytes.npy").unlink(),
    "a torn record": lambda folder: (folder / "corpus.json").write_text("{"),
    "another number of scored bytes": lambda folder: (folder / "corpus.json").write_text(
        (folder / "corpus.json").read_text().replace('"scored_bytes": ', '"scored_bytes": 1')
    ),
    "another tokenizer": lambda folder: train_bpe(TEXTS, 299).save(str(folder / "tokenizer.json")),
    "a torn tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_cache_is_rebuilt_and_said(tmp_path, source, name):
    said = []
    data = DataSettings(train=str(source))
    first = prepare_corpus(data, BPE_SETTINGS, tmp_path / "cache")
    ids = np.array(first.train.ids)
    (folder,) = (tmp_path / "cache" / "corpora").iterdir()
    DAMAGES[name](folder)
    again = prepare_corpus(data, BPE_SETTINGS, tmp_path / "cache", said.append)
    assert any("not usable" in line for line in said)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.train.ids, ids)
    said.clear()
    prepare_corpus(data, BPE_SETTINGS, tmp_path / "cache", said.append)
    assert not any("not usable" in line for line in said)
    assert [path.name for path in (tmp_path / "cache" / "corpora").iterdir()] == [folder.name]


def test_two_at_once_share_one_cache(tmp_path, source):
    data, corpora = DataSettings(train=str(source)), []

    def work():
        corpora.append(prepare_corpus(data, BPE_SETTINGS, tmp_path / "cache").fingerprint)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(corpora) == 4
    assert len(set(corpora)) == 1


def test_unwritable_cache(tmp_path, source):
    (tmp_path / "cache").write_text("a file stands here")
    with pytest.raises(DataError, match="TANDEM_CACHE"):
        prepare_corpus(DataSettings(train=str(source)), BPE_SETTINGS, tmp_path / "cache")


def test_loaded_tokenizer(tmp_path, source):
    BPE.save(str(tmp_path / "tokenizer.json"))
    data = DataSettings(train=str(source))
    corpus = prepare_corpus(data, TokenizerSettings(source=str(tmp_path)), tmp_path / "cache")
    assert corpus.tokenizer_fingerprint == tokenizer.tokenizer_fingerprint(BPE)
    word_piece(None).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"data\.separator"):
        prepare_corpus(data, TokenizerSettings(source=str(tmp_path)), tmp_path / "cache")


def test_evaluation_gives_the_tokens_of_validation(tmp_path, source):
    validation = tmp_path / "v.txt"
    validation.write_text("A cat.\n\nA dog.")
    data = DataSettings(train=str(source), validation=str(validation), txt_documents="blank-line")
    corpus = prepare_corpus(data, BPE_SETTINGS, tmp_path / "cache")
    corpus.tokenizer.save_pretrained(tmp_path / "model")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    stream = tokenize_for_evaluation(str(validation), data, loaded)
    assert np.array_equal(stream.ids, corpus.validation.ids)
    assert stream.scored_bytes == corpus.validation.scored_bytes == len("A cat.A dog.")
    validation.write_text("A cat.\n\nA dog.\n\nA cat.")  # what is evaluated is all of what was given
    assert len(tokenize_for_evaluation(str(validation), data, loaded).document_starts) == 3


def test_cache_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("TANDEM_CACHE", raising=False)
    assert default_cache_dir() == Path("/x/tandem")
    monkeypatch.setenv("TANDEM_CACHE", "/y")
    assert default_cache_dir() == Path("/y")


def test_failed_write_leaves_nothing(tmp_path, source, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_array", fail)
    with pytest.raises(DataError, match="No space left on device"):
        prepare_corpus(DataSettings(train=str(source)), BPE_SETTINGS, tmp_path / "cache")
    assert not (tmp_path / "cache" / "corpora").exists()
    assert not list((tmp_path / "cache").rglob("*.shard"))


@shared
def test_gpt2_tokenizer_on_real_dialogues(tmp_path):
    corpora = Path(os.environ["TANDEM_SHARED"]) / "corpora"
    valid, test = (str(corpora / "dialogue_sgd" / f"{split}.jsonl.gz") for split in ("valid", "test"))
    gpt2 = TokenizerSettings(source=str(corpora / "gpt2_tokenizer" / "tokenizer.json"))
    corpus = prepare_corpus(DataSettings(train=test, validation=valid, separator="\n"), gpt2, tmp_path)
    assert (corpus.vocab_size, corpus.eos_token_id) == (50_257, 50_256)
    model = Tokenizer.from_file(gpt2.source)
    for stream in (corpus.train, corpus.validation):
        assert len(decoded_bytes(stream.ids[1:], model)) == stream.scored_bytes
