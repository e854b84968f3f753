"""The Hugging Face hub: data sets named `hf:NAME[:SPLIT]`, and a way in that fails within seconds offline."""

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tandem.advice import advice
from tandem.errors import DataError
from tandem.text.places import names_path, user_path
from tandem.text.rows import record_text, text_column

PROBE_TIMEOUT_S = 5.0
Fetch = Callable[[str], Path | None]
"""Gives the local path of a file by its name."""


def hub_documents(source: str) -> Iterator[str]:
    """The documents of `hf:NAME[:SPLIT]`, one per row, by the rule of `record_text`.

    NAME is a data set on the hub or a local folder in the shape of one; SPLIT may be a slice such as
    `train[:2000]` and is `train` if absent. Copies that the `datasets` library keeps are used offline.

    Raises DataError if `datasets` is not installed or the hub cannot be reached. Also if a data set or split
    does not exist, or a row has no text.
    """
    name, split = parse_hub_source(source)
    dataset = _load(name, split)
    column = text_column(dataset.column_names, source)
    for number, record in enumerate(dataset.select_columns([column]), start=1):
        yield record_text(record, f"{source}, row {number}")


def parse_hub_source(source: str) -> tuple[str, str]:
    """NAME and SPLIT of `hf:NAME[:SPLIT]`.

    SPLIT begins after the last colon that stands outside brackets (a slice has one inside) and is not part
    of a path. Raises DataError where either is empty.
    """
    rest = source.removeprefix("hf:")
    outside = re.sub(r"\[[^\]]*\]", lambda slice_: "_" * len(slice_[0]), rest)
    colon = outside.rfind(":")
    if user_path(rest).is_dir() or colon < 0 or re.search(r"[/\\]", outside[colon:]):
        name, split = rest, "train"
    else:
        name, split = rest[:colon], rest[colon + 1 :]
    if not name or not split:
        raise DataError(
            f"'{source}' is not of the form hf:NAME or hf:NAME:SPLIT, such as hf:NAME:train[:2000]"
        )
    return name, split


@contextmanager
def hub_access() -> Iterator[bool]:
    """Whether the hub answers, asked once with a time limit of a few seconds.

    While it does not, the hub's libraries are held offline inside the `with` block. They look at the copies
    they keep, and fail at once instead of retrying for minutes. Their log lines and progress bars are
    silenced in any case and restored after.
    """
    from huggingface_hub import constants, utils

    reachable = _hub_answers()
    switches: list[Any] = [constants]
    if "datasets.config" in sys.modules:
        switches.append(sys.modules["datasets.config"])
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    with _without_bars(utils):
        try:
            for switch in switches:
                switch.HF_HUB_OFFLINE = not reachable
            logger.setLevel(logging.ERROR)
            yield reachable
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.HF_HUB_OFFLINE = value
            logger.setLevel(level)


@contextmanager
def _without_bars(library: Any) -> Iterator[None]:
    """Within the block `datasets` or `huggingface_hub.utils` shows no progress bars."""
    were_off = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            library.enable_progress_bars()


@contextmanager
def files_of(source: str, what: str, setting: str, instead: str, *suffixes: str) -> Iterator[Fetch]:
    """Yields a function that fetches a file of `source`, and returns None where there is no such file.

    `source` is a folder, a file in one, or a name on the hub. It is none of the latter if it ends in one of
    the `suffixes`. Errors call it a `what`, and advise to change `setting`, offline to `instead`.
    Raises DataError where there is no such source, or the hub cannot be reached and has no usable copy here.
    """
    path, check = user_path(source), advice(("check {}", setting))
    if path.exists():
        folder = path if path.is_dir() else path.parent
        yield lambda name: folder / name if (folder / name).is_file() else None
        return
    if names_path(source, *suffixes):
        raise DataError(f"there is no {what} file or folder {source}{check}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    with hub_access() as reachable:

        def fetch(file: str) -> Path | None:
            try:
                return Path(hf_hub_download(source, file))
            except EntryNotFoundError as error:
                if reachable and isinstance(error, LocalEntryNotFoundError):  # the connection broke off
                    raise
                return None

        try:
            yield fetch
        except HFValidationError:
            raise DataError(f"'{source}' is neither a file, a folder nor a hub name{check}") from None
        except DataError:
            if reachable:
                raise
            raise DataError(
                f"'{source}' is no file or folder here, the Hugging Face hub cannot be reached and no usable "
                "copy is kept" + advice("connect to the network", ("use {}", f"{setting} {instead}"))
            ) from None
        except HfHubHTTPError:
            raise DataError(f"the hub has no {what} '{source}' that is open to you{check}") from None
        except OSError as error:
            raise DataError(
                f"fetching the {what} '{source}' failed ({_first_line(error)}); try again, or give a file"
            ) from None


def _load(name: str, split: str) -> Any:
    """The rows of one split, as a `datasets.Dataset`."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"reading hf:{name} needs the `datasets` library; install it with `pip install tandem-lm[hub]`"
        ) from None
    folder = user_path(name)
    local = folder.is_dir()
    if not local and names_path(name):
        raise DataError(f"there is no folder {name} (in 'hf:{name}'); check the path")
    reachable = True
    try:
        with _without_bars(datasets), nullcontext(True) if local else hub_access() as reachable:
            return datasets.load_dataset(str(folder) if local else name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if not local and not reachable:
            raise DataError(
                f"the Hugging Face hub cannot be reached and no copy of the data set '{name}' is kept here"
                + advice("connect to the network", ("use a local file or 'python-docs'", "data.train"))
            ) from None
        raise DataError(f"cannot load the data set 'hf:{name}:{split}': {_first_line(error)}") from None


def _hub_answers() -> bool:
    """One small request, in a thread of its own because looking up a name has no time limit by itself."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
        except Exception:  # whatever went wrong, the hub did not answer
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S + 1)
    return answered.is_set()


def _first_line(error: Exception) -> str:
    """The cause of a library's error, shortened to a line."""
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
