"""What a folder is, told from its files before they are read or written, and how files are written whole."""

import errno
import filecmp
import itertools
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tandem.advice import advice
from tandem.errors import RunDirError, StorageError, naming
from tandem.fingerprint import fingerprint

Kind = Literal[
    "absent",
    "file",
    "empty",
    "run directory",
    "model folder",
    "unfinished",
    "baseline",
    "foreign model",
    "cache",
    "other",
]
Wanted = Literal["run directory", "model folder"]
MANIFEST, RECORDS = "manifest.json", "records.jsonl"
CHECKPOINTS = "checkpoints"
"""Folder of trainings that have not ended, in a run directory or a model folder."""
CONFIG, RECORD, SETTINGS = "config.json", "record.json", "settings.yaml"
CHECKSUMS = "checksums.json"
"""In a model folder: a digest of every other file that Tandem wrote there."""
CONTEXTS_SAMPLE = "contexts_sample.safetensors"
SNAPSHOTS = "snapshots.safetensors"
"""A few steps of phase 2 (in a run directory's `phase1`, of phase 1)."""
PHASE1_SNAPSHOTS = f"phase1_{SNAPSHOTS}"
"""In a model folder that `tandem train` wrote: those of phase 1."""
PHASE1_HEAD = "phase1_head.safetensors"
"""In a model folder: the token layers of phase 1 that phase 2 started from."""
WRITTEN: dict[Wanted, tuple[str, ...]] = {
    "run directory": (
        *(MANIFEST, RECORDS, "audit.json", "report.md", "report.html", "report.ja.md", "report.ja.html"),
        *("figures", "models", "phase1", "failures", "workers", CHECKPOINTS),
    ),
    "model folder": (
        *(CONFIG, RECORD, SETTINGS, "model.safetensors", "generation_config.json", "tokenizer.json"),
        *("tokenizer_config.json", CONTEXTS_SAMPLE, PHASE1_HEAD, SNAPSHOTS, PHASE1_SNAPSHOTS, CHECKSUMS),
    ),
}
"""Files and folders that Tandem makes in each."""
MAKES = {"run directory": "`tandem experiment`", "model folder": "`tandem train`"}
OF_RUNS = b'"settings_fingerprint"'
"""Stands in every manifest and in every record."""
READ_BYTES = 1 << 20
"""Of a file so much is looked at."""
SHOWN = 3
"""So many folders are named in a message."""


@dataclass(frozen=True)
class Found:
    """What is at a path; `what` says its kind to people, such as "a run directory"."""

    path: Path
    kind: Kind
    what: str

    @property
    def inside(self) -> list[Path]:
        """Models of a run directory, or run directories and models in another folder, sorted."""
        if self.kind == "run directory":
            return [path for path in _entries(self.path / "models") if look(path).kind == "model folder"]
        return [path for path in _entries(self.path) if look(path).kind in WRITTEN]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a draft of the file `path`, to be written within the block, and then puts it in its place.

    So a reader finds the whole file or none; where the block raises, nothing changes. After the block the
    file survives a loss of power. Raises OSError, which names `path`, for whatever the system refuses.
    """
    with draft_folder(path, path.parent) as draft:
        yield draft / path.name
        _move(draft, path.parent, [path.name])


@contextmanager
def atomic_folder(folder: Path, last: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a draft of `folder`, to be written within the block, and then moves its files there.

    Files of other names stay, except `stale` ones that were not written again. Nothing moves before all is
    on disk, and after the block all of it survives a loss of power. Raises OSError as `atomic_write`.

    Files move one by one. Over an older model, a stop between two moves would leave a mix. So a file that is
    already there, byte for byte, is not moved: a training that gives the same weights again changes
    little. Whatever differs no longer fits CHECKSUMS, which moves first, and so a mix is noticed when it is
    read. The file `last` moves after all others. A new folder without it holds no model yet.
    """
    new_folder(folder.parent)
    with draft_folder(folder, folder) as draft:
        yield draft
        new_folder(folder)
        written = sorted(path.name for path in draft.iterdir())
        changed = [name for name in written if not _same_file(draft / name, folder / name)]
        _move(draft, folder, sorted(changed, key=lambda name: (name == last, name != CHECKSUMS)))
        for name in set(stale).difference(written):
            (folder / name).unlink(missing_ok=True)


