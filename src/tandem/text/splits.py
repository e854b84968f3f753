"""Training and validation documents, kept apart: no document is in both unless it is allowed by name.

Their text lies in a file and is read when it is asked for. In memory are 32 bytes a document, and some 100
while documents are compared.
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
from tandem.text.documents import Documents, Integers, put_down
from tandem.text.sources import check_there, open_documents

Digests = npt.NDArray[np.void]
"""[D] of DIGEST_BYTES bytes: of the words of each document. They sort and compare as their bytes do."""
Mask = npt.NDArray[np.bool_]

DIGEST_BYTES = 16
SHOWN_CHARACTERS = 1000
"""The first words of a document are looked for in so much of it."""
PART_CHARACTERS = 1 << 20
"""A longer document is read in parts of about this length."""


@dataclass(frozen=True)
class Splits:
    """The documents of both splits, in the order of their sources.

    duplicates_dropped   Documents dropped because an equal one came before them in the same source.
    overlap_documents    Validation documents that also occur in training. They are allowed by name only.
    left_out             Training documents beyond `data.max_train_bytes`.
    fingerprint          Of all documents of both splits, in order.
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
        train, validation = len(self.train), len(self.validation)
        return (
            f"{train + validation + self.duplicates_dropped + self.left_out:,} documents: {train:,} to train "
            f"on, {validation:,} for validation"
            + (f", {self.duplicates_dropped:,} dropped as duplicates" if self.duplicates_dropped else "")
            + (f", {self.left_out:,} left out by data.max_train_bytes" if self.left_out else "")
        )


def split_documents(
    data: DataSettings, folder: Path | None = None, on_progress: Callable[[str], None] = lambda _: None
) -> Splits:
    """Read, drop duplicates, and split as `data` asks. The text is put into a nameless file in `folder`.

    Two documents are equal if they differ in white space only. Without `data.validation`, whole documents are
    set aside until they make up `data.validation_fraction` of the bytes. Their order depends on
    `data.split_seed` and their content alone. One larger than that share is passed over if there is a smaller
    one. `data.max_train_bytes` comes last, so validation does not depend on it.

    Raises DataError as `open_documents`, or if there is no room for the text. Also if there are too few
    documents to set one aside, or validation documents occur in training without being allowed to.
    """
    if data.validation is not None:
        check_there(data.train, data.validation)  # before the first is read, so that both are told at once
    train, digests, duplicates = _read(data.train, data, folder, on_progress)
    overlap = 0
    if data.validation is None:
        aside = _set_aside(train.sizes, digests, data, duplicates)
        validation, train, digests = train.chosen(aside), train.chosen(~aside), digests[~aside]
    else:
        validation, others, more = _read(data.validation, data, folder, on_progress)
        duplicates += more
        overlap = _count_overlap(digests, validation, others, data)
    available = len(train)
    if data.max_train_bytes is not None:
        train = train.chosen(_thin_out(train.sizes, digests, data.max_train_bytes, data.split_seed))
    return Splits(
        train=train,
        validation=validation,
        duplicates_dropped=duplicates,
        overlap_documents=overlap,
        left_out=available - len(train),
        fingerprint=_fingerprint(train, validation),
        train_source=data.train,
        validation_source=data.validation or f"{100 * data.validation_fraction:g}% of {data.train}",
    )


def _read(
    source: str, data: DataSettings, folder: Path | None, on_progress: Callable[[str], None]
) -> tuple[Documents, Digests, int]:
    """The documents of `source` in order, of equal ones the first; digests; how many were dropped."""
    found = bytearray()

    def with_digests() -> Iterator[str]:
        for document in open_documents(source, data.txt_documents, on_progress, data.max_document_bytes):
            found.extend(_words_digest(document))
            yield document

    documents = put_down(with_digests(), folder)
    digests = _as_digests(found)
    first = np.zeros(len(documents), bool)
    first[np.unique(digests, return_index=True)[1]] = True
    return documents.chosen(first), digests[first], int((~first).sum())


def _words_digest(document: str) -> bytes:
    """Of its words, joined by one space."""
    whole, between = hashlib.blake2b(digest_size=DIGEST_BYTES), b""
    for part in document_parts(document):
        if words := part.split():
            whole.update(between + " ".join(words).encode())
            between = b" "
    return whole.digest()


def document_parts(document: str) -> Iterator[str]:
    """`document`, cut at white space. The list of a long one's words would take many times its memory."""
    begin = 0
    while len(document) - begin > PART_CHARACTERS:
        space = re.compile(r"\s").search(document, begin + PART_CHARACTERS)
        if space is None:
            break
        yield document[begin : space.start()]
        begin = space.end()
    yield document[begin:]


def _as_digests(joined: bytearray) -> Digests:
    return np.frombuffer(joined, f"V{DIGEST_BYTES}")


def _set_aside(sizes: Integers, digests: Digests, data: DataSettings, duplicates: int) -> Mask:
    """Which documents are for validation. At least one is, and one is not."""
    if len(sizes) < 2:
        found = (
            f"all {duplicates + 1:,} documents of {data.train} are equal, and all but one were dropped"
            if duplicates
            else f"{data.train} is a single document"
        )
        ways = [("give another source with {}", "data.validation")]
        if not duplicates:  # text that is all alike gives nothing to validate on, however it is cut
            ways.append(("cut the text into documents with {}", "data.txt_documents"))
        raise DataError(f"{found}, so none can be set aside for validation" + advice(*ways))
    share = data.validation_fraction * int(sizes.sum())
    order = _random_order(digests, data.split_seed, "validation")
    candidates = order[sizes[order] <= share]
    if len(candidates) == 0:
        candidates = order[[sizes[order].argmin()]]
    before = np.cumsum(sizes[candidates]) - sizes[candidates]
    aside = np.zeros(len(sizes), bool)
    aside[candidates[before < share][: len(sizes) - 1]] = True
    return aside


def overlap_allowed(data: DataSettings) -> bool:
    """Whether the validation text is among `data.allow_overlap`, by the same name."""
    return data.validation in data.allow_overlap


def _count_overlap(train: Digests, validation: Documents, digests: Digests, data: DataSettings) -> int:
    shared = np.flatnonzero(np.isin(digests, train))
    if len(shared) and not overlap_allowed(data):
        first = " ".join(validation[int(shared[0])].strip()[:SHOWN_CHARACTERS].split())
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


def _thin_out(sizes: Integers, digests: Digests, max_bytes: int, seed: int) -> Mask:
    """Documents drawn at random. Those that no longer fit are passed over. The smallest one if none fits."""
    chosen, left = np.zeros(len(sizes), bool), max_bytes
    for document in _random_order(digests, seed, "training"):
        if sizes[document] <= left:
            chosen[document] = True
            left -= int(sizes[document])
    if not chosen.any():
        chosen[sizes.argmin()] = True
    return chosen


def _random_order(digests: Digests, seed: int, purpose: str) -> npt.NDArray[np.intp]:
    """An order of documents that depends on the seed and the contents, not on where a document stands."""
    key = hashlib.blake2b(f"{purpose}|{seed}".encode(), digest_size=DIGEST_BYTES).digest()
    ranks = bytearray()
    for digest in digests:
        ranks += hashlib.blake2b(digest.tobytes(), key=key, digest_size=DIGEST_BYTES).digest()
    return _as_digests(ranks).argsort(kind="stable")


def _fingerprint(train: Documents, validation: Documents) -> str:
    whole = Fingerprint("text")
    for part in (train, validation):
        whole.update(len(part))
        for document in part.encoded():
            whole.update(document)
    return whole.hexdigest()
