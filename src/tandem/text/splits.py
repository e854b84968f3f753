"""Training and validation documents, kept apart: no document is in both unless it is allowed by name.

Their text lies in a file and is read when it is asked for; in memory are 32 bytes a document, and some 100
while they are compared.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tandem.advice import advice
from tandem.errors import DataError
from tandem.fingerprint import Fingerprint
from tandem.settings import DataSettings
from tandem.text.documents import Documents, put_down
from tandem.text.sources import open_documents

Digests = npt.NDArray[np.uint64]
"""[D, 2] uint64: of the words of each document; as numbers in the order of the bytes."""
Chosen = npt.NDArray[np.bool_]

DIGEST_BYTES = 16
SHOWN_CHARACTERS = 1000
"""Of a document so much is looked at for its first words."""
PART_CHARACTERS = 1 << 20
"""Words of a longer document are taken in parts of about this length."""


@dataclass(frozen=True)
class Splits:
    """The documents of both splits, in the order of their sources.

    duplicates_dropped   documents dropped because an equal one came before them in the same source
    overlap_documents    validation documents that also occur in training (allowed by name only)
    left_out             training documents beyond `data.max_train_bytes`
    fingerprint          of all documents of both splits, in order
    """

    train: Documents
    validation: Documents
    duplicates_dropped: int
    overlap_documents: int
    left_out: int
    fingerprint: str
    train_source: str
    validation_source: str

    def in_words(self) -> str:
        """How many documents were read, and what became of each."""
        kept = len(self.train), len(self.validation)
        read = sum(kept) + self.duplicates_dropped + self.left_out
        return (
            f"{read:,} documents: {kept[0]:,} to train on, {kept[1]:,} for validation"
            + (f", {self.duplicates_dropped:,} dropped as duplicates" if self.duplicates_dropped else "")
            + (f", {self.left_out:,} left out by data.max_train_bytes" if self.left_out else "")
        )


@dataclass(frozen=True)
class Distinct:
    """Documents of one source, no two of them equal, and the digests of their words."""

    documents: Documents
    digests: Digests

    def __len__(self) -> int:
        return len(self.documents)

    def chosen(self, which: Chosen) -> "Distinct":
        """Those where `which` [D] is true."""
        return Distinct(self.documents.chosen(which), self.digests[which])


def split_documents(
    data: DataSettings, folder: Path | None = None, on_progress: Callable[[str], None] = lambda _: None
) -> Splits:
    """Read, drop duplicates, and split as `data` asks; the text is put down in a nameless file in `folder`.

    Two documents are equal if they differ in white space only. Without `data.validation`, whole documents
    are set aside in an order that depends on `data.split_seed` and their content alone, until they make up
    `data.validation_fraction` of the bytes; a document larger than that share is passed over if any smaller
    one is there. `data.max_train_bytes` is applied last, so validation does not depend on it. `on_progress`
    is told what `open_documents` tells.

    Raises DataError if a source cannot be read or holds no text, if there are too few documents to set one
    aside, if validation documents occur in training without being allowed to, or if there is no room for
    the text.
    """
    train, duplicates = read_distinct(data.train, data.txt_documents, folder, on_progress)
    overlap = 0
    if data.validation is None:
        aside = _set_aside(train, data, duplicates)
        train, validation = train.chosen(~aside), train.chosen(aside)
        validation_source = f"{100 * data.validation_fraction:g}% of {data.train}"
    else:
        validation, more = read_distinct(data.validation, data.txt_documents, folder, on_progress)
        duplicates += more
        overlap = _count_overlap(train, validation, data)
        validation_source = data.validation
    available = len(train)
    if data.max_train_bytes is not None:
        train = train.chosen(_thin_out(train, data.max_train_bytes, data.split_seed))
    return Splits(
        train=train.documents,
        validation=validation.documents,
        duplicates_dropped=duplicates,
        overlap_documents=overlap,
        left_out=available - len(train),
        fingerprint=_fingerprint(train.documents, validation.documents),
        train_source=data.train,
        validation_source=validation_source,
    )


def read_distinct(
    source: str, txt_documents: str, folder: Path | None, on_progress: Callable[[str], None]
) -> tuple[Distinct, int]:
    """The documents of `source` in order, of equal ones the first, and how many duplicates were dropped.

    Raises as `open_documents` and `put_down` do.
    """
    found = bytearray()

    def noted() -> Iterator[str]:
        for document in open_documents(source, txt_documents, on_progress):
            found.extend(_words_digest(document))
            yield document

    documents = put_down(noted(), folder)
    digests = _as_numbers(found)
    first = np.zeros(len(documents), bool)
    first[np.unique(_classes(digests), return_index=True)[1]] = True
    distinct = Distinct(documents, digests).chosen(first)
    return distinct, len(documents) - len(distinct)


def _words_digest(document: str) -> bytes:
    """Of its words, joined by one space."""
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
    between = b""
    for part in document_parts(document):
        if words := part.split():
            whole.update(between + " ".join(words).encode())
            between = b" "
    return whole.digest()


def document_parts(document: str) -> Iterator[str]:
    """`document`, cut at white space: the list of a long one's words would take many times its memory."""
    begin = 0
    while len(document) - begin > PART_CHARACTERS:
        space = re.compile(r"\s").search(document, begin + PART_CHARACTERS)
        if space is None:
            break
        yield document[begin : space.start()]
        begin = space.end()
    yield document[begin:]


