"""The n-gram models again, plainly: an n-gram is a number, and the formulas run over sorted arrays of these.

Interpolated modified Kneser-Ney as in Chen and Goodman (1998), TR-10-98, sections 3 and 4. Shape letters:
T training tokens, n scored tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.integer[Any]]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Hashes of windows of tokens: 64 bits, so that two of 10 million collide in one text of 300,000."""
TIE = 1e-9
"""Relative difference of two probabilities whose order rounding decides."""


@dataclass(frozen=True)
class NgramScore:
    """What an n-gram model makes of a text.

    losses      [n] NLL in nats of every token but the first.
    correct     tokens that are the likeliest, at least and at most: where several are, any of them may count.
    ngrams      n-grams that the model has counted, over all orders.
    """

    losses: Floats
    correct: tuple[int, int]
    ngrams: int


def score_unigram(train: Ids, text: Ids, vocab_size: int) -> NgramScore:
    """By p(w) = (count(w) + 1) / (T + V); of the likeliest tokens the first one counts."""
    counts = np.bincount(train, minlength=vocab_size)
    losses = -np.log((counts[text[1:]] + 1) / (len(train) + vocab_size))
    correct = int((text[1:] == counts.argmax()).sum())
    return NgramScore(losses, (correct, correct), int((counts > 0).sum()))


def score_kneser_ney(train: Ids, text: Ids, vocab_size: int, order: int) -> NgramScore:
    """Each token after up to `order` - 1 tokens before it.

    p_k(w | h) = (c(hw) - D(c(hw))) / c(h.) + left(h) p_k-1(w | h'), where h' is h without its oldest token
    and left(h) is what the discounts D took. The highest order counts n-grams, all others the distinct tokens
    to the left of one. p_0 is 1 / V; where no n-gram begins with h, p_k is p_k-1.
    """
    n, ngrams = len(text) - 1, 0
    # Windows of k - 2, k - 1 and k tokens at each position; those without tokens are 0.
    older, shorter = np.zeros(len(train) + 2, np.uint64), np.zeros(len(train) + 1, np.uint64)
    grams, asked_history = _longer(shorter, train, 1), np.zeros(len(text) + 1, np.uint64)
    asked = _longer(asked_history, text, 1)
    # Of order k - 1: its n-grams with p; its histories with the largest p after them, and how many have that.
    known, p_known = np.zeros(1, np.uint64), np.full(1, 1 / vocab_size)
    histories, largest, tied = known, p_known, np.full(1, vocab_size)
    p, most, many = np.full(n, 1 / vocab_size), np.full(n, 1 / vocab_size), np.full(n, vocab_size)
    found, first, occurrences = np.unique(grams, return_index=True, return_counts=True)
    for k in range(1, order + 1):
        counts = occurrences
        if k < order:
            longer = _longer(grams, train, k + 1)
            found_longer, first_longer, more = np.unique(longer, return_index=True, return_counts=True)
            counts = np.bincount(_places(found, grams[first_longer + 1])[0], minlength=len(found))
        ngrams += int((counts > 0).sum())
        discounts = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
        # By history: one that has no count leaves all to the order below.
        begun, one, group = np.unique(shorter[first], return_index=True, return_inverse=True)
        total, left = np.bincount(group, counts), np.bincount(group, discounts)
        backoff = np.where(total > 0, left, 1.0) / np.maximum(total, 1)
        share = (counts - discounts) / np.maximum(total, 1)[group]
        p_found = share + backoff[group] * p_known[_places(known, shorter[first + 1])[0]]
        # The likeliest token is one that followed, or else the likeliest one of the order below.
        place = _places(histories, older[first[one] + 1])[0]
        above, from_below = np.zeros(len(begun)), backoff * largest[place]
        np.maximum.at(above, group, p_found)
        largest = np.maximum(above, from_below)
        tied = np.where(from_below >= (1 - TIE) * largest, tied[place], 0)
        tied += np.bincount(group[p_found >= (1 - TIE) * largest[group]], minlength=len(begun))

        start = max(1, k - 1)  # the first token that has k - 1 tokens before it and is scored
        where = slice(start - 1, n)
        history, there = _places(begun, asked_history[start - k + 1 : len(text) - k + 1])
        gram, seen = _places(found, asked[start - k + 1 :])
        new = np.where(seen, share[gram], 0.0) + backoff[history] * p[where]
        p[where] = np.where(there, new, p[where])
        most[where] = np.where(there, largest[history], most[where])
        many[where] = np.where(there, tied[history], many[where])

        if k == order or len(found_longer) == 0:  # the text has no longer n-grams
            break
        older, shorter, grams, asked_history = shorter, grams, longer, asked
        asked = _longer(asked, text, k + 1)
        known, p_known, histories = found, p_found, begun
        found, first, occurrences = found_longer, first_longer, more
    right = p >= (1 - TIE) * most
    return NgramScore(-np.log(p), (int((right & (many == 1)).sum()), int(right.sum())), ngrams)


def _longer(grams: Hashes, ids: Ids, k: int) -> Hashes:
    """Windows of k tokens at each position, from those of k - 1."""
    return grams[: max(0, len(ids) - k + 1)] * MULTIPLIER + (ids[k - 1 :].astype(np.uint64) + np.uint64(1))


def _places(known: Hashes, wanted: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where each wanted number stands among the sorted known ones, and whether it is there at all."""
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return place, known[place] == wanted


def _discounts(counts: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """What is discounts from counts of one, two, and three or more, from how many n-grams have each.

    Where these are too few to give D_i in (0, i], all are n1 / (n1 + 2 n2), or one half without n1 or n2.
    """
    n1, n2, n3, n4 = (int((counts == i).sum()) for i in (1, 2, 3, 4))
    if not (n1 and n2):
        return 0.5, 0.5, 0.5
    y = n1 / (n1 + 2 * n2)
    if n3 and n4:
        # As integers, so that rounding does not decide which are in range: 0 < i - (i + 1) y n_i+1 / n_i.
        inside = all(
            i * (n1 + 2 * n2) * now > (i + 1) * n1 * after
            for i, now, after in ((1, n1, n2), (2, n2, n3), (3, n3, n4))
        )
        if inside:
            return 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    return y, y, y
