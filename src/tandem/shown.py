"""How text is shown, whoever wrote it: in any encoding, on one line, quoted where it is part of a command."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_BIDI = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""What orders the characters around it, so that other text is read than what stands there."""
_CONTROLS = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029{_BIDI}\ud800-\udfff]")
"""What moves the cursor, breaks a line, orders characters, or stands for a byte that was no text."""


def tolerate_any_encoding() -> None:
    """From now on this process prints `?` for what the encoding of its output lacks, and never fails for it.

    Output that was closed goes nowhere: no file that is opened later may get the descriptor of a stream.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (open as long as the process)
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def holds_all_text(encoding: str | None) -> bool:
    """Whether a stream of this encoding can hold every character."""
    return encoding is None or encoding.lower().startswith("utf")


def json_for(encoding: str | None, text: str, terminal: bool = False) -> str:
    """JSON `text` so that nothing of it is lost in this encoding: escaped where it has to be.

    For a `terminal` control characters are escaped too. What is read from it is the same in any case.
    """
    if holds_all_text(encoding):
        lossy = rf"[\x7f-\x9f{_BIDI}\ud800-\udfff]" if terminal else r"[\ud800-\udfff]"
    else:
        lossy = r"[^\x00-\x7e]" if terminal else r"[^\x00-\x7f]"
    # Outside of strings JSON is ASCII, so an escape of a string is right wherever one is needed.
    return re.sub(lossy, lambda found: json.dumps(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """`text` with escapes such as `\\n` for characters that would not stay on its line."""
    return _CONTROLS.sub(lambda found: _escape(found[0]), text)


def several_lines(text: str) -> str:
    """As `one_line`, but line ends and tabs stay."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found[0]), text)


def to_terminal(stream: Any) -> bool:
    """Whether people read what is written to this stream, so that control characters must not reach it."""
    return stream is not None and stream.isatty()


def command(*words: object) -> str:
    """A command, or options of one, as it is typed into a shell; every word is quoted where it has to be.

    A Path is never taken for an option. On Windows words are in double quotes.
    """
    return " ".join(
        _quoted(f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word))
        for word in words
    )


def _quoted(word: str) -> str:
    if os.name == "nt" and word != shlex.quote(word):
        # The space makes it a word to quote, also where only a shell would read something into it.
        escaped = one_line(word.replace("\n", "`n").replace("\t", "`t"))  # as PowerShell reads them
        return f'"{subprocess.list2cmdline([" " + escaped])[2:]}'
    if not _CONTROLS.search(word):
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{one_line(plain)}'"  # as bash and zsh read it


def _escape(character: str) -> str:
    """As Python and shells write it; a byte that was no text stands in a string as U+DC80 to U+DCFF."""
    byte = ord(character) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else repr(character)[1:-1]
