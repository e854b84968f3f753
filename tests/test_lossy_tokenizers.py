"""Text that tokens cannot give back is counted, charged in bits per byte, and said where tokens are made."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import seal_again, sentences, tiny, write_jsonl
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tandem.audit import audit
from tandem.cli.main import run
from tandem.errors import DataError, SettingsError
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.generate import generate_text
from tandem.experiment.runner import run_experiment
from tandem.experiment.single_run import train_one
from tandem.fingerprint import fingerprint
from tandem.records import RunRecord, read_records
from tandem.report.render import write_report
from tandem.settings import Configuration, DataSettings, TokenizerSettings
from tandem.tokens import shards
from tandem.tokens.encoding import Encoder
from tandem.tokens.lost import Decoding
from tandem.tokens.prepare import prepare_corpus
from tandem.tokens.store import TokenStream
from tandem.tokens.tokenizer import train_bpe
from tandem.training.progress import Watcher

TEXTS = sentences(60)
END = "</s>"
CHINESE = "天地玄黃宇宙洪荒"


def trained(model: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    model.train_from_iterator(TEXTS, trainer)
    return model


def dropping_bpe() -> Tokenizer:
    """Of the characters of TEXTS, without an unknown token and without bytes: others vanish."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    return trained(model, trainers.BpeTrainer(vocab_size=120, special_tokens=[END], show_progress=False))


def words(lower: bool) -> Tokenizer:
    """Whole words, and [UNK] for all others."""
    model = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        model.normalizer = normalizers.Lowercase()
    special = ["[UNK]", END]
    return trained(model, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))


def word_piece() -> Tokenizer:
    """As BERT's: lower case, no accents, white space only between words."""
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer()
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    special = ["[UNK]", END]
    return trained(
        model, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )


def unigram() -> Tokenizer:
    """As SentencePiece's, with spaces made one."""
    model = Tokenizer(models.Unigram())
    model.normalizer = normalizers.Replace("  ", " ")
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    return trained(
        model,
        trainers.UnigramTrainer(
            vocab_size=80, special_tokens=["<unk>", END], unk_token="<unk>", show_progress=False
        ),
    )


