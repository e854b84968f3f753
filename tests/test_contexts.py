"""Contexts: the scan equals the loop, and says so when it does not; the Jacobi sweep is a k-token memory."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import TOKENS, block_and_stream, loop, train_phase1
from torch.utils._python_dispatch import TorchDispatchMode

from tandem.contexts import (
    Contexts,
    ContextsSample,
    Stream,
    Tokens,
    compute_contexts,
    held_in_memory,
    jacobi_sweep,
    linear,
    linear_contexts,
    measure_memory,
    previous_contexts,
    segments,
)
from tandem.contexts import stream as stream_module
from tandem.errors import ScanError
from tandem.model import TandemForCausalLM, sequential_contexts
from tandem.model.cell_gated import GatedLayer
from tandem.settings import ContextSettings, Phase1Settings


@pytest.mark.parametrize("boundary", ["carry", "reset"])
@pytest.mark.parametrize("depth", [1, 2])
def test_scan_equals_loop_after_phase_1(boundary: str, depth: int) -> None:
    model, stream = block_and_stream(boundary, context_layers=depth)
    train_phase1(model, stream, Phase1Settings(batch_positions=1000, max_iterations=20), seed=0)
    contexts, record = compute_contexts(model, stream, ContextSettings(segment_length=100))
    true_error = float((contexts.whole() - loop(model, stream)).abs().max())
    assert true_error <= 1e-5
    assert record.method == "scan"
    assert record.segments == 15
    assert record.loop_error <= 1e-5
    assert record.join_error <= 1e-5


@pytest.mark.parametrize("check_tokens", [4, 2048])
def test_a_burn_in_that_is_too_short_is_an_error(check_tokens: int) -> None:
    """Seen by the loop, and also where the loop's sample is too small to see it: at the joins."""
    model, stream = block_and_stream()
    settings = ContextSettings(segment_length=200, burn_in=2, check_tokens=check_tokens)
    with pytest.raises(ScanError, match="burn-in of 2 tokens is too short"):
        compute_contexts(model, stream, settings)


def test_a_join_that_is_not_a_number_is_an_error() -> None:
    """Beyond what the loop checks: one token, read once, whose embedding is not a number."""
    model, _ = block_and_stream()
    ids = torch.randint(1, 119, (TOKENS,))
    ids[1250] = 119
    with torch.no_grad():
        model.embedding.weight[119] = torch.nan
    settings = ContextSettings(segment_length=200, burn_in=50, check_tokens=400)
    with pytest.raises(ScanError, match="by nan, more than the tolerance"):
        compute_contexts(model, Stream.of(model, ids), settings)


def test_a_block_that_never_forgets_is_an_error() -> None:
    model, stream = block_and_stream(weight_init_std=0.0, bias_init_std=0.0)
    with pytest.raises(ScanError, match="does not forget"):
        compute_contexts(model, stream, ContextSettings(segment_length=200))


def test_loop_method_and_short_streams_need_no_segments() -> None:
    model, stream = block_and_stream()
    exact = loop(model, stream)
    contexts, record = compute_contexts(model, stream, ContextSettings(method="loop"))
    assert record.method == "loop"
    torch.testing.assert_close(contexts.whole(), exact, rtol=0, atol=1e-5)
    contexts, record = compute_contexts(model, stream.first(50), ContextSettings(segment_length=200))
    assert record.method == "loop"
    torch.testing.assert_close(contexts.whole(), exact[:50], rtol=0, atol=1e-5)


def test_join_error_is_the_difference_it_claims() -> None:
    """With a far too generous tolerance, the reported errors are those measured against the whole loop."""
    model, stream = block_and_stream()
    settings = ContextSettings(segment_length=100, burn_in=12, tolerance=10.0, check_tokens=TOKENS)
    contexts, record = compute_contexts(model, stream, settings)
    true_error = float((contexts.whole() - loop(model, stream)).abs().max())
    assert record.loop_error == pytest.approx(true_error, rel=1e-3)
    assert record.loop_error <= record.join_error * 4
    assert record.join_error > 1e-4


def test_k_jacobi_sweeps_are_a_k_token_memory() -> None:
    model, stream = block_and_stream()
    model = model.double()
    embeds = model.embed(stream.ids[:60]).detach()
    contexts = torch.zeros(60, 30, dtype=torch.float64)
    sweeps = 5
    for _ in range(sweeps):
        contexts = torch.cat(
            [new for _, new in jacobi_sweep(model.context_block, contexts, lambda at: embeds[at])]
        )
    for position in range(sweeps, 60):
        window = embeds[None, position - sweeps + 1 : position + 1]
        memory = sequential_contexts(model.context_block, window)[1][0, -1]
        torch.testing.assert_close(contexts[position], memory, rtol=0, atol=1e-12)


