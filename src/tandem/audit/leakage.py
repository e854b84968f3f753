"""Leakage: how much of the validation text also stands in the training text.

The measure is the overlap of 13-grams, as in Brown et al. (2020), "Language Models are Few-Shot Learners",
appendix C. It finds what the comparison of whole documents in `tandem.text.splits` cannot: a document
that was reformatted, or that stands inside a longer one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tandem.text.splits import document_parts

Integers = NDArray[np.int64]

CONTAINED_PERCENT = 80
"""A document is contained if at least this part of its distinct n-grams occurs in training."""
SHOWN_CHARACTERS = 60
PART_CHARACTERS = 1 << 22
"""Training text compared at once; bounds memory, changes nothing else."""
_PUNCTUATION = re.compile(r"[^\w\s]+|_+")


@dataclass(frozen=True)
class Leakage:
    """What validation shares with training; an n-gram has `order` words (13) and lies within a document.

    documents     validation documents.
    exact         of them equal to a training document, white space folded.
    contained     of them with an n-gram, and at least 80% of their distinct ones in training (exact or not).
    comparable    of them long enough to have an n-gram.
    ngram_share   share of the validation text's n-grams (occurrences) that occur in training; None: no n-gram
    first         the beginning (60 characters, white space folded) of the first one exact or contained.
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
    return " ".join(words for part in document_parts(document) if (words := " ".join(part.split())))


def _folded_in_both(train: Iterable[str], wanted: set[str]) -> set[str]:
    """Those of the folded texts `wanted` that are training documents."""
    return {text for text in map(_fold, train) if text in wanted}


def _words(document: str) -> Iterator[str]:
    """Lower-case words between white space, their punctuation and symbols taken out."""
    for part in document_parts(document):
        yield from _PUNCTUATION.sub("", part.lower()).split()


@dataclass(frozen=True)
class _SharedNgrams:
    """N-grams of the validation text, and those of them that occur in training."""

    occurrences: int
    occurrences_seen: int
    distinct: Integers  # [documents]
    distinct_seen: Integers  # [documents]


def _compare_ngrams(train: Iterable[str], validation: Sequence[str], order: int) -> _SharedNgrams:
    """Look for every n-gram of the validation text in the training text, which is read in parts."""
    numbers: dict[str, int] = {}
    for text in validation:
        for word in _words(text):
            numbers.setdefault(word, len(numbers))
    words, lengths = _numbered(validation, numbers)
    windows = _Windows(words, order)
    names, document = _within(windows.names, lengths, order)

    in_training = np.zeros(int(windows.names.max(initial=-1)) + 1, dtype=bool)
    for part in _parts(train):
        read, read_lengths = _numbered(part, numbers)
        found, _ = _within(windows.find(read), read_lengths, order)
        in_training[found[found >= 0]] = True

    _, once = np.unique(document * len(in_training) + names, return_index=True)
    count = len(validation)
    return _SharedNgrams(
        occurrences=len(names),
        occurrences_seen=int(in_training[names].sum()),
        distinct=np.bincount(document[once], minlength=count),
        distinct_seen=np.bincount(document[once][in_training[names[once]]], minlength=count),
    )


def _parts(documents: Iterable[str]) -> Iterator[list[str]]:
    """`documents` in lists of about PART_CHARACTERS, at least one document each."""
    part, characters = [], 0
    for document in documents:
        part.append(document)
        characters += len(document)
        if characters >= PART_CHARACTERS:
            yield part
            part, characters = [], 0
    yield part


def _numbered(documents: Sequence[str], numbers: Mapping[str, int]) -> tuple[Integers, Integers]:
    """All words of all documents as numbers (-1: without one), and how many words each document has."""
    parts = [np.fromiter((numbers.get(word, -1) for word in _words(text)), np.int64) for text in documents]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return np.concatenate([np.empty(0, np.int64), *parts]), lengths


def _within(names: Integers, lengths: Integers, order: int) -> tuple[Integers, Integers]:
    """Those windows of documents that follow on each other which lie within one, and the document of each."""
    document = np.repeat(np.arange(len(lengths)), lengths)
    # A window that begins and ends in one document lies within it.
    within = document[: len(names)] == document[order - 1 :]
    return names[within], document[: len(within)][within]


class _Windows:
    """A number for each window of `order` words of a text, the same for equal windows: [words] → [windows].

    A window of a + b words is the pair of its parts' numbers, numbered anew (as suffix arrays are built by
    doubling; Manber and Myers, 1993): 13 = 8 + 4 + 1 takes five rounds of sorting. Windows of other texts
    are then looked up, round by round, among the pairs that there were.
    """

    def __init__(self, words: Integers, order: int) -> None:
        self._order = order
        self._rounds: list[tuple[int, Integers]] = []  # how pairs were made one number, and those there are
        self.names = self._of(words, self._learn)

    def find(self, words: Integers) -> Integers:
        """Numbers of the windows of another text; -1 for those that this one does not have."""
        rounds = iter(self._rounds)

        def look_up(left: Integers, right: Integers) -> Integers:
            base, there = next(rounds)
            if len(there) == 0:
                return np.full(len(right), -1)
            pairs = left * base + right
            place = np.minimum(np.searchsorted(there, pairs), len(there) - 1)
            known = (left >= 0) & (right >= 0) & (right < base) & (there[place] == pairs)
            return np.where(known, place, -1)

        return self._of(words, look_up)

    def _learn(self, left: Integers, right: Integers) -> Integers:
        base = int(right.max(initial=0)) + 1
        there, names = np.unique(left * base + right, return_inverse=True)
        self._rounds.append((base, there))
        return names

    def _of(self, words: Integers, name: Callable[[Integers, Integers], Integers]) -> Integers:
        """`name` gives numbers to pairs of a left window and the right window that follows it."""

        def pairs(left: Integers, right: Integers, distance: int) -> Integers:
            right = right[distance:]
            return name(left[: len(right)], right)

        whole: Integers | None = None  # windows of `length` words
        length = 0
        power, width = words, 1  # windows of `width` words, a power of two
        while True:
            if self._order & width:
                whole = power if whole is None else pairs(whole, power, length)
                length += width
            if 2 * width > self._order:
                assert whole is not None  # order is at least 1
                return whole
            power, width = pairs(power, power, width), 2 * width
