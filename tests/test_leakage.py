"""Leakage: figures equal to those of plain sets of strings, and the cases that matter by themselves."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.audit import leakage
from tandem.audit.leakage import ORDERS, Leakage, measure_leakage


def letters(document: str) -> str:
    return "".join(c for c in document.casefold() if c.isalnum())


def naive_leakage(train: list[str], validation: list[str], orders: tuple[int, ...]) -> Leakage:
    """The same, n-gram by n-gram."""
    found = []
    for document in map(letters, validation):
        order = next((order for order in orders if order <= len(document)), 0)
        starts = range(len(document) - order + 1) if order else ()
        found.append([document[start : start + order] for start in starts])
    whole = [document.split() for document in train]
    seen = {ngram for own in found for ngram in own if any(ngram in letters(document) for document in train)}
    exact = [document.split() in whole for document in validation]
    contained = [bool(own) and 5 * len({*own} & seen) >= 4 * len({*own}) for own in found]
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


texts = st.lists(st.sampled_from(["a", "b", "B,", "文", "--", "cc", "\n"]), max_size=25).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(texts, max_size=5), st.lists(texts, max_size=5))
def test_equals_sets_of_strings(train, validation):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leakage, "ORDERS", (7, 4, 2))
        patch.setattr(leakage, "PART_CHARACTERS", 20)
        assert measure_leakage(train, validation) == naive_leakage(train, validation, (7, 4, 2))


def test_equals_sets_of_strings_on_long_documents():
    draws = random.Random(0)
    train = ["".join(draws.choices("0123456789", k=length)) for length in (0, 59, 60, 900, 3000)]
    validation = ["".join(draws.choices("0123456789", k=length)) for length in (700, 12, 60, 50)]
    validation[0] += " x " + train[3][:400]
    found = measure_leakage(train, validation)
    assert found == naive_leakage(train, validation, ORDERS)
    assert 0.2 < found.ngram_share < 0.9


def test_nothing_to_compare():
    nothing = Leakage(documents=0, exact=0, contained=0, comparable=0, ngram_share=None, first=None)
    assert measure_leakage([], []) == nothing
    assert measure_leakage([numbered(0, 50)], []) == nothing
    alone = measure_leakage([], [numbered(0, 50)])
    assert alone == Leakage(documents=1, exact=0, contained=0, comparable=1, ngram_share=0.0, first=None)
    short = measure_leakage([numbered(0, 50)], ["", "--- ---", "word1 word2"])
    assert short == Leakage(documents=3, exact=0, contained=0, comparable=0, ngram_share=None, first=None)


def test_document_inside_a_longer_training_document():
    inside = numbered(0, 200)
    train = [numbered(500, 900), f"{numbered(300, 400)}\n{inside}\n{numbered(400, 500)}"]
    found = measure_leakage(train, [numbered(1000, 1100), inside.replace(" ", ",\n").upper()])
    assert (found.documents, found.exact, found.contained, found.comparable) == (2, 0, 1, 2)
    assert found.first.startswith("WORD0, WORD1, ")
    assert len(found.first) == 60


def test_a_language_without_spaces_and_a_short_document():
    """Words would be of no use here: a sentence is one, and has fewer than thirteen."""
    text = (
        "文脈ブロックは読んだものをすべて一つのベクトルに畳み込み、"
        "トークンブロックがそれを次の語の予測に変える。"
    )
    found = measure_leakage(
        [f"はじめに。{text}おわり。", "別の文章"], [text.replace("、", "，"), "無関係な文" * 9]
    )
    assert (found.contained, found.comparable) == (1, 2)
    short = measure_leakage(
        ["He said: thank you, that is very kind of you! And left."],
        ["Thank you; that is very kind of you.", "Thank you, this is not very kind of you."],
    )
    assert (short.contained, short.comparable) == (1, 2)


def test_exact_duplicate_with_other_white_space():
    train = ["Yes,   please.\n\nThank you."]
    found = measure_leakage(train, ["No.", " Yes, please. Thank\tyou.\n", "Yes please thank you"])
    assert (found.exact, found.contained, found.comparable) == (1, 0, 0)
    assert found.first == "Yes, please. Thank you."


def digits(count: int) -> str:
    """Of no window of which there is another one."""
    return "".join(random.Random(1).choices("0123456789abcdefghij", k=count))


@pytest.mark.parametrize(("length", "contained"), [(139, 1), (138, 0)])
def test_contained_from_80_percent_of_distinct_ngrams(length, contained):
    # 159 characters have 100 n-grams; the first 139 characters have 80 of them.
    found = measure_leakage([digits(length)], [digits(159)])
    assert found.ngram_share == (length - 59) / 100
    assert found.contained == contained


def test_repetitions_count_as_occurrences_but_not_as_distinct():
    found = measure_leakage([digits(60)], [digits(60) * 3])
    assert found.ngram_share == 3 / 121
    assert found.contained == 0  # one of 60 distinct n-grams


def test_no_ngram_crosses_a_border():
    halves = [digits(120)[:50], digits(120)[50:]]
    assert measure_leakage(halves, [digits(120)]).ngram_share == 11 / 61
    assert measure_leakage([digits(120)[:59], digits(120)[59:]], [digits(118)[29:89]]).ngram_share == 0
