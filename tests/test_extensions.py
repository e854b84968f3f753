"""What others add is a file of theirs and a line in a registry: here an objective of phase 1."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny
from torch import Tensor

from tandem.audit import audit
from tandem.contexts import Stream
from tandem.errors import MisfitError
from tandem.experiment import estimate
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.runner import estimate_experiment, run_experiment
from tandem.model import TandemForCausalLM
from tandem.objectives import OBJECTIVES, Objective, Phase1Inputs
from tandem.records import Phase1Record, read_records
from tandem.report import write_report
from tandem.settings import Settings
from tandem.training.gradients import GradientAccumulator
from tandem.training.optimizer import clip_gradients
from tandem.training.progress import Tick, Watcher
from tandem.training.trainable import training_only


class NormRecord(Phase1Record):
    """Result of phase 1 by norms."""

    losses: tuple[float, ...]


class Norms(Objective):
    """Draws the norms of contexts, each one step after a context of zero, to one."""

    record_type = NormRecord
    steps, rows = 5, 64

    def train(self, inputs: Phase1Inputs) -> NormRecord:
        """A few steps of gradient descent, each on other tokens."""
        began, losses, model = time.perf_counter(), [], inputs.model
        block = model.context_block

        def forward(ids: Tensor, rows: slice) -> Tensor:
            """Mean squared distance of the norms from one, a scalar with gradients."""
            zero = torch.zeros(len(ids[rows]), block.context_dim, device=ids.device)
            return (block(zero, model.embed(ids[rows])).norm(dim=1) - 1).square().mean()

        with training_only(model, block) as trainable:
            gradients = GradientAccumulator(trainable.parameters, inputs.execution)
            optimizer = torch.optim.SGD(trainable.parameters, lr=0.01)
            for step in range(self.steps):
                ids = inputs.stream.ids[step * self.rows : (step + 1) * self.rows]
                loss = gradients.backward(partial(forward, ids), len(ids))
                clip_gradients(trainable.parameters, 1.0)
                optimizer.step()
                losses.append(loss)
                inputs.on_tick(Tick("phase 1", step + 1, self.steps, "iteration", {"loss": loss}))
        return NormRecord(
            losses=tuple(losses),
            parts=trainable.parts,
            tokens=self.steps * self.rows,
            seconds_s=time.perf_counter() - began,
        )

    def figures(self, record: NormRecord) -> dict[str, float]:
        """The last loss."""
        return {"last loss": record.losses[-1]}

    def audit(self, record: NormRecord, settings: Settings, tokens: int) -> Iterator[str]:
        """Its steps."""
        if len(record.losses) != self.steps:
            yield f"it made {len(record.losses)} steps"

    def evaluate(self, model: TandemForCausalLM, stream: Stream, settings: Settings) -> dict[str, float]:
        """The weight that matters to nobody else."""
        return {"first_weight": float(next(model.context_block.parameters()).detach().flatten()[0])}


def test_an_objective_of_another_package(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its settings to its records, report, audit and scores, beside the recipes that Tandem brings."""
    monkeypatch.setitem(OBJECTIVES, "norms", Norms())
    variants = {"original": {}, "norms": {"recipe": "norms"}}
    settings = tiny(text_file, output=str(tmp_path / "run"), seeds=(0,), variants=variants)
    run_dir, records = run_experiment(settings, Watcher())
    assert [record.failure for record in records] == [None] * 4
    assert read_records(run_dir) == records
    ours = {record.run: record for record in records}["norms-C2T1-seed0"]
    assert isinstance(ours.phase1, NormRecord)
    assert len(ours.phase1.losses) == Norms.steps
    assert ours.parameters is not None
    assert ours.parameters.trained_phase1 == ours.parameters.context_block
    assert OBJECTIVES["norms"].summary(ours.phase1) == f"last loss {ours.phase1.losses[-1]:,.4g}"
    assert run_experiment(settings, Watcher())[1] == records  # nothing is trained again
    found = audit(run_dir)
    assert found.status == "pass", found.failed()
    assert any(path.suffix == ".html" for path in write_report(run_dir))
    scored = evaluate_model(run_dir / "models" / "norms-C2T1-seed0", str(text_file))
    assert list(scored.phase1) == ["first_weight"]
    with pytest.raises(
        MisfitError, match=r"phase2.start = 'phase1' is not possible: phase 1 of recipe norms"
    ):
        run_experiment(tiny(text_file, recipe="norms", phase2={"start": "phase1"}), Watcher())


def test_what_it_will_take_is_estimated(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "norms", Norms())
    monkeypatch.setattr(estimate, "MOMENT_S", 0.05)
    parts = estimate_experiment(tiny(text_file, recipe="norms", seeds=(0,)), Watcher()).parts
    assert "C2, phase 1" in [part.what for part in parts]
