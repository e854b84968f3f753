"""Checks of the data that all runs share: leakage between the splits, and the text behind the tokens."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tandem.audit.inputs import AuditInputs
from tandem.audit.leakage import measure_leakage
from tandem.audit.reader import plain_documents
from tandem.records import Check, RunRecord
from tandem.text.hub import hub_access
from tandem.text.places import source_folder
from tandem.text.splits import Splits, overlap_allowed
from tandem.tokens.embeddings import embedding_table
from tandem.tokens.store import Ids, TokenStream, token_counts
from tandem.tokens.tokenizer import cutter, literal, pieces

Integers = npt.NDArray[np.int64]

ENCODED_BYTES = 1 << 22
"""Of each split about so much text is encoded again: documents at equal distances."""
TRAINED_BYTES = 16 << 20
"""Of more training text the tokenizer learns only its first merges again, which takes one reading of it."""
FIRST_MERGES = 256
"""So many, which depend on the whole text."""
BYTES_AND_END = 257
"""Entries of a vocabulary that are no merges: bytes, and the end-of-text token."""
SAME_WEIGHT = 1e-3
"""An element of an embedding may differ by so much between two processors."""
COUNTED_TOKENS = 1 << 22
"""Tokens whose n-grams are counted at once; bounds memory, changes nothing else."""
SHARE = 0.1
"""Share of the validation text's n-grams that also occur in training, above which there is a warning."""
CONTAINED = 0.01
"""Share of validation documents contained in training above which the check fails (of 100, that is two)."""


def data_checks(
    variants: Mapping[str | None, AuditInputs], splits: Splits, quick: bool = False
) -> Iterator[Check]:
    """`text`, `leakage`, `tokens` and `embeddings`, of the text and tokens that all variants share.

    With `quick` the second reader is left out.
    """
    prepared = next(iter(variants.values()))
    data = prepared.settings.data
    yield _text(prepared, splits, quick)
    yield _leakage(splits, allowed=overlap_allowed(data))
    yield _tokens(prepared, splits)
    yield _embeddings(variants)


def _check(name: str, looked_at: str, wrong: Sequence[str], otherwise: str) -> Check:
    figure, status = "; ".join(wrong) or otherwise, "fail" if wrong else "pass"
    return Check.model_validate({"name": name, "looked_at": looked_at, "figure": figure, "status": status})


def _text(prepared: AuditInputs, splits: Splits, quick: bool) -> Check:
    """Documents that the sources hold, by a reader of its own, against those of both splits."""
    data, corpus = prepared.settings.data, prepared.corpus
    wrong, unknown = list[str](), ["a quick audit leaves the second reader out"] if quick else []
    names = [data.train] if data.validation is None else [data.train, data.validation]
    read = (None if quick else _read_again(name, data.txt_documents, wrong, unknown) for name in names)
    sources = list(read)
    train, validation = (list(map(_digests, part)) for part in (splits.train, splits.validation))
    wanted = [[*train, *validation]] if data.validation is None else [train, validation]
    for name, source, part in zip(names, sources, wanted, strict=True):
        if source is not None:
            wrong += source.differences(name, part, splits.left_out if name == data.train else 0)
    for split, source, part in (("training", sources[0], train), ("validation", sources[-1], validation)):
        order = [words for words, _ in part]
        if (again := len(order) - len({*order})) > 0:
            wrong.append(f"{again} {split} documents are there twice")
        if source is not None and not wrong and order != source.in_order(order):
            wrong.append(f"the {split} documents stand in another order than in their source")
    if sources[0] is not None:
        wrong += sources[0].left_out({words for words, _ in wanted[0]}, splits, data.max_train_bytes)
    count = sum(source.count for source in sources if source is not None)
    dropped = count - sum(len(source.first) for source in sources if source is not None)
    if None not in sources and dropped != corpus.duplicates_dropped:
        wrong.append(f"{corpus.duplicates_dropped} duplicates are said to be dropped, there are {dropped}")
    for name, documents, stream in (
        ("train", splits.train, corpus.train),
        ("validation", splits.validation, corpus.validation),
    ):
        separator = data.separators[name]
        between = 0 if separator == "eos" else len(separator.encode()) * (len(documents) - 1)
        size = sum(len(document.encode()) for document in documents) + between
        if size != int(stream.document_bytes.sum()):
            wrong.append(f"the {name} text has {size} bytes, counted are {int(stream.document_bytes.sum())}")
    sizes = [int(part.sizes.sum()) for part in (splits.train, splits.validation)]
    share = sizes[1] / sum(sizes)
    whole = data.validation is None and data.max_train_bytes is None
    if whole and share > 2 * data.validation_fraction and len(validation) > 1:
        wrong.append(
            f"validation is {share:.1%} of the text, the settings say {data.validation_fraction:.1%}"
        )
    looked_at = "documents of the sources, read by another reader, against those of both splits"
    if unknown and not wrong:
        why = f"not checked: {'; '.join(unknown)}; the splits agree with each other"
        return Check(name="text", looked_at=looked_at, figure=why, status="skip")
    said = f"{count} documents read, {dropped} dropped as duplicates, {splits.left_out} left out"
    return _check("text", looked_at, wrong, said)