def _as_numbers(digests: bytearray) -> Digests:
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)


def _order(digests: Digests) -> npt.NDArray[np.intp]:
    """Where the digests stand in ascending order; equal ones in theirs."""
    return np.lexsort((digests[:, 1], digests[:, 0]))


def _classes(digests: Digests) -> npt.NDArray[np.int64]:
    """A number for each digest, [D], the same for equal ones."""
    order = _order(digests)
    ordered = digests[order]
    other = np.any(ordered[1:] != ordered[:-1], axis=1)
    classes = np.zeros(len(digests), np.int64)
    classes[order[1:]] = np.cumsum(other)
    return classes


def _set_aside(distinct: Distinct, data: DataSettings, duplicates: int) -> Chosen:
    """The validation part of `distinct`; it and what is left have at least one document each."""
    if len(distinct) < 2:
        found = (
            f"all {duplicates + 1:,} documents of {data.train} are equal, and all but one were dropped"
            if duplicates
            else f"{data.train} is a single document"
        )
        ways = [("give another source with {}", "data.validation")]
        if not duplicates:  # text that is all alike gives nothing to validate on, however it is cut
            ways.append(("cut the text into documents with {}", "data.txt_documents"))
        raise DataError(f"{found}, so none can be set aside for validation" + advice(*ways))
    sizes = distinct.documents.sizes
    wanted = data.validation_fraction * int(sizes.sum())
    order = _drawn(distinct, data.split_seed, "validation")
    candidates = order[sizes[order] <= wanted]
    if len(candidates) == 0:
        candidates = order[[sizes[order].argmin()]]
    taken_before = np.cumsum(sizes[candidates]) - sizes[candidates]
    aside = np.zeros(len(distinct), bool)
    aside[candidates[taken_before < wanted][: len(distinct) - 1]] = True
    return aside


def _count_overlap(train: Distinct, validation: Distinct, data: DataSettings) -> int:
    classes = _classes(np.concatenate((train.digests, validation.digests)))
    shared = np.flatnonzero(np.isin(classes[len(train) :], classes[: len(train)]))
    if len(shared) and data.validation not in data.allow_overlap:
        first = " ".join(validation.documents[int(shared[0])].strip()[:SHOWN_CHARACTERS].split())
        shown = first if len(first) <= 60 else first[:60] + "…"
        raise DataError(
            f"{len(shared)} of {len(validation)} validation documents of {data.validation} also occur in "
            f"the training text {data.train} (the first: '{shown}')"
            + advice(
                "give other validation text",
                ("permit it with {}", f"data.allow_overlap {data.validation}"),
            )
        )
    return len(shared)


def _thin_out(distinct: Distinct, max_bytes: int, seed: int) -> Chosen:
    """Documents drawn at random, those that no longer fit passed over; the smallest one if none fits."""
    sizes = distinct.documents.sizes
    chosen = np.zeros(len(distinct), bool)
    left = max_bytes
    for document in _drawn(distinct, seed, "training"):
        if sizes[document] <= left:
            chosen[document] = True
            left -= int(sizes[document])
    if not chosen.any():
        chosen[sizes.argmin()] = True
    return chosen


def _drawn(distinct: Distinct, seed: int, purpose: str) -> npt.NDArray[np.intp]:
    """All documents in an order that depends on the seed and the contents, not on where a document stands."""
    key = hashlib.blake2b(f"{purpose}|{seed}".encode(), digest_size=DIGEST_BYTES).digest()
    digests = distinct.digests.astype(">u8").tobytes()
    ranks = bytearray()
    for at in range(0, len(digests), DIGEST_BYTES):
        digest = digests[at : at + DIGEST_BYTES]
        ranks += hashlib.blake2b(digest, key=key, digest_size=DIGEST_BYTES).digest()
    return _order(_as_numbers(ranks))


def _fingerprint(train: Documents, validation: Documents) -> str:
    whole = Fingerprint("text")
    for part in (train, validation):
        whole.update(len(part))
        for document in part.encoded():
            whole.update(document)
    return whole.hexdigest()
