"""The figures, each in one place: training, evaluation, tests and report all mean the same by a name."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tandem.contexts import PIECE_TOKENS, Contexts, Stream, Tokens
from tandem.cross_entropy import Head, nll_and_hits
from tandem.group import ALONE, Group
from tandem.model import TandemForCausalLM, TokenBlock, average
from tandem.records import DocumentScores, ValidationRecord
from tandem.records import perplexity as perplexity
from tandem.stopping import stop_between_parts
from tandem.tokens.store import TokenStream

# Inside the logarithm of the effective rank, as in the program that made the original's figures.
ENTROPY_EPS = 1e-10


def convergence_rate(before: Tensor, after: Tensor, mse: float) -> float:
    """Share of positions whose mean squared change, [T, C] to [T, C], is below `mse` (SPEC section 3)."""
    pieces = zip(before.split(PIECE_TOKENS), after.split(PIECE_TOKENS), strict=True)
    still = sum(((new - old).square().mean(dim=-1) < mse).sum() for old, new in pieces)
    return int(still) / len(before)


def effective_rank(contexts: Tensor | Contexts, max_positions: int | None = None) -> float:
    """exp(entropy) of the normalised singular values of contexts [T, C], as a share of C (SPEC section 3).

    Not centred. On at most `max_positions` evenly spaced positions. Roy & Vetterli, "The effective rank",
    EUSIPCO 2007. Contexts that are all zero have rank 0. Raises ValueError if they are not finite.
    """
    store = Contexts.of(contexts) if isinstance(contexts, Tensor) else contexts
    count = len(store) if max_positions is None else min(len(store), max_positions)
    contexts = store.at(torch.linspace(0, len(store) - 1, count, dtype=torch.float64).long())
    if not bool(torch.isfinite(contexts).all()):
        raise ValueError("effective rank of contexts that are not finite")
    if not bool(contexts.any()):
        return 0.0
    values = torch.linalg.svdvals(contexts.cpu())
    shares = values / values.sum()
    entropy = -(shares * (shares + ENTROPY_EPS).log()).sum()
    return float(entropy.exp()) / contexts.shape[1]


@dataclass(frozen=True)
class Score:
    """What next-token prediction made of a stream of `tokens` scored tokens (all but the first).

    nll_nats     mean negative log-likelihood, nats per token.
    accuracy     share of tokens that are the arg-max of their prediction.
    losses       [tokens] NLL of each in nats.
    """

    tokens: int
    nll_nats: float
    accuracy: float
    losses: npt.NDArray[np.floating] = field(repr=False, compare=False)

    @classmethod
    def of(cls, losses: npt.NDArray[np.floating], correct: int) -> "Score":
        """The score of tokens with these losses, `correct` of which were the likeliest ones."""
        return cls(len(losses), float(losses.mean(dtype=np.float64)), correct / len(losses), losses)

    @property
    def perplexity(self) -> float:
        """exp(mean NLL), per token of the tokenizer used; infinite where it overflows."""
        return perplexity(self.nll_nats)

    def bits_per_byte(self, stream: TokenStream) -> float:
        """As of the function of this name, for the stream that was scored."""
        return bits_per_byte(self.nll_nats * self.tokens, stream)


def bits_per_byte(nll_nats: float, stream: TokenStream) -> float:
    """What the text of a stream costs by the total NLL of its scored tokens, in bits per UTF-8 byte.

    Bytes that the tokens cannot give back cost 8 bits each, as the likelihood of the tokens leaves them out.
    """
    return (nll_nats / math.log(2) + 8 * stream.lost.bytes) / stream.scored_bytes


@torch.no_grad()
def score_stream(
    model: TandemForCausalLM,
    stream: Stream,
    contexts: Contexts,
    chunk_positions: int,
    token_block: TokenBlock | None = None,
    group: Group = ALONE,
) -> Score:
    """Score every token of the stream but the first, given its contexts.

    By the model's own TokenBlock, or by another one that reads the same contexts; each process of `group`
    scores its share, and all have the whole score.

    The softmax is exact; `chunk_positions` positions at a time, which bounds memory and changes nothing
    else. Sums are taken in double precision.
    """
    share = group.share(len(stream) - 1)
    hidden = hidden_parts(model, stream, contexts, chunk_positions, token_block, share)
    head = model.lm_head
    matrix = (head, None) if model.config.int8 else (head.weight, head.bias)
    losses, correct = score_parts(hidden, matrix[0], stream.ids, share, matrix[1])
    if group.size > 1:
        losses = group.joined(losses.to(model.device), len(stream) - 1).cpu()
        correct = int(group.total(torch.tensor(correct, device=model.device)))
    return Score.of(losses.numpy(), correct)


@torch.no_grad()
def score_average(
    members: Sequence[TandemForCausalLM],
    stream: Stream,
    contexts: Sequence[Contexts],
    chunk_positions: int,
) -> Score:
    """As `score_stream`, by the average of several models' probabilities, each with its own contexts."""
    if len(members) == 1:
        return score_stream(members[0], stream, contexts[0], chunk_positions)
    pairs = zip(members, contexts, strict=True)
    hidden = [hidden_parts(member, stream, own, chunk_positions) for member, own in pairs]
    widths = [member.config.embed_dim for member in members]

    def head(joined: Tensor) -> Tensor:
        parts = joined.split(widths, dim=-1)
        return average([member.lm_head(own) for member, own in zip(members, parts, strict=True)])

    side_by_side = (torch.cat(parts, dim=-1) for parts in zip(*hidden, strict=True))
    losses, correct = score_parts(side_by_side, head, stream.ids, slice(0, len(stream) - 1))
    return Score.of(losses.numpy(), correct)


