"""Checksums of what is saved, so that damage is noticed when it is read: a flipped bit, a lost end, a mix.

They are SHA-256, which processors compute themselves. There are three places for them:

    JSON records        `checksum`, the last name of the object: of all bytes of the object before it
    safetensors         `checksum` in the file's own metadata: of the file, with zeros in that place
    folders of models   `checksums.json`: of every other file that Tandem wrote there

What has none is read without: an earlier Tandem wrote it, or another program.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from tandem.errors import DamageError
from tandem.folders import CHECKSUMS

AT_END = re.compile(r',\s*"checksum":\s*"([^"]*)"\s*}\s*$')
IN_HEADER = re.compile(rb'"checksum":"([0-9a-f]{64})"')
BESIDE = re.compile(rb'"beside":"([0-9a-f]{64})"')
ABSENT = "0" * 64
"""Stands in place of a checksum until it is known."""
MOST_HEADER_BYTES = 100_000_000
"""safetensors reads no longer header."""
BLOCK_BYTES = 1 << 20


def sealed(text: str) -> str:
    """A JSON object, on one line or on several, with its checksum as its last name."""
    body = text.rstrip().removesuffix("}").rstrip()
    checksum = _of(body.encode("utf-8", "surrogatepass"))
    if "\n" in body:
        return f'{body},\n  "checksum": "{checksum}"\n}}\n'
    return f'{body},"checksum":"{checksum}"}}'


def unsealed(text: str) -> str:
    """A JSON object without its checksum. Raises DamageError where that is another one."""
    found = AT_END.search(text)
    if found is None:
        return text
    body = text[: found.start()]
    if found[1] != _of(body.encode("utf-8", "surrogatepass")):
        raise DamageError("its bytes are not those that were written")
    return f"{body}}}"


def seal_tensors(path: Path) -> None:
    """Put the checksum into a safetensors file whose metadata has `checksum` ABSENT."""
    with path.open("r+b") as file:
        place, _ = _place(file) or (0, "")
        whole = _of_file(file, place)
        file.seek(place)
        file.write(whole.encode())


def check_tensors(path: Path) -> None:
    """DamageError where a safetensors file is not what was written. OSError where it cannot be read."""
    with opened(path) as file:
        if (found := _place(file)) is not None and found[1] != _of_file(file, found[0]):
            raise DamageError(f"{path.name} is damaged: its bytes are not those that were written")


def write_checksums(folder: Path, but: Iterable[str] = ()) -> None:
    """Write those of all files in a folder, but for some that people may change."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in {*but, CHECKSUMS})
    digests = {name: file_digest(folder / name) for name in names}
    (folder / CHECKSUMS).write_text(json.dumps({"sha256": digests}, indent=2) + "\n", "utf-8")


def read_checksums(folder: Path) -> Mapping[str, str]:
    """The digests of a folder's files by name; empty where there are none. Raises DamageError."""
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        with opened(path) as file:
            digests: dict[str, str] = json.loads(file.read())["sha256"]
        return {str(name): str(digest) for name, digest in digests.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise DamageError(f"its {CHECKSUMS} is damaged") from None


def checksum_beside(path: Path) -> str | None:
    """The digest of a file that the phase 1 beside which it lies names; none where none does.

    `C1-seed0.safetensors` names that of `C1-seed0-snapshots.safetensors`. Raises OSError.
    """
    name, _, rest = path.name.rpartition("-")
    if not name or not (beside := path.with_name(name + path.suffix)).is_file():
        return None
    with opened(beside) as file:
        found = BESIDE.search(_header(file))
    return found[1].decode() if found and rest else None


def check_files(folder: Path, but: Iterable[str] = ()) -> None:
    """DamageError where a file that CHECKSUMS names, but for some, is not the one that was written."""
    for name, digest in read_checksums(folder).items():
        if name not in but:
            check_file(folder / name, digest)


def check_file(path: Path, digest: str | None) -> None:
    """DamageError where the file is not the one of this digest; none: there is nothing to compare."""
    if digest is None:
        return
    try:
        found = file_digest(path)
    except FileNotFoundError:
        raise DamageError(f"its {path.name} is missing") from None
    except OSError as error:
        raise DamageError(f"its {path.name} cannot be read: {error.strerror or error}") from None
    if found != digest:
        raise DamageError(f"its {path.name} is damaged: its bytes are not those that were written")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits. Raises OSError."""
    whole = hashlib.sha256()
    with opened(path) as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
    return whole.hexdigest()


def opened(path: Path) -> IO[bytes]:
    """A file to read. Raises OSError, also for what is no file: a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path.name} is no file")
    return path.open("rb")


def _place(file: IO[bytes]) -> tuple[int, str] | None:
    """Where in a safetensors file its checksum stands, and the checksum; none where it has none."""
    found = IN_HEADER.search(_header(file))
    return (8 + found.start(1), found[1].decode()) if found else None


def _header(file: IO[bytes]) -> bytes:
    """Of a safetensors file that stands at its beginning: what follows on its first 8 bytes."""
    start = file.read(8)
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    return file.read(min(size, MOST_HEADER_BYTES))


def _of_file(file: IO[bytes], place: int) -> str:
    """The checksum of a file that has one at `place`."""
    file.seek(0)
    whole = hashlib.sha256(file.read(place) + ABSENT.encode())
    file.seek(place + len(ABSENT))
    while block := file.read(BLOCK_BYTES):
        whole.update(block)
    return whole.hexdigest()


def _of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
