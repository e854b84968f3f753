"""Token streams on disk: ids memory-mapped, with document offsets. [T] tokens, [D] documents.

A corpus is a folder, written beside its place and renamed into it, so that it is there in full or not at all:

    corpus.json                  counts and fingerprints (`CorpusRecord`)
    tokenizer.json               the tokenizer
    SPLIT.ids.npy                [T] uint16 or int32
    SPLIT.document_starts.npy    [D] int64
    SPLIT.document_bytes.npy     [D] int64
"""

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from tandem.errors import DataError
from tandem.fingerprint import fingerprint
from tandem.tokens.tokenizer import tokenizer_fingerprint

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenStream:
    """All documents of one split, tokenized and joined.

    ids                [T] uint16 or int32, memory-mapped
    document_starts    [D] int64, position of each document's first token (its separator token included)
    document_bytes     [D] int64, UTF-8 bytes of each document's text (separator text included)
    scored_bytes       UTF-8 bytes that tokens 1..T-1 stand for: the text that next-token prediction scores
    fingerprint        of all of the above, chained from text, tokenizer and separators
    """

    ids: Ids
    document_starts: npt.NDArray[np.int64]
    document_bytes: npt.NDArray[np.int64]
    scored_bytes: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)


class StreamRecord(BaseModel):
    """What corpus.json says of one split."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: int
    documents: int
    text_bytes: int
    scored_bytes: int
    fingerprint: str


class CorpusRecord(BaseModel):
    """corpus.json: what a stored corpus is and what it was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = 1
    chain: str
    """Of everything the tokens were made from; part of every stream's fingerprint."""
    text_fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    eos_token: str | None
    train: StreamRecord
    validation: StreamRecord


@dataclass(frozen=True)
class StoredCorpus:
    """A corpus folder, read back and verified."""

    record: CorpusRecord
    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream


class StaleCorpus(Exception):
    """A stored corpus is not what its record says; the message tells what differs. It is to be rebuilt."""


def ids_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.int32]:
    """The smallest dtype for ids below `vocab_size`: uint16 up to 65,536, else int32."""
    return np.dtype(np.uint16) if vocab_size <= 1 << 16 else np.dtype(np.int32)


def make_stream(
    chain: str,
    ids: Ids,
    document_starts: npt.NDArray[np.int64],
    document_bytes: npt.NDArray[np.int64],
    scored_bytes: int,
) -> TokenStream:
    """The stream of these arrays, fingerprinted; `chain` is the fingerprint of what it was made from."""
    whole = fingerprint("tokens", chain, ids, document_starts, document_bytes, scored_bytes)
    return TokenStream(ids, document_starts, document_bytes, scored_bytes, whole)


def stream_record(stream: TokenStream) -> StreamRecord:
    """What corpus.json is to say of `stream`."""
    return StreamRecord(
        tokens=len(stream),
        documents=len(stream.document_starts),
        text_bytes=int(stream.document_bytes.sum()),
        scored_bytes=stream.scored_bytes,
        fingerprint=stream.fingerprint,
    )


def write_corpus(folder: Path, corpus: StoredCorpus) -> None:
    """Put `corpus` into `folder` in one step, replacing whatever lies there.

    Raises DataError where the place cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
            draft = Path(place) / "draft"
            draft.mkdir()
            for split, stream in (("train", corpus.train), ("validation", corpus.validation)):
                for name in ("ids", "document_starts", "document_bytes"):
                    np.save(draft / f"{split}.{name}.npy", getattr(stream, name))
            corpus.tokenizer.save(str(draft / "tokenizer.json"))
            (draft / "corpus.json").write_text(corpus.record.model_dump_json(indent=2) + "\n", "utf-8")
            with contextlib.suppress(FileNotFoundError):
                folder.rename(Path(place) / "replaced")
            try:
                draft.rename(folder)
            except OSError:  # another process may have put the same corpus there meanwhile
                if not (folder / "corpus.json").is_file():
                    raise
    except OSError as error:
        raise DataError(
            f"cannot write the prepared corpus to {folder}: {error.strerror or error}; "
            "free space there, or set TANDEM_CACHE to another folder"
        ) from None


def read_corpus(folder: Path, chain: str) -> StoredCorpus:
    """The corpus in `folder`, its arrays memory-mapped, every byte compared with the recorded fingerprints.

    `chain` is the fingerprint of what it must have been made from. Raises StaleCorpus if anything differs
    or cannot be read.
    """
    try:
        record = CorpusRecord.model_validate_json((folder / "corpus.json").read_bytes())
        tokenizer = _read_tokenizer(folder / "tokenizer.json", record.tokenizer_fingerprint)
        if record.chain != chain:
            raise StaleCorpus("it was made from other inputs")
        return StoredCorpus(
            record,
            tokenizer,
            _read_stream(folder, "train", record.train, chain),
            _read_stream(folder, "validation", record.validation, chain),
        )
    except FileNotFoundError as error:
        raise StaleCorpus(f"{Path(error.filename).name} is missing") from None
    except ValidationError:
        raise StaleCorpus("corpus.json is damaged or of another version") from None
    except (OSError, ValueError, EOFError) as error:
        raise StaleCorpus(f"it cannot be read ({error})") from None


def _read_tokenizer(path: Path, expected: str) -> Tokenizer:
    text = path.read_text("utf-8")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise StaleCorpus(f"tokenizer.json is damaged ({error})") from None
    if tokenizer_fingerprint(tokenizer) != expected:
        raise StaleCorpus("tokenizer.json is not the recorded one")
    return tokenizer


def _read_stream(folder: Path, split: str, record: StreamRecord, chain: str) -> TokenStream:
    ids, starts, sizes = (
        np.load(folder / f"{split}.{name}.npy", mmap_mode="r")
        for name in ("ids", "document_starts", "document_bytes")
    )
    stream = make_stream(chain, ids, starts, sizes, record.scored_bytes)
    if stream_record(stream) != record:
        raise StaleCorpus(f"the {split} tokens are not the recorded ones")
    return stream
