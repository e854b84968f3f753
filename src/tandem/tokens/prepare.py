"""From settings to tokens: read, split, train or load the tokenizer, encode, and keep the result.

Encoding takes the text of documents literally: the end-of-text token and other special tokens come from the
separator setting alone, never from text that happens to spell them. (A tokenizer's added tokens that are not
marked special are matched in text, as everywhere.)
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, __version__, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tandem.errors import DataError
from tandem.fingerprint import fingerprint
from tandem.settings import DataSettings, TokenizerSettings
from tandem.text.sources import open_documents
from tandem.text.splits import Splits, split_documents
from tandem.tokens import store
from tandem.tokens.store import StaleCorpus, StoredCorpus, TokenStream
from tandem.tokens.tokenizer import (
    END_OF_TEXT,
    is_byte_level,
    load_tokenizer,
    may_be_cut,
    pieces,
    to_transformers,
    tokenizer_fingerprint,
    train_bpe,
    vocab_size,
)

READ_BACK_ATTEMPTS = 6
BATCH_CHARACTERS = 1 << 20
"""Text encoded at once; bounds the memory that encodings take (some 200 bytes a character)."""

# Set explicitly, this keeps the library silent when a later subprocess forks; it uses its threads either way.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


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
    if own := os.environ.get("TANDEM_CACHE"):
        return Path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "tandem"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "tandem" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tandem"
    return Path.home() / ".cache" / "tandem"


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

    Raises DataError or SettingsError for sources that cannot be used, a vocabulary the text does not support,
    a split of fewer than two tokens, or a cache that cannot be written.
    """
    if splits is None:
        on_progress(f"reading {data.train}" + (f" and {data.validation}" if data.validation else ""))
        splits = split_documents(data)
    loaded = None if tokenizer.source == "bpe" else load_tokenizer(tokenizer.source)
    separators = (data.separator, _validation_separator(data))
    request = (
        {"bpe": tokenizer.vocab_size, "tokenizers": __version__}
        if loaded is None
        else {"loaded": tokenizer_fingerprint(loaded[0]), "eos": loaded[1]}
    )
    chain = fingerprint("corpus", splits.fingerprint, request, *separators)
    folder = cache / "corpora" / chain
    if folder.exists():
        try:
            stored = store.read_corpus(folder, chain)
            on_progress(f"using the prepared tokens in {folder}")
            return _corpus(stored, splits)
        except StaleCorpus as stale:
            on_progress(f"the prepared tokens in {folder} are not usable: {stale}; making them again")
    if loaded is None:
        on_progress(f"training a BPE of {tokenizer.vocab_size:,} entries on {len(splits.train):,} documents")
        loaded = train_bpe(splits.train, tokenizer.vocab_size), END_OF_TEXT
    model, eos = loaded
    on_progress(f"encoding {len(splits.train) + len(splits.validation):,} documents")
    train, validation = (
        encode_documents(documents, model, eos, separator, chain, source)
        for documents, separator, source in (
            (splits.train, separators[0], splits.train_source),
            (splits.validation, separators[1], splits.validation_source),
        )
    )
    record = store.CorpusRecord(
        chain=chain,
        text_fingerprint=splits.fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint(model),
        vocab_size=vocab_size(model),
        eos_token=eos,
        train=store.stream_record(train),
        validation=store.stream_record(validation),
    )
    store.write_corpus(folder, StoredCorpus(record, model, train, validation))
    return _corpus(_read_back(folder, chain), splits)


def _read_back(folder: Path, chain: str) -> StoredCorpus:
    """The corpus just written. Another process may be putting the same one there: then it is tried again."""
    for attempt in range(READ_BACK_ATTEMPTS):
        try:
            return store.read_corpus(folder, chain)
        except StaleCorpus as stale:
            reason = stale
            time.sleep(0.05 * attempt)
    raise DataError(f"the tokens just written to {folder} came back changed ({reason}); check the disk")


def tokenize_training_text(data: DataSettings, tokenizer: PreTrainedTokenizerFast) -> TokenStream:
    """The training documents that `data` asks for, as tokens of a model's own tokenizer; not kept on disk.

    Raises DataError or SettingsError for sources that cannot be used.
    """
    splits = split_documents(data)
    return _tokenized(splits.train, tokenizer, data.separator, splits.train_source)


