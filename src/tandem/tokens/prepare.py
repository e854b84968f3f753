"""From settings to tokens: read, split, train or load the tokenizer, encode, and keep the result.

Neither text nor tokens are ever in memory as a whole. What is: the distinct words while a BPE is trained, the
largest document, a shard's tokens, and some 100 bytes a document.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path
from tokenizers import Tokenizer, __version__
from transformers import PreTrainedTokenizerFast

from tandem.claims import locked
from tandem.errors import DataError, StorageError
from tandem.fingerprint import fingerprint
from tandem.settings import DataSettings, TokenizerSettings
from tandem.text.documents import Documents, put_down
from tandem.text.sources import open_documents
from tandem.text.splits import Splits, split_documents
from tandem.tokens import store
from tandem.tokens.encoding import Encoder, characters_told, encode_documents
from tandem.tokens.lost import Lost, such_as
from tandem.tokens.shards import Shards, encoding_helpers
from tandem.tokens.store import StaleCorpus, StoredCorpus, StreamParts, TokenStream
from tandem.tokens.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    plain,
    read_tokenizer,
    to_transformers,
    tokenizer_fingerprint,
    train_bpe,
)

READ_BACK_ATTEMPTS = 6


@dataclass(frozen=True)
class Corpus:
    """Both splits as tokens, their tokenizer, and what they were made from.

    vocab_size       V, one more than the largest id
    eos_token_id     the end-of-text token's id, whether or not it separates documents; None if there is none
    fingerprint      of both token streams, chained from text, tokenizer and separators
    train_bytes      UTF-8 bytes of the documents' text, separator texts included (`validation_bytes` alike)
    """

    train: TokenStream
    validation: TokenStream
    tokenizer: PreTrainedTokenizerFast
    vocab_size: int
    eos_token_id: int | None
    text_fingerprint: str
    tokenizer_fingerprint: str
    fingerprint: str
    train_source: str
    validation_source: str
    train_documents: int
    validation_documents: int
    train_bytes: int
    validation_bytes: int
    duplicates_dropped: int
    overlap_documents: int


def default_cache_dir() -> Path:
    """Where prepared corpora and embeddings are kept: `TANDEM_CACHE`, else `tandem` in the user's cache."""
    own = os.environ.get("TANDEM_CACHE")
    return Path(own) if own else user_cache_path("tandem", appauthor=False)


def read_splits(data: DataSettings, cache: Path, on_progress: Callable[[str], None]) -> Splits:
    """As `split_documents`; `on_progress` is told what is read, and how many documents became of it."""
    on_progress(f"reading {data.train}" + (f" and {data.validation}" if data.validation else ""))
    splits = split_documents(data, cache, on_progress)
    on_progress(splits.in_words())
    return splits


def prepare_corpus(
    data: DataSettings,
    tokenizer: TokenizerSettings,
    cache: Path,
    on_progress: Callable[[str], None] = lambda _: None,
    splits: Splits | None = None,
) -> Corpus:
    """The tokens that `data` and `tokenizer` ask for, taken from `cache` if the same were made before.

    The text itself is always read (or given as `splits` by whoever has just done so), so a changed file is
    noticed; what is kept is the tokenizer's training and the encoding. A stored corpus that is damaged is
    rebuilt, and `on_progress` is told.

    Raises DataError or SettingsError for sources that cannot be used, a split of fewer than two tokens, or a
    cache that cannot be written, and VocabularyError for a vocabulary that the text does not support.
    """
    if splits is None:
        splits = read_splits(data, cache, on_progress)
    loaded = None if tokenizer.source == "bpe" else load_tokenizer(tokenizer.source)
    separators = {"train": data.separator, "validation": _validation_separator(data)}
    request = (
        {"bpe": tokenizer.vocab_size, "tokenizers": __version__}
        if loaded is None
        else {"loaded": tokenizer_fingerprint(loaded[0]), "eos": loaded[1]}
    )
    chain = fingerprint("corpus", splits.fingerprint, request, *separators.values())
    folder = cache / "corpora" / chain
    if folder.exists():
        try:
            stored = store.read_corpus(folder, chain)
            on_progress(f"using the prepared tokens in {folder}")
            return _corpus(stored, splits, on_progress)
        except StaleCorpus as stale:
            on_progress(f"the prepared tokens in {folder} are not usable: {stale}; making them again")
    work = cache / "preparing" / chain
    try:
        work.mkdir(parents=True, exist_ok=True)
        model, eos = _kept_tokenizer(work, splits.train, tokenizer, loaded, on_progress)
        _tokenize(folder, work, chain, splits, model, eos, separators, tokenizer.processes, on_progress)
    except FileNotFoundError:
        if not folder.exists():
            raise DataError(
                f"{work} was removed while tokens were made there; give the command again"
            ) from None
    except DataError as error:
        if not isinstance(error, StorageError):  # the same text would be refused again, whatever is there
            shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        raise store.unwritten("tokens", work, error) from None
    return _corpus(_read_back(folder, chain), splits, on_progress)


