"""The audit of a run directory or of one model folder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from tandem.audit.behaviour import behaviour_checks
from tandem.audit.contexts import context_checks
from tandem.audit.data import baseline_gaps, data_checks
from tandem.audit.figures import figure_checks
from tandem.audit.subject import Subject
from tandem.audit.weights import weight_checks
from tandem.errors import RunDirError, TandemError
from tandem.experiment.evaluate import model_settings
from tandem.experiment.machine import code_fingerprint
from tandem.experiment.pipeline import Prepared, prepare
from tandem.experiment.runner import use_threads
from tandem.metrics import perplexity
from tandem.records import AuditRecord, Check, RunAudit, RunRecord, read_manifest, read_records, write_audit
from tandem.settings import Settings

OnProgress = Callable[[str], None]


def audit(path: Path, on_progress: OnProgress = lambda _: None) -> AuditRecord:
    """Audit a run directory, or a model folder; the result is also written to its audit.json.

    Raises RunDirError for a folder that is neither, DataError where the text is no longer there.
    """
    record = audit_model(path, on_progress) if _is_model(path) else audit_run_dir(path, on_progress)
    try:
        write_audit(path, record)
    except OSError as error:
        raise RunDirError(f"cannot write {path / 'audit.json'} ({error.strerror or error})") from None
    return record


def audit_run_dir(run_dir: Path, on_progress: OnProgress = lambda _: None) -> AuditRecord:
    """Every check of every finished run of an experiment. Raises as `audit` does."""
    manifest = read_manifest(run_dir)
    if manifest is None:
        raise RunDirError(
            f"{run_dir} is neither a run directory (it has no manifest.json) nor a model folder; give what "
            "`tandem experiment` or `tandem train` wrote"
        )
    records = [record for record in read_records(run_dir) if record.status == "finished"]
    prepared = _prepare(Settings(**manifest.settings), on_progress)
    gaps = baseline_gaps(prepared, records)
    audits = [RunAudit(run=None, finished_at=None, checks=_guarded(data_checks(prepared), "data"))]
    for record in records:
        on_progress(f"auditing {record.run}")
        audits.append(_audit_run(prepared, record, tuple(records), run_dir / "models" / record.run, gaps))
    return _record(audits)


def audit_model(folder: Path, on_progress: OnProgress = lambda _: None) -> AuditRecord:
    """Every check of one trained model, from its folder alone. Raises as `audit` does."""
    try:
        record = RunRecord.model_validate_json((folder / "record.json").read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        raise RunDirError(
            f"{folder} has no readable record.json, so there is nothing to audit its figures against; train "
            "the model again"
        ) from None
    prepared = _prepare(model_settings(folder), on_progress)
    on_progress(f"auditing {record.run}")
    checks = _guarded(data_checks(prepared), "data")
    gaps = baseline_gaps(prepared, ())
    return _record(
        [
            RunAudit(run=None, finished_at=None, checks=checks),
            _audit_run(prepared, record, (record,), folder, gaps),
        ]
    )


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _prepare(settings: Settings, on_progress: OnProgress) -> Prepared:
    use_threads(settings)
    return prepare(settings, on_progress)


def _audit_run(
    prepared: Prepared,
    record: RunRecord,
    siblings: tuple[RunRecord, ...],
    folder: Path,
    gaps: dict[str, float],
) -> RunAudit:
    if record.kind not in ("tandem", "untrained"):
        checks: tuple[Check, ...] = (_consistent(record),)
    elif not folder.is_dir():
        missing = f"there is no model in {folder.name} (it was not kept), so nothing can be recomputed"
        checks = (
            Check(name="model", looked_at="the saved model", figure=missing, status="skip"),
            _consistent(record),
        )
    else:
        try:
            subject = Subject.load(prepared, record, siblings, folder)
        except TandemError as error:
            checks = (Check(name="model", looked_at="the saved model", figure=str(error), status="fail"),)
        else:
            checks = (
                *_guarded(weight_checks(subject), "weights"),
                *_guarded(behaviour_checks(subject), "behaviour"),
                *_guarded(context_checks(subject), "contexts"),
                *_guarded(figure_checks(subject, gaps), "figures"),
            )
    return RunAudit(run=record.run, finished_at=record.finished_at, checks=checks)


def _guarded(checks: Iterator[Check], what: str) -> tuple[Check, ...]:
    """The checks; one that cannot even be computed has failed, and says how."""
    done: list[Check] = []
    try:
        for check in checks:
            done.append(check)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, TandemError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        done.append(
            Check(name=what, looked_at="whether the check can be computed", figure=reason, status="fail")
        )
    return tuple(done)


def _consistent(record: RunRecord) -> Check:
    """The record's figures against each other, where there is no model to recompute them from."""
    looked_at = "the record's own figures against each other (no model is kept to recompute them from)"
    said = record.validation
    if said is None:
        return Check(name="consistency", looked_at=looked_at, figure="no figures", status="skip")
    wrong = []
    if not np.isclose(said.perplexity, perplexity(said.nll_nats), rtol=1e-6):
        wrong.append(f"PPL {said.perplexity:.2f} is not exp of its NLL, {perplexity(said.nll_nats):.2f}")
    if said.tokens is not None and said.tokens != record.data.validation_tokens - 1:
        wrong.append(f"validation scored {said.tokens} of {record.data.validation_tokens - 1} tokens")
    if said.documents is not None:
        tokens, nll = said.documents.unpack()
        mean = float(nll.sum() / max(int(tokens.sum()), 1))
        if int(tokens.sum()) != said.tokens or not abs(mean - said.nll_nats) <= 1e-4:
            wrong.append(f"its documents hold {int(tokens.sum())} tokens at {mean:.4f} nats")
    figure = "; ".join(wrong) or f"PPL {said.perplexity:.2f} over {said.tokens} tokens"
    status = "fail" if wrong else "pass"
    return Check.model_validate(
        {"name": "consistency", "looked_at": looked_at, "figure": figure, "status": status}
    )


def _record(audits: Sequence[RunAudit]) -> AuditRecord:
    return AuditRecord(
        audited_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_fingerprint=code_fingerprint(),
        runs=tuple(audits),
    )


def failures(record: AuditRecord) -> Iterable[str]:
    """One line for each check that failed, its runs named."""
    found: dict[str, list[str]] = {}
    for run, check in record.failed():
        found.setdefault(check.name, []).append(run or "the data")
    for name, runs in found.items():
        yield f"{name} ({', '.join(runs)})"
