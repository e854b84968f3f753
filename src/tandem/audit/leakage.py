"""Leakage: how much of the validation text also stands in the training text.

The measure is the overlap of 13-grams, as in Brown et al. (2020), "Language Models are Few-Shot Learners",
appendix C. It finds what the comparison of whole documents in `tandem.text.splits` cannot: a document
that was reformatted, or that stands inside a longer one.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

CONTAINED_PERCENT = 80
"""A document is contained if at least this part of its distinct n-grams occurs in training."""
SHOWN_CHARACTERS = 60
_PUNCTUATION = re.compile(r"[^\w\s]+|_+")


@dataclass(frozen=True)
class Leakage:
    """What validation shares with training; an n-gram has `order` words (13) and lies within a document.

    documents     validation documents
    exact         of them equal to a training document, white space folded
    contained     of them with an n-gram, and at least 80% of their distinct ones in training (exact or not)
    comparable    of them long enough to have an n-gram
    ngram_share   share of the validation text's n-grams (occurrences) that occur in training; None: no n-gram
    first         the beginning (60 characters, white space folded) of the first one exact or contained
    """

    documents: int
    exact: int
    contained: int
    comparable: int
    ngram_share: float | None
    first: str | None


def measure_leakage(train: Sequence[str], validation: Sequence[str], order: int = 13) -> Leakage:
    """Compare the documents of both splits, whole and by their n-grams of `order` words.

    N-grams are compared themselves, not by hashes: the figures are exact. A text written without spaces
    has few words, hence few n-grams or none (`comparable` tells).

    Raises ValueError if `order` is below 1.
    """
    if order < 1:
        raise ValueError(f"an n-gram has at least one word, not {order}")
    folded = [_fold(document) for document in validation]
    equal = _folded_in_both(train, set(folded))
    shared = _compare_ngrams(train, validation, order)
    comparable = shared.distinct > 0
    contained = comparable & (100 * shared.distinct_seen >= CONTAINED_PERCENT * shared.distinct)
    exact = np.array([text in equal for text in folded], dtype=bool)
    leaked = np.flatnonzero(exact | contained)
    return Leakage(
        documents=len(validation),
        exact=int(exact.sum()),
        contained=int(contained.sum()),
        comparable=int(comparable.sum()),
        ngram_share=shared.occurrences_seen / shared.occurrences if shared.occurrences else None,
        first=folded[leaked[0]][:SHOWN_CHARACTERS] if len(leaked) else None,
    )


def _fold(document: str) -> str:
    return " ".join(document.split())


def _folded_in_both(train: Iterable[str], wanted: set[str]) -> set[str]:
    """Those of the folded texts `wanted` that are training documents."""
    return {text for text in map(_fold, train) if text in wanted}


def _words(document: str) -> list[str]:
    """Lower-case words between white space, their punctuation and symbols taken out."""
    return _PUNCTUATION.sub("", document.lower()).split()


@dataclass(frozen=True)
class _SharedNgrams:
    """N-grams of the validation text, and those of them that occur in training."""

    occurrences: int
    occurrences_seen: int
    distinct: Integers  # [documents]
    distinct_seen: Integers  # [documents]


def _compare_ngrams(train: Sequence[str], validation: Sequence[str], order: int) -> _SharedNgrams:
    """Look every n-gram of the validation text up among those of the training text."""
    words, lengths = _number_words(chain(train, validation))
    document = np.repeat(np.arange(len(lengths)), lengths)
    names = _name_windows(words, order)
    # A window that begins and ends in one document lies within it, since documents follow one another.
    within = document[: len(names)] == document[order - 1 :]
    names, document = names[within], document[: len(within)][within]

    first = int(np.searchsorted(document, len(train)))  # the first window of the validation text
    in_training = np.zeros(int(names.max(initial=-1)) + 1, dtype=bool)
    in_training[names[:first]] = True
    names, document = names[first:], document[first:] - len(train)

    _, once = np.unique(document * len(in_training) + names, return_index=True)
    count = len(validation)
    return _SharedNgrams(
        occurrences=len(names),
        occurrences_seen=int(in_training[names].sum()),
        distinct=np.bincount(document[once], minlength=count),
        distinct_seen=np.bincount(document[once][in_training[names[once]]], minlength=count),
    )


def _number_words(documents: Iterable[str]) -> tuple[Integers, Integers]:
    """All words of all documents as numbers, equal words alike, and the number of words of each document."""
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # a new word gets the next number
    parts = [np.fromiter(map(numbers.__getitem__, _words(text)), np.int64) for text in documents]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return np.concatenate([np.empty(0, np.int64), *parts]), lengths


def _name_windows(words: Integers, order: int) -> Integers:
    """A number for each window of `order` words, the same for equal windows: [words] → [windows].

    A window of a + b words is the pair of its parts' numbers, numbered anew (as suffix arrays are built by
    doubling; Manber and Myers, 1993): 13 = 8 + 4 + 1 takes five rounds of sorting.
    """
    whole: Integers | None = None  # windows of `length` words
    length = 0
    power, width = words, 1  # windows of `width` words, a power of two
    while True:
        if order & width:
            whole = power if whole is None else _name_pairs(whole, power, length)
            length += width
        if 2 * width > order:
            assert whole is not None  # order is at least 1
            return whole
        power, width = _name_pairs(power, power, width), 2 * width


def _name_pairs(left: Integers, right: Integers, distance: int) -> Integers:
    """A number for each pair of a left window and the right window `distance` words on, where both exist."""
    right = right[distance:]
    pairs = left[: len(right)] * (int(right.max(initial=0)) + 1) + right
    return np.unique(pairs, return_inverse=True)[1]