def _kept_tokenizer(
    work: Path,
    documents: Documents,
    settings: TokenizerSettings,
    loaded: tuple[Tokenizer, str | None] | None,
    on_progress: Callable[[str], None],
) -> tuple[Path, str | None]:
    """The file of the tokenizer in `work`, and its end-of-text token; one process trains a BPE."""
    with locked(work, "tokenizer"):
        for path in work.glob("tokenizer-*.json"):
            with contextlib.suppress(DataError):
                if path == _tokenizer_path(work, read_tokenizer(path)):
                    return path, END_OF_TEXT if loaded is None else loaded[1]
            path.unlink()
        if loaded is None:
            on_progress(f"training a BPE of {settings.vocab_size:,} entries on {len(documents):,} documents")
            loaded = train_bpe(documents, settings.vocab_size, on_progress), END_OF_TEXT
        path = _tokenizer_path(work, loaded[0])
        draft = path.with_suffix(".partial")
        draft.write_text(loaded[0].to_str(), "utf-8")
        draft.replace(path)
        return path, loaded[1]


def _tokenizer_path(work: Path, tokenizer: Tokenizer) -> Path:
    return work / f"tokenizer-{tokenizer_fingerprint(tokenizer)}.json"


def _tokenize(
    folder: Path,
    work: Path,
    chain: str,
    splits: Splits,
    tokenizer: Path,
    eos: str | None,
    separators: Mapping[str, str],
    processes: int,
    on_progress: Callable[[str], None],
) -> None:
    """Put the corpus into `folder`, from shards in `work` that are there or made now, and remove `work`.

    Raises FileNotFoundError when `work` is gone: another process has then completed the corpus.
    """
    model = read_tokenizer(tokenizer)
    documents = {"train": splits.train, "validation": splits.validation}
    sources = {"train": splits.train_source, "validation": splits.validation_source}
    told = characters_told(on_progress)
    encoders = {split: Encoder(model, eos, separators[split], told) for split in documents}
    shards = Shards(tokenizer, chain, documents, encoders)

    def stream(split: str) -> StreamParts:
        examples: tuple[str, ...] = ()
        counts = []
        for encoded in shards.parts(split):
            counts.append((encoded.lengths, encoded.sizes, encoded.lost))
            examples = such_as((*examples, *encoded.such_as))
        lengths, sizes, gone = (np.concatenate(arrays) for arrays in zip(*counts, strict=True))
        lost = Lost(bytes=int(gone.sum()), such_as=examples)
        scored = encoders[split].scored_bytes(documents[split], lengths, sizes, lost, sources[split])
        parts = (encoded.ids for encoded in shards.parts(split))
        return StreamParts(encoders[split].dtype, lengths, sizes, scored, lost, parts)

    while True:
        missing, count = shards.missing(), len(shards.all)
        on_progress(
            f"encoding {len(splits.train) + len(splits.validation):,} documents in {count} shards"
            + (f", of which {count - len(missing)} are there" if len(missing) < count else "")
        )
        helpers = min(processes, len(missing)) - 1
        with encoding_helpers(max(0, helpers), tokenizer, chain, documents, eos, separators):
            shards.make_missing()
        with locked(work, "corpus"):
            if not tokenizer.exists():
                raise FileNotFoundError(tokenizer)
            bad = list(shards.remove_bad())
            if not bad:
                parts = stream("train"), stream("validation")
                store.write_corpus(folder, chain, splits.fingerprint, model, eos, *parts)
                tokenizer.unlink()  # what tells other processes
                shutil.rmtree(work, ignore_errors=True)
                return
        for shard, reason in bad:
            on_progress(f"the tokens of shard {shard.name} are not usable: {reason}; making them again")


