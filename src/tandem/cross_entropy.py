"""Next-token cross entropy: over the whole vocabulary without ever holding all logits, or over a sample.

Shape letters: n positions, V vocabulary, E embed_dim, K tokens in a sampled softmax.

torch's own chunked `linear_cross_entropy` chooses very small chunks on large vocabularies and accumulates
bf16 in bf16; here the chunk is explicit and the reduction is in (at least) fp32.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.settings import Phase2Settings, PredictionSettings


def token_nll(
    hidden: Tensor, head: Tensor, targets: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """NLL in nats and arg-max token, both [n], of hidden [n, E], head [V, E], bias [V] and targets [n]."""
    logits = _logits(hidden, head, bias)
    best = logits.argmax(dim=-1)
    picked = logits.gather(-1, targets[:, None])[:, 0]
    return logits.logsumexp(dim=-1) - picked, best


Head = Tensor | Callable[[Tensor], Tensor]
"""Of a softmax: its matrix [V, E], or what makes logits [n, V] of hidden [n, E], bias included."""

INT8_POSITIONS = 64
"""Positions whose logits from 8-bit weights are read at once: they should stay in a CPU's cache."""


def nll_and_hits(
    hidden: Tensor, head: Head, targets: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """NLL in nats and whether the target is the arg-max, both [n], of hidden [n, E] and targets [n].

    Of a head that is no matrix, a target that ties for the largest logit is an arg-max. Logits are reduced in
    (at least) fp32.
    """
    if isinstance(head, Tensor):
        nll, best = token_nll(hidden, head, targets, bias)
        return nll, best == targets
    losses, hits = [], []
    for part, wanted in zip(hidden.split(INT8_POSITIONS), targets.split(INT8_POSITIONS), strict=True):
        logits = head(part).float()
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        hits.append(logits.gather(-1, wanted[:, None])[:, 0] == logits.amax(dim=-1))  # faster than arg-max
    return torch.cat(losses), torch.cat(hits)


def mean_nll(
    hidden: Tensor, head: Tensor, targets: Tensor, chunk_positions: int, bias: Tensor | None = None
) -> Tensor:
    """Mean NLL in nats, a scalar with gradient for `hidden`, and for `head` and `bias` if they need one.

    hidden [n, E], head [V, E], bias [V], targets [n]; logits of `chunk_positions` positions are held at
    once. The gradient is computed with the loss, since the logits are gone afterwards.
    """
    return _MeanNll.apply(hidden, head, bias, targets, chunk_positions)


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """hidden · headᵀ + bias, [n, V], in at least fp32; `out` is memory for the product."""
    logits = torch.mm(hidden, head.t(), out=out)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return logits if bias is None else logits.add_(bias)


class _MeanNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, chunk: int
    ) -> Tensor:
        need_hidden, need_head, need_bias = ctx.needs_input_grad[:3]
        count = len(hidden)
        hidden_grad = torch.empty_like(hidden) if need_hidden else None
        head_grad = torch.zeros_like(head) if need_head else None
        if torch.is_autocast_enabled(hidden.device.type):  # which leaves products into a buffer as they are
            half = torch.get_autocast_dtype(hidden.device.type)
            hidden, head = hidden.to(half), head.to(half)
        bias_grad = torch.zeros_like(bias) if bias is not None and need_bias else None
        # One buffer for all chunks: large tensors come fresh from the system, page by page, each time.
        buffer = hidden.new_empty(min(chunk, count), len(head))
        parts = []
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            logits = _logits(hidden[part], head, bias, out=buffer[: part.stop - part.start])
            rows = torch.arange(len(logits), device=logits.device)
            # In place from here on: logits become exp(logits - max), then the gradient of the mean NLL.
            shift = logits.amax(dim=-1, keepdim=True)
            picked = logits[rows, targets[part]] - shift[:, 0]
            total = logits.sub_(shift).exp_().sum(dim=-1)
            parts.append((total.log() - picked).sum())
            if need_hidden or need_head or need_bias:
                logits.mul_((1.0 / (total * count))[:, None])
                logits[rows, targets[part]] -= 1.0 / count
                gradient = logits.to(head.dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = gradient @ head
                if head_grad is not None:
                    if head.dtype == head_grad.dtype:
                        head_grad.addmm_(gradient.t(), hidden[part])
                    else:  # parts of a half-precision gradient are added up in full precision
                        head_grad += gradient.t() @ hidden[part]
                if bias_grad is not None:
                    bias_grad += gradient.sum(dim=0)
        ctx.gradients = (hidden_grad, head_grad, bias_grad)
        return torch.stack(parts).sum() / count

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if gradient is None else gradient * upstream[0] for gradient in ctx.gradients)
        return *scaled, None, None


