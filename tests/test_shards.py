"""A corpus tokenized by shards is the one that is tokenized at once, whoever makes which shard and when."""

import hashlib
import io
import json
import multiprocessing
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_jsonl

from tandem.claims import try_lock
from tandem.errors import DataError
from tandem.fingerprint import fingerprint
from tandem.settings import DataSettings, Settings, TokenizerSettings
from tandem.text import splits as splits_module
from tandem.text.documents import Documents, put_down
from tandem.text.splits import split_documents
from tandem.tokens import prepare, shards
from tandem.tokens.encoding import Encoder
from tandem.tokens.prepare import Corpus, prepare_corpus
from tandem.tokens.shards import Shards, cut
from tandem.tokens.store import TokenStream
from tandem.tokens.tokenizer import train_bpe

pytestmark = pytest.mark.usefixtures("warm_start")
SMALL = 2000
"""Bytes of a shard in these tests: the text of `text_file` makes some ten."""
VOCABULARY = 300


def prepared(text: Path, cache: Path, said: list[str] | None = None, **more: object) -> Corpus:
    data = DataSettings(train=str(text), validation_fraction=0.2, **more)
    return prepare_corpus(
        data, TokenizerSettings(vocab_size=VOCABULARY), cache, (said if said is not None else []).append
    )


def in_small_shards(text: Path, cache: Path, made: Path | None = None, seconds: float = 0.0) -> None:
    """What other processes do: `prepared` in small shards, each noted in a file of the folder `made`."""
    shards.SHARD_BYTES = SMALL
    real = Encoder.encode

    def noted(self: Encoder, documents: list[str], first: int, last: int) -> TokenStream:
        time.sleep(seconds)
        if made is not None:
            with (made / f"{len(documents)}-{first}").open("a") as file:
                file.write("x")
        return real(self, documents, first, last)

    Encoder.encode = noted
    prepared(text, cache)


def process(*given: object) -> multiprocessing.process.BaseProcess:
    other = multiprocessing.get_context("spawn").Process(target=in_small_shards, args=given)
    other.start()
    return other


def wait_for(met: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until
        time.sleep(0.02)


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("preparing/*/*.shard"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", SMALL)


# --- the plain reference ---------------------------------------------------------------------------


def in_memory(
    documents: list[str], fraction: float, seed: int, most: int | None
) -> tuple[list[str], list[str], str]:
    """Training and validation documents and their fingerprint, by the rules of `split_documents`, plainly."""

    def digest(text: str) -> bytes:
        return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()

    def drawn(there: dict[bytes, str], purpose: str) -> list[bytes]:
        key = hashlib.blake2b(f"{purpose}|{seed}".encode(), digest_size=16).digest()
        return sorted(there, key=lambda d: hashlib.blake2b(d, key=key, digest_size=16).digest())

    distinct: dict[bytes, str] = {}
    for document in documents:
        distinct.setdefault(digest(document), document)
    size = {d: len(text.encode()) for d, text in distinct.items()}
    wanted, taken, aside = fraction * sum(size.values()), 0, set()
    order = drawn(distinct, "validation")
    for d in [d for d in order if size[d] <= wanted] or [min(order, key=lambda d: size[d])]:
        if taken >= wanted or len(aside) == len(distinct) - 1:
            break
        aside.add(d)
        taken += size[d]
    train = {d: text for d, text in distinct.items() if d not in aside}
    if most is not None:
        fitting: set[bytes] = set()
        for d in drawn(train, "training"):
            if size[d] <= most:
                fitting.add(d)
                most -= size[d]
        smallest = min(train, key=lambda d: size[d])
        train = {d: text for d, text in train.items() if d in (fitting or {smallest})}
    validation = [text for d, text in distinct.items() if d in aside]
    parts = (len(train), *train.values(), len(validation), *validation)
    return list(train.values()), validation, fingerprint("text", *parts)


def some_documents(count: int, seed: int) -> list[str]:
    """Of one to 300 words, with repeated ones, and ones that differ in white space only."""
    draws = random.Random(seed)
    words = ["the", "naïve", "日本語", "🐱", "don't", "<|endoftext|>", "x" * 40, *"abcdefgh"]
    documents: list[str] = []
    for _ in range(count):
        if documents and draws.random() < 0.2:
            documents.append(draws.choice(documents).replace(" ", draws.choice((" ", " \n", "\t "))))
        else:
            documents.append(" ".join(draws.choices(words, k=1 + int(draws.expovariate(1 / 40)) % 300)))
    return documents


@pytest.mark.parametrize("most", [None, 1, 4000])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.99])
def test_splits_are_those_of_the_plain_reference(
    tmp_path: Path, fraction: float, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits_module, "PART_CHARACTERS", 50)
    documents = some_documents(150, seed=1)
    path = write_jsonl(tmp_path / "t.jsonl", documents)
    for seed in range(3):
        train, validation, whole = in_memory(documents, fraction, seed, most)
        data = DataSettings(
            train=str(path), validation_fraction=fraction, split_seed=seed, max_train_bytes=most
        )
        splits = split_documents(data)
        assert list(splits.train) == train
        assert list(splits.validation) == validation
        assert splits.fingerprint == whole


