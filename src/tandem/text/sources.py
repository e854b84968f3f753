"""The one way to text: a source's name in, its documents out."""

from collections.abc import Callable, Iterator

from tandem.advice import advice
from tandem.errors import DataError
from tandem.patience import Pace
from tandem.text.files import read_files, text_lines, txt_splitter
from tandem.text.hub import hub_documents
from tandem.text.python_docs import python_docs
from tandem.text.reading import Reading


def open_documents(
    source: str, txt_documents: str, on_progress: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """The documents of `source` in a fixed order, blank ones passed over.

    `source` is `python-docs`, a file, directory or glob pattern, `hf:NAME[:SPLIT]`, or `-` (text on standard
    input); `txt_documents` says what a document is in text (see `tandem.text.files.txt_splitter`).
    `on_progress` is told every few seconds how much was read, and in the end what was passed over, and why.

    Raises DataError for a source that is missing, malformed or without any text, and SettingsError for an
    impossible `txt_documents`.
    """
    reading, pace = Reading(source), Pace(on_progress)
    splitter = txt_splitter(txt_documents)  # refused even where no .txt file is read
    if source == "python-docs":
        documents = python_docs()
    elif source == "-":
        documents = splitter(text_lines(source))
    elif source.startswith("hf:"):
        documents = hub_documents(source)
    elif source.strip():
        documents = read_files(source, txt_documents, reading)
    else:
        raise DataError("the name of a text source is empty; give a file, 'python-docs' or 'hf:NAME'")
    count, characters = 0, 0

    def how_far() -> str:
        return f"reading {source}: {count:,} documents, {characters / 1e6:,.1f} million characters"

    for document in documents:
        if not document or document.isspace():
            reading.blank += 1
            continue
        if zeros := document.count("\0"):
            reading.noted("zero characters (U+0000), kept as text", zeros)
        count, characters = count + 1, characters + len(document)
        pace(how_far)
        yield document
    if not count:
        raise DataError(f"{source} holds no text" + advice(("give another source", "data.train")))
    if (sentence := reading.sentence()) is not None:
        on_progress(sentence)
