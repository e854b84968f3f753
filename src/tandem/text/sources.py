"""The one way to text: a source's name in, its documents out."""

from collections.abc import Iterator

from tandem.errors import DataError
from tandem.text.files import read_files, text_lines, txt_splitter
from tandem.text.hub import hub_documents
from tandem.text.python_docs import python_docs


def open_documents(source: str, txt_documents: str) -> Iterator[str]:
    """The documents of `source` in a fixed order, blank ones passed over.

    `source` is `python-docs`, a file, directory or glob pattern, `hf:NAME[:SPLIT]`, or `-` (text on standard
    input); `txt_documents` says what a document is in text (see `tandem.text.files.txt_splitter`).

    Raises DataError for a source that is missing, malformed or without any text, and SettingsError for an
    impossible `txt_documents`.
    """
    splitter = txt_splitter(txt_documents)  # refused even where no .txt file is read
    if source == "python-docs":
        documents = python_docs()
    elif source == "-":
        documents = splitter(text_lines(source))
    elif source.startswith("hf:"):
        documents = hub_documents(source)
    elif source.strip():
        documents = read_files(source, txt_documents)
    else:
        raise DataError("the name of a text source is empty; give a file, 'python-docs' or 'hf:NAME'")
    empty = True
    for document in documents:
        if document.strip():
            empty = False
            yield document
    if empty:
        raise DataError(f"{source} holds no text; give another source")
