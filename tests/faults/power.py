"""A loss of power at any moment of a log of file operations: what the disk may hold afterwards.

What was forced to disk is there. Of everything else a random part is: writes to a file that were not forced
may be there, in part or not at all; so may names that were given, moved and removed, each on its own.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class _File:
    """Bytes as programs see them, and as they were last forced to disk, with the writes since then."""

    data: bytearray = field(default_factory=bytearray)
    safe: bytes = b""
    later: list[tuple[int, bytes] | int] = field(default_factory=list)

    def on_disk(self, draw: random.Random) -> bytes:
        """What may be there."""
        data = bytearray(self.safe)
        for one in self.later:
            part = draw.choice((0.0, 0.5, 1.0, 1.0))
            if isinstance(one, int):
                if part:
                    _resize(data, one)
            else:
                place, content = one
                content = content[: int(len(content) * part)]
                if content:
                    _resize(data, max(len(data), place + len(content)))
                    data[place : place + len(content)] = content
        return bytes(data)


@dataclass
class _Name:
    """A name that was given to a file or folder, or taken away; `folders` in which that has to be forced."""

    path: str
    file: _File | None
    folder: bool
    removed: str | None
    forced_by: str
    safe: bool = False


def _resize(data: bytearray, size: int) -> None:
    if len(data) > size:
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def operations(log: Path) -> list[tuple[str, str, bytes]]:
    """Kind, what follows it, and data of each operation in a log."""
    content, place, found = log.read_bytes(), 0, []
    while place < len(content):
        end = content.index(b"\n", place)
        line = content[place:end].decode()
        place, data = end + 1, b""
        if line[0] == "W":
            size = int(line.split()[3])
            data, place = content[place : place + size], place + size
        found.append((line[0], line[2:], data))
    return found


class Disk:
    """A disk on which operations are made, as the shim logs them."""

    def __init__(self) -> None:
        self.marks: list[str] = []
        self._names: dict[str, _File | None] = {}
        self._inodes: dict[str, _File] = {}
        self._open: dict[int, str | _File] = {}
        self._changes: list[_Name] = []

    def do(self, kind: str, said: str, data: bytes) -> None:
        """Make one operation."""
        if kind == "M":
            self.marks.append(said)
        elif kind == "O":
            number, creates, cuts, inode, path = said.split(" ", 4)
            file = self._names.get(path)
            if path not in self._names and creates == "1":
                file = _File()
                self._change(_Name(path, file, folder=False, removed=None, forced_by=_around(path)))
            elif path not in self._names and (left := self._unseen(inode)):
                # safetensors moves its file by a call that no shim sees.
                file = self._names[left]
                self._change(_Name(path, file, folder=False, removed=left, forced_by=_around(path)))
            if file is not None:
                self._inodes[inode] = file
            if file is not None and cuts == "1" and file.data:
                file.later.append(0)
                file.data.clear()
            self._open[int(number)] = path if file is None else file
        elif kind in "WTS":
            numbers = [int(word) for word in said.split()]
            file = self._open.get(numbers[0])
            if isinstance(file, _File):
                if kind == "W":
                    file.later.append((numbers[1], data))
                    _resize(file.data, max(len(file.data), numbers[1] + len(data)))
                    file.data[numbers[1] : numbers[1] + len(data)] = data
                elif kind == "T":
                    file.later.append(numbers[1])
                    _resize(file.data, numbers[1])
                else:
                    file.safe, file.later = bytes(file.data), []
            elif kind == "S" and file is not None:
                for change in self._changes:
                    change.safe |= change.forced_by == file
        elif kind == "C":
            self._open.pop(int(said), None)
        elif kind == "R":
            one, other = said.split("\t")
            moved = {
                path: file for path, file in self._names.items() if path == one or path.startswith(one + "/")
            }
            for path, file in moved.items():
                new = other + path[len(one) :]
                self._change(_Name(new, file, folder=file is None, removed=path, forced_by=_around(other)))
        elif kind == "D":
            self._change(_Name(said, None, folder=True, removed=None, forced_by=_around(said)))
        elif kind in "UX":
            self._change(_Name(said, None, folder=False, removed=said, forced_by=_around(said)))

    def _unseen(self, inode: str) -> str | None:
        found = self._inodes.get(inode)
        return next((name for name, file in self._names.items() if file is found is not None), None)

    def _change(self, change: _Name) -> None:
        self._changes.append(change)
        _apply(self._names, change)

    def after_loss(self, draw: random.Random) -> dict[str, bytes | None]:
        """What may be on the disk: the bytes of each file by its path, None for a folder."""
        names: dict[str, _File | None] = {}
        for change in self._changes:
            if change.safe or draw.random() < 0.5:
                _apply(names, change)
        left = {path: None if file is None else file.on_disk(draw) for path, file in names.items()}
        # A name in a folder that is not there is not there either.
        return {
            path: data for path, data in left.items() if all(p in left for p in _inside(path, self._names))
        }


def _apply(names: dict[str, _File | None], change: _Name) -> None:
    if change.removed is not None:
        names.pop(change.removed, None)
    if change.file is not None or change.folder:
        names[change.path] = change.file


def _around(path: str) -> str:
    return path.rpartition("/")[0]


def _inside(path: str, known: dict[str, _File | None]) -> Iterator[str]:
    """Folders that were made, and in which a path lies."""
    while path := _around(path):
        if path in known:
            yield path


def put(state: dict[str, bytes | None], old: str, root: Path) -> None:
    """Write a state of the disk, whose paths begin with `old`, to `root`."""
    for path, data in sorted(state.items()):
        place = root / path[len(old) :].lstrip("/")
        if data is None:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