def score_parts(
    parts: Iterable[Tensor], head: Head, ids: Tensor | Tokens, share: slice, bias: Tensor | None = None
) -> tuple[Tensor, int]:
    """NLL in nats of each prediction at the positions of `share`, [n] float64 on the CPU, and how many hit.

    `parts` are hidden [·, E] that follow on each other; that of position t predicts ids[t + 1]. A prediction
    hits where the token is its arg-max.
    """
    losses, correct, done = torch.empty(share.stop - share.start, dtype=torch.float64), 0, share.start
    for hidden in parts:
        stop_between_parts()
        targets = ids[done + 1 : done + 1 + len(hidden)]
        nll, hits = nll_and_hits(hidden, head, targets, bias)
        losses[done - share.start : done - share.start + len(hidden)] = nll.cpu()
        correct += int(hits.sum())
        done += len(hidden)
    assert done == share.stop
    return losses, correct


def hidden_parts(
    model: TandemForCausalLM,
    stream: Stream,
    contexts: Contexts,
    chunk_positions: int,
    token_block: TokenBlock | None = None,
    share: slice | None = None,
) -> Iterator[Tensor]:
    """What the softmax reads, [n, E] in parts that follow on each other, for all tokens but the last.

    Arguments as of `score_stream`; with `share` for these positions only. Gradients are those of the
    TokenBlock, where they are enabled; it may be changed between two parts.
    """
    token_block = model.token_block if token_block is None else token_block
    share = slice(0, len(stream) - 1) if share is None else share
    for first in range(share.start, share.stop, PIECE_TOKENS):
        last = min(first + PIECE_TOKENS, share.stop)
        window = contexts.window(first, last)
        for positions in torch.arange(first, last, device=stream.ids.device).split(chunk_positions):
            with torch.no_grad():
                before, after = window.before_and_after(positions, stream.resets)
                embeds = model.embed(stream.ids[positions])
            yield token_block(before, after, embeds)


def validation_record(score: Score, tokens: TokenStream) -> ValidationRecord:
    """The score of a validation stream as records keep it, summed by document."""
    return ValidationRecord(
        tokens=score.tokens,
        nll_nats=score.nll_nats,
        perplexity=score.perplexity,
        accuracy=score.accuracy,
        bits_per_byte=score.bits_per_byte(tokens),
        documents=DocumentScores.pack(*by_document(score.losses, tokens.document_starts)),
    )


def by_document(
    losses: npt.NDArray[np.floating], document_starts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Scored tokens and summed losses of each document, [D], from losses [T−1] of tokens 1 to T−1."""
    positions = np.arange(1, len(losses) + 1)
    document = np.searchsorted(document_starts, positions, side="right") - 1
    count = len(document_starts)
    return np.bincount(document, minlength=count), np.bincount(document, losses, minlength=count).astype(
        np.float64
    )
