"""An audit that was stopped goes on, and looks again at what has changed since."""

import signal
from pathlib import Path

import pytest
from conftest import tiny

from tandem.audit import audit
from tandem.audit.run import _Runs
from tandem.experiment.runner import run_experiment
from tandem.records import AuditRecord, RunAudit, RunRecord
from tandem.stopping import Stopped
from tandem.training.progress import Watcher


def audited(run_dir: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str = "") -> tuple[list[str], object]:
    """Which runs were audited now, and the audit, or what stopped it."""
    runs: list[str] = []
    whole = _Runs.audit

    def watched(self: _Runs, record: RunRecord, folder: Path) -> RunAudit:
        if record.run == stop_at:
            raise Stopped(signal.SIGTERM)
        runs.append(record.run)
        return whole(self, record, folder)

    with monkeypatch.context() as patch:
        patch.setattr(_Runs, "audit", watched)
        try:
            return runs, audit(run_dir, quick=True)
        except Stopped as stopped:
            return runs, stopped


def test_it_goes_on_with_the_runs_that_are_left(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(text_file, baselines={"models": ("unigram", "bigram")}, seeds=(0,))
    run_dir, _ = run_experiment(settings.model_copy(update={"output": str(tmp_path / "run")}), Watcher())
    whole, expected = audited(run_dir, monkeypatch)
    assert isinstance(expected, AuditRecord)
    assert expected.status != "fail"
    assert not (run_dir / "checkpoints").exists()
    first, stopped = audited(run_dir, monkeypatch, stop_at=whole[3])
    assert (first, type(stopped)) == (whole[:3], Stopped)
    rest, found = audited(run_dir, monkeypatch)
    assert rest == whole[3:]
    assert isinstance(found, AuditRecord)
    assert found.runs == expected.runs

    # What was found of a model does not hold for another one.
    audited(run_dir, monkeypatch, stop_at=whole[3])
    (model,) = (name for name in whole[:3] if (run_dir / "models" / name / "config.json").exists())
    weights = run_dir / "models" / model / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 64
    weights.write_bytes(changed)
    again, found = audited(run_dir, monkeypatch)
    assert again == [model, *whole[3:]]
    assert isinstance(found, AuditRecord)
    assert found.status == "fail"