SAMPLE_STEP = 128
"""Samples are filled up to a multiple of so many tokens: oneDNN keeps what it compiles for each size, amid
the memory of a step, which then cannot be used again (LOG.md)."""


class SampledSoftmax:
    """Cross entropy over some positions' own targets and tokens drawn beside them, for training only.

    A token is in a sample if it is a target of any of the positions that share it, or among `negatives`
    tokens drawn uniformly. Logits are corrected by the log of its chance to be in the sample, which follows
    from the frequencies of the training text. So the sum over the sample estimates the sum over the
    vocabulary (Bengio & Senécal 2008, "Adaptive importance sampling"; Jean et al. 2015, arXiv:1412.2007). It
    takes one product of n × K instead of n × V.
    """

    def __init__(self, counts: Tensor, positions: int, negatives: int, generator: torch.Generator) -> None:
        """counts [V]: occurrences in the training text; positions: at most so many share a sample; negatives:
        in each."""
        self.vocab_size = len(counts)
        self.negatives = min(negatives, self.vocab_size)
        self._positions = positions
        self._generator = generator
        # Half an occurrence for what never occurs: it can still be drawn.
        share = (counts.double() + 0.5) / (counts.double() + 0.5).sum()
        no_target = (1 - share) ** self._positions
        self._log_chance = (1 - no_target * (1 - self.negatives / self.vocab_size)).log().float()

    def of_step(self, targets: Tensor) -> "Loss":
        """The loss of a step with these targets [n], or of some of its positions: samples are the step's."""
        size = _even(len(targets), self._positions)  # the last step of an epoch may be shorter
        parts = targets.split(size)
        drawn = [torch.randperm(self.vocab_size, generator=self._generator)[: self.negatives] for _ in parts]

        @cache  # several heads ask, and no process for all parts
        def sample_of(part: int) -> tuple[Tensor, Tensor]:
            sample = torch.unique(torch.cat((parts[part], drawn[part].to(targets.device))))
            log_chance = self._log_chance.to(targets.device)[sample]
            more = -len(sample) % SAMPLE_STEP  # the last token again, which has no share in the sum
            return F.pad(sample, (0, more), value=int(sample[-1])), F.pad(
                log_chance, (0, more), value=math.inf
            )

        def loss(hidden: Tensor, head: Tensor, bias: Tensor | None, positions: slice) -> Tensor:
            first, last = positions.start, positions.stop
            edges = [first, *range((first // size + 1) * size, last, size), last]
            samples = [sample_of(edge // size) for edge in edges[:-1]]
            # One gather, as each makes a gradient of the head's size.
            rows = F.embedding(torch.cat([sample for sample, _ in samples]), head)
            total: Any = 0.0
            for (start, stop), (sample, log_chance), own in zip(
                pairwise(edges), samples, rows.split([len(sample) for sample, _ in samples]), strict=True
            ):
                logits = hidden[start - first : stop - first] @ own.t() - log_chance
                if bias is not None:
                    logits = logits + bias[sample]
                ranks = torch.searchsorted(sample, targets[start:stop])
                total = total + F.cross_entropy(logits.float(), ranks, reduction="sum")
            return total / (last - first)

        return loss


Loss = Callable[[Tensor, Tensor, Tensor | None, slice], Tensor]
"""hidden [n, E], head [V, E], bias [V] or none, which n of the step's positions → mean NLL in nats, a scalar
with gradients."""

StepLoss = Callable[[Tensor], Loss]
"""All targets of a step, one a position → the loss of it, or of some of its positions."""


def training_loss(
    counts: Tensor,
    positions: int,
    settings: PredictionSettings | Phase2Settings,
    generator: torch.Generator,
    chunk_positions: int,
) -> StepLoss:
    """The loss of training steps of so many positions: sampled, or over the whole vocabulary in chunks.

    Where the sample would hold most of the vocabulary, the whole of it is as cheap. Other arguments as of
    SampledSoftmax and `mean_nll`.
    """
    negatives = settings.negatives
    if negatives is None or 2 * negatives >= len(counts):
        return partial(whole_softmax, chunk_positions)
    return SampledSoftmax(counts, _even(positions, settings.sample_positions), negatives, generator).of_step


def _even(count: int, most: int) -> int:
    """How long parts of `count` are, at most `most` and as few as can be, so that they are alike."""
    return math.ceil(count / math.ceil(count / most))


def whole_softmax(chunk_positions: int, targets: Tensor) -> Loss:
    """`mean_nll` with its chunks, of a step with these targets."""
    return lambda hidden, head, bias, positions: mean_nll(
        hidden, head, targets[positions], chunk_positions, bias
    )
