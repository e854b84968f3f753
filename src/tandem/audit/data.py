"""Checks of the data that all runs share: leakage between the splits, and the text behind the tokens."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tandem.audit.leakage import measure_leakage
from tandem.experiment.prepared import TrainingInputs
from tandem.records import Check, RunRecord
from tandem.text.splits import Splits, overlap_allowed
from tandem.tokens.store import Ids, TokenStream, token_counts
from tandem.tokens.tokenizer import cutter, plain

Integers = npt.NDArray[np.int64]

ENCODED_BYTES = 1 << 20
"""Of each split so much text is encoded again."""
COUNTED_TOKENS = 1 << 22
"""Tokens whose n-grams are counted at once; bounds memory, changes nothing else."""
SHARE = 0.1
"""Share of the validation text's 13-grams that also occur in training, above which there is a warning."""
CONTAINED = 0.01
"""Share of validation documents contained in training above which the check fails (of 100, that is two)."""


def data_checks(prepared: TrainingInputs, splits: Splits) -> Iterator[Check]:
    """`leakage` and `tokens`."""
    data = prepared.settings.data
    yield _leakage(splits, allowed=overlap_allowed(data))
    yield _tokens(prepared, splits)


def _leakage(splits: Splits, allowed: bool) -> Check:
    found = measure_leakage(splits.train, splits.validation)
    share = found.ngram_share or 0.0
    status = "pass"
    if found.exact or found.contained > CONTAINED * found.comparable:
        status = "warn" if allowed else "fail"
    elif found.contained or share > SHARE:
        status = "warn"
    elif not found.comparable:
        status = "skip"
    figure = (
        f"{found.exact} of {found.documents} documents also in training; {found.contained} of "
        f"{found.comparable} with 80% or more of their 13-grams there; {share:.2%} of all 13-grams"
    )
    if status != "pass" and found.first:
        figure += f" (the first: '{found.first}')"
    if allowed and found.exact:
        figure += "; overlap is allowed by name in the settings"
    return Check.model_validate(
        {
            "name": "leakage",
            "looked_at": "validation documents and their 13-grams of words, in the training documents",
            "figure": figure,
            "status": status,
        }
    )


def _tokens(prepared: TrainingInputs, splits: Splits) -> Check:
    corpus, data = prepared.corpus, prepared.settings.data
    tokenizer = plain(corpus.tokenizer)
    tokenizer.encode_special_tokens = True
    wrong, count = [], 0
    for split, documents, stream, separator in (
        ("training", splits.train, corpus.train, data.separators["train"]),
        ("validation", splits.validation, corpus.validation, data.separators["validation"]),
    ):
        checked, bad = _encode_again(tokenizer, documents, stream, separator, corpus.eos_token_id)
        count += checked
        if len(documents) != len(stream.document_starts):
            bad = f"has {len(stream.document_starts)} documents instead of {len(documents)}"
        if bad:
            wrong.append(f"{split} text: {bad}")
    return Check(
        name="tokens",
        looked_at=f"{count} documents of both splits, encoded again with the one tokenizer",
        figure="; ".join(wrong) or "the same tokens",
        status="fail" if wrong else "pass",
    )


def _encode_again(
    tokenizer: Tokenizer, documents: Sequence[str], stream: TokenStream, separator: str, eos: int | None
) -> tuple[int, str | None]:
    """Documents compared, from the first on, and what was wrong with the first that differs."""
    size, cut = 0, cutter(tokenizer)
    ends = [*stream.document_starts[1:].tolist(), len(stream)]
    for number, document in enumerate(documents):
        if number >= len(ends):
            break
        if size > ENCODED_BYTES:
            return number, None
        size += len(document.encode())
        last = number == len(documents) - 1
        text = document if separator == "eos" or last else document + separator
        ids: list[int] = []
        for piece in cut(text):
            ids += tokenizer.encode(piece, add_special_tokens=False).ids
        if separator == "eos" and eos is not None:
            ids = [eos, *ids]
        there = np.asarray(stream.ids[stream.document_starts[number] : ends[number]])
        if not np.array_equal(there, np.array(ids)):
            return number + 1, f"document {number + 1} has other tokens than this tokenizer gives it"
    return len(documents), None


def baseline_gaps(prepared: TrainingInputs, records: Sequence[RunRecord]) -> dict[str, float]:
    """Validation NLL less training NLL of simple models on the same tokens, in nats.

    Unigram and interpolated bigram, counted here, and the networks among `records`. The bigram scores the
    text it was counted on, so it stands for what memorising can do.
    """
    corpus = prepared.corpus
    gaps = _ngram_gaps(corpus.train.ids, corpus.validation.ids, corpus.vocab_size)
    for record in records:
        if record.training and record.validation:
            gap = record.validation.nll_nats - record.training.train_nll_nats
            gaps[record.run] = gap
    return gaps


def _ngram_gaps(train: Ids, validation: Ids, vocab_size: int) -> dict[str, float]:
    single = token_counts(train, vocab_size) + 1.0
    unigram = single / single.sum()
    pairs, counts = _pair_counts(train, vocab_size)
    follow = token_counts(train[:-1], vocab_size)
    kinds = np.bincount(pairs // vocab_size, minlength=vocab_size)

    def losses(ids: Ids) -> tuple[float, float]:
        totals = np.zeros(2)
        for first, second in _neighbours(ids):
            wanted = first * vocab_size + second
            place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
            seen = np.where(pairs[place] == wanted, counts[place], 0)
            # Witten-Bell: the weight of the unigram is the share of kinds among what followed.
            total = follow[first] + kinds[first]
            back = np.where(total > 0, kinds[first] / np.maximum(total, 1), 1.0)
            bigram = seen / np.maximum(total, 1) + back * unigram[second]
            totals -= np.log(unigram[second]).sum(), np.log(bigram).sum()
        one, two = totals / (len(ids) - 1)
        return float(one), float(two)

    (train_one, train_two), (validation_one, validation_two) = losses(train), losses(validation)
    return {"unigram": validation_one - train_one, "bigram": validation_two - train_two}


def _pair_counts(ids: Ids, vocab_size: int) -> tuple[Integers, Integers]:
    """Every pair of neighbours, first · V + second, in ascending order, and how often it occurs."""
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for first, second in _neighbours(ids):
        found, times = np.unique(first * vocab_size + second, return_counts=True)
        pairs, place = np.unique(np.concatenate((pairs, found)), return_inverse=True)
        counts = np.bincount(place, np.concatenate((counts, times)), len(pairs)).astype(np.int64)
    return pairs, counts


def _neighbours(ids: Ids) -> Iterator[tuple[Integers, Integers]]:
    """All tokens of ids [T] but the last, and those that follow them, int64, a part at a time."""
    for start in range(0, len(ids) - 1, COUNTED_TOKENS):
        part = ids[start : start + COUNTED_TOKENS + 1].astype(np.int64)
        yield part[:-1], part[1:]