def flush(*paths: Path) -> None:
    """Force files, and the entries of folders, to disk, so that they survive a loss of power."""
    for path in paths:
        is_folder = path.is_dir()
        if is_folder and os.name == "nt":  # Windows opens no folder, and writes its entries at once
            continue
        number = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            with naming(path):
                os.fsync(number)
        except OSError as error:
            if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network file systems
                raise
        finally:
            os.close(number)


def new_folder(folder: Path) -> None:
    """Make a folder and those around it that are missing, so that they survive a loss of power."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    flush(*(place.parent for place in missing))


_NUMBERS = itertools.count()
"""Of this process's drafts, as several threads may write the same file."""
_OURS: set[str] = set()
"""Names of those that are being written."""


@contextmanager
def draft_folder(path: Path, target: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, for what will lie in `target`; it is removed after the block.

    Its name tells machine and process. A crash leaves it; then the next process here that writes beside it
    removes it. Raises OSError: of a file in it, one that names the file in `target`.
    """
    draft = path.with_name(f".{path.name}.{_this_machine()}.{os.getpid()}-{next(_NUMBERS)}.partial")
    _OURS.add(draft.name)  # before it is there: another thread may look for drafts
    try:
        remove_drafts(path.parent)
        draft.mkdir()
        yield draft
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))  # of libraries in Rust
        named = Path(getattr(error, "filename", None) or draft)
        if not (isinstance(error, OSError) or told) or not named.is_relative_to(draft):
            raise
        number = getattr(error, "errno", None) or int(told[1] if told else errno.EIO)
        place = path if named == draft else target / named.relative_to(draft)
        raise OSError(number, os.strerror(number), str(place)) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        _OURS.discard(draft.name)


def remove_drafts(folder: Path, below: bool = False) -> None:
    """Remove drafts in a folder, and `below` it, whose process was of this machine and is gone."""
    for place, names, _ in os.walk(folder):  # which passes over what other processes remove meanwhile
        for name in list(names):
            draft = re.fullmatch(r"\..+\.([0-9a-f]{8})\.(\d+)-\d+\.partial", name)
            if draft:
                names.remove(name)
            stale = draft and draft[1] == _this_machine() and not _is_running(int(draft[2]))
            if stale and name not in _OURS:
                shutil.rmtree(Path(place, name), ignore_errors=True)
        if not below:
            break


def _this_machine() -> str:
    return fingerprint("machine", platform.node())[:8]


def _is_running(process: int) -> bool:
    """Whether another process of this number runs here."""
    if process == os.getpid():
        return False
    if os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _move(draft: Path, folder: Path, names: Sequence[str]) -> None:
    """Move these files in this order, once they are on disk, with the permissions of new files."""
    mode = draft.stat().st_mode & 0o666
    for name in names:
        (draft / name).chmod(mode)  # safetensors keeps its own from all but the owner
        flush(draft / name)
    for name in names:
        (draft / name).replace(folder / name)
    flush(folder)


def _same_file(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    with suppress(OSError):
        return other.is_file() and filecmp.cmp(one, other, shallow=False)
    return False


@contextmanager
def storing(what: str, place: str | Path, setting: str = "TANDEM_CACHE") -> Iterator[None]:
    """An OSError within the block means that `what` cannot be written to `place`, which `setting` names."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {what} to {place}: {error.strerror or error}; "
            f"free space there, or set {setting} to another folder"
        ) from None


def look(path: Path) -> Found:
    """What is at `path`. Nothing is written there; what cannot be read counts as not there."""
    if not path.is_dir():
        there = path.exists() or path.is_symlink()
        return Found(path, "file", "a file") if there else Found(path, "absent", "not there")
    manifest, records = path / MANIFEST, path / RECORDS
    # Damaged files count too, where both are there.
    if any(map(_is_of_runs, (manifest, records))) or (manifest.is_file() and records.is_file()):
        return Found(path, "run directory", "the run directory of an experiment")
    config = _object(path / CONFIG)  # empty where it is missing or damaged: whoever loads the model says so
    kind = config.get("model_type")
    if kind is None and _is_of_baseline(path / RECORD):
        what = "the weights of a baseline, kept for the audit of the run directory that it lies in"
        return Found(path, "baseline", what)
    # Its checksums come first when it is saved, so without the rest it is half of one.
    if (
        kind in ("tandem", "tandem_ensemble")
        or _is_of_runs(path / RECORD)
        or _has(path / CHECKSUMS, f'"{CONFIG}"'.encode())
    ):
        return Found(path, "model folder", "a model folder")
    if kind is not None or "architectures" in config:
        return Found(path, "foreign model", f"a folder with a model of type '{kind}', not a Tandem model")
    if (path / "corpus.json").is_file() or any(path.glob("corpora/*/corpus.json")):
        return Found(path, "cache", "a cache of prepared text")
    inside = _names(path)
    if inside <= {"claims"}:
        return Found(path, "empty", "an empty folder")
    if inside <= {"claims", CHECKPOINTS}:
        said = "a folder with a training that has not ended, which the same `tandem train` continues"
        return Found(path, "unfinished", said)
    return Found(path, "other", "a folder that holds neither records nor a model of its own")


