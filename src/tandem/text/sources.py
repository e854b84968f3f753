"""The one way to text: a source's name in, its documents out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tandem.advice import advice
from tandem.errors import DataError, MisfitError
from tandem.patience import Pace
from tandem.text.files import Splitter, cut, read_files, text_lines, txt_splitter
from tandem.text.hub import hub_documents, parse_hub_source
from tandem.text.listing import find_files
from tandem.text.places import user_path
from tandem.text.python_docs import python_docs
from tandem.text.reading import Reading


@dataclass(frozen=True)
class Source:
    """Text that is no file, directory or glob pattern.

    documents    gives the documents of a source, by its whole name; the splitter cuts lines into documents,
                 and the Reading is told what is odd about the text.
    path         where a source lies on this machine, by its whole name; None: nowhere.
    restored     what to do where it is no longer what it was.
    """

    documents: Callable[[str, Splitter, Reading], Iterator[str]]
    path: Callable[[str], Path | None] = lambda _: None
    restored: str = "put back what was there"


SOURCES: dict[str, Source] = {
    "python-docs": Source(lambda *_: python_docs(), restored="use the Python of its training"),
    "-": Source(lambda name, splitter, reading: cut(text_lines(name, reading), splitter, reading)),
    "hf:": Source(lambda name, *_: hub_documents(name), lambda name: user_path(parse_hub_source(name)[0])),
}
"""By whole name, or by what a name begins with up to its first colon."""


def source_of(name: str) -> Source | None:
    """The source of this name; None for a file, directory or glob pattern."""
    return SOURCES.get(name) or SOURCES.get("".join(name.partition(":")[:2]))


def check_there(*sources: str) -> None:
    """Raises MisfitError, with all that is missing, where a source has no file on this machine."""
    missing: list[MisfitError] = []
    for source in sources:
        try:
            if source.strip() and source_of(source) is None:
                find_files(source, Reading(source))
        except DataError as error:
            missing.append(error if isinstance(error, MisfitError) else MisfitError.of(str(error), {}))
    if missing:
        raise MisfitError.of_all(missing)


def open_documents(
    source: str,
    txt_documents: str,
    on_progress: Callable[[str], None] = lambda _: None,
    max_document_bytes: int | None = None,
) -> Iterator[str]:
    """The documents of `source` in a fixed order, blank ones passed over.

    `source` is one of SOURCES, or a file, directory or glob pattern; `txt_documents` says what a document is
    in text (see `tandem.text.files.txt_splitter`).
    `on_progress` is told every few seconds how much was read, and in the end what was passed over, and why.
    No document may have more than `max_document_bytes` of UTF-8; none: as many as the setting's default.

    Raises DataError for a source that is missing, malformed or without any text, for a document that is too
    long, and for a file that changes meanwhile. Raises SettingsError for an impossible `txt_documents`.
    """
    reading, pace = Reading(source), Pace(on_progress)
    if max_document_bytes is not None:
        reading.longest = max_document_bytes
    splitter = txt_splitter(txt_documents)  # refused even where no .txt file is read
    if (own := source_of(source)) is not None:
        documents = own.documents(source, splitter, reading)
    elif source.strip():
        documents = read_files(source, splitter, reading)
    else:
        raise DataError("the name of a text source is empty; give a file, 'python-docs' or 'hf:NAME'")
    count, characters = 0, 0

    def how_far() -> str:
        return f"reading {source}: {count:,} documents, {characters / 1e6:,.1f} million characters"

    for document in documents:
        if not document or document.isspace():
            reading.blank += 1
            continue
        if 4 * len(document) > reading.longest:
            reading.check_size(len(document.encode()), f"{reading.place or source}, document {count + 1:,}")
        if zeros := document.count("\0"):
            reading.noted("zero characters (U+0000), kept as text", zeros)
        count, characters = count + 1, characters + len(document)
        pace(how_far)
        yield document
    if not count:
        raise DataError(f"{source} holds no text" + advice(("give another source", "data.train")))
    if (sentence := reading.sentence()) is not None:
        on_progress(sentence)