def bytes_without_all() -> Tokenizer:
    """Byte-level, but only with the bytes that occur in TEXTS."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return trained(model, trainers.BpeTrainer(vocab_size=120, special_tokens=[END], show_progress=False))


def tokenized(model: Tokenizer, *documents: str, separator: str = "eos") -> TokenStream:
    return Encoder(model, END, separator).encode_all(documents, "chain", "here")


@pytest.mark.parametrize(
    ("model", "text", "lost"),
    [
        (dropping_bpe(), f"the {CHINESE} block", len(CHINESE.encode())),
        (dropping_bpe(), f"the to{CHINESE}ken block", len(CHINESE.encode())),
        (dropping_bpe(), "a\nb", 1),
        (bytes_without_all(), "the é block", 2),
        (words(lower=False), "the unheard of block", len("unheard")),
        (word_piece(), f"the {CHINESE} block", len(CHINESE.encode())),
        (words(lower=False), "the  block\n\n\n", 2 + 3),
        (words(lower=True), "The Tip reads", len("TTip")),
        (words(lower=True), "The Xat reads", len("TXat")),
        (words(lower=True), "the [UNK] reads", len("[UNK]")),
        (word_piece(), "The blöck reads ☃.", len("T") + len("ö☃".encode())),
        (unigram(), "the  block reads 日", 2 + 3),
    ],
)
def test_lost_bytes(model: Tokenizer, text: str, lost: int) -> None:
    stream = tokenized(model, text)
    assert stream.lost.bytes == lost
    assert all(unit in text for unit in stream.lost.such_as)
    assert stream.scored_bytes == len(text.encode())  # what is lost stays in the text that is paid for


@pytest.mark.parametrize("model", [dropping_bpe(), words(lower=False), word_piece(), unigram()])
def test_white_space_between_words_is_not_lost(model: Tokenizer) -> None:
    """Whatever decoders put between words, and before the first one."""
    for text in (*TEXTS[:3], "the block reads", " the block", "the block, reads .".replace(",", "")):
        assert tokenized(model, text).lost.bytes == 0, text


def test_bytes_lose_nothing_and_keep_their_fingerprint() -> None:
    """What is lossless by construction is not decoded, and records of before stay comparable."""
    model = train_bpe(TEXTS, 300)
    assert Decoding(model)._lossless
    for other in (dropping_bpe(), bytes_without_all(), words(lower=False), word_piece(), unigram()):
        assert not Decoding(other)._lossless
    stream = Encoder(model, "<|endoftext|>", "eos").encode_all(["the 天 block", "\u0000 é"], "chain", "here")
    assert stream.lost.bytes == 0
    arrays = stream.ids, stream.document_starts, stream.document_bytes
    assert stream.fingerprint == fingerprint("tokens", "chain", *arrays, stream.scored_bytes)
    removing = train_bpe(TEXTS, 300)
    removing.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert Encoder(removing, None, "").encode_all(["the block"], "chain", "here").lost.bytes == 1


def test_a_decoder_that_is_missing_makes_no_loss() -> None:
    model = bytes_without_all()
    model.decoder = None
    assert tokenized(model, "the block").lost.bytes == 0


def test_the_first_token_is_not_paid_for_but_what_is_lost_before_it_is() -> None:
    stream = tokenized(words(lower=False), f"the {CHINESE} block", separator="")
    assert (stream.lost.bytes, stream.scored_bytes) == (24, len(f"{CHINESE} block".encode()))
    stream = tokenized(words(lower=False), f"{CHINESE} the block", separator="")
    assert (stream.lost.bytes, stream.scored_bytes) == (24, len(f"{CHINESE}the block".encode()))


@pytest.mark.parametrize("separator", ["eos", ""])
@pytest.mark.parametrize("make", [dropping_bpe, word_piece, unigram])
def test_documents_one_by_one_are_what_each_is_alone(make: Callable[[], Tokenizer], separator: str) -> None:
    encoder = Encoder(make(), END, separator)
    documents = [TEXTS[0], f"{CHINESE} {TEXTS[1]} {CHINESE}", TEXTS[2]]
    for document, one in zip(documents, encoder.encode_each(documents), strict=True):
        alone = encoder.encode_all([document], "", "text")
        assert one.record() == alone.record()
        assert len(encoder.spans(document)) == len(one) - (separator == "eos")


def test_text_that_is_lost_whole_is_refused() -> None:
    for model, separator in ((bytes_without_all(), "eos"), (bytes_without_all(), "日")):
        with pytest.raises(DataError, match=r"no tokens for the text of here, which holds '天', '地'"):
            tokenized(model, CHINESE, separator=separator)


# --- what comes of it --------------------------------------------------------------------------------


def corpus_file(place: Path) -> Path:
    """Training text of which every other document has characters that the tokenizers below do not know."""
    mixed = [f"{text} {CHINESE} Ünknown" if number % 2 else text for number, text in enumerate(TEXTS)]
    return write_jsonl(place / "mixed.jsonl", mixed)


@pytest.fixture(scope="session")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord, list[str]]:
    """A model with a tokenizer that drops characters: its folder, its record, and what was said meanwhile."""
    place = tmp_path_factory.mktemp("lossy")
    dropping_bpe().save(str(place / "tokenizer.json"))
    settings = tiny(corpus_file(place), tokenizer={"source": str(place / "tokenizer.json")})
    said: list[str] = []

    class Listening(Watcher):
        def preparing(self, what: str) -> None:
            said.append(what)

    return place / "model", train_one(settings, Configuration(1, 1), 0, place / "model", Listening()), said


def charged(nll_nats: float, tokens: int, lost: int, size: int) -> float:
    return (nll_nats * tokens / math.log(2) + 8 * lost) / size


def test_training_says_counts_and_charges(lossy: tuple[Path, RunRecord, list[str]]) -> None:
    _, record, said = lossy
    data, validation = record.data, record.validation
    assert validation is not None
    assert validation.tokens is not None
    assert 0 < data.validation_lost_bytes < data.train_lost_bytes
    for split, lost in (("training", data.train_lost_bytes), ("validation", data.validation_lost_bytes)):
        assert any(f"{split} text: its tokens cannot give back {lost:,} of " in what for what in said)
    assert validation.bits_per_byte == pytest.approx(
        charged(validation.nll_nats, validation.tokens, data.validation_lost_bytes, data.validation_bytes)
    )


def test_a_kept_corpus_says_it_again_and_one_of_before_is_made_again(tmp_path: Path) -> None:
    dropping_bpe().save(str(tmp_path / "tokenizer.json"))
    cache = tmp_path / "cache"

    def prepared() -> tuple[list[str], TokenStream]:
        said: list[str] = []
        tokenizer = TokenizerSettings(source=str(tmp_path / "tokenizer.json"))
        corpus = prepare_corpus(DataSettings(train=str(corpus_file(tmp_path))), tokenizer, cache, said.append)
        return said, corpus.validation

    first, again = prepared(), prepared()
    assert any("using the prepared tokens" in what for what in again[0])
    assert [what for what in first[0] if "cannot give back" in what] == [
        what for what in again[0] if "cannot give back" in what
    ]
    assert first[1].lost == again[1].lost
    (record,) = cache.glob("corpora/*/corpus.json")
    values = json.loads(record.read_text("utf-8"))
    values["schema_version"] = 1
    for split in ("train", "validation"):
        del values[split]["lost"]
    record.write_text(json.dumps(values), "utf-8")
    said, validation = prepared()
    assert any("damaged or of another version" in what for what in said)
    assert validation.lost == first[1].lost


def test_shards_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word_piece().save(str(tmp_path / "tokenizer.json"))
    data, tokenizer = (
        DataSettings(train=str(corpus_file(tmp_path))),
        TokenizerSettings(source=str(tmp_path / "tokenizer.json")),
    )
    whole = prepare_corpus(data, tokenizer, tmp_path / "one")
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    cut = prepare_corpus(data, tokenizer, tmp_path / "other")
    for split in ("train", "validation"):
        assert getattr(cut, split).lost == getattr(whole, split).lost
        assert getattr(cut, split).fingerprint == getattr(whole, split).fingerprint


def test_evaluate_shows_and_charges(
    lossy: tuple[Path, RunRecord, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten pages of Chinese with a Latin word: today's 0.01 bits per byte become more than 8."""
    text = "\n\n".join([CHINESE * 40] * 10) + " the block"
    (tmp_path / "pages.txt").write_text(text, "utf-8")
    call = ["evaluate", str(lossy[0]), "--data", str(tmp_path / "pages.txt"), "--device", "cpu"]
    assert run([*call, "--json", "--mix"]) == 0
    result = json.loads(capsys.readouterr().out)
    size = len(text.encode())
    assert result["lost_bytes"] >= len((CHINESE * 400).encode())
    assert result["lost_such_as"][0] == "天"
    assert result["text_bytes"] == size
    for figures in (result, result["mixture"]):
        expected = charged(figures["nll_nats"], result["tokens"] - 1, result["lost_bytes"], size)
        assert figures["bits_per_byte"] == pytest.approx(expected)
        assert figures["bits_per_byte"] > 7.8
    assert run(call) == 0
    out = capsys.readouterr().out
    assert "cannot give back" in out
    assert "'天'" in out


