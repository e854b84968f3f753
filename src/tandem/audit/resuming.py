"""An audit that was stopped goes on: runs whose files are as they were are not audited again."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from tandem.errors import RunDirError
from tandem.folders import CHECKPOINTS
from tandem.records import RunAudit
from tandem.records.files import read_whole, write_whole
from tandem.records.run import Record

FILE = "audit.json"


class AuditedRun(Record):
    """What was found of a run whose files had this digest."""

    files: str
    audit: RunAudit


class AuditedRuns(Record):
    """The runs that an audit has behind it; `identity` is of all else that it looks at."""

    identity: str
    runs: dict[str, AuditedRun]


class AuditCheckpoint:
    """Of the audit of a run directory, written after every run.

    identity    a fingerprint of the code, the settings and the records.
    """

    def __init__(self, run_dir: Path, identity: str) -> None:
        self._path, self._identity = run_dir / CHECKPOINTS / FILE, identity
        found = None
        with suppress(RunDirError):  # a damaged one counts as none
            found = read_whole(self._path, AuditedRuns, "")
        self._runs = found.runs if found is not None and found.identity == identity else {}

    def of_run(self, run: str, folders: Iterable[Path], audit: Callable[[], RunAudit]) -> RunAudit:
        """What was found of a run whose files in these folders are as they were; else what `audit` finds."""
        files = hashlib.sha256("".join(map(_digest, folders)).encode()).hexdigest()
        before = self._runs.get(run)
        if before is not None and before.files == files:
            return before.audit
        found = audit()
        self._runs = {**self._runs, run: AuditedRun(files=files, audit=found)}
        with suppress(OSError):  # a full disk stops no audit
            self._path.parent.mkdir(exist_ok=True)
            write_whole(self._path, AuditedRuns(identity=self._identity, runs=self._runs))
        return found

    def remove(self) -> None:
        """Where the audit has ended."""
        with suppress(OSError):
            self._path.unlink()
            self._path.parent.rmdir()


def _digest(folder: Path) -> str:
    """Of the names and contents of all files in a folder; empty where there is none."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            whole.update(f"{path.relative_to(folder)}\0".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
