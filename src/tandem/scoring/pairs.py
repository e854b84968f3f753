"""Minimal pairs: how often a model finds the good one of two sentences the likelier, by group."""

import math
from collections.abc import Callable
from itertools import starmap

from pydantic import BaseModel

from tandem.errors import DataError
from tandem.patience import Pace
from tandem.scoring.scorer import Scorer, windows
from tandem.text.files import read_records
from tandem.text.reading import Reading
from tandem.text.rows import record_text

FIELDS = (("good", "bad"), ("sentence_good", "sentence_bad"))
"""Names of both sentences; the second ones are those of BLiMP."""
GROUPS = ("group", "UID")
Z95 = 1.959964
"""Standard deviations of a normal distribution that hold 95% of it on both sides."""


class Accuracy(BaseModel):
    """Of the pairs of one group: those whose good sentence has the higher probability, all of its tokens
    together, with a 95% interval."""

    group: str
    pairs: int
    correct: int
    accuracy: float
    low: float
    high: float

    @classmethod
    def of(cls, group: str, pairs: int, correct: int) -> "Accuracy":
        """With the interval of Wilson (1927), which counts pairs as drawn independently."""
        share, weight = correct / pairs, Z95**2 / pairs
        middle = (share + weight / 2) / (1 + weight)
        half = math.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
        return cls(
            group=group, pairs=pairs, correct=correct, accuracy=share, low=middle - half, high=middle + half
        )


class PairScores(BaseModel):
    """What came of minimal pairs: by group in order of appearance, and of all pairs."""

    groups: tuple[Accuracy, ...]
    overall: Accuracy


def score_pairs(scorer: Scorer, source: str, on_progress: Callable[[str], None]) -> PairScores:
    """Of a file, folder or pattern, or of `-`: a pair for each record, by the names of FIELDS.

    Raises DataError for a record without a pair, naming file and line.
    """
    counts: dict[str, list[int]] = {}
    pace = Pace(on_progress)

    def characters(pair: tuple[str, str, str]) -> int:
        return sum(map(len, pair))

    pairs = starmap(_pair, read_records([source], Reading(source), "text"))
    for window in windows(pairs, characters):
        scored = scorer.scored([sentence for _, *both in window for sentence in both])
        for number, (group, *_) in enumerate(window):
            good, bad = (one.losses.sum() for one in scored[2 * number : 2 * number + 2])
            counts.setdefault(group, [0, 0])
            counts[group][0] += 1
            counts[group][1] += bool(good < bad)
        pace(lambda: f"scored {sum(count for count, _ in counts.values()):,} pairs")
    if not counts:
        raise DataError(f"{source} holds no pairs; give one JSON object a line, with 'good' and 'bad'")
    groups = tuple(Accuracy.of(group, *count) for group, count in counts.items())
    totals = (sum(one.pairs for one in groups), sum(one.correct for one in groups))
    return PairScores(groups=groups, overall=Accuracy.of("all", *totals))


def _pair(record: object, where: str) -> tuple[str, str, str]:
    """Group, good and bad sentence of a record."""
    fields = record if isinstance(record, dict) else {}
    names = next((names for names in FIELDS if all(name in fields for name in names)), None)
    if names is None:
        found = ", ".join(map(repr, fields)) or "none"
        raise DataError(
            f"{where} holds no pair (fields found: {found}); give an object with 'good' and 'bad', or with "
            "'sentence_good' and 'sentence_bad'"
        )
    good, bad = (record_text(fields, where, name) for name in names)
    group = next((fields[name] for name in GROUPS if name in fields), "pairs")
    return str(group), good, bad
