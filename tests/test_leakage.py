"""Leakage: figures equal to those of plain sets of tuples, and the cases that matter by themselves."""

import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.audit.leakage import Leakage, measure_leakage


def naive_leakage(train: list[str], validation: list[str], order: int) -> Leakage:
    """The same, n-gram by n-gram."""

    def ngrams(document: str) -> list[tuple[str, ...]]:
        words = ["".join(c for c in word.lower() if c not in string.punctuation) for word in document.split()]
        words = [word for word in words if word]
        return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]

    seen = {ngram for document in train for ngram in ngrams(document)}
    whole = [document.split() for document in train]
    exact = [document.split() in whole for document in validation]
    found = [ngrams(document) for document in validation]
    contained = [bool(own) and 5 * len(set(own) & seen) >= 4 * len(set(own)) for own in found]
    occurrences = [ngram in seen for own in found for ngram in own]
    leaked = [d for d, same, inside in zip(validation, exact, contained, strict=True) if same or inside]
    return Leakage(
        documents=len(validation),
        exact=sum(exact),
        contained=sum(contained),
        comparable=sum(bool(own) for own in found),
        ngram_share=sum(occurrences) / len(occurrences) if occurrences else None,
        first=" ".join(leaked[0].split())[:60] if leaked else None,
    )


def numbered(first: int, last: int) -> str:
    """A text of distinct words."""
    return " ".join(f"word{number}" for number in range(first, last))


texts = st.lists(st.sampled_from(["a", "b", "B,", "c", "--", "c_c", "\n"]), max_size=25).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, max_size=5), st.lists(texts, max_size=5), st.integers(1, 14))
def test_equals_sets_of_tuples(train, validation, order):
    assert measure_leakage(train, validation, order) == naive_leakage(train, validation, order)


def test_equals_sets_of_tuples_on_long_documents():
    generator = np.random.default_rng(0)
    train = [" ".join(map(str, generator.integers(0, 2, length))) for length in (0, 12, 13, 900, 3000)]
    validation = [" ".join(map(str, generator.integers(0, 2, length))) for length in (700, 12, 13, 50)]
    validation[0] += " 2 " + train[3][:400]
    found = measure_leakage(train, validation)
    assert found == naive_leakage(train, validation, 13)
    assert 0.2 < found.ngram_share < 0.9


def test_nothing_to_compare():
    nothing = Leakage(documents=0, exact=0, contained=0, comparable=0, ngram_share=None, first=None)
    assert measure_leakage([], []) == nothing
    assert measure_leakage([numbered(0, 50)], []) == nothing
    alone = measure_leakage([], [numbered(0, 50)])
    assert alone == Leakage(documents=1, exact=0, contained=0, comparable=1, ngram_share=0.0, first=None)


def test_documents_too_short_to_have_an_ngram():
    train = [numbered(0, 100)]
    found = measure_leakage(train, [numbered(0, 12), "", "--- ---"])
    assert found == Leakage(documents=3, exact=0, contained=0, comparable=0, ngram_share=None, first=None)
    just = measure_leakage(train, [numbered(0, 13), numbered(200, 212)])
    assert just == Leakage(
        documents=2, exact=0, contained=1, comparable=1, ngram_share=1.0, first=numbered(0, 13)[:60]
    )


def test_document_inside_a_longer_training_document():
    inside = numbered(0, 200)
    train = [numbered(500, 900), f"{numbered(300, 400)}\n{inside}\n{numbered(400, 500)}"]
    found = measure_leakage(train, [numbered(1000, 1100), inside.replace(" ", ",\n").upper()])
    assert (found.documents, found.exact, found.contained, found.comparable) == (2, 0, 1, 2)
    assert found.ngram_share == 188 / (188 + 88)
    assert found.first.startswith("WORD0, WORD1, ")
    assert len(found.first) == 60


def test_exact_duplicate_with_other_white_space():
    train = ["Yes,   please.\n\nThank you."]
    found = measure_leakage(train, ["No.", " Yes, please. Thank\tyou.\n", "Yes please thank you"])
    assert (found.exact, found.contained, found.comparable) == (1, 0, 0)
    assert found.first == "Yes, please. Thank you."


@pytest.mark.parametrize(("kept", "contained"), [(92, 1), (91, 0)])
def test_contained_from_80_percent_of_distinct_ngrams(kept, contained):
    # 112 words have 100 13-grams; the first 92 words have 80 of them.
    found = measure_leakage([numbered(0, kept)], [numbered(0, 112)])
    assert found.ngram_share == (kept - 12) / 100
    assert found.contained == contained


def test_repetitions_count_as_occurrences_but_not_as_distinct():
    phrase = numbered(0, 13)
    found = measure_leakage([phrase], [f"{phrase} {phrase} {phrase}"])
    assert found.ngram_share == 3 / 27
    assert found.contained == 0  # one of 13 distinct n-grams


def test_no_ngram_crosses_a_border():
    halves = [numbered(0, 10), numbered(10, 20)]
    assert measure_leakage(halves, [numbered(0, 20)]).ngram_share == 0.0
    assert measure_leakage([numbered(0, 20)], halves).ngram_share is None


def test_impossible_order():
    with pytest.raises(ValueError, match="at least one word"):
        measure_leakage([], [], 0)
