"""Sources that were written down before: where they are now, and whether they are what they were."""

import glob
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem.errors import DataError, StorageError
from tandem.settings import DataSettings
from tandem.text.hub import parse_hub_source
from tandem.text.listing import find_files
from tandem.text.places import counted_from, source_folder, user_path
from tandem.text.reading import Reading
from tandem.text.splits import Splits, split_documents

WORDS = ("python-docs", "bpe", "spectral", "random")
"""Sources that are made, not read."""


def local_path(source: str) -> Path | None:
    """The path of a source on this machine: a file, a folder, or that in which a glob begins; else None."""
    if source in WORDS:
        return None
    path = user_path(parse_hub_source(source)[0] if source.startswith("hf:") else source)
    if path.exists():
        return path
    if source.startswith("hf:") or not glob.has_magic(source):
        return None
    try:
        find_files(source, Reading(source))
    except DataError:
        return None
    return next(parent for parent in path.parents if parent.exists())


def holds_text(source: str, folder: Path, below: bool) -> bool:
    """Whether the text of a source lies in `folder`; with `below` also whether `folder` is among the text."""
    path = local_path(source)
    if path is None:
        return False
    root, place = (path if path.is_dir() else path.parent).resolve(), folder.resolve()
    return place == root or (below and path.is_dir() and place.is_relative_to(root))


def folder_of(recorded: str | None, sources: Iterable[str], beside: Path) -> Path | None:
    """The folder from which recorded sources count now, for `counted_from`.

    It is the recorded one, else the working folder, else one around `beside`, as where a whole project was
    moved: the first from which the most of them are there. None where none was recorded. Whether what is
    there is what it was, fingerprints tell.
    """
    if recorded is None:
        return None
    wanted = list(sources)

    def there(folder: Path) -> int:
        with counted_from(folder):
            return sum(local_path(source) is not None for source in wanted)

    return max((Path(recorded), Path.cwd(), *beside.resolve().parents), key=there)


def read_recorded(
    data: DataSettings,
    fingerprint: str | None,
    run: str,
    folder: Path | None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Splits:
    """The documents that recorded settings name, put down in `folder`, where they are still what they were.

    `fingerprint` is that of the text that `run` was trained on; None: it is not known. Raises DataError where
    the text has another one, or can no longer be read.
    """
    with as_it_was("text", run, data.train, data.validation):
        splits = split_documents(data, folder, on_progress)
    if fingerprint is not None and splits.fingerprint != fingerprint:
        raise changed("text", run, data.train, data.validation)
    return splits


@contextmanager
def as_it_was(what: str, run: str, *sources: str | None) -> Iterator[None]:
    """Within the block a DataError means that a recorded source is gone or has changed, and says so."""
    try:
        yield
    except StorageError:
        raise
    except DataError as error:
        raise changed(what, run, *sources, because=f" ({error})") from None


def changed(what: str, run: str, *sources: str | None, because: str = "") -> DataError:
    """The error to raise where a run's text, tokenizer or embedding is no longer the recorded one."""
    again = "use the Python of its training" if "python-docs" in sources else "put back what was there"
    return DataError(
        f"the {what} of {whereabouts(*sources)} is no longer what {run} was trained and scored on{because}; "
        f"{again}"
    )


def whereabouts(*sources: str | None) -> str:
    """Recorded sources, and the folder that they count from where that matters."""
    named = [source for source in sources if source is not None]
    local = [source for source in named if not source.startswith(("hf:", "/", "~")) and source not in WORDS]
    return " and ".join(named) + (f" (in {source_folder()})" if local else "")
