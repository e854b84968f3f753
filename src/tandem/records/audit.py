"""What an audit found, check by check; kept beside the records, so that the report can show it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tandem.records.files import read_whole, write_whole
from tandem.records.run import Record
from tandem.shown import command

Status = Literal["pass", "warn", "fail", "skip"]


class Check(Record):
    """One check of one run, or of the data that all runs share."""

    name: str
    """Such as `causality`; the same everywhere."""
    looked_at: str
    """What was examined, in words."""
    figure: str
    """What came out, with its limit."""
    status: Status
    """`skip`: not checked, and `figure` says why."""


class RunAudit(Record):
    """All checks of one run; `run` is None for those of the data that all runs share."""

    run: str | None
    finished_at: str | None
    """Of the record that was audited: a later record of the same run has not been."""
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The worst of its checks; `skip` only if none could be made."""
        return worst(check.status for check in self.checks)


class AuditRecord(Record):
    """audit.json of a run directory or model folder."""

    schema_version: Literal[1] = 1
    audited_at: str
    """UTC, ISO 8601."""
    code_fingerprint: str
    runs: tuple[RunAudit, ...]

    @property
    def status(self) -> Status:
        """The worst of all."""
        return worst(run.status for run in self.runs)

    @property
    def unchecked(self) -> list[str]:
        """Names of the checks that could not be made, of any run."""
        names = (check.name for run in self.runs for check in run.checks if check.status == "skip")
        return list(dict.fromkeys(names))

    def failed(self) -> list[tuple[str | None, Check]]:
        """The checks that failed, each with its run."""
        return [(run.run, check) for run in self.runs for check in run.checks if check.status == "fail"]


def worst(statuses: Iterable[Status]) -> Status:
    """The worst status: fail before warn before pass; skip where there is nothing else."""
    found = set(statuses)
    return next((status for status in ("fail", "warn", "pass") if status in found), "skip")


def write_audit(folder: Path, audit: AuditRecord) -> Path:
    """Write audit.json atomically; returns its path."""
    path = folder / "audit.json"
    write_whole(path, audit)
    return path


def read_audit(folder: Path) -> AuditRecord | None:
    """The audit in a folder; none where there is none. Raises RunDirError if it is damaged."""
    again = command("tandem", "audit", folder)
    return read_whole(folder / "audit.json", AuditRecord, f"; make it again with `{again}`")
