"""An audit that was stopped goes on: runs whose files are as they were are not audited again."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tandem.checksums import file_digest
from tandem.errors import RunDirError
from tandem.fingerprint import fingerprint
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

    looked_at    all that an audit looks at beside the files: the code, the settings and the records.
    """

    def __init__(self, run_dir: Path, *looked_at: str) -> None:
        self._path = run_dir / CHECKPOINTS / FILE
        self._identity = fingerprint("audit", *looked_at, _digest(run_dir / "phase1"))  # runs share phase 1
        found = None
        with suppress(RunDirError):  # a damaged one counts as none
            found = read_whole(self._path, AuditedRuns, "")
        self._runs = found.runs if found is not None and found.identity == self._identity else {}

    def of_run(self, run: str, folder: Path, audit: Callable[[], RunAudit]) -> RunAudit:
        """What was found of a run whose files in its folder are as they were; else what `audit` finds."""
        files = _digest(folder)
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
    """Of the names and contents of all files in a folder, which may be missing."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return fingerprint("files", {str(path.relative_to(folder)): file_digest(path) for path in files})