def test_sweeps_reach_the_sequential_contexts() -> None:
    model, stream = block_and_stream()
    stream = stream.first(300)
    contexts = torch.randn(300, 30)
    with torch.no_grad():
        for _ in range(300):
            sweep = jacobi_sweep(
                model.context_block, contexts, lambda at: model.embed(stream.ids[at]), batch=64
            )
            new = torch.cat([part for _, part in sweep])
            new[0] = loop(model, stream.first(1))[
                0
            ]  # the wrap-around reads the last position; a stream does not
            contexts = new
    torch.testing.assert_close(contexts, loop(model, stream), rtol=0, atol=1e-5)


def test_what_the_first_position_and_a_restart_read() -> None:
    contexts = torch.arange(1.0, 9.0).reshape(4, 2)
    restart = torch.tensor([False, False, True, False])
    everywhere = torch.arange(4)
    # In a sweep the last position stands before the first, in a stream nothing does.
    swept = previous_contexts(contexts, everywhere, restart)
    assert swept.tolist() == [[7.0, 8.0], [1.0, 2.0], [0.0, 0.0], [5.0, 6.0]]
    before, after = Contexts.of(contexts).window(0, 4).before_and_after(everywhere, restart)
    assert before.tolist() == [[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [5.0, 6.0]]
    assert torch.equal(after, contexts)


@functools.cache
def gated_and_loop(boundary: str, depth: int) -> tuple[TandemForCausalLM, Stream, torch.Tensor]:
    """The contexts by the loop, which are the same for every cut of the stream."""
    model, stream = block_and_stream(boundary, context_layers=depth, cell="gated")
    return model, stream, loop(model, stream)


@pytest.mark.parametrize("boundary", ["carry", "reset"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("cut", "segments"),
    [
        (linear.Cut(300, 100), 15),
        (linear.Cut(16_000, 200), 8),
        (linear.Cut(1024, 32), 47),  # neither divides the stream
        (linear.Cut(1000, 1), TOKENS),
        (linear.Cut(999, 3), 500),  # segments of segments of segments, and an odd number of tokens
    ],
)
def test_the_linear_scan_of_a_gated_block_equals_the_loop(
    boundary: str, depth: int, cut: linear.Cut, segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ON_CPU", cut)
    model, stream, exact = gated_and_loop(boundary, depth)
    settings = ContextSettings(segment_length=200, check_tokens=256)
    contexts, record = compute_contexts(model, stream, settings)
    assert float((contexts.whole() - exact).abs().max()) <= 1e-5
    assert record.method == "linear"
    assert (record.segments, record.join_error) == (segments, 0.0)
    assert record.loop_error <= 1e-5


def test_a_chunk_on_a_gpu_is_few_operations() -> None:
    """Each takes microseconds to start there, however little it does."""

    class Counted(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += not func.is_view
            return func(*args, **(kwargs or {}))

    keep, add = 1 - torch.rand(linear.ON_GPU.chunk, 3) / 100, torch.randn(linear.ON_GPU.chunk, 3)
    states, expected = torch.zeros(1 + len(keep), 3), torch.zeros(1 + len(keep), 3)
    with Counted() as counted:
        linear._recurrence(keep, add, states, linear.ON_GPU.segment)
    assert 0 < counted.operations < 250
    linear._recurrence(keep, add, expected, len(keep))
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-4)  # of numbers up to 30


def test_a_stream_that_reads_few_tokens_twice_needs_no_table() -> None:
    model, stream = block_and_stream(cell="gated", vocab_size=2000)
    contexts, _ = compute_contexts(model, stream, ContextSettings(segment_length=200))
    assert float((contexts.whole() - loop(model, stream)).abs().max()) <= 1e-5


@pytest.mark.parametrize("boundary", ["carry", "reset"])
@pytest.mark.parametrize("cell", ["residual", "gated"])
def test_contexts_computed_again_are_those_that_were_held(
    boundary: str, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ON_CPU", linear.Cut(500, 100))
    for module in (linear_contexts, segments):
        monkeypatch.setattr(module, "PIECE_TOKENS", 700)
    model, stream = block_and_stream(boundary, cell=cell)
    settings = ContextSettings(segment_length=100, check_tokens=400)
    held, record = compute_contexts(model, stream, settings)
    size = 4 * TOKENS * 30
    assert [held_in_memory(model, TOKENS, settings, room) for room in (size, size - 1)] == [True, False]
    again, other = compute_contexts(model, stream, settings, hold_bytes=size - 1)
    assert compute_contexts(model, stream, settings, hold_bytes=size)[0].in_memory
    assert held.in_memory
    assert not again.in_memory
    assert (record.storage, other.storage) == ("memory", "recompute")
    same = {"storage", "seconds_s", "loop_error", "join_error", "checked_tokens"}
    assert other.model_dump(exclude=same) == record.model_dump(exclude=same)
    # A gated block's are checked elsewhere then.
    assert other.loop_error == pytest.approx(record.loop_error, abs=1e-9 if cell == "residual" else 1e-6)
    assert other.join_error == pytest.approx(record.join_error, abs=1e-9)
    everything = held.whole()
    torch.testing.assert_close(again.whole(), everything, rtol=0, atol=1e-6)
    for first, last in ((0, 40), (0, TOKENS), (1, 2), (499, 1301), (TOKENS - 1, TOKENS)):
        at = torch.randperm(last - first)[:20] + first
        expected = held.window(first, last).before_and_after(at, stream.resets)
        for ours, theirs in zip(
            again.window(first, last).before_and_after(at, stream.resets), expected, strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    spread = torch.linspace(0, TOKENS - 1, 50).long()
    torch.testing.assert_close(again.at(spread), everything[spread], rtol=0, atol=1e-6)
    assert sum(len(piece) for _, piece in again.pieces(333)) == TOKENS
    samples = [ContextsSample.of(contexts, held) for contexts in (held, again)]
    for field in dataclasses.fields(ContextsSample):
        ours, theirs = (getattr(sample, field.name) for sample in samples)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(samples[0].train_mean, everything.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(samples[0].train_std, everything.std(0, unbiased=False), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "length", "expected"),
    [
        (40, 20, [(0, 20), (80, 100)]),
        (50, 20, [(0, 20), (45, 65), (90, 100)]),  # a window is a batch, and the last one is shorter
        (20, 20, [(0, 20)]),
        (99, 40, [(0, 40), (40, 80), (81, 100)]),
    ],
)
def test_windows_are_spread_over_the_stream(
    tokens: int, length: int, expected: list[tuple[int, int]]
) -> None:
    ids = Tokens(torch.arange(100), torch.device("cpu"))
    made = Stream(ids, 45).windows(tokens, length)
    there = torch.cat([torch.arange(*window) for window in expected])
    assert torch.equal(made.ids[:], there)
    assert made.resets is not None
    assert torch.equal(made.resets[:], there == 45)


@pytest.mark.parametrize("cell", ["residual", "gated"])
def test_contexts_on_disk_are_those_computed_rounded_to_bf16(
    cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ON_CPU", linear.Cut(500, 100))
    model, stream = block_and_stream(cell=cell)
    contexts, _ = compute_contexts(model, stream, ContextSettings(segment_length=100, keep="recompute"))
    on_disk, rounding = contexts.on_disk(tmp_path)
    everything = contexts.whole()
    assert len(on_disk) == TOKENS
    assert not on_disk.in_memory
    assert torch.equal(on_disk.whole(), everything.bfloat16().float())
    assert rounding == pytest.approx(float((on_disk.whole() - everything).abs().max()), rel=1e-3)
    assert 0 < rounding < 0.01 * float(everything.abs().max())
    at = torch.randperm(800)[:20] + 499
    expected = (
        Contexts.of(everything.bfloat16().float()).window(499, 1301).before_and_after(at, stream.resets)
    )
    for ours, theirs in zip(
        on_disk.window(499, 1301).before_and_after(at, stream.resets), expected, strict=True
    ):
        assert torch.equal(ours, theirs)
    assert not list(tmp_path.iterdir())  # nothing is left behind, whoever is killed


@pytest.mark.parametrize("boundary", ["carry", "reset"])
@pytest.mark.parametrize("cell", ["residual", "gated"])
def test_how_soon_a_block_forgets_is_told_by_two_streams_at_several_places(cell: str, boundary: str) -> None:
    """Read step by step, from zero and from random starts; and half of that more."""
    model, stream = block_and_stream(boundary, cell=cell, context_layers=1)
    if cell == "gated":
        with torch.no_grad():
            model.context_block.layers[0].linear.bias[:30] = 4.0
    _, record = compute_contexts(model, stream, ContextSettings(segment_length=200))
    count = 32 if cell == "residual" else 8
    places = torch.linspace(0, TOKENS - 1, count + 1)[:-1].long()
    block = model.context_block.double() if cell == "residual" else model.context_block
    random = torch.randn(count, 30, generator=torch.Generator().manual_seed(0))
    pair = torch.cat((torch.zeros(count, 30), torch.nn.functional.layer_norm(random, (30,))))
    pair = pair.to(next(block.parameters()).dtype)
    needed, apart = 0, torch.tensor(1.0)
    while apart > 1e-5 / 4 or (cell == "residual" and needed % 8 > 0):
        at = ((places + needed) % TOKENS).repeat(2)
        pair = pair if stream.resets is None else pair.masked_fill(stream.resets[at][:, None], 0.0)
        with torch.no_grad():
            pair = block(pair, model.embed(stream.ids[at]).to(pair.dtype))
        apart = (pair[:count] - pair[count:]).abs().max()
        needed += 1
    assert record.burn_in == int(1.5 * needed)
    if cell == "gated" and boundary == "carry":
        assert needed > linear_contexts.PROBE_TOKENS


def test_a_gated_block_forgets_even_with_its_gates_wide_open() -> None:
    model, stream = block_and_stream(cell="gated", context_layers=1, tokens=3000)
    with torch.no_grad():
        model.context_block.layers[0].linear.weight.zero_()
        model.context_block.layers[0].linear.bias[:30] = 50.0
    _, record = compute_contexts(model, stream, ContextSettings(segment_length=200))
    # (127/128)^n = 1e-5 / 4 at n = 1,645, from a difference of up to some 3; and half of that more.
    assert 1.5 * 1645 < record.burn_in < 1.5 * 2000


def test_a_gated_block_that_never_forgets_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no burn-in, so that is no error; but whoever recomputes must read everything."""
    monkeypatch.setattr(GatedLayer, "most_kept", 1.0)
    model, stream = block_and_stream(cell="gated", context_layers=1)
    with torch.no_grad():
        model.context_block.layers[0].linear.bias[0] = 50.0
    contexts, record = compute_contexts(model, stream, ContextSettings(segment_length=200))
    assert record.burn_in == TOKENS
    assert float((contexts.whole() - loop(model, stream)).abs().max()) <= 1e-5


def test_memory_is_what_is_left_of_one_changed_token() -> None:
    model, stream = block_and_stream(cell="gated", context_layers=1)
    with torch.no_grad():
        layer = model.context_block.layers[0]
        layer.linear.weight[:30].zero_()  # every forget gate is then the same at all tokens
        layer.linear.bias[:30] = torch.logit(torch.tensor(0.9))
    curve = {point.distance: point.change for point in measure_memory(model, stream)}
    assert curve[0] > 0.3
    for distance in (1, 4, 16, 64):
        # Relative to the same yardstick, a change decays as the gate says.
        assert curve[distance] / curve[0] == pytest.approx((0.9 * 127 / 128) ** distance, rel=0.35)
    model, stream = block_and_stream(cell="gated", context_layers=2)
    with torch.no_grad():
        for layer in model.context_block.layers:
            layer.linear.weight[:15].zero_()
            layer.linear.bias[:15] = -60.0
    curve = {point.distance: point.change for point in measure_memory(model, stream)}
    assert curve[1] > 0.1  # the upper layer reads the lower one's state before the token
    assert curve[2] == pytest.approx(0.0, abs=1e-12)
    assert measure_memory(model, stream.first(700)) == ()


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_tokens_stay_as_they_are_stored(kind: type, tmp_path: Path) -> None:
    vocab_size = 65_536 if kind is np.uint16 else 90_000
    ids = np.random.default_rng(0).integers(0, vocab_size, 5000).astype(kind)
    ids[:2] = vocab_size - 1, 0
    np.save(tmp_path / "ids.npy", ids)
    stored = np.load(tmp_path / "ids.npy", mmap_mode="c")
    tokens, wide = Tokens(stored, torch.device("cpu")), torch.from_numpy(ids.astype(np.int64))
    assert np.shares_memory(tokens._stored.numpy(), stored)
    assert np.shares_memory(tokens.part(0, 10)._stored.numpy(), stored)
    at = torch.randint(-5000, 5000, (7, 3))
    for where in (at, slice(3, 40), slice(None), torch.tensor(0)):
        assert tokens[where].dtype == torch.int64
        assert torch.equal(tokens[where], wide[where])
    assert torch.equal(tokens.counts(vocab_size), torch.bincount(wide, minlength=vocab_size))
    assert torch.equal(tokens.part(0, 10)[:], wide[:10])
    assert len(tokens) == 5000


@pytest.mark.parametrize("boundary", ["carry", "reset"])
@pytest.mark.parametrize("cell", ["residual", "gated"])
def test_memory_mapped_tokens_give_the_contexts_of_wide_ones(
    boundary: str, cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "COUNTED_TOKENS", 700)
    model, wide = block_and_stream(boundary, cell=cell)
    np.save(tmp_path / "ids.npy", wide.ids[:].numpy().astype(np.uint16))
    small = Stream.of(model, np.load(tmp_path / "ids.npy", mmap_mode="c"))
    settings = ContextSettings(segment_length=200, check_tokens=256)
    ours, theirs = (compute_contexts(model, stream, settings)[0].whole() for stream in (small, wide))
    assert torch.equal(ours, theirs)
    assert (small.resets is None) == (boundary == "carry")
    if small.resets is not None:
        assert torch.equal(small.resets[:], small.ids[:] == 0)
    assert measure_memory(model, small) == measure_memory(model, wide)
