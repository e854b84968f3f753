"""A step in parts is the same step, and parts are what remains when memory is short."""

import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest
import torch
from test_training import model_and_stream, split_of
from torch import nn

from tandem.model import TandemForCausalLM
from tandem.settings import Phase2Settings, PredictionSettings
from tandem.training import phase2, prediction
from tandem.training.group import ALONE
from tandem.training.phase2 import train_token_block
from tandem.training.prediction import train_predictive_contexts
from tandem.training.progress import Tick
from tandem.training.steps import Steps, is_out_of_memory


class InParts(Steps):
    """Steps of three parts from the start."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.parts = 3


def phase_1(model: TandemForCausalLM, on_tick: Callable[[Tick], None]) -> None:
    settings = PredictionSettings(max_epochs=1, streams=8, window=16, negatives=16)
    _, stream = model_and_stream()
    train_predictive_contexts(model, [model.token_block], stream, settings, 0, on_tick=on_tick)


def phase_2(model: TandemForCausalLM, on_tick: Callable[[Tick], None]) -> None:
    settings = Phase2Settings(max_epochs=1, batch_positions=128, dropout=0.3, output_dropout=0.3)
    _, stream = model_and_stream()
    split = split_of(model, stream)
    train_token_block(model, split, split, settings, 0, on_tick=on_tick)


@pytest.mark.parametrize("phase", [phase_1, phase_2])
def test_a_step_in_parts_is_the_same_step(
    phase: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of every step and final weights, dropout and sampled softmax included."""
    results = []
    for steps in (Steps, InParts):
        monkeypatch.setattr(phase2, "Steps", steps)
        monkeypatch.setattr(prediction, "Steps", steps)
        model, _ = model_and_stream()
        losses: list[float] = []
        phase(model, lambda tick, to=losses: to.append(tick.figures["train PPL"]))
        results.append((losses, model.state_dict()))
    (losses, weights), (in_parts, weights_in_parts) = results
    assert len(losses) > 5
    assert losses == pytest.approx(in_parts, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, weights_in_parts[name], rtol=0, atol=2e-5)


def not_finite(loss: float) -> NoReturn:
    raise AssertionError(loss)


def test_parts_are_doubled_until_memory_suffices() -> None:
    layer = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    steps = Steps([layer], list(layer.parameters()), optimizer, None, 1.0, ALONE)
    x, sizes = torch.randn(10, 4), []

    def loss_of(rows: slice) -> torch.Tensor:
        sizes.append(rows.stop - rows.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return layer(x[rows]).square().mean()

    expected = float(layer(x).detach().square().mean())
    loss, _ = steps.take(10, loss_of, not_finite)
    assert loss == pytest.approx(expected)
    assert sizes == [10, 5, 2, 3, 2, 3]
    assert steps.parts == 4
    steps.take(10, loss_of, not_finite)
    assert sizes[6:] == [2, 3, 2, 3]  # what once was too large is not tried again


def test_other_errors_and_rows_that_do_not_fit_alone_are_raised() -> None:
    layer = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for error in (RuntimeError("shapes differ"), torch.OutOfMemoryError("CUDA out of memory")):
        steps = Steps([layer], list(layer.parameters()), optimizer, None, 1.0, ALONE)

        def fails(_: slice, error: Exception = error) -> torch.Tensor:
            raise error

        with pytest.raises(type(error), match=str(error)):
            steps.take(4, fails, not_finite)
        assert steps.parts == (4 if is_out_of_memory(error) else 1)


SHORT_OF_MEMORY = """
import resource, torch
from torch import nn
from tandem.training.group import ALONE
from tandem.training.steps import Steps

torch.set_num_threads(1)
layer = nn.Linear(8, 8)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
steps = Steps([layer], list(layer.parameters()), optimizer, None, 1.0, ALONE)
rows = 1 << 20
layer(torch.zeros(4, 8)).sum().backward()  # what the libraries need once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20), resource.RLIM_INFINITY))

def loss_of(part):
    return layer(torch.ones(part.stop - part.start, 8)).exp().mean()

def not_finite(loss):
    raise SystemExit(f"not finite: {loss}")

loss, _ = steps.take(rows, loss_of, not_finite)
print(steps.parts, loss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_process_that_runs_out_of_memory_goes_on_in_parts() -> None:
    """Real memory: the whole batch needs several times what the process may still have."""
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts, loss = done.stdout.split()
    assert int(parts) > 1
    assert 0 < float(loss) < 100
