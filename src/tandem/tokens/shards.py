"""A corpus tokenized shard by shard, by one process or several, which may be interrupted and go on.

The documents of each split are grouped into shards of about SHARD_BYTES of text. The process that has a
shard's claim, a file lock, makes it. So every process that is given the same command makes other shards.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from tandem.claims import cores, try_lock, worker_processes
from tandem.fingerprint import fingerprint
from tandem.folders import storing
from tandem.text.documents import Documents, Integers
from tandem.tokens.encoding import Encoder
from tandem.tokens.store import CacheFault, TokenStream, join_shards, read_shard, write_shard
from tandem.tokens.tokenizer import read_tokenizer

SHARD_BYTES = 1 << 24
"""Text of a shard. A document is never cut, so a shard may be larger by one."""
WAIT_S = 0.5
"""Seconds between two looks at what other processes have made."""


class Shard(NamedTuple):
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
    edges = [*np.unique(places, return_index=True)[1].tolist(), len(sizes)]
    return [Shard(split, number, *edges[number : number + 2]) for number in range(len(edges) - 1)]


@dataclass(frozen=True)
class Shards:
    """The shards of one corpus.

    tokenizer     File in the folder where they lie. It is there as long as they are needed.
    chain         Fingerprint of what they are made from.
    separators    What stands between the documents of each split.
    on_encoded    As of `Encoder`.
    """

    tokenizer: Path
    chain: str
    eos: str | None
    separators: Mapping[str, str]
    documents: Mapping[str, Documents]
    on_encoded: Callable[[int], None] | None = None

    @cached_property
    def model(self) -> Tokenizer:
        """The tokenizer."""
        return read_tokenizer(self.tokenizer)

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """Of each split. Raises DataError as `Encoder` does."""
        return {
            split: Encoder(self.model, self.eos, separator, self.on_encoded)
            for split, separator in self.separators.items()
        }

    @cached_property
    def all(self) -> list[Shard]:
        """In the order of the documents."""
        return [shard for split in self.documents for shard in cut(split, self.documents[split].sizes)]

    def missing(self) -> list[Shard]:
        """Those that nobody has made yet."""
        return [shard for shard in self.all if not self._path(shard).exists()]

    def make_missing(self) -> None:
        """Make those that nobody else makes, until all are there.

        Raises OSError where they cannot be written, FileNotFoundError if another process made the corpus.
        """
        while missing := self.missing():
            busy = False
            for shard in missing:
                with try_lock(self.tokenizer.parent, shard.name) as mine:
                    if not self.tokenizer.exists():
                        raise FileNotFoundError(self.tokenizer)
                    if mine and not self._path(shard).exists():
                        self._make(shard)
                        busy = True
            if not busy:
                time.sleep(WAIT_S)

    def _make(self, shard: Shard) -> None:
        documents = self.documents[shard.split]
        stream = self.encoders[shard.split].encode(documents, shard.first, shard.last)
        write_shard(self._path(shard), replace(stream, chain=self._chain(shard)))

    @contextmanager
    def helped(self, helpers: int) -> Iterator[None]:
        """Within the block so many further processes make missing shards, from a copy of the text there."""
        with tempfile.TemporaryDirectory(prefix=".text-", dir=self.tokenizer.parent) as place:
            copies = {split: self.documents[split].copied(Path(place) / split) for split in self.documents}
            shards = replace(self, documents=copies, on_encoded=None)
            with worker_processes(helpers, _help, helpers + 1, shards):
                yield

    def joined(self, split: str, folder: Path, source: str) -> TokenStream:
        """Join the shards of a split in `folder`; raises as `Encoder.with_scored_bytes` with this `source`.

        A shard that is not whole is removed; CacheFault then.
        """
        shards = (self._read(shard) for shard in self.all if shard.split == split)
        stream = join_shards(folder, split, shards, self.chain)
        return self.encoders[split].with_scored_bytes(stream, self.documents[split], source)

    def _read(self, shard: Shard) -> TokenStream:
        try:
            return read_shard(self._path(shard), self._chain(shard))
        except CacheFault as fault:
            self._path(shard).unlink(missing_ok=True)
            raise CacheFault(f"the tokens of shard {shard.name} are not usable: {fault}") from None

    def _chain(self, shard: Shard) -> str:
        return fingerprint("shard", self.chain, shard.split, shard.first, shard.last)

    def _path(self, shard: Shard) -> Path:
        return self.tokenizer.with_name(f"{shard.name}.shard")


def _help(processes: int, shards: Shards) -> None:
    """A helper's work, until nothing is left to do or the process that began is gone."""
    os.environ["RAYON_NUM_THREADS"] = str(max(1, cores() // processes))  # read when the library first encodes
    with storing("tokens", shards.tokenizer.parent), suppress(FileNotFoundError):
        shards.make_missing()
