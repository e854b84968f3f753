"""Every file that a user hands over is decoded here: one set of rules for text, settings and tokenizers.

- UTF-8 is read with or without a byte order mark, UTF-16 and UTF-32 with one. Without one they are recognised
  by the zero bytes of their ASCII characters, which come in a regular pattern.
- LF, CR LF and CR end a line, in any mixture, and are read as LF. Nothing else ends one: U+2028, U+0085 and
  form feeds are text.
- gzip, bzip2, xz and zstd are unpacked, whatever a file is called. Files of other kinds are named by what
  their first bytes say.
- Other bytes are refused in one sentence: where the first one stands, the probable encoding, and the command
  that converts the file. No text is guessed.
- Devices and named pipes are refused before they are opened, as they may be endless or never answer. A file
  that changes while it is read is refused too.

A file is read once, in constant memory; one that is refused is read again up to its fault. No line may be
longer than a limit.
"""

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from tandem.errors import DataError
from tandem.shown import command

STANDARD_INPUT = Path("standard input")
"""How messages call it."""
WHOLE_BYTES = 1 << 28
"""A file that is read whole, such as a tokenizer, may have so many bytes (256 MiB), unpacked."""
_HANDED_OVER = ("/dev/fd", "/dev/stdin")
"""Where a shell hands over what it has opened itself, as in `<(zcat x.gz)`."""
SNIFFED_BYTES = 1 << 14
"""From so many bytes the encoding is told."""
FEWEST_CHARACTERS = 8
GUESSED_CHARACTERS = 1 << 16
"""After the first byte that is not UTF-8, from which its encoding is guessed."""


class ZstdFile(io.BufferedReader):
    """What a zstd file holds, unpacked by pyarrow. Raises ImportError where that is not installed."""

    def __init__(self, packed: IO[bytes]) -> None:
        super().__init__(_Unzstd(packed), SNIFFED_BYTES)


class _Unzstd(io.RawIOBase):
    def __init__(self, packed: IO[bytes]) -> None:
        self._packed, self._position = packed, 0
        self._stream = self._opened()

    def _opened(self) -> Any:
        import pyarrow

        # The library closes what it has read, which others may still read from its beginning.
        lent = SimpleNamespace(read=self._packed.read, close=lambda: None, closed=False)
        return pyarrow.CompressedInputStream(pyarrow.PythonFile(lent, "r"), "zstd")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._packed.seekable()

    def readinto(self, buffer: Any) -> int:
        part = self._stream.read(len(buffer))
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """To the beginning, which is all that reading again needs."""
        if offset or whence:
            raise io.UnsupportedOperation("a zstd file is read from its beginning")
        self._packed.seek(0)
        self._stream, self._position = self._opened(), 0
        return 0


class Pipe(io.BufferedReader):
    """What can be read once only, as it comes; `peek` looks at its first bytes."""


_PACKED: tuple[tuple[bytes, str, Callable[[Any], Any], type], ...] = (
    (rb"\x1f\x8b", "gzip", lambda file: gzip.GzipFile(fileobj=file), gzip.GzipFile),
    (rb"BZh[1-9]1AY&SY", "bzip2", bz2.BZ2File, bz2.BZ2File),
    (rb"\xfd7zXZ\x00", "xz", lzma.LZMAFile, lzma.LZMAFile),
    (rb"\x28\xb5\x2f\xfd", "zstd", ZstdFile, ZstdFile),
)
"""What first bytes match, the program that packs so, what unpacks it, and the type of that."""
PARQUET = b"PAR1\x15"
_NAMED = (
    (PARQUET, "a parquet file", "give it as a text source, whatever its name"),
    (b"PK\x03\x04", "a zip archive or an office document", "unpack it, or save its text as .txt"),
    (b"%PDF-", "a PDF document", "save its text as .txt, for example with `pdftotext`"),
)
"""What else first bytes say, and what to do."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OF_ASCII = {
    rb"\x1b(\$[@B]|\([BJ])": "ISO-2022-JP",
    rb"\x1b\$\)C": "ISO-2022-KR",
    rb"\A\+/v[89+/]": "UTF-7",
}
"""What tells encodings whose bytes are all ASCII."""
_COMMON = (
    ("cp932", "のにはをがでたとしいるれさなかっ、。", 0.4),
    ("euc_jp", "のにはをがでたとしいるれさなかっ、。", 0.4),
    ("cp949", "이다는을의가에고하한지로사인도기어아", 0.3),
    ("gb18030", "的一是不了在有人我他这中大来上国，。", 0.12),
    ("big5", "的一是不了在有人我他這中大來上國，。", 0.12),
    ("cp1251", "оеаинтсрвлкмдпуяыьгзб", 0.7),
    ("koi8_r", "оеаинтсрвлкмдпуяыьгзб", 0.7),
    ("cp1253", "αοιετσνηυρπκλμωςίάόέ", 0.8),
    ("cp1256", "الينمرتهوبدسعفقكحجأة", 0.8),
    ("cp1252", "éèàüöäßñçóáíêôâîûùúãõåøæœ’‘“”–—…°«»€", 0.8),
)
"""Encodings that are told apart, their commonest characters, and how often those stand in ordinary text."""


def read_text(path: Path, longest: int = WHOLE_BYTES) -> str:
    """All of a small file, its lines ended by LF; `longest` is the most bytes that it may have.

    Raises OSError where it cannot be read, DataError where it is no text or has more.
    """
    with opened(path) as file:
        text, size = io.StringIO(), 0
        for line in lines(file, path, longest=longest):
            size += len(line)
            if size > longest:
                raise DataError(f"{path} has more than {longest:,} characters, which is too many")
            text.write(line)
        return text.getvalue()


@contextmanager
def opened(path: Path, gzipped: bool = False) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where they are packed; `gzipped`: they must be.

    Raises DataError where they cannot be unpacked, where the path is no file, or where the file changed
    within the block. Raises OSError where the file cannot be read.
    """
    check_regular(path)
    with path.open("rb") as raw:
        before = _state(raw)

        def check_unchanged() -> None:
            if _state(raw) != before:
                raise DataError(f"{path} changed while it was read; give the command again when it is whole")

        try:
            with unpacked(raw, path, gzipped) as file:
                yield file
        except DataError:
            check_unchanged()  # which would be the reason
            raise
        check_unchanged()