def _read_back(folder: Path, chain: str) -> StoredCorpus:
    """The corpus just written. Another process may be putting the same one there: then it is tried again."""
    for attempt in range(READ_BACK_ATTEMPTS):
        try:
            return store.read_corpus(folder, chain)
        except StaleCorpus as stale:
            reason = stale
            time.sleep(0.05 * attempt)
    raise DataError(f"the tokens just written to {folder} came back changed ({reason}); check the disk")


def tokenize_training_text(
    splits: Splits,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerFast,
    on_progress: Callable[[str], None] = lambda _: None,
) -> TokenStream:
    """The training documents of `splits` as tokens of a model's own tokenizer; not kept on disk.

    Raises DataError for fewer than two tokens.
    """
    return _tokenized(splits.train, tokenizer, data.separator, splits.train_source, on_progress)


def tokenize_for_evaluation(
    source: str,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerFast,
    on_progress: Callable[[str], None] = lambda _: None,
) -> TokenStream:
    """The tokens of any source, by the rules for validation text in `data`, with a model's own tokenizer.

    All documents count, repeated ones too; nothing is set aside, compared with training text or kept on
    disk. Of `data` only `txt_documents`, `separator` and `validation_separator` are used.

    Raises DataError or SettingsError for a source that cannot be used.
    """
    documents = put_down(open_documents(source, data.txt_documents, on_progress), None)
    return _tokenized(documents, tokenizer, _validation_separator(data), source, on_progress)


def _tokenized(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    separator: str,
    source: str,
    on_progress: Callable[[str], None],
) -> TokenStream:
    """`documents` as tokens of a model's tokenizer; `source` names them in errors."""
    model = plain(tokenizer)
    eos = tokenizer.eos_token if isinstance(tokenizer.eos_token, str) else None
    chain = fingerprint("evaluation", tokenizer_fingerprint(model), separator)
    return encode_documents(documents, model, eos, separator, chain, source, on_progress)


def _corpus(stored: StoredCorpus, splits: Splits, on_progress: Callable[[str], None]) -> Corpus:
    record = stored.record
    for split, said in (("training", record.train), ("validation", record.validation)):
        if said.lost.bytes:
            on_progress(said.lost.sentence(f"{split} text", said.text_bytes))
    return Corpus(
        train=stored.train,
        validation=stored.validation,
        tokenizer=to_transformers(stored.tokenizer, record.eos_token),
        vocab_size=record.vocab_size,
        eos_token_id=None if record.eos_token is None else stored.tokenizer.token_to_id(record.eos_token),
        text_fingerprint=record.text_fingerprint,
        tokenizer_fingerprint=record.tokenizer_fingerprint,
        fingerprint=fingerprint("corpus", record.train.fingerprint, record.validation.fingerprint),
        train_source=splits.train_source,
        validation_source=splits.validation_source,
        train_documents=record.train.documents,
        validation_documents=record.validation.documents,
        train_bytes=record.train.text_bytes,
        validation_bytes=record.validation.text_bytes,
        duplicates_dropped=splits.duplicates_dropped,
        overlap_documents=splits.overlap_documents,
    )


def _validation_separator(data: DataSettings) -> str:
    return data.separator if data.validation_separator is None else data.validation_separator
