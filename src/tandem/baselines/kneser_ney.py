"""Interpolated modified Kneser-Ney, vectorised over the stream.

Source: S. F. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling",
Harvard TR-10-98 (1998) and Computer Speech & Language 13 (1999), section 3 and equation 26.

With history h, its shorter form h' (less the oldest token) and the counts c of order k:

    p_k(w | h) = (c(hw) - D(c(hw))) / c(h.) + gamma(h) p_{k-1}(w | h')
    gamma(h)   = (D1 N1(h.) + D2 N2(h.) + D3 N3+(h.)) / c(h.)

The highest order counts occurrences; every lower one counts the distinct tokens to the left (continuation
counts). Order 1 stands on the uniform 1/V, so that every token has a positive probability. A history that
order k has not seen leaves p_{k-1} as it is.

N-grams form a trie. The id of a k-gram is its rank among the sorted keys `id of its first k-1 tokens * V +
last token`. So the continuations of one history lie side by side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from tandem.baselines.base import Ids
from tandem.metrics import Score

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Memory of the distributions held at once while scoring.
BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order k >= 2; h counts the known histories, n the n-grams of this order.

    keys        [n] int64, sorted: id of the history * V + token.
    starts      [h + 1] int64: where the continuations of each history begin in `keys`.
    share       [n] discounted count over the history's total.
    backoff     [h] weight of the lower order.
    """

    keys: Ints
    starts: Ints
    share: Floats
    backoff: Floats