@pytest.mark.parametrize("separator", ["eos", "\n", ""])
@pytest.mark.usefixtures("small")
def test_tokens_by_shards_are_those_of_all_documents_at_once(
    tmp_path: Path,
    separator: str,
) -> None:
    documents = some_documents(150, seed=2)
    path = write_jsonl(tmp_path / "t.jsonl", documents)
    corpus = prepared(path, tmp_path / "cache", separator=separator, max_train_bytes=15_000)
    train, validation, text = in_memory(documents, 0.2, 0, 15_000)
    assert len(cut("train", put_down(train, None).sizes)) > 5
    assert corpus.text_fingerprint == text
    model = train_bpe(train, VOCABULARY)
    (folder,) = (tmp_path / "cache" / "corpora").iterdir()
    for stream, part in ((corpus.train, train), (corpus.validation, validation)):
        plain = Encoder(model, "<|endoftext|>", separator).encode_all(part, folder.name, "here")
        assert np.array_equal(stream.ids, plain.ids)
        assert np.array_equal(stream.document_starts, plain.document_starts)
        assert stream.fingerprint == plain.fingerprint
    assert not (tmp_path / "cache" / "preparing" / folder.name).exists()


def test_documents_are_read_from_their_file() -> None:
    documents = ["one", "zwölf 🐱", "", "three"]
    there = put_down(iter(documents), None)
    # what a Sequence promises
    assert (there[-1], list(reversed(there))) == (documents[-1], documents[::-1])
    assert list(there[::2]) == documents[::2]
    assert documents[1] in there
    assert "no such document" not in there
    assert there.index(documents[1]) == documents.index(documents[1])
    for outside in (len(documents), -len(documents) - 1):
        with pytest.raises(IndexError):
            there[outside]
    assert list(there) == documents
    assert (there[1], there[-1], list(there[1:3])) == (documents[1], "three", documents[1:3])
    assert list(there.chosen(np.array([True, False, False, True]))) == ["one", "three"]
    assert there.sizes.tolist() == [3, 11, 0, 5]
    with pytest.raises(IndexError):
        there[4]


def test_text_that_cannot_be_put_down_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("stands here")
    with pytest.raises(DataError, match=r"cannot write the text to .*TANDEM_CACHE"):
        put_down(["a"], tmp_path / "file" / "below")

    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())  # noqa: A006, ARG005
    with pytest.raises(DataError, match=r"No space left on device; .*TMPDIR"):
        put_down(["a"], None)


def test_shards_are_bounded_and_whole() -> None:
    sizes = np.array([5, shards.SHARD_BYTES, 7, 9, 3 * shards.SHARD_BYTES, 1])
    found = cut("train", sizes)
    assert [shard.first for shard in found] == [0, *(shard.last for shard in found[:-1])]
    assert found[-1].last == len(sizes)
    for shard in found:
        assert sizes[shard.first : shard.last - 1].sum() < shards.SHARD_BYTES  # but for its last document
    assert [shard.name for shard in found[:2]] == ["train-00000", "train-00001"]


# --- several processes, interruptions, damage ------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_processes_share_one_cache_and_make_no_shard_twice(
    text_file: Path,
    tmp_path: Path,
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    others = [process(text_file, tmp_path / "cache", made, 0.1) for _ in range(2)]
    for other in others:
        other.join(120)
        assert other.exitcode == 0
    assert len(list(made.iterdir())) > 3
    assert {path.read_text() for path in made.iterdir()} == {"x"}
    said: list[str] = []
    together = prepared(text_file, tmp_path / "cache", said)
    assert any("using the prepared" in line for line in said)
    alone = prepared(text_file, tmp_path / "alone")
    assert together.fingerprint == alone.fingerprint
    assert np.array_equal(together.train.ids, alone.train.ids)