@dataclass
class _PlainSource:
    """What the second reader found in a source; of each document only digests and its size are in memory.

    count    documents, equal ones too.
    first    by the digest of its words, of equal documents the first: a digest of its text, and its bytes.
    """

    count: int = 0
    first: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)

    def differences(self, name: str, part: Sequence[tuple[bytes, bytes]], left_out: int) -> Iterator[str]:
        """In what the documents of `part`, by their digests, are others."""
        there = {words for words, _ in part}
        if strange := len(there - self.first.keys()):
            yield f"{strange} documents are in no file of {name}"
        if (lacking := len(self.first.keys() - there)) != left_out:
            yield f"{lacking} documents of {name} are in no split, {left_out} were left out"
        if spaced := sum(words in self.first and self.first[words][0] != text for words, text in part):
            yield f"{spaced} documents have other white space than in {name}"

    def in_order(self, words: Sequence[bytes]) -> list[bytes]:
        """These digests as they follow each other in the source."""
        there = {*words}
        return [one for one in self.first if one in there]

    def left_out(self, there: Set[bytes], splits: Splits, max_train_bytes: int | None) -> Iterator[str]:
        """Where documents were left out that the settings do not leave out, or too few were."""
        left = [size for words, (_, size) in self.first.items() if words not in there]
        used = int(splits.train.sizes.sum())
        if max_train_bytes is None:
            if splits.left_out:
                yield f"{splits.left_out} documents were left out, which no setting asks for"
        elif used > max_train_bytes and len(splits.train) > 1:
            yield f"the training text has {used} bytes, the settings allow {max_train_bytes}"
        elif left and min(left) <= max_train_bytes - used:
            yield f"a document of {min(left)} bytes was left out, for which there was room"


def _read_again(name: str, txt_documents: str, wrong: list[str], unknown: list[str]) -> _PlainSource | None:
    """A source by the second reader; None where that cannot read it, and why is told to one of the lists."""
    found = _PlainSource()
    try:
        documents = plain_documents(name, txt_documents, source_folder(), hub_access)
        if documents is None:
            unknown.append(f"only training's own reader knows {name}")
            return None
        for document in documents:
            words, text = _digests(document)
            found.count += 1
            found.first.setdefault(words, (text, len(document.encode("utf-8", "surrogatepass"))))
    except OSError as error:
        unknown.append(f"{name} cannot be read again ({error})")
    except ValueError as error:  # by what the documentation says, which training's reader did not notice
        wrong.append(f"{name} is no such text as is read ({error})")
    else:
        return found
    return None


def _digests(document: str) -> tuple[bytes, bytes]:
    """Of its words, which are those of a document that differs in white space only, and of its whole text."""
    words, text = (
        hashlib.sha256(one.encode("utf-8", "surrogatepass")).digest()
        for one in (" ".join(document.split()), document)
    )
    return words, text


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
        f"{found.comparable} with 80% or more of their n-grams there; {share:.2%} of all n-grams"
    )
    if status == "skip":
        figure = f"not checked: no document has 20 letters or more; {figure}"
    if status != "pass" and found.first:
        figure += f" (the first: '{found.first}')"
    if allowed and found.exact:
        figure += "; overlap is allowed by name in the settings"
    return Check.model_validate(
        {
            "name": "leakage",
            "looked_at": "validation documents and their runs of 60 letters, in the training documents",
            "figure": figure,
            "status": status,
        }
    )