@dataclass(frozen=True)
class KneserNey:
    """A fitted model; `KneserNey.fit` makes one.

    unigram    [V] float64, p_1.
    levels     orders 2 and up.
    ngrams     n-grams with a count of their own, over all orders.
    """

    vocab_size: int
    order: int
    unigram: Floats
    levels: tuple[_Level, ...]
    ngrams: int

    @classmethod
    def fit(cls, ids: Ids, vocab_size: int, order: int) -> "KneserNey":
        """Count ids [T], taken as one continuous sequence. Raises ValueError if order is below 2."""
        if order < 2:
            raise ValueError(f"a Kneser-Ney model has an order of at least 2, not {order}")
        tokens = ids.astype(np.int64)
        gram_ids = tokens  # id of the k-gram that starts at each position
        known = vocab_size
        keys: list[Ints] = []
        counts: list[Ints] = []
        for k in range(2, order + 1):
            found, first, longer = np.unique(
                gram_ids[:-1] * vocab_size + tokens[k - 1 :], return_index=True, return_inverse=True
            )
            # Every distinct k-gram is one left token of the (k-1)-gram it ends with.
            counts.append(np.bincount(gram_ids[1:][first], minlength=known))
            keys.append(found)
            gram_ids, known = longer, len(found)
        counts.append(np.bincount(gram_ids, minlength=known))
        histories = (vocab_size, *(len(found) for found in keys))
        return cls(
            vocab_size,
            order,
            _unigram(counts[0], vocab_size),
            tuple(_level(*level, vocab_size) for level in zip(keys, counts[1:], histories, strict=False)),
            sum(int(np.count_nonzero(count)) for count in counts),
        )

    def probabilities(self, histories: Ids, lengths: Ints | None = None) -> Floats:
        """p(. | history), [B, V], each row summing to one.

        histories [B, order - 1] token ids, newest last; of row b only the newest `lengths[b]` tokens
        count (none given: all), what stands before them is not read.
        """
        nodes = self._nodes(histories, lengths)
        # From the highest order down: `weight` is what the orders above leave to this one.
        weight = np.ones(len(histories))
        parts = []
        for level, node, seen in reversed(nodes):
            rows, here = np.flatnonzero(seen), node[seen]
            starts, ends = level.starts[here], level.starts[here + 1]
            parts.append((rows, starts, ends, weight[rows], level))
            weight[rows] *= level.backoff[here]
        result = weight[:, None] * self.unigram
        for rows, starts, ends, above, level in parts:
            sizes = ends - starts
            grams = np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
            # No (row, token) occurs twice within one order, so a plain += adds all of them.
            where = np.repeat(rows, sizes), level.keys[grams] % self.vocab_size
            result[where] += np.repeat(above, sizes) * level.share[grams]
        return result

    def score(self, ids: Ids) -> Score:
        """Score of ids [T], all but the first, each given all tokens before it (order - 1 at most).

        The distributions are exact. Each distinct state of the model is evaluated once, in batches of
        at most BATCH_BYTES.
        """
        targets = ids[1:].astype(np.int64)
        padded = np.concatenate((np.zeros(self.order - 2, np.int64), ids[:-1]))
        histories = np.lib.stride_tricks.sliding_window_view(padded, self.order - 1)
        lengths = np.minimum(np.arange(1, len(ids)), self.order - 1)
        losses, correct = np.empty(len(targets), np.float32), 0
        for states, positions, state in self._batches(histories, lengths):
            rows = self.probabilities(histories[states], lengths[states])
            losses[positions] = -np.log(rows[state, targets[positions]])
            correct += int((rows.argmax(axis=1)[state] == targets[positions]).sum())
        return Score.of(losses, correct)

    def _batches(self, histories: Ints, lengths: Ints) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Batches of states: a position in each state, all positions in any, and the state of each of those.

        A prediction depends on nothing but the longest known end of its history: its state.
        """
        name = np.full(len(histories), -1, np.int64)  # below all others: the state of no known history
        base = 0
        for level, node, seen in self._nodes(histories, lengths):
            name[seen] = base + node[seen]
            base += len(level.backoff)
        _, examples, state = np.unique(name, return_index=True, return_inverse=True)
        by_state = np.argsort(state, kind="stable")
        ends = np.cumsum(np.bincount(state))
        size = max(1, BATCH_BYTES // (8 * self.vocab_size))
        done = 0
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            end = int(ends[start + len(batch) - 1])
            positions = by_state[done:end]
            yield batch, positions, state[positions] - start
            done = end

    def _nodes(
        self, histories: Ids, lengths: Ints | None
    ) -> list[tuple[_Level, Ints, npt.NDArray[np.bool_]]]:
        """For orders 2 and up: the level, the id [B] of the end of each history that it reads, whether seen.

        Where it was not seen, the id means nothing.
        """
        found = []
        for k, level in enumerate(self.levels, start=2):
            newest = histories[:, self.order - k :].astype(np.int64)
            node = newest[:, 0]
            seen = np.full(len(node), True) if lengths is None else lengths >= k - 1
            for shorter, token in zip(self.levels, newest.T[1:], strict=False):
                if len(shorter.keys) == 0:
                    seen = np.zeros_like(seen)
                    break
                key = node * self.vocab_size + token
                node = np.minimum(np.searchsorted(shorter.keys, key), len(shorter.keys) - 1)
                seen = seen & (shorter.keys[node] == key)
            found.append((level, node, seen))
        return found


def discounts(counts: Ints) -> Floats:
    """D(0) = 0, D1, D2 and D3+, [4], from the counts of one order's n-grams (zeros are not n-grams).

    Y = n1 / (n1 + 2 n2), D1 = 1 - 2Y n2/n1, D2 = 2 - 3Y n3/n2, D3+ = 3 - 4Y n4/n3, with n_i n-grams of
    count i. Small texts may lack some n_i, or give a D_i outside (0, i]; one discount then serves all:
    Y where n1 and n2 are not zero, else one half. In fractions, so that rounding cannot decide which.
    """
    n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(counts, 5), minlength=5)[1:5])
    y = Fraction(n1, n1 + 2 * n2) if n1 and n2 else Fraction(1, 2)
    if n1 and n2 and n3 and n4:
        own = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 < d <= i for i, d in enumerate(own, start=1)):
            return np.array([0.0, *(float(d) for d in own)])
    return np.array([0.0, *[float(y)] * 3])


def _unigram(counts: Ints, vocab_size: int) -> Floats:
    """p_1, [V], from continuation counts [V]; uniform where there are none (a single token)."""
    total = counts.sum()
    if total == 0:
        return np.full(vocab_size, 1 / vocab_size)
    discount = discounts(counts)[np.minimum(counts, 3)]
    return (counts - discount) / total + discount.sum() / total / vocab_size


def _level(keys: Ints, counts: Ints, histories: int, vocab_size: int) -> _Level:
    """Shares and back-off weights of one order, from its n-grams' keys [n] and counts [n]."""
    history = keys // vocab_size
    discount = discounts(counts)[np.minimum(counts, 3)]
    totals = np.bincount(history, counts, minlength=histories)
    left = np.bincount(history, discount, minlength=histories)
    # A history whose n-grams all lack a left token, or that none continues, leaves all to the lower order.
    empty = totals == 0
    totals[empty] = left[empty] = 1.0
    starts = np.concatenate(([0], np.cumsum(np.bincount(history, minlength=histories))))
    return _Level(keys, starts, (counts - discount) / totals[history], left / totals)
