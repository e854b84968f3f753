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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from tandem.errors import DataError, StorageError
from tandem.fingerprint import Fingerprint
from tandem.tokens.lost import NOTHING_LOST, Lost
from tandem.tokens.tokenizer import read_tokenizer, tokenizer_fingerprint, vocab_size

BLOCK_BYTES = 1 << 22
COUNTED_TOKENS = 1 << 20
Ids = npt.NDArray[np.uint16] | npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenStream:
    """All documents of one split, tokenized and joined.

    ids                [T] uint16 or int32, memory-mapped where they are kept on disk
    document_starts    [D] int64, position of each document's first token (its separator token included)
    document_bytes     [D] int64, UTF-8 bytes of each document's text (separator text included)
    scored_bytes       UTF-8 bytes that tokens 1..T-1 stand for: the text that next-token prediction scores
    fingerprint        of all else, chained from text, tokenizer and separators
    lost               text that the tokens cannot give back; its bytes are among `scored_bytes`
    """

    ids: Ids
    document_starts: npt.NDArray[np.int64]
    document_bytes: npt.NDArray[np.int64]
    scored_bytes: int
    fingerprint: str
    lost: Lost = NOTHING_LOST

    def __len__(self) -> int:
        return len(self.ids)


class StreamRecord(BaseModel):
    """What corpus.json says of one split."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: int
    documents: int
    text_bytes: int
    scored_bytes: int
    lost: Lost
    fingerprint: str


class CorpusRecord(BaseModel):
    """corpus.json: what a stored corpus is and what it was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[2] = 2
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


def token_counts(ids: npt.NDArray[np.integer[Any]], vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each token of the vocabulary occurs in ids [T], [V]; without a wider copy of the whole."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(ids), COUNTED_TOKENS):
        counts += np.bincount(ids[start : start + COUNTED_TOKENS], minlength=vocab_size)
    return counts


def make_stream(
    chain: str,
    ids: Ids,
    document_starts: npt.NDArray[np.int64],
    document_bytes: npt.NDArray[np.int64],
    scored_bytes: int,
    lost: Lost = NOTHING_LOST,
) -> TokenStream:
    """The stream of these arrays, fingerprinted; `chain` is the fingerprint of what it was made from."""
    whole = Fingerprint("tokens")
    for part in (chain, ids, document_starts, document_bytes):
        whole.update(part)
    return TokenStream(
        ids, document_starts, document_bytes, scored_bytes, _ended(whole, scored_bytes, lost), lost
    )


def _ended(whole: Fingerprint, scored_bytes: int, lost: Lost) -> str:
    """The fingerprint of a stream, whose arrays are in it already."""
    whole.update(scored_bytes)
    if lost.bytes:  # the usual stream keeps the fingerprint that older records have of it
        whole.update(lost.bytes)
    return whole.hexdigest()


def stream_record(stream: TokenStream) -> StreamRecord:
    """What corpus.json is to say of `stream`."""
    return StreamRecord(
        tokens=len(stream),
        documents=len(stream.document_starts),
        text_bytes=int(stream.document_bytes.sum()),
        scored_bytes=stream.scored_bytes,
        lost=stream.lost,
        fingerprint=stream.fingerprint,
    )


@dataclass(frozen=True)
class StreamParts:
    """A stream to be written: what `TokenStream` says, the ids in parts that need not all be in memory.

    lengths    [D] int64, tokens of each document
    parts      ids that follow on each other, read once
    """

    dtype: np.dtype[Any]
    lengths: npt.NDArray[np.int64]
    document_bytes: npt.NDArray[np.int64]
    scored_bytes: int
    lost: Lost
    parts: Iterable[Ids]


def write_corpus(
    folder: Path,
    chain: str,
    text_fingerprint: str,
    tokenizer: Tokenizer,
    eos: str | None,
    train: StreamParts,
    validation: StreamParts,
) -> None:
    """Put a corpus into `folder` in one step, replacing whatever lies there.

    `chain` is the fingerprint of what the tokens were made from. Raises DataError where the place cannot be
    written, and whatever reading the parts raises.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
            draft = Path(place) / "draft"
            draft.mkdir()
            record = CorpusRecord(
                chain=chain,
                text_fingerprint=text_fingerprint,
                tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
                vocab_size=vocab_size(tokenizer),
                eos_token=eos,
                train=_write_stream(draft, "train", train, chain),
                validation=_write_stream(draft, "validation", validation, chain),
            )
            tokenizer.save(str(draft / "tokenizer.json"))
            (draft / "corpus.json").write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
            with contextlib.suppress(FileNotFoundError):
                folder.rename(Path(place) / "replaced")
            try:
                draft.rename(folder)
            except OSError:  # another process may have put the same corpus there meanwhile
                if not (folder / "corpus.json").is_file():
                    raise
    except OSError as error:
        raise unwritten("the prepared corpus", folder, error) from None


def unwritten(what: str, place: Path, error: OSError) -> StorageError:
    """The error to raise where something cannot be kept in the cache."""
    return StorageError(
        f"cannot write {what} to {place}: {error.strerror or error}; "
        "free space there, or set TANDEM_CACHE to another folder"
    )


def _write_stream(folder: Path, split: str, stream: StreamParts, chain: str) -> StreamRecord:
    starts = np.cumsum(stream.lengths) - stream.lengths
    np.save(folder / f"{split}.document_starts.npy", starts)
    np.save(folder / f"{split}.document_bytes.npy", stream.document_bytes)
    tokens = int(stream.lengths.sum())
    header = {"descr": stream.dtype.str, "fortran_order": False, "shape": (tokens,)}
    with (folder / f"{split}.ids.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in stream.parts:
            file.write(part.tobytes())
    return stream_record(_open_stream(folder, split, stream.scored_bytes, stream.lost, chain))


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
    try:
        tokenizer = read_tokenizer(path)
    except DataError as error:
        raise StaleCorpus(str(error)) from None
    if tokenizer_fingerprint(tokenizer) != expected:
        raise StaleCorpus("tokenizer.json is not the recorded one")
    return tokenizer


def _read_stream(folder: Path, split: str, record: StreamRecord, chain: str) -> TokenStream:
    stream = _open_stream(folder, split, record.scored_bytes, record.lost, chain)
    if stream_record(stream) != record:
        raise StaleCorpus(f"the {split} tokens are not the recorded ones")
    return stream


def _open_stream(folder: Path, split: str, scored_bytes: int, lost: Lost, chain: str) -> TokenStream:
    """The stream whose arrays lie in `folder`, memory-mapped; fingerprinted through plain reading, since
    what is read through a map stays in the process's memory."""
    whole = Fingerprint("tokens")
    whole.update(chain)
    arrays = []
    for name in ("ids", "document_starts", "document_bytes"):
        path = folder / f"{split}.{name}.npy"
        # Copies on writing, as torch takes arrays that may be written to only; nobody does.
        array = np.load(path, mmap_mode="c")
        whole.update_array(array.dtype, array.shape, _blocks(path, array.offset))
        arrays.append(array)
    ids, starts, sizes = arrays
    return TokenStream(ids, starts, sizes, scored_bytes, _ended(whole, scored_bytes, lost), lost)


def _blocks(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK_BYTES):
            yield block