def _tokens(prepared: AuditInputs, splits: Splits) -> Check:
    corpus, settings = prepared.corpus, prepared.settings
    tokenizer = literal(corpus.tokenizer)
    wrong, count = [], 0
    for split, documents, stream, separator in (
        ("training", splits.train, corpus.train, settings.data.separators["train"]),
        ("validation", splits.validation, corpus.validation, settings.data.separators["validation"]),
    ):
        checked, bad = _encode_again(tokenizer, documents, stream, separator, corpus.eos_token_id)
        count += checked
        if len(documents) != len(stream.document_starts):
            bad = f"has {len(stream.document_starts)} documents instead of {len(documents)}"
        if bad:
            wrong.append(f"{split} text: {bad}")
    looked_at = f"{count} documents of both splits, encoded again with the one tokenizer"
    if settings.tokenizer.source == "bpe":
        merges, limit = settings.tokenizer.vocab_size - BYTES_AND_END, None
        looked_at += ", which was trained again"
        if corpus.train.text_bytes > TRAINED_BYTES and merges > FIRST_MERGES:
            limit = FIRST_MERGES
            looked_at += f" as far as its first {limit} merges"
        wrong += _bpe(splits, merges, limit, tokenizer)
    return _check("tokens", looked_at, wrong, "the same tokens")


def _bpe(splits: Splits, merges: int, limit: int | None, found: Tokenizer) -> list[str]:
    """Whether a byte-level BPE that is trained on the training text anew has the same merges.

    `limit` is how many of them are compared, from the first one on; None: all.
    """
    again = Tokenizer(models.BPE())
    again.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES_AND_END + (merges if limit is None else limit),
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    again.train_from_iterator((piece for text in splits.train for piece in pieces(text)), trainer)
    ours, theirs = (json.loads(one.to_str())["model"]["merges"] for one in (again, found))
    if ours == theirs[:limit]:
        return []
    where = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
    return [f"the tokenizer is not the BPE of the training text: its merge {where + 1} is another one"]


def _encode_again(
    tokenizer: Tokenizer, documents: Sequence[str], stream: TokenStream, separator: str, eos: int | None
) -> tuple[int, str | None]:
    """Documents compared, spread over the whole text, and what was wrong with the first that differs."""
    cut, ends = cutter(tokenizer), [*stream.document_starts[1:].tolist(), len(stream)]
    step = max(1, math.ceil(stream.text_bytes / ENCODED_BYTES))
    numbers = [number for number in range(min(len(documents), len(ends))) if number % step == 0]
    for number in numbers:
        document, last = documents[number], number == len(documents) - 1
        text = document if separator == "eos" or last else document + separator
        ids: list[int] = []
        for piece in cut(text):
            ids += tokenizer.encode(piece, add_special_tokens=False).ids
        if separator == "eos" and eos is not None:
            ids = [eos, *ids]
        there = np.asarray(stream.ids[stream.document_starts[number] : ends[number]])
        if not np.array_equal(there, np.array(ids)):
            return len(numbers), f"document {number + 1} has other tokens than this tokenizer gives it"
    return len(numbers), None


def _embeddings(variants: Mapping[str | None, AuditInputs]) -> Check:
    """The tables that models start from, computed without the cache, or drawn by the definition."""
    wrong, sources = [], []
    for name, prepared in variants.items():
        own, size = prepared.settings.embeddings, prepared.settings.model.embed_dim
        sources.append(own.source)
        table, _ = prepared.table(0)
        if own.source == "random":
            rows = np.random.default_rng(0).standard_normal((prepared.corpus.vocab_size, size))
            again = rows * (own.norm / np.sqrt(np.square(rows).sum(1).mean()))
        else:
            again, _ = embedding_table(own, prepared.corpus, size, None)
        off = float(np.abs(table - again).max())
        if not off <= SAME_WEIGHT:
            of = "" if name is None else f" of variant {name}"
            wrong.append(f"the {own.source} embeddings{of} are others than computed anew (off by {off:.2g})")
    looked_at = "the embeddings that models start from, computed again without the cache"
    return _check("embeddings", looked_at, wrong, ", ".join(dict.fromkeys(sources)))


def baseline_gaps(prepared: AuditInputs, records: Sequence[RunRecord]) -> dict[str, float]:
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
