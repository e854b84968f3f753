"""Documents that lie in a file and are read when they are asked for: memory does not grow with their text."""

import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from tandem.folders import storing

Integers = npt.NDArray[np.int64]


class TextFile:
    """A file of UTF-8 text, read by position; closed with the last that refers to it.

    One that has a name can be pickled.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        weakref.finalize(self, _close, file)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_text, (Path(self._file.name),)

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on."""
        self._file.seek(start)  # within what is buffered, where documents follow on each other
        return self._file.read(size)


def _close(file: BinaryIO) -> None:
    """What a full disk did not take was said when it was written, and is not tried again."""
    with suppress(OSError):
        file.close()


class Documents(Sequence[str]):
    """Documents of which only places and sizes are in memory, 16 bytes each.

    sizes    [D] int64, UTF-8 bytes of each
    """

    def __init__(self, text: TextFile, starts: Integers, sizes: Integers) -> None:
        self._text, self._starts, self.sizes = text, starts, sizes

    def copied(self, path: Path) -> "Documents":
        """The same in a file at `path`, so that other processes can read them. Raises OSError."""
        with path.open("wb") as file:
            file.writelines(self.encoded())
        return Documents(_open_text(path), np.cumsum(self.sizes) - self.sizes, self.sizes)

    def chosen(self, which: npt.NDArray[np.bool_]) -> "Documents":
        """Those where `which` [D] is true, in order."""
        return Documents(self._text, self._starts[which], self.sizes[which])

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Documents": ...
    def __getitem__(self, index: int | slice) -> "str | Documents":
        if isinstance(index, slice):
            return Documents(self._text, self._starts[index], self.sizes[index])
        return self._text.read(int(self._starts[index]), int(self.sizes[index])).decode()

    def __iter__(self) -> Iterator[str]:
        return (text.decode() for text in self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """Their text in UTF-8."""
        return (
            self._text.read(int(start), int(size))
            for start, size in zip(self._starts, self.sizes, strict=True)
        )


def _open_text(path: Path) -> TextFile:
    return TextFile(path.open("rb"))


def put_down(documents: Iterable[str], folder: Path | None) -> Documents:
    """`documents`, read once and written to a file without a name in `folder` (none: the system's for such).

    The file goes with the last Documents that are read from it. Raises DataError where it cannot be written,
    and as `documents` do.
    """
    sizes = array("q")
    setting = "TMPDIR" if folder is None else "TANDEM_CACHE"
    to_file = partial(storing, "the text", f"{folder or tempfile.gettempdir()} while it is prepared", setting)
    with to_file():
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as its documents are)
    text = TextFile(file)
    for document in documents:
        encoded = document.encode()
        with to_file():
            file.write(encoded)
        sizes.append(len(encoded))
    with to_file():
        file.flush()
    counted = np.frombuffer(sizes, np.int64) if sizes else np.empty(0, np.int64)
    return Documents(text, np.cumsum(counted) - counted, counted)