def tokenize_for_evaluation(
    source: str, data: DataSettings, tokenizer: PreTrainedTokenizerFast
) -> TokenStream:
    """The tokens of any source, by the rules for validation text in `data`, with a model's own tokenizer.

    All documents count, repeated ones too; nothing is set aside, compared with training text or kept on
    disk. Of `data` only `txt_documents`, `separator` and `validation_separator` are used.

    Raises DataError or SettingsError for a source that cannot be used.
    """
    documents = list(open_documents(source, data.txt_documents))
    return _tokenized(documents, tokenizer, _validation_separator(data), source)


def _tokenized(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerFast, separator: str, source: str
) -> TokenStream:
    """`documents` as tokens of a model's tokenizer; `source` names them in errors."""
    model = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    model.no_truncation()
    model.no_padding()
    eos = tokenizer.eos_token if isinstance(tokenizer.eos_token, str) else None
    chain = fingerprint("evaluation", tokenizer_fingerprint(model), separator)
    return encode_documents(documents, model, eos, separator, chain, source)


def encode_documents(
    documents: Sequence[str], tokenizer: Tokenizer, eos: str | None, separator: str, chain: str, source: str
) -> TokenStream:
    """`documents` as one stream of tokens.

    With separator `eos` the end-of-text token comes before every document: EOS doc1 EOS doc2 … So each token
    of text is predicted, and `scored_bytes` is all of the text. Any other separator is text, encoded with the
    document that it follows, and not after the last; then the bytes of the very first token, which nothing
    predicts, are not scored. `chain` is the fingerprint of what the stream is made from; `source` names the
    text in errors.

    Raises DataError if `eos` is asked for but is None, or if fewer than two tokens result.
    """
    # A copy, as the switch that takes special tokens in the text literally belongs to the tokenizer object.
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.encode_special_tokens = True
    lead: list[int] = []
    texts = documents
    if separator == "eos":
        eos_id = None if eos is None else tokenizer.token_to_id(eos)
        if eos_id is None:
            raise DataError(
                "the tokenizer has no end-of-text token to stand between documents; "
                "give a text for it with --data.separator, such as a blank line"
            )
        lead = [eos_id]
    else:
        texts = [document + separator for document in documents[:-1]] + list(documents[-1:])
    dtype = store.ids_dtype(vocab_size(tokenizer))
    parts: list[np.ndarray] = []
    lengths = np.zeros(len(texts), np.int64)
    for number, ids in _encode(texts, tokenizer):
        if lengths[number] == 0:
            ids = lead + ids
        lengths[number] += len(ids)
        parts.append(np.array(ids, dtype))
    if lengths.sum() < 2:
        raise DataError(
            f"{source} gives {lengths.sum()} token(s), but predicting the next one takes at least 2; add text"
        )
    starts = np.cumsum(lengths) - lengths
    sizes = np.array([len(text.encode()) for text in texts], np.int64)
    unscored = 0 if lead else _first_token_bytes(texts[int(np.count_nonzero(starts == 0)) - 1], tokenizer)
    return store.make_stream(chain, np.concatenate(parts), starts, sizes, int(sizes.sum()) - unscored)


def _corpus(stored: StoredCorpus, splits: Splits) -> Corpus:
    record = stored.record
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


def _encode(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[int, list[int]]]:
    """The number of a text and the ids of a piece of it, in order; pieces are encoded in parallel batches."""
    cut = pieces if may_be_cut(tokenizer) else lambda text: iter([text])
    for batch in _batches((number, piece) for number, text in enumerate(texts) for piece in cut(text)):
        encodings = tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
        for (number, _), encoding in zip(batch, encodings, strict=True):
            yield number, encoding.ids


def _batches(numbered: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """`numbered` pieces in lists of about `BATCH_CHARACTERS` characters, at least one piece each."""
    batch: list[tuple[int, str]] = []
    characters = 0
    for number, piece in numbered:
        batch.append((number, piece))
        characters += len(piece)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _first_token_bytes(text: str, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of `text` that its first token stands for."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    token = encoding.tokens[0]
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if is_byte_level(tokenizer) and set(token) <= alphabet:
        added_space = token.startswith("Ġ") and not text.startswith(" ")
        return len(token) - added_space
    # Elsewhere a token is a range of characters; what lies before the second one belongs to the first.
    rest = encoding.offsets[1][0] if len(encoding) > 1 else len(text)
    return len(text[:rest].encode())