def check_reading(path: Path, *wanted: Wanted) -> Found:
    """What is at `path`, of a kind that is wanted. RunDirError otherwise: what it is, and what to give."""
    found = look(path)
    if found.kind in wanted:
        return found
    makers = " or ".join(MAKES[kind] for kind in wanted)
    if found.kind == "absent":
        name = wanted[0] if len(wanted) == 1 else "folder"
        raise RunDirError(f"there is no {name} {path}; give one that {makers} made")
    kinds = " nor ".join(f"a {kind}" for kind in wanted)
    denied = f"{path} is {'neither' if len(wanted) > 1 else 'not'} {kinds}: it is {found.what}"
    if inside := [path for path in found.inside if look(path).kind in wanted]:
        whose = "its models" if found.kind == "run directory" else "those in it"
        raise RunDirError(f"{denied}; give one of {whose}: {_shown(inside)}")
    if found.kind == "run directory":  # here a model was wanted
        raise RunDirError(f"{denied}, which keeps no models; train one with `tandem train`")
    if (around := _around(path)) is not None and around.kind in wanted:
        raise RunDirError(f"{denied}; give {around.path}, in which it lies")
    raise RunDirError(f"{denied}; give one that {makers} made")


def check_writing(path: Path, wanted: Wanted) -> None:
    """RunDirError where a run directory or model folder made at `path` would mix with what is there.

    It may hold files of other names. What the same kind of folder holds already, its maker looks at.
    """
    found, other = look(path), ("give another {}", "output")
    if (around := _around(path)) is not None:
        said = f"lies in {around.path}, {around.what}, which is no place for a {wanted}"
    elif found.kind in ("absent", "empty", wanted) or (found.kind, wanted) == ("unfinished", "model folder"):
        return
    elif found.kind != "other":
        said = f"is {found.what}, which is no place for a {wanted}"
    elif found.inside:
        said = f"holds {_shown(found.inside)}, so it is no place for a {wanted} itself"
    elif clash := [name for name in WRITTEN[wanted] if (path / name).exists()]:
        said = f"holds a {clash[0]} that is not Tandem's, and a {wanted} has one of its own"
    else:
        return
    raise RunDirError(f"{path} {said}" + advice(other))


def _around(path: Path) -> Found | None:
    """The nearest run directory, model folder or cache in which `path` lies, if any."""
    around = map(look, path.resolve().parents)
    return next((found for found in around if found.kind in (*WRITTEN, "cache")), None)


def _is_of_runs(path: Path) -> bool:
    """Whether a file is the manifest or has the records of runs."""
    return _has(path, OF_RUNS)


def _has(path: Path, said: bytes) -> bool:
    """Whether these bytes stand early in a file."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return said in file.read(READ_BYTES)
    except OSError:
        return False


def _is_of_baseline(path: Path) -> bool:
    """Whether a file is the record of a run whose model is none of Tandem's."""
    return _object(path).get("context_layers", 0) is None


def _object(path: Path) -> dict[str, Any]:
    """The JSON object of a small file; empty where there is none."""
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file():  # a pipe would be waited for
            with path.open("rb") as file:
                found = json.loads(file.read(READ_BYTES))
            return found if isinstance(found, dict) else {}
    return {}


def _entries(path: Path) -> list[Path]:
    """What is in a folder and not hidden, sorted."""
    return sorted(path / name for name in _names(path))


def _names(path: Path) -> set[str]:
    """The names of what is in a folder and not hidden; none where it cannot be read."""
    try:
        return {entry for entry in os.listdir(path) if not entry.startswith(".")}  # noqa: PTH208 (names alone)
    except OSError:
        return set()


def _shown(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(str, paths[:SHOWN])) + more
