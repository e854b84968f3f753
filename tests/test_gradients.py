"""The gradient of a step does not depend on its micro-batches, which are made when memory is short."""

import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from blocks import train_phase1
from test_prediction import model_and_stream as gated_model_and_stream
from test_training import model_and_stream, split_of
from torch import nn
from warm import python

from tandem.cross_entropy import mean_nll
from tandem.errors import is_out_of_memory
from tandem.group import PLAIN, Execution
from tandem.model import TandemForCausalLM
from tandem.settings import Phase2Settings, PredictionSettings
from tandem.training import gradients, phase2
from tandem.training.gradients import GradientAccumulator
from tandem.training.phase2 import train_token_block
from tandem.training.progress import Tick


class ThreeMicroBatches(GradientAccumulator):
    """Three micro-batches a step from the start."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.micro_batches = 3


def phase_1(model: TandemForCausalLM, on_tick: Callable[[Tick], None]) -> None:
    settings = PredictionSettings(max_epochs=1, streams=8, window=16, negatives=16)
    _, stream = model_and_stream()
    train_phase1(model, stream, settings, 0, on_tick=on_tick)


def phase_2(model: TandemForCausalLM, on_tick: Callable[[Tick], None]) -> None:
    settings = Phase2Settings(max_epochs=1, batch_positions=128, dropout=0.3, output_dropout=0.3)
    _, stream = model_and_stream()
    split = split_of(model, stream)
    train_token_block(model, split, split, settings, 0, on_tick=on_tick)


@pytest.mark.parametrize("phase", [phase_1, phase_2])
def test_a_step_in_micro_batches_is_the_same_step(
    phase: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of every step and final weights, dropout and sampled softmax included."""
    results = []
    for accumulator in (GradientAccumulator, ThreeMicroBatches):
        monkeypatch.setattr(phase2, "GradientAccumulator", accumulator)
        monkeypatch.setattr(gradients, "GradientAccumulator", accumulator)
        model, _ = model_and_stream()
        losses: list[float] = []
        phase(model, lambda tick, to=losses: to.append(tick.figures["train PPL"]))
        results.append((losses, model.state_dict()))
    (losses, weights), (in_parts, weights_in_parts) = results
    assert len(losses) > 5
    assert losses == pytest.approx(in_parts, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, weights_in_parts[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("negatives", [16, None])
def test_bf16_trains_almost_as_float32_does(negatives: int | None) -> None:
    """Products alone are rounded: losses stay near, states and softmax sums in full precision."""
    results = []
    for execution in (PLAIN, Execution(bfloat16=True)):
        model, stream = gated_model_and_stream("gated")
        split, losses = split_of(model, stream), []
        first = PredictionSettings(max_epochs=2, streams=8, window=16, negatives=negatives)
        second = Phase2Settings(max_epochs=1, batch_positions=128, negatives=negatives)

        def on_tick(tick: Tick, to: list[float] = losses) -> None:
            to.append(tick.figures["train PPL"])

        train_phase1(model, stream, first, 0, on_tick=on_tick, execution=execution)
        result = train_token_block(model, split, split, second, 0, on_tick=on_tick, execution=execution)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        results.append((losses, result.validation.nll_nats))
    (losses, nll), (half, nll_of_half) = results
    assert losses == pytest.approx(half, rel=0.02)
    assert losses != half
    assert nll == pytest.approx(nll_of_half, abs=0.02)


def test_the_gradient_of_a_head_is_added_up_in_float32_under_bf16() -> None:
    """Over many chunks: in bf16 the sum would stop growing."""
    torch.manual_seed(0)
    hidden, head = torch.randn(2048, 8), torch.randn(12, 8, requires_grad=True)
    targets = torch.randint(12, (2048,))
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = mean_nll(hidden, head, targets, 4)
        gradients.append(torch.autograd.grad(loss, head)[0])
        assert gradients[-1].dtype == torch.float32
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.01, atol=1e-4)


def test_micro_batches_are_halved_until_memory_suffices() -> None:
    layer = nn.Linear(4, 1)
    gradients = GradientAccumulator(list(layer.parameters()), PLAIN)
    x, sizes = torch.randn(10, 4), []

    def forward(rows: slice) -> torch.Tensor:
        sizes.append(rows.stop - rows.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return layer(x[rows]).square().mean()

    whole = layer(x).square().mean()
    expected = torch.autograd.grad(whole, list(layer.parameters()))
    assert gradients.backward(forward, 10) == pytest.approx(float(whole.detach()))
    torch.testing.assert_close([parameter.grad for parameter in layer.parameters()], list(expected))
    assert sizes == [10, 5, 2, 3, 2, 3]
    assert gradients.micro_batches == 4
    gradients.backward(forward, 10)
    assert sizes[6:] == [2, 3, 2, 3]  # what once was too large is not tried again


def test_other_errors_and_rows_that_do_not_fit_alone_are_raised() -> None:
    layer = nn.Linear(4, 1)
    for error in (RuntimeError("shapes differ"), torch.OutOfMemoryError("CUDA out of memory")):
        gradients = GradientAccumulator(list(layer.parameters()), PLAIN)

        def fails(_: slice, error: Exception = error) -> torch.Tensor:
            raise error

        with pytest.raises(type(error), match=str(error)):
            gradients.backward(fails, 4)
        assert gradients.micro_batches == (4 if is_out_of_memory(error) else 1)


SHORT_OF_MEMORY = """
import resource, torch
from torch import nn
from tandem.group import PLAIN
from tandem.training.gradients import GradientAccumulator

torch.set_num_threads(1)
layer = nn.Linear(8, 8)
gradients = GradientAccumulator(list(layer.parameters()), PLAIN)
rows = 1 << 20
layer(torch.zeros(4, 8)).sum().backward()  # what the libraries need once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20), resource.RLIM_INFINITY))

def forward(part):
    return layer(torch.ones(part.stop - part.start, 8)).exp().mean()

loss = gradients.backward(forward, rows)
print(gradients.micro_batches, loss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_process_that_runs_out_of_memory_goes_on_in_parts() -> None:
    """Real memory: the whole batch needs several times what the process may still have."""
    done = subprocess.run([python(), "-c", SHORT_OF_MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts, loss = done.stdout.split()
    assert int(parts) > 1
    assert 0 < float(loss) < 100


PAGES_TAKEN = """
import resource, torch
from tandem.experiment.machine import keep_freed_memory

torch.set_num_threads(1)

def pages_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step = [torch.ones(megabytes << 18) for megabytes in (40, 3, 8)]
        del step
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

taken = pages_taken()
keep_freed_memory()
pages_taken()
print(taken, pages_taken())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_steps_do_not_take_their_memory_from_the_system_anew() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES_TAKEN], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 1000
    assert after < before / 100
