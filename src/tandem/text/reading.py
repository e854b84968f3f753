"""What the reading of one source met, to be said once: files read, what was passed over and why."""

from dataclasses import dataclass, field


@dataclass
class _Met:
    count: int
    example: str


@dataclass
class Reading:
    """What was met so far.

    place     file that is read just now
    files     files that were read
    blank     documents without any text
    """

    source: str
    place: str = ""
    files: int = 0
    blank: int = 0
    _passed_over: dict[str, _Met] = field(default_factory=dict)
    _noted: dict[str, _Met] = field(default_factory=dict)

    def passed_over(self, why: str, example: str) -> None:
        """A file or folder was left out; `why` completes "3 …"."""
        _count(self._passed_over, why, example)

    def noted(self, what: str, count: int = 1) -> None:
        """Something was read in a way that should be known; `what` completes "3 …"."""
        _count(self._noted, what, self.place, count)

    def left_out(self) -> str:
        """What was passed over, as the end of a sentence; '' for nothing."""
        if not self._passed_over:
            return ""
        total = sum(met.count for met in self._passed_over.values())
        reasons = _listed(self._passed_over)
        return f"; passed over {reasons if len(self._passed_over) == 1 else f'{total}: {reasons}'}"

    def sentence(self) -> str | None:
        """All of it; none where there is nothing to say of a single file."""
        notes = self.left_out()
        if self.blank:
            notes += f"; passed over {self.blank:,} blank document{'s' if self.blank > 1 else ''}"
        if self._noted:
            notes += f"; {_listed(self._noted)}"
        if self.files <= 1 and not notes:
            return None
        return f"read {f'{self.files:,} files of ' if self.files > 1 else ''}{self.source}{notes}"


def _count(met: dict[str, _Met], what: str, example: str, count: int = 1) -> None:
    met.setdefault(what, _Met(0, example)).count += count


def _listed(met: dict[str, _Met]) -> str:
    return ", ".join(
        f"{one.count:,} {what}"
        + (f" ({'such as ' if one.count > 1 else ''}{one.example})" if one.example else "")
        for what, one in met.items()
    )
