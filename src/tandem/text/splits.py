"""Training and validation documents, kept apart: no document is in both unless it is allowed by name."""

import hashlib
from dataclasses import dataclass

from tandem.errors import DataError
from tandem.fingerprint import Fingerprint
from tandem.settings import DataSettings
from tandem.text.sources import open_documents


@dataclass(frozen=True)
class Splits:
    """The documents of both splits, in the order of their sources.

    duplicates_dropped   documents dropped because an equal one came before them in the same source
    overlap_documents    validation documents that also occur in training (allowed by name only)
    fingerprint          of all documents of both splits, in order
    """

    train: list[str]
    validation: list[str]
    duplicates_dropped: int
    overlap_documents: int
    fingerprint: str
    train_source: str
    validation_source: str


def split_documents(data: DataSettings) -> Splits:
    """Read, drop duplicates, and split as `data` asks.

    Two documents are equal if they differ in white space only. Without `data.validation`, whole documents
    are set aside in an order that depends on `data.split_seed` and their content alone, until they make up
    `data.validation_fraction` of the bytes; a document larger than that share is passed over if any smaller
    one is there. `data.max_train_bytes` is applied last, so validation does not depend on it.

    Raises DataError if a source cannot be read or holds no text, if there are too few documents to set one
    aside, or if validation documents occur in training without being allowed to.
    """
    train, duplicates = read_distinct(data.train, data.txt_documents)
    overlap = 0
    if data.validation is None:
        train, validation = _set_aside(train, data)
        validation_source = f"{100 * data.validation_fraction:g}% of {data.train}"
    else:
        validation, more = read_distinct(data.validation, data.txt_documents)
        duplicates += more
        overlap = _count_overlap(train, validation, data)
        validation_source = data.validation
    if data.max_train_bytes is not None:
        train = _thin_out(train, data.max_train_bytes, data.split_seed)
    return Splits(
        train=list(train.values()),
        validation=list(validation.values()),
        duplicates_dropped=duplicates,
        overlap_documents=overlap,
        fingerprint=_fingerprint(train, validation),
        train_source=data.train,
        validation_source=validation_source,
    )


def read_distinct(source: str, txt_documents: str) -> tuple[dict[bytes, str], int]:
    """Documents of `source` by the digest of their words, in order, and how many duplicates were dropped.

    Raises as `open_documents` does.
    """
    documents: dict[bytes, str] = {}
    dropped = 0
    for document in open_documents(source, txt_documents):
        digest = hashlib.blake2b(" ".join(document.split()).encode(), digest_size=16).digest()
        if digest in documents:
            dropped += 1
        else:
            documents[digest] = document
    return documents, dropped


def _set_aside(documents: dict[bytes, str], data: DataSettings) -> tuple[dict[bytes, str], dict[bytes, str]]:
    """Training and validation parts of `documents`, at least one document each."""
    if len(documents) < 2:
        raise DataError(
            f"{data.train} is a single document, so none can be set aside for validation; give another "
            "source with --data.validation, or cut the text into documents with --data.txt-documents"
        )
    sizes = {digest: len(document.encode()) for digest, document in documents.items()}
    wanted = data.validation_fraction * sum(sizes.values())
    order = _drawn(documents, data.split_seed, "validation")
    small = [digest for digest in order if sizes[digest] <= wanted]
    chosen: set[bytes] = set()
    taken = 0
    for digest in small or [min(order, key=lambda digest: sizes[digest])]:
        if taken >= wanted or len(chosen) == len(documents) - 1:
            break
        chosen.add(digest)
        taken += sizes[digest]
    train = {digest: document for digest, document in documents.items() if digest not in chosen}
    return train, {digest: document for digest, document in documents.items() if digest in chosen}


def _count_overlap(train: dict[bytes, str], validation: dict[bytes, str], data: DataSettings) -> int:
    shared = [digest for digest in validation if digest in train]
    if shared and data.validation not in data.allow_overlap:
        first = " ".join(validation[shared[0]].split())
        shown = first if len(first) <= 60 else first[:60] + "…"
        raise DataError(
            f"{len(shared)} of {len(validation)} validation documents of {data.validation} also occur in "
            f"the training text {data.train} (the first: '{shown}'); give other validation text, or permit "
            f"it with --data.allow-overlap {data.validation}"
        )
    return len(shared)


def _thin_out(documents: dict[bytes, str], max_bytes: int, seed: int) -> dict[bytes, str]:
    """Documents drawn at random, those that no longer fit passed over; the smallest one if none fits."""
    sizes = {digest: len(document.encode()) for digest, document in documents.items()}
    chosen: set[bytes] = set()
    left = max_bytes
    for digest in _drawn(documents, seed, "training"):
        if sizes[digest] <= left:
            chosen.add(digest)
            left -= sizes[digest]
    if not chosen:
        chosen.add(min(sizes, key=lambda digest: sizes[digest]))
    return {digest: document for digest, document in documents.items() if digest in chosen}


def _drawn(documents: dict[bytes, str], seed: int, purpose: str) -> list[bytes]:
    """All digests in an order that depends on the seed and the contents, not on where a document stands."""
    key = hashlib.blake2b(f"{purpose}|{seed}".encode(), digest_size=16).digest()
    return sorted(documents, key=lambda digest: hashlib.blake2b(digest, key=key, digest_size=16).digest())


def _fingerprint(train: dict[bytes, str], validation: dict[bytes, str]) -> str:
    whole = Fingerprint("text")
    for part in (train, validation):
        whole.update(len(part))
        for document in part.values():
            whole.update(document)
    return whole.hexdigest()
