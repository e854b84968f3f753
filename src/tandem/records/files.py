"""Records on disk: one JSON object a line, appended and forced to disk; the manifest beside them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from filelock import FileLock
from pydantic import ValidationError

from tandem.advice import advice
from tandem.checksums import sealed, unsealed
from tandem.decoding import read_text
from tandem.errors import DamageError, DataError, RunDirError
from tandem.folders import MANIFEST, RECORDS, atomic_write, check_reading, flush
from tandem.records.run import Precision, Record, RunRecord

MADE_AGAIN = "its model is made again"
"""So begins the failure that a finished run is recorded with once its saved model is damaged or gone."""

Whole = TypeVar("Whole", bound=Record)


class Manifest(Record):
    """RUN_DIR/manifest.json: what the experiment is."""

    schema_version: Literal[1] = 1
    name: str
    settings: dict[str, object]
    settings_fingerprint: str
    tokens_fingerprint: str
    precision: Precision
    """Of products of matrices in training, in all runs."""
    configurations: tuple[str, ...]
    seeds: tuple[int, ...]
    baselines: tuple[str, ...] = ()
    """Runs of baselines, by name."""
    created_at: str


def records_path(run_dir: Path) -> Path:
    """Where the records of an experiment lie."""
    return run_dir / RECORDS


def append_record(run_dir: Path, record: RunRecord) -> None:
    """Append one record and force it to disk; a torn last line of an earlier crash is cut off first.

    Processes that append at the same time do so one after the other.
    """
    path = records_path(run_dir)
    with FileLock(path.with_suffix(".lock")), path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
        file.write(sealed(record.model_dump_json()).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if not content:  # the file may be new
        flush(run_dir)


def read_records(run_dir: Path, on_warning: Callable[[str], None] = lambda _: None) -> list[RunRecord]:
    """The latest record of every run, in order of first appearance.

    A torn last line (the process died while writing it) is passed over, and `on_warning` is told: that run
    counts as not done. Raises RunDirError where any other line is damaged or no record, naming file and line.
    """
    path = records_path(run_dir)
    if not path.is_file():
        if path.exists():
            raise RunDirError(f"{path} is no file; remove it")
        return []
    latest: dict[str, RunRecord] = {}
    mend = advice(
        "restore it",
        "remove that line, so that its run is made again",
        ("use a new run directory with {}", "output"),
    )
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        on_warning(f"the last line of {path} was not written to its end; its run counts as not done")
    for number, line in enumerate(lines, start=1):
        try:
            record = RunRecord.model_validate_json(unsealed(line.decode("utf-8", "replace")))
        except DamageError as error:
            raise RunDirError(f"{path}, line {number} is damaged: {error}{mend}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            said = f"is not a record of this version of Tandem ({where}: {first['msg']})"
            raise RunDirError(f"{path}, line {number} {said}{mend}") from None
        latest[record.run] = record
    return list(latest.values())


def read_experiment(run_dir: Path) -> list[RunRecord]:
    """The records of a run directory. Raises RunDirError where it is none, or has none, or a damaged one."""
    check_reading(run_dir, "run directory")
    if records := read_records(run_dir):
        return records
    if any((run_dir / "models").glob("*/record.json")):
        raise RunDirError(
            f"{records_path(run_dir)} is empty or gone, while {run_dir / 'models'} has models; restore it, "
            "or give the same `tandem experiment` again, which makes its runs again"
        )
    raise RunDirError(f"{run_dir} holds no records yet; finish at least one run with `tandem experiment`")


def write_whole(path: Path, record: Record) -> None:
    """Write a record as a file of its own, atomically, for people to read, too."""
    content = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False)
    with atomic_write(path) as draft:
        draft.write_text(sealed(content), "utf-8")


def read_whole(path: Path, kind: type[Whole], mend: str) -> Whole | None:
    """The record of a file, if there is one. Raises RunDirError, with `mend`, where it is damaged."""
    if not path.exists():
        return None
    try:
        return kind.model_validate_json(unsealed(read_text(path) if path.is_file() else ""))
    except (ValidationError, DataError, DamageError):
        raise RunDirError(f"{path} is damaged{mend}") from None


def write_manifest(run_dir: Path, manifest: Manifest) -> None:
    """Write the manifest atomically."""
    write_whole(run_dir / MANIFEST, manifest)


def read_manifest(run_dir: Path) -> Manifest | None:
    """The manifest of a run directory; none where there is none. Raises RunDirError if it is damaged."""
    mend = advice("restore it", ("use a new run directory with {}", "output"))
    return read_whole(run_dir / MANIFEST, Manifest, mend)
