"""The figures, each in one place: training, evaluation, tests and report all mean the same by a name."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.contexts import Stream, previous_contexts
from tandem.cross_entropy import token_nll
from tandem.model import TandemForCausalLM

# Inside the logarithm of the effective rank, as in the program that made the seed's figures.
ENTROPY_EPS = 1e-10


def convergence_rate(before: Tensor, after: Tensor, mse: float) -> float:
    """Share of positions whose mean squared change, [T, C] to [T, C], is below `mse` (SPEC section 3)."""
    return float(((after - before).square().mean(dim=-1) < mse).double().mean())


def effective_rank(contexts: Tensor, max_positions: int | None = None) -> float:
    """exp(entropy) of the normalised singular values of contexts [T, C], as a share of C (SPEC section 3).

    Not centred. On at most `max_positions` evenly spaced positions. Roy & Vetterli, "The effective rank",
    EUSIPCO 2007. Raises ValueError if the contexts are not finite.
    """
    if max_positions is not None and len(contexts) > max_positions:
        picked = torch.linspace(0, len(contexts) - 1, max_positions, dtype=torch.float64).long()
        contexts = contexts[picked.to(contexts.device)]
    if not bool(torch.isfinite(contexts).all()):
        raise ValueError("effective rank of contexts that are not finite")
    values = torch.linalg.svdvals(contexts.cpu())
    shares = values / values.sum()
    entropy = -(shares * (shares + ENTROPY_EPS).log()).sum()
    return float(entropy.exp()) / contexts.shape[1]


@dataclass(frozen=True)
class Score:
    """What next-token prediction made of a stream of `tokens` scored tokens (all but the first).

    nll_nats     mean negative log-likelihood, nats per token
    accuracy     share of tokens that are the arg-max of their prediction
    """

    tokens: int
    nll_nats: float
    accuracy: float

    @property
    def perplexity(self) -> float:
        """exp(mean NLL), per token of the tokenizer used; infinite where it overflows."""
        return perplexity(self.nll_nats)

    def bits_per_byte(self, scored_bytes: int) -> float:
        """Total NLL in bits over the UTF-8 bytes that the scored tokens stand for."""
        return self.nll_nats * self.tokens / (math.log(2) * scored_bytes)


def perplexity(nll_nats: float) -> float:
    """exp(nll), infinite instead of an overflow error."""
    return math.exp(nll_nats) if nll_nats < 700 else math.inf


@torch.no_grad()
def score_stream(model: TandemForCausalLM, stream: Stream, contexts: Tensor, chunk_positions: int) -> Score:
    """Score every token of the stream but the first, given its contexts [T, C].

    The softmax is exact; `chunk_positions` positions at a time, which bounds memory and changes nothing
    else. Sums are taken in double precision.
    """
    scored = len(stream) - 1
    nll, correct = 0.0, 0
    for start in range(0, scored, chunk_positions):
        at = torch.arange(start, min(start + chunk_positions, scored), device=contexts.device)
        before = previous_contexts(contexts, at, stream.restart, wrap=False)
        hidden = model.token_block(before, contexts[at], model.embed(stream.ids[at]))
        targets = stream.ids[at + 1]
        losses, best = token_nll(hidden, model.embedding.weight, targets)
        nll += float(losses.cpu().double().sum())
        correct += int((best == targets).sum())
    return Score(tokens=scored, nll_nats=nll / scored, accuracy=correct / scored)
