"""A model mixed with two things that a context of fixed size cannot hold: counts, and the last words read.

    p(w | t) = l_1 p_model(w | t) + l_2 p_ngram(w | t) + l_3 p_cache(w | t) + …

n-gram      Interpolated modified Kneser-Ney, counted on the model's training text (`KneserNey`).
cache       Grave, Joulin & Usunier 2016, arXiv:1612.04426. There is one for each sharpness s. p_cache(w | t)
            is in proportion to the sum of exp(s cos(h_t, h_i)) over those of the last N tokens x_{i+1} that
            are w. h is the hidden vector that the softmax reads.
weights l   From the text read so far alone. Nothing is tuned. Each is a running mean of the share that its
            part had in what came. This is online EM (Cappé & Moulines 2009, J. R. Statist. Soc. B 71).

Shape letters: T tokens, E embed_dim, n positions, K parts of the mixture.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.contexts import Tokens

CACHE_TOKENS = 2000
"""N: how many of the tokens read last the cache holds."""
SHARPNESSES = (4.0, 12.0)
MODEL_AT_START = 0.8
"""Weight of the model before the first token; the others share the rest."""
MEAN_OVER = 500
"""Tokens over which the weights' running mean goes."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MixtureScore:
    """What a mixture makes of a text.

    losses      [T - 1] NLL in nats of all tokens but the first.
    weights     Mean weight of each part.
    """

    losses: Floats
    weights: tuple[float, ...]

    @property
    def nll_nats(self) -> float:
        """Mean over the tokens."""
        return float(self.losses.mean())


def mix(parts: Floats) -> MixtureScore:
    """Mix the probabilities that K parts gave to each token that came, [T - 1, K].

    The first part is the model. Weights before a token depend on earlier tokens only. Raises ValueError where
    no part gives a token any probability.
    """
    count = parts.shape[1]
    weights = np.full(count, (1 - MODEL_AT_START) / max(1, count - 1))
    weights[0] = 1 - weights[1:].sum()
    losses, total = np.empty(len(parts)), np.zeros(count)
    for t, probabilities in enumerate(parts):
        total += weights
        shares = weights * probabilities
        probability = shares.sum()
        if not probability > 0:
            raise ValueError(f"no part of the mixture gives token {t + 1} any probability")
        losses[t] = -math.log(probability)
        weights += (shares / probability - weights) / MEAN_OVER
    return MixtureScore(losses, tuple(float(w) for w in total / max(1, len(parts))))


@torch.no_grad()
def cache_probabilities(hidden: Iterator[Tensor], ids: Tensor | Tokens, size: int = CACHE_TOKENS) -> Floats:
    """What the caches give to each token of ids [T] but the first, [T - 1, len(SHARPNESSES)].

    hidden: [n, E] in parts that follow on each other. Row t has read tokens 0..t. For token t + 1 the cache
    holds what came after rows max(0, t - size)..t - 1. For the very first one there is nothing, so zero.
    """
    result = np.zeros((len(ids) - 1, len(SHARPNESSES)))
    keys = torch.empty(0)
    done = 0
    for part in hidden:
        queries = F.normalize(part.float(), dim=-1)
        keys = torch.cat((keys.to(queries)[-size:], queries))
        first = done + len(part) - len(keys)  # the position of the first key
        of_keys = torch.arange(first, done + len(part), device=ids.device)
        positions = torch.arange(done, done + len(part), device=ids.device)[:, None]
        seen = (of_keys < positions) & (of_keys >= positions - size)
        same = ids[of_keys + 1] == ids[positions + 1]
        cosines = queries @ keys.t()
        for column, sharpness in enumerate(SHARPNESSES):
            # Cosines are at most 1, so this cannot overflow.
            share = (sharpness * (cosines - 1)).exp() * seen
            mass = (share * same).sum(dim=-1) / share.sum(dim=-1).clamp(min=1e-30)
            result[done : done + len(part), column] = mass.double().cpu().numpy()
        done += len(part)
    return result