def check_regular(path: Path) -> None:
    """Raises DataError for a device, a named pipe or a socket, which is not opened; OSError as `stat`."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or str(path).startswith(_HANDED_OVER):
        return  # a folder is refused where it is opened
    kinds = {stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    kind = next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")
    raise DataError(f"{path} is {kind}, not a file; save what is to be read as a file")


def _state(raw: IO[bytes]) -> tuple[int, int] | None:
    """Size and time of change of an open file; none for what is no file."""
    found = os.fstat(raw.fileno())
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


@contextmanager
def unpacked(
    raw: IO[bytes], path: Path, gzipped: bool = False, as_it_comes: bool = False
) -> Iterator[IO[bytes]]:
    """As `opened`, of what is open already; `path` names it in errors.

    A pipe is copied to a file first, as what is wrong with it is looked for in a second reading. Where it is
    read `as_it_comes`, it may be endless, and errors say less.
    """
    with nullcontext(raw) if raw.seekable() else _piped(raw) if as_it_comes else _spooled() as file:
        if not raw.seekable() and not as_it_comes:
            shutil.copyfileobj(raw, file)
            file.seek(0)
        start = head(file)
        packed = _packed(start)
        program = packed[1] if packed else None
        torn = f"{path} is no {'gzip' if gzipped else program} file, or not a complete one; "
        torn += "fetch it again, or unpack or rename it"
        if gzipped and start and program != "gzip":
            raise DataError(torn)
        if packed is None:
            yield file
            return
        try:
            with (
                packed[2](file) as inner,
                _piped(inner) if isinstance(file, Pipe) else nullcontext(inner) as unpacked_file,
            ):
                yield unpacked_file
        except ImportError:
            raise DataError(
                f"{path} is packed with zstd, which needs pyarrow; install it with "
                "`pip install tandem-lm[hub]`, or unpack the file with `zstd -d`"
            ) from None
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(torn) from None  # bzip2 says so by an OSError without a number


def _spooled() -> AbstractContextManager[IO[bytes]]:
    """Room for what can be read once only."""
    return tempfile.TemporaryFile()


@contextmanager
def _piped(raw: Any) -> Iterator[IO[bytes]]:
    """What can be read once only, and is left open."""
    pipe = Pipe(getattr(raw, "raw", raw), SNIFFED_BYTES)
    try:
        yield pipe
    finally:
        if not pipe.closed:
            pipe.detach()


def head(file: IO[bytes]) -> bytes:
    """The first bytes of a file, which stays at its beginning."""
    if isinstance(file, Pipe):
        return file.peek(SNIFFED_BYTES)
    start = file.read(SNIFFED_BYTES)
    file.seek(0)
    return start


def lines(
    file: IO[bytes],
    path: Path,
    on_encoding: Callable[[str], None] = lambda _: None,
    longest: int = WHOLE_BYTES,
    mend: str = "",
) -> Iterator[str]:
    """The lines of a text file that stands at its beginning, each ended by LF but perhaps the last.

    `path` names it in errors; `on_encoding` is told of one other than UTF-8. Raises DataError where it is no
    text of an encoding that is read, or where a line has more than `longest` bytes of UTF-8. That message
    ends with `mend`.
    """
    start = head(file)
    if kind := next((kind for kind in _NAMED if start.startswith(kind[0])), None):
        raise DataError(f"{path} is {kind[1]}, not text; {kind[2]}")
    if start[257:262] == b"ustar":
        raise DataError(f"{path} is a tar archive, not text; unpack it with `tar -xf`")
    for marks, encoding in _OF_ASCII.items():
        if re.search(marks, start):
            convert = command("iconv", "-f", encoding, "-t", "UTF-8", path)
            raise DataError(f"{path} is in {encoding}, not UTF-8; convert it first: `{convert}`")
    if packed := _packed(start):
        raise DataError(f"{path} is packed twice ({packed[1]} lies within); unpack it once")
    encoding = _encoding(start)
    if encoding != "utf-8-sig":
        on_encoding(encoding.upper())
    text = io.TextIOWrapper(file, encoding, newline=None)
    number = 0
    try:
        readline, most, surely_short = text.readline, longest + 1, longest // 4
        while line := readline(most):
            number += 1
            if len(line) > surely_short and len(line.encode()) > longest:
                raise DataError(f"{path}, line {number:,} is longer than {longest:,} bytes{mend}")
            yield line
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            reason = f"is not whole {encoding.upper()} text ({error.reason}); save it as UTF-8"
            raise DataError(f"{path} {reason}") from None
        if isinstance(file, Pipe):
            where = f"{path} is not UTF-8 text soon after line {number:,}"
            raise DataError(f"{where}; convert it first: `iconv -f ENCODING -t UTF-8`") from None
        raise DataError(_fault(file, path)) from None
    finally:
        with suppress(ValueError):  # its owner has closed the file, or let go of the pipe
            if not file.closed:
                text.detach()  # else it would close the file, whose owner does


def _packed(start: bytes) -> tuple[bytes, str, Callable[[Any], Any], type] | None:
    """How a file with these first bytes is packed."""
    return next((kind for kind in _PACKED if re.match(kind[0], start)), None)


def _encoding(start: bytes) -> str:
    """Of a file with these first bytes."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    zeros = [start[offset::4].count(0) for offset in range(4)]
    quarter = max(1, len(start) // 4)
    for encoding, zero, lowest in (("utf-32-le", (2, 3), 0), ("utf-32-be", (0, 1), 3)):
        if len(start) >= 4 and all(zeros[offset] >= quarter for offset in zero) and zeros[lowest] < quarter:
            return encoding
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    # Of two bytes one is zero in ASCII characters; in other scripts line ends have one, and few others.
    dense = 20 * min(even, odd) < max(even, odd) >= 0.6 * quarter

    if dense or (max(even, odd) and not _decodes(start, "utf-8")):
        for encoding in ("utf-16-le", "utf-16-be") if odd >= even else ("utf-16-be", "utf-16-le"):
            if _decodes(start, encoding):
                return encoding
    return "utf-8-sig"


def _decodes(start: bytes, encoding: str) -> bool:
    """Whether these bytes begin a text of this encoding, by its characters too."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeDecodeError:
        return False
    odd = sum(unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs") for character in text)
    return odd - sum(map(text.count, "\t\n\r\f\0")) <= len(text) // 100 and (
        encoding == "utf-8" or text.count("\0") <= len(text) // 100
    )


def _fault(file: IO[bytes], path: Path) -> str:
    """Where the first byte of a file lies that is not UTF-8, and what to do."""
    file.seek(0)
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=None)  # such bytes as surrogates
    number, line, foreign, zeros = 0, "", False, False
    while (fault := re.search("[\udc80-\udcff]", line)) is None:
        foreign, zeros = foreign or not line.isascii(), zeros or "\0" in line
        number, line = number + 1, text.readline()
    before, after = line[: fault.start()], line[fault.start() :] + text.read(GUESSED_CHARACTERS)
    text.detach()  # else it would close the file
    sample = after[:GUESSED_CHARACTERS].encode("utf-8", "surrogateescape")
    where = f"{path}, line {number} is not UTF-8 text (byte 0x{sample[0]:02x} at position "
    where += f"{len(before.encode()) + 1})"
    with suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # which lets a character be cut at the end
        return f"{where}: the file ends within a character; fetch it again, or mend its end"
    if zeros or "\0" in before + after:
        return f"{where} and holds zero bytes, so it is no text; give a text file"
    if foreign or not before.isascii():
        return f"{where}, while text before it is UTF-8; mend that line"
    probable = _guessed(sample)
    shown = f", but probably {probable}" if probable else ""
    if path == STANDARD_INPUT:
        return f"{where}{shown}; convert it first: `iconv -f {probable or 'ENCODING'} -t UTF-8`"
    new = path.with_name(f"utf8-{path.name.removesuffix('.gz')}")
    program = next((kind[1] for kind in _PACKED if isinstance(file, kind[3])), None)
    unpacked = f"{program} -dc < {command(path)} | " if program else ""
    convert = command("iconv", "-f", probable or "ENCODING", "-t", "UTF-8", *([] if program else [path]))
    return f"{where}{shown}; convert the file to UTF-8: `{unpacked}{convert} > {command(new)}`"


def _guessed(sample: bytes) -> str | None:
    """The encoding in which this is ordinary text; none where that cannot be told."""
    best, most = None, 0.5
    for encoding, common, share in _COMMON:
        text = re.sub(r"[\x00-\x7f]", "", sample.decode(encoding, "replace"))
        # A character is cut at either end of the sample; more that do not decode speak against it.
        few = len(text) < FEWEST_CHARACTERS and encoding != "cp1252"  # where single ones are customary
        if not text or few or text.count("\ufffd") > 2 + len(text) // 1000:
            continue
        found = sum(map(text.count, common)) / len(text) / share
        if found > most:
            best, most = encoding.upper().replace("_", "-"), found
    return best
