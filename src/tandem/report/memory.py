"""How far back the contexts remember, in words."""

from tandem.report.depths import MemoryResult
from tandem.report.results import Analysis
from tandem.report.wording import Texts, number, percent

SHARES = (0.1, 0.01)
"""Of a changed token's trace, below which the distance is told: mostly gone, and as good as gone."""


def memory_sentences(analysis: Analysis, texts: Texts) -> list[str]:
    """One sentence per curve: from which distance on the change stays below each share."""
    first, second = SHARES
    return [
        texts(
            "memory.falls",
            name=m.name,
            first=percent(first, 0),
            first_distance=_distance(m, first, texts),
            second=percent(second, 0),
            second_distance=_distance(m, second, texts),
        )
        for m in analysis.memories
    ]


def _distance(memory: MemoryResult, share: float, texts: Texts) -> str:
    distance = memory.falls_below(share)
    if distance is None:
        return texts("memory.beyond", distance=number(memory.measured_to, 0))
    if distance < 1:
        return texts("memory.at_once")
    return texts("memory.distance", distance=number(distance, 0 if distance >= 10 else 1))
