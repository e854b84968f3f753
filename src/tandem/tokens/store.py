"""Tokens of one split, in memory and on disk: a file for each shard, and then arrays that can be mapped.

Shape letters: T tokens, D documents, V vocabulary.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tandem.checksums import opened
from tandem.fingerprint import fingerprint
from tandem.folders import atomic_write
from tandem.tokens.lost import NOTHING_LOST, Lost

ARRAYS = ("ids", "document_starts", "document_bytes")
COUNTED_TOKENS = 1 << 20
Ids = npt.NDArray[np.uint16] | npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenStream:
    """Documents of one split as tokens, joined: all of them, or a shard.

    ids                [T] uint16 or int32. They are memory-mapped where they are kept on disk.
    document_starts    [D] int64, position of each document's first token, which may be a separator.
    document_bytes     [D] int64, UTF-8 bytes of each document's text. Separator text counts.
    scored_bytes       UTF-8 bytes that next-token prediction scores: those of tokens 1..T-1.
    lost               Text that the tokens cannot give back. Its bytes are among `scored_bytes`.
    chain              Fingerprint of what the tokens are made from.
    """

    ids: Ids
    document_starts: npt.NDArray[np.int64]
    document_bytes: npt.NDArray[np.int64]
    scored_bytes: int
    lost: Lost = NOTHING_LOST
    chain: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return int(self.document_bytes.sum())

    @cached_property
    def fingerprint(self) -> str:
        """Of all fields."""
        arrays = (getattr(self, name) for name in ARRAYS)
        # Where nothing is lost, older records have the fingerprint without it.
        lost = [self.lost.bytes] if self.lost.bytes else []
        return fingerprint("tokens", self.chain, *arrays, self.scored_bytes, *lost)

    def record(self) -> dict[str, Any]:
        """What is written beside the arrays, and compared when they are read."""
        return {
            "tokens": len(self),
            "documents": len(self.document_starts),
            "text_bytes": self.text_bytes,
            "scored_bytes": self.scored_bytes,
            "lost": self.lost.model_dump(mode="json"),
            "fingerprint": self.fingerprint,
        }


class CacheFault(Exception):
    """What lies in the cache is not what it should be, so it is made again. The message says what differs."""


@contextmanager
def cache_faults() -> Iterator[None]:
    """Whatever goes wrong within the block is a CacheFault: something in the cache cannot be read."""
    try:
        yield
    except CacheFault:
        raise
    except FileNotFoundError as error:
        raise CacheFault(f"{Path(error.filename).name} is missing") from None
    except Exception as error:  # of damaged files the libraries raise whatever they come upon
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CacheFault(f"it is damaged or of another version ({reason})") from None


def ids_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.int32]:
    """The smallest dtype for ids below `vocab_size`: uint16 up to 65,536, else int32."""
    return np.dtype(np.uint16) if vocab_size <= 1 << 16 else np.dtype(np.int32)


def token_counts(ids: npt.NDArray[np.integer[Any]], vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each token of the vocabulary occurs in ids [T], as [V]. The whole is not copied."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(ids), COUNTED_TOKENS):
        counts += np.bincount(ids[start : start + COUNTED_TOKENS], minlength=vocab_size)
    return counts


def write_shard(path: Path, shard: TokenStream) -> None:
    """Write a shard to one file. Raises OSError."""
    with atomic_write(path) as draft, draft.open("wb") as file:
        write_array(file, np.array(json.dumps(shard.record())))
        for name in ARRAYS:
            write_array(file, getattr(shard, name))


def write_array(file: IO[bytes], array: npt.NDArray[Any]) -> None:
    """As `np.save` does, which tells no cause where the system refuses to write. Raises OSError."""
    array = np.asarray(array, order="C")
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    whole = array.reshape(-1)
    file.write(whole.view(np.uint8).data if whole.size else b"")


def read_shard(path: Path, chain: str) -> TokenStream:
    """A shard with this `chain`. Raises CacheFault where the file holds anything else."""
    with cache_faults(), opened(path) as file:
        record = json.loads(str(np.load(file)))
        shard = _stream((np.load(file) for _ in ARRAYS), record, chain)
        if shard.record() != record:
            raise CacheFault("its tokens are not those of its fingerprint")
    return shard


def join_shards(folder: Path, split: str, shards: Iterable[TokenStream], chain: str) -> TokenStream:
    """Write the shards of a split to `folder`, one after the other, and map the whole. Raises OSError."""
    tokens, scored, lost = 0, 0, NOTHING_LOST
    starts: list[npt.NDArray[np.int64]] = []
    sizes: list[npt.NDArray[np.int64]] = []
    with (folder / f"{split}.ids.npy").open("wb") as file:

        def write_header(ids: Ids) -> None:
            """Of all tokens so far. numpy makes it equally long for any number."""
            header = {"descr": ids.dtype.str, "fortran_order": False, "shape": (tokens,)}
            np.lib.format.write_array_header_1_0(file, header)

        for shard in shards:
            if not starts:
                write_header(shard.ids)
            file.write(shard.ids.data)
            starts.append(shard.document_starts + tokens)
            sizes.append(shard.document_bytes)
            tokens, scored, lost = tokens + len(shard), scored + shard.scored_bytes, lost + shard.lost
        file.seek(0)
        write_header(shard.ids)
    for name, parts in zip(ARRAYS[1:], (starts, sizes), strict=True):
        with (folder / f"{split}.{name}.npy").open("wb") as file:
            write_array(file, np.concatenate(parts))
    return map_stream(folder, split, {"scored_bytes": scored, "lost": lost.model_dump()}, chain)


def map_stream(folder: Path, split: str, record: Mapping[str, Any], chain: str) -> TokenStream:
    """A split in `folder`, memory-mapped. Its record has to be compared."""
    # mmap_mode "c" copies on writing: torch takes arrays that may be written to only, and nobody does.
    arrays = (np.load(folder / f"{split}.{name}.npy", mmap_mode="c") for name in ARRAYS)
    return _stream(arrays, record, chain)


def _stream(arrays: Iterable[Any], record: Mapping[str, Any], chain: str) -> TokenStream:
    ids, starts, sizes = arrays
    return TokenStream(ids, starts, sizes, record["scored_bytes"], Lost(**record["lost"]), chain)
