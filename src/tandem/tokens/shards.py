"""A corpus tokenized shard by shard, by one process or several, and taken up again where it was interrupted.

The documents of each split are grouped into shards of about SHARD_BYTES of text. A folder of the cache holds
what is there of a corpus that is not yet complete:

    tokenizer-FINGERPRINT.json    the tokenizer
    SPLIT-NUMBER.shard            tokens of one shard, and their fingerprint
    claims/                       locks: a shard is made by the process that has its claim

Every process that is given the same command makes shards nobody else makes. Whoever finds all of them there
puts them together, in the order of the documents, and removes the folder.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tandem.claims import cores, try_lock, worker_processes
from tandem.fingerprint import fingerprint
from tandem.text.documents import Documents, Integers
from tandem.tokens import store
from tandem.tokens.encoding import Encoded, Encoder
from tandem.tokens.tokenizer import read_tokenizer

SHARD_BYTES = 1 << 24
"""Text of a shard. A document is never cut, so a shard may be larger by one."""
WAIT_S = 0.5
"""Seconds between two looks at what other processes have made."""


class BadShard(Exception):
    """A shard on disk is not what it should be; the message tells what differs. It is to be made again."""


@dataclass(frozen=True)
class Shard:
    """The documents first..last-1 of a split."""

    split: str
    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """Of its file and its claim."""
        return f"{self.split}-{self.number:05d}"


def cut(split: str, sizes: Integers) -> list[Shard]:
    """The shards of documents of `sizes` [D] bytes."""
    places = (np.cumsum(sizes) - sizes) // SHARD_BYTES
    firsts = np.unique(places, return_index=True)[1].tolist()
    ends = [*firsts[1:], len(sizes)]
    return [Shard(split, number, *ends) for number, ends in enumerate(zip(firsts, ends, strict=True))]


class Shards:
    """The shards of one corpus.

    tokenizer    file in the folder where they lie; it is there as long as they are needed
    chain        fingerprint of what they are made from
    """

    def __init__(
        self, tokenizer: Path, chain: str, documents: Mapping[str, Documents], encoders: Mapping[str, Encoder]
    ) -> None:
        self._tokenizer, self._folder, self._chain = tokenizer, tokenizer.parent, chain
        self._documents, self._encoders = documents, encoders
        self.all = [shard for split in documents for shard in cut(split, documents[split].sizes)]

    def missing(self) -> list[Shard]:
        """Those that nobody has made yet."""
        return [shard for shard in self.all if not self._path(shard).exists()]

    def make_missing(self) -> None:
        """Make those that nobody else makes, until all are there.

        Raises DataError where they cannot be written, FileNotFoundError when the folder is gone: another
        process has then completed the corpus.
        """
        while missing := self.missing():
            busy = False
            for shard in missing:
                with try_lock(self._folder, shard.name) as mine:
                    if not self._tokenizer.exists():
                        raise FileNotFoundError(self._tokenizer)
                    if mine and not self._path(shard).exists():
                        self._make(shard)
                        busy = True
            if not busy:
                time.sleep(WAIT_S)

    def read(self, shard: Shard) -> Encoded:
        """Raises BadShard where it is not whole."""
        try:
            with self._path(shard).open("rb") as file:
                lengths, sizes, lost, such_as, ids = (np.load(file) for _ in range(5))
                mark = file.read()
        except FileNotFoundError:
            raise BadShard("it is missing") from None
        except (OSError, ValueError, EOFError) as error:
            raise BadShard(f"it cannot be read ({str(error).splitlines()[0]})") from None
        encoded = Encoded(ids, lengths, sizes, lost, tuple(json.loads(such_as.tobytes())))
        if mark != self._mark(shard, encoded):
            raise BadShard("its tokens are not those of its fingerprint")
        return encoded

    def parts(self, split: str) -> Iterator[Encoded]:
        """The shards of a split, one after the other. Raises BadShard."""
        return (self.read(shard) for shard in self.all if shard.split == split)

    def remove_bad(self) -> Iterator[tuple[Shard, BadShard]]:
        """Remove those that are not whole; each, and why."""
        for shard in self.all:
            try:
                self.read(shard)
            except BadShard as bad:
                self._path(shard).unlink(missing_ok=True)
                yield shard, bad

    def _make(self, shard: Shard) -> None:
        encoded = self._encoders[shard.split].encode(self._documents[shard.split], shard.first, shard.last)
        path = self._path(shard)
        draft = path.with_suffix(".partial")  # one alone, as it is claimed
        try:
            with draft.open("wb") as file:
                for array in _arrays(encoded):
                    np.save(file, array)
                file.write(self._mark(shard, encoded))
            draft.replace(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise store.unwritten("tokens", path.parent, error) from None

    def _mark(self, shard: Shard, encoded: Encoded) -> bytes:
        what = {"split": shard.split, "first": shard.first, "last": shard.last}
        return fingerprint("shard", self._chain, what, *_arrays(encoded)).encode()

    def _path(self, shard: Shard) -> Path:
        return self._folder / f"{shard.name}.shard"


def _arrays(encoded: Encoded) -> Iterator[np.ndarray]:
    """What a shard's file holds, in its order."""
    such_as = np.frombuffer(json.dumps(encoded.such_as).encode(), np.uint8)
    yield from (encoded.lengths, encoded.sizes, encoded.lost, such_as, encoded.ids)


@contextmanager
def encoding_helpers(
    helpers: int,
    tokenizer: Path,
    chain: str,
    documents: Mapping[str, Documents],
    eos: str | None,
    separators: Mapping[str, str],
) -> Iterator[None]:
    """Within the block so many further processes make missing shards; arguments as of `Shards`.

    For them the text lies beside the shards meanwhile. Raises OSError where it cannot be written.
    """
    if helpers == 0:
        yield
        return
    with tempfile.TemporaryDirectory(prefix=".text-", dir=tokenizer.parent) as place:
        for split in documents:
            documents[split].written(Path(place) / split)
        sizes = {split: documents[split].sizes for split in documents}
        with worker_processes(
            helpers, _help, helpers + 1, tokenizer, chain, Path(place), sizes, eos, separators
        ):
            yield


def _help(
    processes: int,
    tokenizer: Path,
    chain: str,
    texts: Path,
    sizes: Mapping[str, Integers],
    eos: str | None,
    separators: Mapping[str, str],
) -> None:
    """A helper's work, until nothing is left to do or the process that began is gone."""
    os.environ["RAYON_NUM_THREADS"] = str(max(1, cores() // processes))  # read when the library first encodes
    with contextlib.suppress(FileNotFoundError):
        documents = {split: Documents.in_file(texts / split, sizes[split]) for split in sizes}
        model = read_tokenizer(tokenizer)
        encoders = {split: Encoder(model, eos, separators[split]) for split in sizes}
        Shards(tokenizer, chain, documents, encoders).make_missing()
