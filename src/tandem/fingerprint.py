"""Content fingerprints, chained: an artefact's fingerprint covers its own bytes and those of its inputs.

A fingerprint is the first 16 hexadecimal digits of a BLAKE2b digest. Parts are length-prefixed, so that
no two different lists of parts give the same stream of bytes.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 16
BLOCK_BYTES = 1 << 20
Part = str | bytes | int | float | Mapping[str, Any] | np.ndarray | None


class Fingerprint:
    """Accumulates parts into one fingerprint; `update` may be called any number of times."""

    def __init__(self, kind: str) -> None:
        """`kind` names what is being fingerprinted, so that equal bytes of two kinds differ."""
        self._hash = hashlib.blake2b(digest_size=DIGITS // 2)
        self.update(kind)

    def update(self, part: Part) -> None:
        """Add one part. Arrays count by dtype, shape and bytes; mappings by their sorted JSON."""
        if isinstance(part, np.ndarray):
            self.update(f"{part.dtype.str}{part.shape}")
            self._hash.update(part.nbytes.to_bytes(8, "little"))
            for block in _blocks(part):
                self._hash.update(block)
            return
        if isinstance(part, bytes):
            data = part
        elif isinstance(part, str):
            data = part.encode("utf-8", "surrogatepass")
        else:
            data = json.dumps(part, sort_keys=True, ensure_ascii=False).encode()
        self._hash.update(len(data).to_bytes(8, "little"))
        self._hash.update(data)

    def hexdigest(self) -> str:
        """The fingerprint so far, 16 hexadecimal digits."""
        return self._hash.hexdigest()


def fingerprint(kind: str, *parts: Part) -> str:
    """Fingerprint of `parts` in order, under the name `kind`."""
    whole = Fingerprint(kind)
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def _blocks(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """The bytes of an array. A memory-mapped one is read from its file, whose pages then take no memory."""
    if isinstance(array, np.memmap) and isinstance(getattr(array, "base", None), mmap.mmap):  # no part of one
        with Path(str(array.filename)).open("rb") as file:
            file.seek(array.offset)
            while block := file.read(BLOCK_BYTES):
                yield block
    else:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
