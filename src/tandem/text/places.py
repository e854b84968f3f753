"""Where paths of sources count from: the working folder, or that of the command whose settings are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from tandem.errors import DataError

_counted_from: ContextVar[Path | None] = ContextVar("counted_from", default=None)


@contextmanager
def counted_from(folder: Path | None) -> Iterator[None]:
    """Within the block relative paths of sources count from `folder`; None: from the working folder."""
    before = _counted_from.set(folder)
    try:
        yield
    finally:
        _counted_from.reset(before)


def source_folder() -> Path:
    """The folder that relative paths of sources count from."""
    return _counted_from.get() or Path.cwd()


def user_path(source: str) -> Path:
    """The path that a source names, `~` and `~name` read as homes, a relative one counted as it was meant.

    DataError where nobody is called so.
    """
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise DataError(f"{source} cannot be found ({str(error).rstrip('.')}); give the whole path") from None
    folder = _counted_from.get()
    return path if folder is None else folder / path


def names_path(source: str, *suffixes: str) -> bool:
    """Whether a source can only be a path: its form, or one of the `suffixes`, is not that of a hub name."""
    return source.startswith((".", "/", "~", "\\")) or source.count("/") > 1 or source.endswith(suffixes)