def test_evaluate_is_silent_where_nothing_is_lost(
    lossy: tuple[Path, RunRecord, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.txt").write_text(TEXTS[0], "utf-8")
    assert run(["evaluate", str(lossy[0]), "--data", str(tmp_path / "plain.txt"), "--device", "cpu"]) == 0
    assert "give back" not in capsys.readouterr().out
    assert evaluate_model(lossy[0], str(tmp_path / "plain.txt"), device="cpu").lost_bytes == 0


def test_generate_says_what_the_model_does_not_see(
    lossy: tuple[Path, RunRecord, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["generate", str(lossy[0]), "--max-new-tokens", "2", "--device", "cpu"]
    assert run([*call, "--prompt", f"the {CHINESE} block"]) == 0
    shown = capsys.readouterr()
    assert "does not see 24 of the 34 bytes of the prompt" in " ".join(shown.err.split())
    assert shown.out.startswith(f"the {CHINESE} block")
    assert run([*call, "--prompt", "the block", "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_text_and_prompt_that_are_lost_whole(tmp_path: Path) -> None:
    bytes_without_all().save(str(tmp_path / "tokenizer.json"))
    settings = tiny(
        corpus_file(tmp_path),
        tokenizer={"source": str(tmp_path / "tokenizer.json")},
        data={"separator": "\n"},
    )
    train_one(settings, Configuration(1, 1), 0, tmp_path / "model", Watcher())
    with pytest.raises(SettingsError, match="prompt cannot be tokenized"):
        generate_text(tmp_path / "model", CHINESE, device="cpu")
    (tmp_path / "page.txt").write_text(CHINESE, "utf-8")
    with pytest.raises(DataError, match="no tokens for the text of"):
        evaluate_model(tmp_path / "model", str(tmp_path / "page.txt"), device="cpu")


def test_an_experiment_charges_every_run_alike_and_its_audit_and_report_follow(tmp_path: Path) -> None:
    """With [UNK] and lower case: the model, the n-gram baselines, the recomputed figures, both languages."""
    words(lower=True).save(str(tmp_path / "tokenizer.json"))
    settings = tiny(
        corpus_file(tmp_path),
        configurations=((1, 1),),
        seeds=(0,),
        output=str(tmp_path / "run"),
        tokenizer={"source": str(tmp_path / "tokenizer.json")},
        baselines={"models": ("kneser-ney", "unigram")},
    )
    run_dir, records = run_experiment(settings, Watcher())
    assert len(records) == 3
    for record in records:
        assert record.validation is not None
        assert record.validation.tokens is not None
        lost, size = record.data.validation_lost_bytes, record.data.validation_bytes
        assert record.validation.bits_per_byte == pytest.approx(
            charged(record.validation.nll_nats, record.validation.tokens, lost, size)
        )
        assert record.validation.bits_per_byte > 8 * lost / size > 0.2
    found = audit(run_dir)
    assert found.status in ("pass", "warn"), list(found.failed())
    for lang, said in (("en", "cannot give back some of the text"), ("ja", "トークンから復元できない")):
        written = "".join(
            path.read_text("utf-8") for path in write_report(run_dir, lang) if path.suffix == ".md"
        )
        assert said in written
        assert f"{records[0].data.validation_lost_bytes:,}" in written
    # A record that left the charge out is found out.
    lines = [json.loads(line) for line in (run_dir / "records.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        own = line["validation"]
        own["bits_per_byte"] -= 8 * line["data"]["validation_lost_bytes"] / line["data"]["validation_bytes"]
    (run_dir / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    seal_again(run_dir)
    assert len(read_records(run_dir)) == 3
    wrong = [check.figure for _, check in audit(run_dir).failed() if check.name == "perplexity"]
    assert len(wrong) == 3
    assert all("bits" in figure for figure in wrong)
