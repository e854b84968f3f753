"""Cross entropy over a large vocabulary: plain, in chunks (`mean_nll`), and sampled, forward and backward.

Plain is `F.cross_entropy(hidden @ head.T, targets)`. With a frozen head a gradient is wanted for what the
softmax reads alone (phase 2), with a trained one for the head as well (phase 1 by prediction, the baselines).
Memory is measured in a process each, as the peak over what is held with weights and inputs in place; the
gradients are part of it. The sampled softmax is of training only: its value is an estimate, whose difference
from the exact one is of one draw.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from measuring import (
    SMALL,
    Candidate,
    Spread,
    byte_size,
    extra_memory,
    in_subprocess,
    interleaved,
    number,
    print_table,
)
from torch import Tensor
from torch.nn import functional as F

from tandem.cross_entropy import SampledSoftmax, mean_nll
from tandem.settings import Phase2Settings, PredictionSettings
from tandem.training.initialization import generator_for

from .inputs import zipf_ids

CHUNK = Phase2Settings().chunk_positions
NEGATIVES = PredictionSettings().negatives or 512
WAYS = ("plain", "chunked", "sampled")


@dataclass(frozen=True)
class Sizes:
    """(V, E) of every case, whether heads are trained, positions of a step, and how often all is timed."""

    vocabularies: tuple[tuple[int, int], ...]
    heads_trained: tuple[bool, ...]
    positions: int
    rounds: int


FULL = Sizes(((8192, 384), (50_257, 768)), (False, True), 4096, 7)
FEW = Sizes(((300, 16),), (True,), 64, 1)


class Problem:
    """One step: hidden [n, E], head [V, E], targets [n], and the three ways to its loss."""

    def __init__(
        self, vocab_size: int, embed_dim: int, positions: int, train_head: bool, device: torch.device
    ) -> None:
        draws = generator_for(0, "softmax bench")
        hidden = torch.randn(positions, embed_dim, generator=draws)
        head = torch.randn(vocab_size, embed_dim, generator=draws) * embed_dim**-0.5
        self.hidden = hidden.to(device).requires_grad_()
        self.head = head.to(device).requires_grad_(train_head)
        self.targets = torch.from_numpy(zipf_ids(positions, vocab_size)).to(device)
        counts = torch.from_numpy(zipf_ids(1_000_000, vocab_size, seed=1)).bincount(minlength=vocab_size)
        sampled = SampledSoftmax(counts, positions, NEGATIVES, draws)
        self._ways: dict[str, Callable[[], Tensor]] = {
            "plain": lambda: F.cross_entropy(self.hidden @ self.head.t(), self.targets),
            "chunked": lambda: mean_nll(self.hidden, self.head, self.targets, CHUNK),
            "sampled": lambda: sampled.of_step(self.targets)(
                self.hidden, self.head, None, slice(0, positions)
            ),
        }

    def step(self, way: str) -> float:
        """Forward and backward; the gradients stay in `hidden.grad` and `head.grad`."""
        self.hidden.grad = self.head.grad = None
        loss = self._ways[way]()
        loss.backward()
        return float(loss.detach())

    def gradients(self, way: str) -> Tensor:
        """Those of hidden, as one step leaves them."""
        self.step(way)
        assert self.hidden.grad is not None
        return self.hidden.grad.clone()


def memory(
    way: str, vocab_size: int, embed_dim: int, positions: int, train_head: bool, device: str
) -> tuple[int, int]:
    """Bytes at the peak of two steps over weights and inputs; bytes of the weights. In a fresh process."""
    problem = Problem(vocab_size, embed_dim, positions, train_head, torch.device(device))

    def steps() -> None:
        problem.step(way)
        problem.step(way)

    return extra_memory(steps, device), problem.head.nbytes


def table(device: torch.device) -> None:
    """Print it."""
    sizes = FEW if SMALL else FULL
    rows = []
    for vocab_size, embed_dim in sizes.vocabularies:
        for train_head in sizes.heads_trained:
            rows += _rows(vocab_size, embed_dim, train_head, sizes, device)
    print_table(
        f"Cross entropy, {sizes.positions:,} positions a step",
        (
            *("V, E", "head", "softmax", "ms per step", "time ÷ plain"),
            *("extra memory", "weights", "error of the loss", "of the gradient, relative"),
        ),
        rows,
        f"{sizes.rounds} rounds; {Spread.how}. Chunks of {CHUNK} positions, {NEGATIVES} tokens drawn. "
        "The target is less than 1 GB of extra memory at V 50,257.",
    )


def _rows(
    vocab_size: int, embed_dim: int, train_head: bool, sizes: Sizes, device: torch.device
) -> list[list[str]]:
    problem = Problem(vocab_size, embed_dim, sizes.positions, train_head, device)
    plain_loss, plain_gradient = problem.step("plain"), problem.gradients("plain")
    timings = interleaved({way: Candidate(_step(problem, way)) for way in WAYS}, sizes.rounds)
    rows = []
    for way in WAYS:
        extra, weights = in_subprocess(
            memory,
            way=way,
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            positions=sizes.positions,
            train_head=train_head,
            device=str(device),
        )
        gradient_error = (problem.gradients(way) - plain_gradient).norm() / plain_gradient.norm()
        rows.append(
            [
                f"{vocab_size:,}, {embed_dim}",
                "trained" if train_head else "frozen",
                way,
                number(timings.ns(way) / 1e6),
                "1" if way == "plain" else timings.ratio(way, "plain").show(),
                byte_size(extra),
                byte_size(weights),
                f"{abs(problem.step(way) - plain_loss):.1e}",
                f"{float(gradient_error):.1e}",
            ]
        )
    return rows


def _step(problem: Problem, way: str) -> Callable[[], float]:
    return lambda: problem.step(way)
