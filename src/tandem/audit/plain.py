"""A plain trainer's tools, by their definitions: random numbers, dropout, losses, learning rates, AdamW.

Nothing here is shared with `tandem.training`: the two are held against each other. Shape letters as there: n
positions, V vocabulary, E embed_dim.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tandem.settings import Phase2Settings, PredictionSettings

LEVELS = 65_536
"""Steps of a dropout's probability."""
EPSILON = 1e-8
"""AdamW's."""
PIECE, BLOCK = 65_536, 512
"""Shuffling draws positions from about PIECE at a time, in blocks of about BLOCK consecutive ones."""
SPLIT_TOKENS, SPLIT_SHARE = 400_000, 0.75
"""The longest text of which tokens are split, and the share of the epochs in which they are."""
CHUNK = 512
"""Positions whose logits over the whole vocabulary are there at once."""


def splits_tokens(own: PredictionSettings, tokens: int, epoch: int) -> bool:
    """Whether an epoch of phase 1 by prediction splits tokens of a text of so many."""
    return own.split_tokens > 0 and tokens <= SPLIT_TOKENS and epoch <= SPLIT_SHARE * own.max_epochs


def seed_of(seed: int, *purpose: str | int) -> int:
    """The seed of one purpose of one run: of `seed/purpose/…` the BLAKE2b digest of 8 bytes, less its lowest
    bit, read as a little-endian number."""
    name = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def draws_of(seed: int, *purpose: str | int) -> torch.Generator:
    """Random numbers of one purpose of one run, on the CPU."""
    return torch.Generator().manual_seed(seed_of(seed, *purpose))


class PlainDropout:
    """Drops elements with a probability rounded to 1/65,536; along `along` the same ones."""

    def __init__(self, probability: float, seed: int, *purpose: str | int, along: int | None = None) -> None:
        self._dropped, self._along = round(probability * LEVELS), along
        self._draws = np.random.Generator(np.random.SFC64(seed_of(seed, *purpose)))
        self._calls: list[tuple[int, ...]] = []

    @property
    def drops(self) -> bool:
        """Whether the probability is not zero."""
        return self._dropped > 0

    def __call__(self, x: Tensor) -> Tensor:
        """`x` with elements dropped and the others scaled up."""
        if not self.drops:
            return x
        self._calls.append(tuple(x.shape))
        surviving = torch.from_numpy(self._draw(x.shape).astype(np.int64)) >= self._dropped
        return torch.where(surviving.to(x.device), x * (LEVELS / (LEVELS - self._dropped)), 0.0)

    def _draw(self, shape: Iterable[int]) -> npt.NDArray[np.uint16]:
        size = [1 if dim == self._along else length for dim, length in enumerate(shape)]
        return self._draws.integers(0, LEVELS, size=size, dtype=np.uint16)

    def step_ends(self) -> list[tuple[int, ...]]:
        """What a step drew: the shapes of its calls, in order."""
        calls, self._calls = self._calls, []
        return calls

    def skip(self, calls: Iterable[tuple[int, ...]], size: tuple[int, ...]) -> None:
        """Draw what a step with these calls drew, where the first dimensions were of `size`."""
        for shape in calls:
            self._draw((*size, *shape[len(size) :]))


@dataclass(frozen=True)
class PlainDropouts:
    """The three of a training: of contexts where they are read, of embeddings, of what the softmax reads."""

    contexts: PlainDropout
    embeds: PlainDropout
    output: PlainDropout

    @classmethod
    def of(
        cls,
        settings: PredictionSettings | Phase2Settings,
        seed: int,
        phase: str,
        *purpose: int,
        along: int | None = None,
    ) -> "PlainDropouts":
        """As `settings` say; `along` holds for contexts and embeddings."""
        return cls(
            PlainDropout(settings.dropout, seed, f"{phase} dropout", *purpose, along=along),
            PlainDropout(settings.embed_dropout, seed, f"{phase} embed dropout", *purpose, along=along),
            PlainDropout(settings.output_dropout, seed, f"{phase} output dropout", *purpose),
        )

    @property
    def all(self) -> tuple[PlainDropout, PlainDropout, PlainDropout]:
        """All three."""
        return self.contexts, self.embeds, self.output


def even(count: int, most: int) -> int:
    """Length of as few parts of `count` as have at most `most` each, and are about alike."""
    return math.ceil(count / math.ceil(count / most))


StepLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""hidden [n, E], head [V, E], bias [V] or none → mean NLL in nats, a scalar with gradients."""


class PlainSoftmax:
    """The loss of training: over the whole vocabulary, or over a sample, corrected for its chance.

    A token is in the sample of some positions if it is one of their targets, or among `negatives` drawn ones.
    Its logit is lessened by the log of its chance to be there (Bengio & Senécal 2008).
    """

    def __init__(
        self,
        counts: Tensor,
        positions: int,
        settings: PredictionSettings | Phase2Settings,
        draws: torch.Generator,
    ) -> None:
        """counts [V]: of the training text; positions: of a whole step."""
        size = len(counts)
        negatives = settings.negatives
        self.sampled = negatives is not None and 2 * negatives < size
        self._draws, self._size = draws, size
        self._negatives = min(negatives or 0, size)
        self._positions = even(positions, settings.sample_positions)
        frequency = (counts.double() + 0.5) / (counts.double() + 0.5).sum()
        absent = (1 - frequency) ** self._positions * (1 - self._negatives / size)
        self._log_chance = (1 - absent).log().float()

    def _draw(self, count: int) -> Iterator[Tensor]:
        for _ in range(math.ceil(count / even(count, self._positions)) if self.sampled else 0):
            yield torch.randperm(self._size, generator=self._draws)[: self._negatives]

    def skip(self, count: int) -> None:
        """Draw what a step of so many positions drew."""
        for _ in self._draw(count):
            pass

    def of_step(self, targets: Tensor) -> StepLoss:
        """The loss of a step with these targets [n]."""
        if not self.sampled:
            return lambda hidden, head, bias: whole_nll(hidden, head, bias, targets)
        parts = targets.split(even(len(targets), self._positions))
        samples = [
            torch.cat((part, drawn.to(part.device))).unique()
            for part, drawn in zip(parts, self._draw(len(targets)), strict=True)
        ]

        def loss(hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
            total = hidden.new_zeros(())
            for of_part, part, sample in zip(hidden.split(len(parts[0])), parts, samples, strict=True):
                logits = F.linear(of_part, head[sample], None if bias is None else bias[sample])
                logits = logits - self._log_chance.to(logits.device)[sample]
                total = total + F.cross_entropy(logits, torch.searchsorted(sample, part), reduction="sum")
            return total / len(targets)

        return loss


def whole_nll(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Mean NLL in nats over the whole vocabulary; some logits at a time, made again for the gradient."""

    def of_part(part: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(part, head, bias), wanted, reduction="sum")

    total = hidden.new_zeros(())
    for part, wanted in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        total = total + checkpoint(of_part, part, wanted, use_reentrant=False)
    return total / len(targets)


def linear_rate(done: int, steps: int, warm_up: int) -> float:
    """Share of the largest learning rate after `done` steps: a rise over `warm_up` steps, a fall to zero."""
    return min(1.0, (done + 1) / max(1, warm_up)) * (1 - done / steps)


@dataclass(frozen=True)
class PlainStep:
    """One optimizer step, taken plainly up to the gradient.

    gradients    of every trained parameter by name, before clipping; none of one that has none.
    done         steps made before this one.
    decay        of matrices; vectors do not decay.
    """

    loss: float
    gradients: Mapping[str, Tensor | None]
    done: int
    lr: float
    max_norm: float
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.0
    positions: Tensor | None = field(default=None)

    @property
    def gradient_norm(self) -> float:
        """Euclidean length of the whole gradient, before clipping."""
        squares = sum(float(g.double().square().sum()) for g in self.gradients.values() if g is not None)
        return math.sqrt(squares)

    def update(self, before: Tensor, moments: tuple[Tensor, Tensor] | None, gradient: Tensor) -> Tensor:
        """The weights after the step (Loshchilov & Hutter 2019), of those before and a clipped gradient."""
        gradient, (one, two) = gradient.double(), self.betas
        first, second = (torch.zeros_like(gradient),) * 2 if moments is None else moments
        first = one * first.double() + (1 - one) * gradient
        second = two * second.double() + (1 - two) * gradient.square()
        unbiased = first / (1 - one ** (self.done + 1)), second / (1 - two ** (self.done + 1))
        decayed = before.double() * (1 - self.lr * (self.decay if before.dim() > 1 else 0.0))
        return decayed - self.lr * unbiased[0] / (unbiased[1].sqrt() + EPSILON)


def gradients_of(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor | None]:
    """The gradient of a loss for each parameter by name; none where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def batches(
    own: Phase2Settings, seed: int, count: int, epochs: int
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Epoch and step, from 1, and the positions [n] of every batch on 0..count-1, as the seed draws them."""
    size, order = own.batch_positions, draws_of(seed, "phase2 order")
    block = _block_length(size)
    piece = max(1, PIECE // size) * size
    whole = count // block
    for epoch in range(1, epochs + 1):
        positions = torch.arange(count)
        if own.shuffle and -(-count // block) > piece // block:
            drawn = torch.randperm(whole, generator=order)
            blocks = [*drawn.tolist(), *([whole] if count % block else [])]
            in_piece = piece // block
            pieces = [sorted(blocks[i : i + in_piece]) for i in range(0, len(blocks), in_piece)]
            parts = [torch.cat([positions[block * b : block * (b + 1)] for b in one]) for one in pieces]
        else:
            parts = list(positions.split(piece)) if own.shuffle else [positions]
        if own.shuffle:
            parts = [part[torch.randperm(len(part), generator=order)] for part in parts]
        found = (batch for part in parts for batch in part.split(size))
        yield from (((epoch, step), batch) for step, batch in enumerate(found, start=1))


def _block_length(size: int) -> int:
    """Whole batches of at most BLOCK positions; of a larger batch its longest equal part of at most BLOCK,
    unless that is under a quarter of BLOCK."""
    if size <= BLOCK:
        return BLOCK // size * size
    part = max(length for length in range(1, BLOCK + 1) if size % length == 0)
    return part if 4 * part >= BLOCK else size
