"""What the reading of one source met, to be said once: files read, what was passed over and why."""

from collections import Counter
from dataclasses import dataclass, field


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
    """

    source: str
    place: str = ""
    files: int = 0
    blank: int = 0
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
