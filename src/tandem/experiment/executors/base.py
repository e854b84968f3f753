"""What an executor is, and what it runs: a worker."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tandem.advice import Options, advice, in_command
from tandem.claims import is_alive
from tandem.errors import RunDirError
from tandem.settings import Settings
from tandem.shown import tolerate_any_encoding
from tandem.text.places import counted_from

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Worker:
    """What a further worker does, wherever it runs: `work` on the run directory. Calling it does it.

    It is pickled, and what it names is looked up there: `work` is an importable function, `run_dir` absolute.

    folder   working directory of the command, from which relative paths in the settings count.
    command  the command's `liveness_lock`.
    options  the command's options, for messages.
    """

    settings: Settings
    run_dir: Path
    folder: Path
    command: str
    work: Callable[[Settings, Path], None]
    options: Options | None = None

    def __call__(self) -> None:
        """Raises RunDirError where the run directory is not shared with this machine; else as `work`."""
        tolerate_any_encoding()
        host = socket.gethostname()
        if not self.run_dir.is_dir():
            raise RunDirError(
                f"{host} does not see the run directory {self.run_dir}"
                + advice(("choose one that all machines share with {}", "output"))
            )
        if not is_alive(self.run_dir, self.command):
            raise RunDirError(
                f"file locks in {self.run_dir} do not span {host} and the machine that gave the command, or "
                "the command has ended" + advice(("choose a file system whose locks do with {}", "output"))
            )
        # A folder that is not there is missed only by settings with relative paths, and they say so.
        folder = self.folder if self.folder.is_dir() else None
        with counted_from(folder), in_command(self.options):
            self.work(self.settings, self.run_dir)


class Executor(ABC):
    """Where further workers run; its key in `tandem.experiment.executors.EXECUTORS` is what settings name."""

    for_one_worker: ClassVar[bool] = False
    """Whether settings may name it where this process is the only worker."""

    def __init__(self, settings: Settings) -> None:
        """The executor of an experiment. Raises SettingsError where it is not installed, or not here."""
        self.settings = settings

    @classmethod
    def threads(cls, settings: Settings) -> int | None:  # noqa: ARG003
        """CPU threads of each of several workers, where the settings name none; None: as torch chooses."""
        return None

    @abstractmethod
    def helping(self, worker: Worker, count: int, tell: Tell) -> AbstractContextManager[None]:
        """Within the block `count` workers run or wait to be started; those left at its end are stopped.

        `tell` is told where they are. Raises SettingsError where they cannot be started.
        """


def reason(error: BaseException) -> str:
    """The last line of an error's text, where those that quote another process have its reason."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)