@pytest.mark.usefixtures("small")
def test_helpers_are_processes_of_one_command(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helpers cut shards as this process does, so they work at the size that the package has."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 1 << 24)
    alone = prepared(text_file, tmp_path / "alone")
    data = DataSettings(train=str(text_file), validation_fraction=0.2)
    settings = TokenizerSettings(vocab_size=VOCABULARY, processes=2)
    # This process leaves everything to its helper.
    monkeypatch.setattr(Shards, "make_missing", lambda self: wait_for(lambda: not self.missing()))
    together = prepare_corpus(data, settings, tmp_path / "together")
    assert together.fingerprint == alone.fingerprint
    assert not list((tmp_path / "together" / "preparing").iterdir())


@pytest.mark.usefixtures("small")
def test_what_a_killed_process_had_is_made_by_another(
    text_file: Path,
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    first = process(text_file, cache, None, 0.3)
    wait_for(lambda: len(kept(cache)) >= 2)
    first.kill()  # within a shard, most likely; its claim is released
    first.join()
    before = {path: path.stat().st_mtime_ns for path in kept(cache)}
    assert before
    said: list[str] = []
    after: dict[Path, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        real = Shards.joined

        def looked(self: Shards, *rest: Any) -> TokenStream:
            after.update({path: path.stat().st_mtime_ns for path in kept(cache)})
            return real(self, *rest)

        patch.setattr(Shards, "joined", looked)
        corpus = prepared(text_file, cache, said)
    assert any(f"of which {len(before)} are there" in line for line in said)
    assert len(after) > len(before)
    assert before.items() <= after.items()  # finished shards are not made again
    assert corpus.fingerprint == prepared(text_file, tmp_path / "alone").fingerprint


def interrupted(text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Prepare until so many shards are there, then stop as Ctrl-C would."""
    real, count = Encoder.encode, iter(range(after))

    def stop(self: Encoder, documents: list[str], first: int, last: int) -> TokenStream:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return real(self, documents, first, last)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", stop)
        with pytest.raises(KeyboardInterrupt):
            prepared(text, cache)


@pytest.mark.usefixtures("small")
def test_an_interrupted_preparation_goes_on(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, said, encoded = tmp_path / "cache", [], []
    interrupted(text_file, cache, monkeypatch, after=3)
    assert len(kept(cache)) == 3
    real = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda *args: encoded.append(args[2:]) or real(*args))
    monkeypatch.setattr(prepare, "train_bpe", None)  # nor is the BPE trained again
    corpus = prepared(text_file, cache, said)
    assert any("of which 3 are there" in line for line in said)
    assert len(encoded) == sum(len(cut("", split.sizes)) for split in _splits(text_file)) - 3
    monkeypatch.undo()
    assert corpus.fingerprint == prepared(text_file, tmp_path / "alone").fingerprint


@pytest.mark.usefixtures("small")
def test_a_shard_that_another_process_has_is_waited_for(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, done, last = tmp_path / "cache", [], "validation-00000"
    interrupted(text_file, cache, monkeypatch, after=1)
    folder = kept(cache)[0].parent
    count = sum(len(cut("", split.sizes)) for split in _splits(text_file))
    other = threading.Thread(target=lambda: done.append(prepared(text_file, cache)))
    with try_lock(folder, last) as mine:
        assert mine
        other.start()
        wait_for(lambda: len(kept(cache)) >= count - 1)
        time.sleep(2 * shards.WAIT_S)  # long enough to look again
        assert other.is_alive()
        assert not (folder / f"{last}.shard").exists()
    other.join(120)
    assert len(done) == 1


def _splits(text: Path) -> list[Documents]:
    splits = split_documents(DataSettings(train=str(text), validation_fraction=0.2))
    return [splits.train, splits.validation]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "it is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "it is damaged"),
    "one bit": (flip, "fingerprint"),
    "another shard": (
        lambda path: path.write_bytes(path.with_name("train-00001.shard").read_bytes()),
        "fingerprint",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.usefixtures("small")
def test_a_bad_shard_is_made_again_and_said(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cache, said = tmp_path / "cache", []
    interrupted(text_file, cache, monkeypatch, after=3)
    damage, reason = DAMAGES[name]
    damage(kept(cache)[0])
    corpus = prepared(text_file, cache, said)
    (told,) = [line for line in said if "not usable" in line]
    assert "shard train-00000" in told
    assert reason in told
    assert corpus.fingerprint == prepared(text_file, tmp_path / "alone").fingerprint


@pytest.mark.usefixtures("small")
def test_a_torn_tokenizer_of_an_interrupted_preparation_is_trained_again(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    interrupted(text_file, cache, monkeypatch, after=2)
    (path,) = cache.glob("preparing/*/tokenizer-*.json")
    path.write_text(json.dumps({"torn": True}))
    assert prepared(text_file, cache).fingerprint == prepared(text_file, tmp_path / "alone").fingerprint


def test_processes_are_part_of_no_fingerprint() -> None:
    one, four = (Settings(tokenizer={"processes": count}) for count in (1, 4))
    assert one.fingerprint() == four.fingerprint() == Settings().fingerprint()
    assert one.fingerprint() != Settings(tokenizer={"vocab_size": 4096}).fingerprint()
