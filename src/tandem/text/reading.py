"""What the reading of one source met, to be said once: files read, what was passed over and why."""

from collections import Counter
from dataclasses import dataclass, field

from tandem.advice import advice
from tandem.errors import DataError
from tandem.settings import DataSettings

LONGEST = "data.max_document_bytes"
"""Its default holds where no settings are at hand, as for files to score."""


class _Tally:
    """Counts by what was met, with the first example of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, what: str, example: str, count: int = 1) -> None:
        self.counts[what] += count
        self._examples.setdefault(what, example)

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {what}{self._example(what)}" for what, count in self.counts.items())

    def _example(self, what: str) -> str:
        such_as, example = "such as " if self.counts[what] > 1 else "", self._examples[what]
        return f" ({such_as}{example})" if example else ""


@dataclass
class Reading:
    """What was met so far.

    place     file that is read just now.
    files     files that were read.
    blank     documents without any text.
    longest   the most bytes of UTF-8 that a document, or a line that holds one, may have.
    """

    source: str
    place: str = ""
    files: int = 0
    blank: int = 0
    longest: int = DataSettings.model_fields["max_document_bytes"].default
    _passed_over: _Tally = field(default_factory=_Tally)
    _noted: _Tally = field(default_factory=_Tally)

    def passed_over(self, why: str, example: str) -> None:
        """A file or folder was left out; `why` completes "3 …"."""
        self._passed_over.add(why, example)

    def noted(self, what: str, count: int = 1) -> None:
        """Something was read in a way that should be known; `what` completes "3 …"."""
        self._noted.add(what, self.place, count)

    def encoded(self, encoding: str) -> None:
        """A file is of another encoding than UTF-8."""
        self.noted(f"in {encoding}")

    @property
    def mend(self) -> str:
        """What to do about a line or document that is too long, as the end of a sentence."""
        return advice("cut it into smaller documents", ("raise {}", LONGEST))

    def check_size(self, size: int, where: str) -> None:
        """Raises DataError where a document of `size` bytes, which `where` names, is too long."""
        if size > self.longest:
            raise DataError(f"{where}: the document is longer than {self.longest:,} bytes{self.mend}")

    def left_out(self) -> str:
        """What was passed over, as the end of a sentence; '' for nothing."""
        counts = self._passed_over.counts
        total = f"{counts.total()}: " if len(counts) > 1 else ""
        return f"; passed over {total}{self._passed_over}" if counts else ""

    def sentence(self) -> str | None:
        """All of it; none where there is nothing to say of a single file."""
        notes = self.left_out()
        if self.blank:
            notes += f"; passed over {self.blank:,} blank document{'s' if self.blank > 1 else ''}"
        if self._noted.counts:
            notes += f"; {self._noted}"
        if self.files <= 1 and not notes:
            return None
        return f"read {f'{self.files:,} files of ' if self.files > 1 else ''}{self.source}{notes}"
