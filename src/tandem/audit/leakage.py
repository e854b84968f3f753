"""Leakage: how much of the validation text also stands in the training text.

Compared are runs of letters and digits, white space and punctuation aside, so that it does not matter how a
language separates words or how a document was formatted. The longest such run, of 60 characters, is about
the 13 words of Brown et al. (2020), "Language Models are Few-Shot Learners", appendix C. It finds what the
comparison of whole documents in `tandem.text.splits` cannot: a document inside a longer one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tandem.text.splits import document_parts

Hashes = NDArray[np.uint64]
Integers = NDArray[np.int64]

ORDERS = (60, 45, 30, 20)
"""Characters of an n-gram: a document has those of the first order that is no longer than itself."""
CONTAINED_PERCENT = 80
"""A document is contained if at least this part of its distinct n-grams occurs in training."""
SHOWN_CHARACTERS = 60
PART_CHARACTERS = 1 << 22
"""Training text compared at once; bounds memory, changes nothing else."""
BASE = np.uint64(0x9E3779B97F4A7C15)
"""Of the polynomial hash, modulo 2^64; odd, so that it has an inverse."""
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
_NO_LETTER = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Leakage:
    """What validation shares with training; an n-gram has up to 60 characters and lies within a document.

    documents     validation documents.
    exact         of them equal to a training document, white space folded.
    contained     of them with an n-gram, and at least 80% of their distinct ones in training (exact or not).
    comparable    of them long enough to have an n-gram (20 letters or digits).
    ngram_share   share of the validation text's n-grams, repeats included, that occur in training; None: no
                  n-gram.
    first         the beginning (60 characters, white space folded) of the first one exact or contained.
    """

    documents: int
    exact: int
    contained: int
    comparable: int
    ngram_share: float | None
    first: str | None


def measure_leakage(train: Sequence[str], validation: Sequence[str]) -> Leakage:
    """Compare the documents of both splits, whole and by 64-bit hashes of their n-grams."""
    folded = [_fold(document) for document in validation]
    wanted = set(folded)
    equal = {text for text in map(_fold, train) if text in wanted}
    texts = [_letters(document) for document in validation]
    orders = [next((order for order in ORDERS if order <= len(text)), 0) for text in texts]
    tiers = [
        _Tier(order, [text if own == order else "" for text, own in zip(texts, orders, strict=True)])
        for order in sorted({*orders} - {0})
    ]
    for part in _parts(train) if tiers else ():
        letters = [_letters(document) for document in part]
        for tier in tiers:
            tier.look_in(letters)
    contained = sum((tier.contained for tier in tiers), np.zeros(len(texts), bool))
    exact = np.array([text in equal for text in folded], dtype=bool)
    leaked = np.flatnonzero(exact | contained)
    occurrences = sum(len(tier.places) for tier in tiers)
    return Leakage(
        documents=len(validation),
        exact=int(exact.sum()),
        contained=int(contained.sum()),
        comparable=sum(order > 0 for order in orders),
        ngram_share=sum(int(t.seen[t.places].sum()) for t in tiers) / occurrences if occurrences else None,
        first=folded[leaked[0]][:SHOWN_CHARACTERS] if len(leaked) else None,
    )


class _Tier:
    """The n-grams of one order of some validation documents, and which of them occur in training.

    places    [n] of each occurrence, its number among the distinct ones.
    seen      [distinct] whether it was found.
    """

    def __init__(self, order: int, texts: Sequence[str]) -> None:
        self._order, self._documents = order, len(texts)
        hashes, self._document = _ngrams(texts, order)
        self._distinct, self.places = np.unique(hashes, return_inverse=True)
        self.seen = np.zeros(len(self._distinct), dtype=bool)

    def look_in(self, texts: Sequence[str]) -> None:
        """Look for them in some training text."""
        hashes, _ = _ngrams(texts, self._order)
        place = np.minimum(np.searchsorted(self._distinct, hashes), len(self._distinct) - 1)
        self.seen[place[self._distinct[place] == hashes]] = True

    @property
    def contained(self) -> NDArray[np.bool_]:
        """Whether most of the distinct n-grams of each document were found, [documents]."""
        pairs = np.unique(self._document * len(self._distinct) + self.places)
        document, place = np.divmod(pairs, len(self._distinct))
        own = np.bincount(document, minlength=self._documents)
        found = np.bincount(document[self.seen[place]], minlength=self._documents)
        return (own > 0) & (100 * found >= CONTAINED_PERCENT * own)


def _ngrams(texts: Sequence[str], order: int) -> tuple[Hashes, Integers]:
    """A hash of every n-gram within a text, [n], and which text it is of."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    if len(codes) < order:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    # The hash of a window is the sum of code · base^place in it: a difference of two sums from the start,
    # less the power with which the window begins.
    sums = np.concatenate(([np.uint64(0)], np.cumsum((codes + np.uint64(1)) * _powers(BASE, len(codes)))))
    hashes = (sums[order:] - sums[:-order]) * _powers(INVERSE, len(codes) - order + 1)
    document = np.repeat(np.arange(len(texts)), lengths)
    within = document[: len(hashes)] == document[order - 1 :]
    return hashes[within], document[: len(hashes)][within]


def _powers(base: np.uint64, count: int) -> Hashes:
    """1, base, base², … modulo 2^64, [count]."""
    powers = np.full(count, base)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _fold(document: str) -> str:
    return " ".join(words for part in document_parts(document) if (words := " ".join(part.split())))


def _letters(document: str) -> str:
    """Its letters and digits, in lower case."""
    return _NO_LETTER.sub("", document.casefold())


def _parts(documents: Iterable[str]) -> Iterator[list[str]]:
    """`documents` in lists of about PART_CHARACTERS, at least one document each."""
    part: list[str] = []
    characters = 0
    for document in documents:
        part.append(document)
        characters += len(document)
        if characters >= PART_CHARACTERS:
            yield part
            part, characters = [], 0
    yield part
