"""Sources that were written down before: where they are now, and whether they are what they were."""

import glob
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tandem.decoding import read_text
from tandem.errors import DataError, StorageError
from tandem.folders import RECORD, SETTINGS
from tandem.settings import DataSettings, Settings
from tandem.text.listing import find_files
from tandem.text.places import counted_from, source_folder, user_path
from tandem.text.reading import Reading
from tandem.text.sources import Source, source_of
from tandem.text.splits import Splits, split_documents

MADE = ("bpe", "spectral", "random")
"""Sources of tokenizers and embeddings that are made, not read."""


def local_path(source: str) -> Path | None:
    """The path of a source on this machine: a file, a folder, or that in which a glob begins; else None."""
    if source in MADE:
        return None
    own = source_of(source)
    path = user_path(source) if own is None else own.path(source)
    if path is None or path.exists():
        return path
    if own is None and glob.has_magic(source):
        with suppress(DataError):
            find_files(source, Reading(source))
            return next(parent for parent in path.parents if parent.exists())
    return None


def holds_text(source: str, folder: Path, below: bool) -> bool:
    """Whether the text of a source lies in `folder`; with `below` also whether `folder` is among the text."""
    path = local_path(source)
    if path is None:
        return False
    root, place = (path if path.is_dir() else path.parent).resolve(), folder.resolve()
    return place == root or (below and path.is_dir() and place.is_relative_to(root))


def folder_of(recorded: str, sources: Iterable[str], beside: Path) -> Path:
    """The folder from which recorded sources count now, for `counted_from`.

    It is the recorded one, the working folder, or one around `beside`, as where a whole project was moved:
    the first from which the most of them are there.
    """
    wanted = list(sources)

    def there(folder: Path) -> int:
        with counted_from(folder):
            return sum(local_path(source) is not None for source in wanted)

    return max((Path(recorded), Path.cwd(), *beside.resolve().parents), key=there)


def named_from_here(settings: Settings, file: Path) -> Settings:
    """Settings of a file; where it is of a model folder, its relative sources by their whole paths.

    They count from where that model was made; from there they stay as they are.
    """
    if file.name != SETTINGS:
        return settings
    try:
        record = file.with_name(RECORD)
        recorded = json.loads(read_text(record) if record.is_file() else "")["folder"]
    except (OSError, DataError, ValueError, LookupError, TypeError):
        return settings
    data, tokenizer, embeddings = settings.data, settings.tokenizer, settings.embeddings
    texts = [source for source in (data.train, data.validation, *data.allow_overlap) if source]
    place = folder_of(recorded, [*texts, tokenizer.source, embeddings.source], file.parent)
    if place == Path.cwd():
        return settings

    def here(source: str) -> str:
        own = source_of(source)
        prefix = "" if own is None else f"{source.partition(':')[0]}:"
        with counted_from(place):
            there = local_path(source) is not None or (own is None and source in texts)
            return f"{prefix}{user_path(source.removeprefix(prefix))}" if there else source

    values = settings.model_dump()
    keys = {"data": ("train", "validation"), "tokenizer": ("source",), "embeddings": ("source",)}
    for section, of_sources in keys.items():
        values[section] |= {key: here(name) for key in of_sources if (name := values[section][key])}
    values["data"]["allow_overlap"] = tuple(map(here, data.allow_overlap))
    return Settings(**values)


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
    own = [source_of(source) or Source for source in sources if source is not None]
    again = " and ".join(dict.fromkeys(one.restored for one in own))
    return DataError(
        f"the {what} of {whereabouts(*sources)} is no longer what {run} was trained and scored on{because}; "
        f"{again}"
    )


def whereabouts(*sources: str | None) -> str:
    """Recorded sources, and the folder that they count from where that matters."""
    named = [source for source in sources if source is not None]
    local = [s for s in named if s not in MADE and not s.startswith(("/", "~")) and source_of(s) is None]
    return " and ".join(named) + (f" (in {source_folder()})" if local else "")
