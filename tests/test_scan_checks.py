"""The linear scan is held against the loop wherever it could go wrong, and a wrong one is an error."""

from typing import Any

import pytest
import torch
from blocks import block_and_stream

from tandem.contexts import PIECE_TOKENS, Contexts, Stream, compute_contexts, linear, linear_contexts
from tandem.contexts.job import ContextJob
from tandem.errors import ScanError
from tandem.group import ALONE, Group
from tandem.settings import ContextSettings

TOKENS = 3000


@pytest.mark.parametrize("keep", ["memory", "recompute"])
@pytest.mark.parametrize(
    ("cut", "repeats"), [(linear.Cut(600, 200), 1), (linear.ON_CPU, 1), (linear.ON_CPU, 24)]
)
def test_a_linear_scan_whose_chunks_do_not_follow_on_each_other_is_an_error(
    keep: str, cut: linear.Cut, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ON_CPU", cut)
    real = linear._fill_chunk

    def wrong(states: torch.Tensor, *arguments: Any) -> None:
        if states[0].any():  # all chunks but the first, which starts from zero
            states[0] += 0.01
        real(states, *arguments)

    monkeypatch.setattr(linear, "_fill_chunk", wrong)
    model, stream = block_and_stream(tokens=TOKENS, cell="gated")
    stream = Stream.of(model, stream.ids[:].repeat(repeats))
    with pytest.raises(ScanError, match="differ from the sequential loop"):
        compute_contexts(model, stream, ContextSettings(segment_length=200, keep=keep))


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("cut", [linear.ON_CPU, linear.ON_GPU])
def test_edges_between_chunks_are_checked_wherever_there_are_any(
    cut: linear.Cut, processes: int, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ON_CPU", cut)
    model, _ = block_and_stream(tokens=TOKENS, cell="gated")
    lengths = torch.randint(2, 200_000, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    for length in (*lengths, 2049, 2050, 4097, 16_385, 65_536, 65_537, 131_072, 1_000_000):
        stream = Stream.of(model, torch.ones(length, dtype=torch.long))
        kept = torch.empty(length, 0) if held else None
        contexts = Contexts(length, kept, lambda *_: torch.empty(0))
        group = Group(0, processes) if held else ALONE
        runs = linear_contexts._checked_runs(
            ContextJob(model, model.context_block, stream, ContextSettings(), group, 0.0), contexts, group
        )
        reach = length if held else min(length, PIECE_TOKENS)
        assert (int(runs.min()), int(runs.max())) == (0, reach - 1)
        assert (runs.diff() == 1).all()
        checked = len(runs.unique())
        assert checked == reach if reach < 6144 else checked == runs.numel() == 2048
        shares = [Group(rank, group.size).share(length) for rank in range(group.size)]
        edges = {edge for share in shares for edge in range(share.start, share.stop, cut.chunk)} - {0}
        edges = {edge for edge in edges if edge < reach}
        crossed = edges & set(runs[:, 1:].flatten().tolist())
        # A share may end soon after its last chunk began, and of two edges that close only one is crossed.
        assert len(crossed) >= min(len(edges), 8) - (group.size - 1)
        assert crossed or not edges
        seam = cut.segment if cut.nested else 0
        seams = (
            {at + seam for share in shares for at in range(share.start, share.stop, cut.outer)} - edges - {0}
        )
        seams = {at for at in seams if at < reach}
        assert len(seams & set(runs[:, 1:].flatten().tolist())) >= min(len(seams) // 8, 8)


@pytest.mark.parametrize("keep", ["memory", "recompute"])
@pytest.mark.parametrize("repeats", [14, 24, 67])
def test_segments_of_segments_that_start_wrong_are_an_error(
    repeats: int, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the cut of GPUs, on 42,000, 72,000 and 201,000 tokens."""
    monkeypatch.setattr(linear, "ON_CPU", linear.ON_GPU)
    model, stream = block_and_stream(tokens=TOKENS, cell="gated")
    stream = Stream.of(model, stream.ids[:].repeat(repeats))
    settings = ContextSettings(segment_length=200, keep=keep)
    _, record = compute_contexts(model, stream, settings)
    assert record.loop_error <= 1e-5
    real = linear._starts

    def wrong(keeps: Any, adds: Any, start: torch.Tensor) -> torch.Tensor:
        starts = real(keeps, adds, start)
        if len(starts) <= linear.ON_GPU.segment:  # those of segments of segments
            starts[1:] += 0.05
        return starts

    monkeypatch.setattr(linear, "_starts", wrong)
    with pytest.raises(ScanError, match="differ from the sequential loop"):
        compute_contexts(model, stream, settings)


@pytest.mark.parametrize(
    ("tokens", "cut", "check_tokens", "checked"),
    [
        (TOKENS, linear.Cut(2048, 1), 1, 32),
        (TOKENS, linear.Cut(600, 200), 80, 32 * 25),  # more runs than edges
        (TOKENS, linear.Cut(1000, 50), 400, 32 * 13),
        (TOKENS, linear.Cut(TOKENS, TOKENS), 1, TOKENS),
        (TOKENS, linear.ON_CPU, 100_000, TOKENS),
        (600, linear.ON_CPU, 2048, 600),
    ],
)
def test_a_gated_block_is_checked_on_what_there_is(
    tokens: int, cut: linear.Cut, check_tokens: int, checked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ON_CPU", cut)
    model, stream = block_and_stream("reset", tokens=TOKENS, cell="gated")
    _, record = compute_contexts(model, stream.first(tokens), ContextSettings(check_tokens=check_tokens))
    assert record.checked_tokens == checked
    assert record.loop_error <= 1e-5


@pytest.mark.parametrize("wrong_at", [0, 1, 1999, 2000, TOKENS - 1])
def test_a_gated_block_is_checked_at_both_ends_and_across_chunks(
    wrong_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With five runs of 100 tokens on edges of 100, among them those between chunks of 1,000."""
    monkeypatch.setattr(linear, "ON_CPU", linear.Cut(1000, 100))
    monkeypatch.setattr(linear_contexts, "CHECKED_PLACES", 5)
    real = linear.LinearScan.fill

    def wrong(self: linear.LinearScan, states: torch.Tensor) -> None:
        real(self, states)
        states[1 + wrong_at] += 0.01

    monkeypatch.setattr(linear.LinearScan, "fill", wrong)
    model, stream = block_and_stream(tokens=TOKENS, cell="gated")
    with pytest.raises(ScanError, match="differ from the sequential loop"):
        compute_contexts(model, stream, ContextSettings(segment_length=200, check_tokens=500))


def test_runs_that_are_checked_lie_across_edges_of_each_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ON_CPU", linear.Cut(1000, 200))
    monkeypatch.setattr(linear_contexts, "CHECKED_PLACES", 8)
    model, stream = block_and_stream(tokens=TOKENS, cell="gated")
    settings, group = ContextSettings(check_tokens=10), Group(0, 2)
    job = ContextJob(model, model.context_block, stream, settings, group, 0.0)
    runs = linear_contexts._checked_runs(job, Contexts.of(torch.zeros(TOKENS, 30)), group)
    assert runs.shape == (8, 100)
    assert (int(runs.min()), int(runs.max())) == (0, TOKENS - 1)
    edges = {int(run[50]) for run in runs[1:-1]}
    assert len(edges) == 6
    for edge in edges:
        assert (edge - (1500 if edge >= 1500 else 0)) % 200 == 0
    assert {1000, 2500} & edges  # between chunks
