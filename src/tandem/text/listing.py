"""Which files a source names: one set of rules for a file, a folder and a glob pattern.

A folder stands for the pattern `FOLDER/**/*`. Links to files and folders are followed. A file that is reached
twice, through links or round a loop of them, is read once, under the first of its sorted paths. Names that
begin with a dot are hidden: a pattern has to spell the dot out. Whatever is left out is counted.
"""

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from tandem.advice import together
from tandem.errors import DataError, MisfitError
from tandem.folders import look
from tandem.text.places import user_path
from tandem.text.reading import Reading

SUFFIXES = (".txt", ".jsonl", ".parquet")
KNOWN = ", ".join(SUFFIXES) + " (each may be packed as .gz or .zst)"


def find_files(source: str, reading: Reading) -> list[Path]:
    """The files that `source` (a file, folder or glob pattern) names, sorted; at least one.

    What is passed over is told to `reading`. Raises DataError where there is no file of a known kind, or
    where a folder cannot be read.
    """
    path = user_path(source)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # such as a name that is too long
        raise DataError(f"{source[:200]} cannot be found ({error.strerror}); check the path") from None
    if is_folder:
        if (found := look(path)).kind in ("run directory", "cache"):
            raise DataError(f"{source} is {found.what}, and no text; give the text itself")
        base, pattern = path, Path("**/*").parts
        nothing = f"the directory {source} holds no file of a known kind: {KNOWN}"
    elif path.exists():
        if not known_kind(path):
            raise DataError(f"{source} is of unknown kind; Tandem reads {KNOWN}")
        return [path]
    elif glob.has_magic(source):
        parts = Path(source).expanduser().parts
        plain = 0  # so many parts are there as they are written, brackets and all
        while plain < len(parts) - 1 and user_path(str(Path(*parts[: plain + 1]))).is_dir():
            plain += 1
        base, pattern = user_path(str(Path(*parts[:plain]))), parts[plain:]
        nothing = f"no file of a known kind matches the pattern {source}; known are {KNOWN}"
    else:
        another = together("check the path, or use 'python-docs' or 'hf:NAME'", "data.train")
        raise MisfitError.of(f"there is no file or directory {source}", {}, another)
    if files := _Listing(reading, base).files(pattern):
        return files
    raise DataError(nothing + reading.left_out())


def known_kind(path: Path) -> str | None:
    """The known suffix of a file's name, `.gz` and `.zst` apart."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


class _Listing:
    """The files below one folder whose paths match a pattern."""

    def __init__(self, reading: Reading, base: Path) -> None:
        self._reading, self._base = reading, base
        self._left_out: set[Path] = set()

    def files(self, pattern: tuple[str, ...]) -> list[Path]:
        """Those of a known kind, sorted, each once. Raises DataError where a folder cannot be read."""
        files: dict[str, Path] = {}
        try:
            for path in sorted(set(self._matches(self._base, pattern))):
                if path.is_dir():
                    if "**" not in pattern:  # else it was gone into
                        self._pass_over("being a folder", path)
                elif not path.exists():
                    self._pass_over("linked to nothing", path)
                elif not path.is_file() or not known_kind(path):
                    self._pass_over("of unknown kind", path)
                elif files.setdefault(os.path.realpath(path), path) != path:
                    self._pass_over("read under another name", path)
        except OSError as error:
            raise DataError(
                f"cannot read the folder {error.filename}: {error.strerror or error}; make it readable, or "
                "name what to read by a pattern that leaves it out"
            ) from None
        return list(files.values())

    def _matches(self, path: Path, pattern: tuple[str, ...]) -> Iterator[Path]:
        """Whatever has a path that matches, part by part, from `path` on."""
        if not pattern:
            yield path
            return
        if not path.is_dir():
            return
        first, rest = pattern[0], pattern[1:]
        if first == "**":
            real = Path(os.path.realpath(path))
            for folder in self._folders(path, {str(above) for above in real.parents}):
                yield from self._matches(folder, rest or ("*",))
        elif glob.has_magic(first):
            for entry in self._entries(path):
                if fnmatch.fnmatch(entry.name, first) and self._is_meant(entry, first):
                    yield from self._matches(entry, rest)
        elif os.path.lexists(path / first):
            yield from self._matches(path / first, rest)

    def _folders(self, folder: Path, seen: set[str]) -> Iterator[Path]:
        """`folder` and all folders below it, each once however many links lead there; none of `seen`."""
        if (real := os.path.realpath(folder)) in seen:
            self._pass_over("linked to a folder seen before", folder)
            return
        seen.add(real)
        yield folder
        for entry in self._entries(folder):
            if entry.is_dir() and self._is_meant(entry, "**"):
                yield from self._folders(entry, seen)

    def _entries(self, folder: Path) -> list[Path]:
        return sorted(folder.iterdir())

    def _is_meant(self, path: Path, pattern: str) -> bool:
        """Whether a name that matches a part of a pattern is meant by it: not where it is hidden."""
        hidden = path.name.startswith(".") and not pattern.startswith(".")
        if hidden:
            self._pass_over("hidden", path)
        return not hidden

    def _pass_over(self, why: str, path: Path) -> None:
        if path not in self._left_out:
            self._left_out.add(path)
            self._reading.passed_over(why, str(path.relative_to(self._base)))
