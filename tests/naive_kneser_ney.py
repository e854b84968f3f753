"""Interpolated modified Kneser–Ney with dictionaries, as the formulas stand: the check on the fast one.

Source: Chen and Goodman (1998), "An Empirical Study of Smoothing Techniques for Language Modeling", TR-10-98,
Harvard University, sections 3 and 4 (modified Kneser–Ney, and its discounts from counts of counts).
"""

from collections import Counter, defaultdict

Ngram = tuple[int, ...]


class NaiveKneserNey:
    """A model of order `order` of the token stream `ids`, over the tokens 0 … vocab_size − 1.

    Raises ValueError if `order` or `vocab_size` is below 1, or a token is not one of the vocabulary.
    """

    def __init__(self, ids: list[int], vocab_size: int, order: int) -> None:
        if order < 1 or vocab_size < 1:
            raise ValueError(f"order {order} and vocab_size {vocab_size} must be at least 1")
        if any(not 0 <= token < vocab_size for token in ids):
            raise ValueError(f"tokens must lie in 0 … {vocab_size - 1}")
        self.vocab_size = vocab_size
        self.order = order
        self.counts: dict[int, Counter[Ngram]] = {}
        """By order k: c(g) of every g of k tokens; raw for the highest order, N1+(•g) for the others."""
        self.followers: dict[int, dict[Ngram, dict[int, int]]] = {}
        """By order k: the history h of k − 1 tokens to its w and their c(hw)."""
        self.discounts: dict[int, tuple[float, float, float]] = {}
        """By order k: D1, D2, D3+."""
        for k in range(1, order + 1):
            self.counts[k] = Counter(windows(ids, k)) if k == order else continuation_counts(ids, k)
            self.followers[k] = defaultdict(dict)
            for ngram, count in self.counts[k].items():
                self.followers[k][ngram[:-1]][ngram[-1]] = count
            self.discounts[k] = estimate_discounts(self.counts[k])

    def probability(self, history: Ngram, token: int) -> float:
        """p(token | history).

        Of a history longer than order − 1 the last order − 1 tokens count; a shorter one starts at the order
        of its own length plus one.
        """
        history = history[max(0, len(history) - (self.order - 1)) :]
        return self._interpolated(len(history) + 1, history, token)

    def _interpolated(self, k: int, history: Ngram, token: int) -> float:
        """p_k(token | history) of k − 1 tokens of history; p_0 is uniform."""
        if k == 0:
            return 1 / self.vocab_size
        lower = self._interpolated(k - 1, history[1:], token)
        followers = self.followers[k].get(history)
        if followers is None:
            return lower
        total = sum(followers.values())
        count = followers.get(token, 0)
        once = sum(1 for c in followers.values() if c == 1)
        twice = sum(1 for c in followers.values() if c == 2)
        more = sum(1 for c in followers.values() if c >= 3)
        d1, d2, d3 = self.discounts[k]
        gamma = (d1 * once + d2 * twice + d3 * more) / total
        return max(count - self._discount(k, count), 0) / total + gamma * lower

    def _discount(self, k: int, count: int) -> float:
        """D(c) at order k: nothing is taken from nothing."""
        return 0.0 if count == 0 else self.discounts[k][min(count, 3) - 1]


def windows(ids: list[int], k: int) -> list[Ngram]:
    """All runs of k consecutive tokens, in order."""
    return [tuple(ids[start : start + k]) for start in range(len(ids) - k + 1)]


def continuation_counts(ids: list[int], k: int) -> Counter[Ngram]:
    """N1+(•g) of every g of k tokens that has a token to its left somewhere: how many distinct ones."""
    left: dict[Ngram, set[int]] = defaultdict(set)
    for window in windows(ids, k + 1):
        left[window[1:]].add(window[0])
    return Counter({ngram: len(tokens) for ngram, tokens in left.items()})


def estimate_discounts(counts: Counter[Ngram]) -> tuple[float, float, float]:
    """D1, D2 and D3+ from the counts of counts.

    Where these are too few to give D_i in (0, i], all three are n1 / (n1 + 2 n2), or 0.5 where that has no
    meaning either.
    """
    n1, n2, n3, n4 = (sum(1 for count in counts.values() if count == i) for i in (1, 2, 3, 4))
    if n1 > 0 and n2 > 0 and n3 > 0 and n4 > 0:
        y = n1 / (n1 + 2 * n2)
        d1 = 1 - 2 * y * n2 / n1
        d2 = 2 - 3 * y * n3 / n2
        d3 = 3 - 4 * y * n4 / n3
        if 0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3:
            return d1, d2, d3
    single = n1 / (n1 + 2 * n2) if n1 > 0 and n2 > 0 else 0.5
    return single, single, single
