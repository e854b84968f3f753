"""What a word on the command line probably is, and how it is written there."""

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from tandem.folders import look
from tandem.settings import preset_names
from tandem.shown import command as shown
from tandem.text.listing import known_kind

TEXTS = {"text", "text folder", "pattern", "source"}
"""Kinds of word that name a text."""
PRESETS = {"preset", "settings file"}
"""Kinds of word that name settings."""
NAMES = {
    "model": "a model folder",
    "run": "the run directory of an experiment",
    "text folder": "a folder of text",
    "text": "a text file",
    "pattern": "a pattern of text files",
    "source": "a text source",
    "address": "an address, and Tandem reads files alone",
    "file": "a file of another kind",
    "folder": "a folder without text",
    "missing file": "no file that is there",
    "settings file": "a settings file",
    "preset": "a preset",
    "configuration": "the name of a configuration",
    "setting": "a setting without the two hyphens before it",
    "word": "no word of this command",
}
"""Each kind of word, as a message says it."""

HYPHENS, QUOTES = (
    "\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    "\u201c\u201d\u201e\u201f\u2018\u2019\u00ab\u00bb",
)
"""What word processors make of hyphens, and of quotation marks."""
LOOKED_AT = 10_000
"""Files in which a folder's first text is looked for, so that a whole disk takes no time."""
CONFIGURATION = re.compile(r"C(\d+)T(\d+)", re.IGNORECASE)


def command_line(command: str, args: Sequence[str]) -> str:
    """`tandem command args…`, quoted for the shell."""
    return shown("tandem", *([command] if command else []), *args)


def kind_of(word: str) -> str:
    """What `word` probably is: a key of NAMES. Looks at the files, and never raises."""
    try:
        path = Path(word).expanduser()
        if path.is_dir():
            return _kind_of_folder(path)
        if word in preset_names():
            return "preset"
        if path.is_file():
            return "settings file" if _settings(word) else "text" if is_text_name(word) else "file"
        if re.match(r"(https?|ftp|s3|gs)://", word):
            return "address"
        if word in {"python-docs", "-"} or word.startswith("hf:"):
            return "source"
        if glob.has_magic(word) and glob.glob(str(path), recursive=True):  # noqa: PTH207 (may be absolute)
            return "pattern"
    except (OSError, ValueError, RuntimeError):  # too long for a path, bytes, or nobody's home
        return "word"
    if CONFIGURATION.fullmatch(word):
        return "configuration"
    if re.match(r"[A-Za-z][\w.]*=", word):
        return "setting"
    if _settings(word) or is_text_name(word) or word.endswith("/"):
        return "missing file"
    return "word"


def is_text_name(word: str) -> bool:
    """Whether a file of this name is read as text."""
    return known_kind(Path(word)) is not None


def pattern_of(words: Sequence[str]) -> str | None:
    """The pattern that names just these files, as a shell may have replaced it; None where there is none."""
    folders = {Path(word).parent for word in words}
    if len(words) < 2 or len(folders) > 1:
        return None
    folder = folders.pop()
    given = {Path(word) for word in words}
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*(path.name for path in given)))  # noqa: B905
    start = glob.escape("".join(letters[0] for letters in alike))
    first = Path(words[0])
    for ending in ("".join(first.suffixes[-2:]), first.suffix, ""):
        for pattern in (f"*{ending}", f"{start}*{ending}"):
            if {path for path in folder.glob(pattern) if not path.name.startswith(".")} == given:
                return str(folder / pattern)
    return None


def _kind_of_folder(path: Path) -> str:
    own = {"model folder": "model", "foreign model": "model", "run directory": "run"}.get(look(path).kind)
    if own is not None:
        return own
    inside = itertools.islice(path.rglob("*"), LOOKED_AT)
    return "text folder" if any(is_text_name(file.name) for file in inside) else "folder"


def _settings(word: str) -> bool:
    return word.lower().endswith((".yaml", ".yml"))
