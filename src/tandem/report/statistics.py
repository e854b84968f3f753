"""Numbers over seeds: the spread of one model, Holm's correction, verdicts.

Nothing is called better or worse on fewer than three common seeds. Its p-value, corrected for all
comparisons of its family, must be below 0.05. Validation losses are compared over seeds and documents
(`crossed`). What is known by seed only, such as iterations, is compared by the paired t-test.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean, stdev

from scipy import special

MIN_SEEDS = 3
"""Common seeds. With fewer nothing is called better or worse."""
ALPHA = 0.05
"""A claim needs a Holm-corrected p-value below this."""
CONFIDENCE = 0.95
"""Level of every interval."""
RESOLUTION = 1e-6
"""Nats per token. A smaller difference is rounding of single-precision arithmetic."""
Interval = tuple[float, float]


class Verdict(StrEnum):
    """What the records show of the second of two models, measured against the first."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE_SHOWN = "no_difference_shown"
    TOO_FEW_SEEDS = "too_few_seeds"

    @property
    def reversed(self) -> "Verdict":
        """The same finding, told of the first model."""
        return {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}.get(self, self)

    @property
    def shown(self) -> bool:
        """Whether it says that the two models differ."""
        return self in (Verdict.BETTER, Verdict.WORSE)


@dataclass(frozen=True)
class Spread:
    """One figure over seeds: its mean, standard deviation (n − 1), and 95% t interval of the mean.

    The last two are None for a single value, and where a value is not finite.
    """

    mean: float
    sd: float | None
    interval: Interval | None


def spread(values: Iterable[float]) -> Spread | None:
    """The spread of these values; None without any."""
    values = tuple(values)
    if not values:
        return None
    center = fmean(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Spread(center, None, None)
    sd = stdev(values)
    return Spread(center, sd, t_interval(center, sd / math.sqrt(len(values)), len(values) - 1))


def perplexities(figures: Iterable[tuple[float, float]]) -> Spread | None:
    """Spread of perplexities, each given with its NLL in nats per token.

    Their mean is exp of the mean NLL, that is the geometric mean.
    """
    figures = tuple(figures)
    found, nll = spread(value for value, _ in figures), spread(loss for _, loss in figures)
    return found and nll and replace(found, mean=perplexity(nll.mean))


def mean(figure: Spread | None) -> float | None:
    """Its mean; None without values."""
    return None if figure is None else figure.mean


def t_interval(center: float, standard_error: float, df: float) -> Interval:
    """The 95% interval of Student's t around `center`."""
    half = float(special.stdtrit(df, (1 + CONFIDENCE) / 2)) * standard_error
    return center - half, center + half


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of a family of p-values; comparisons without a test are not counted.

    Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scand. J. Statist. 6, 65–70.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, place) in enumerate(tested):
        running = max(running, min(1.0, p * (len(tested) - rank)))
        corrected[place] = running
    return corrected


def verdict(seeds: int, difference: float | None, corrected_p: float | None) -> Verdict:
    """What a difference b − a over so many common seeds shows of `b`, where lower values are better."""
    if seeds < MIN_SEEDS:
        return Verdict.TOO_FEW_SEEDS
    if corrected_p is None or difference is None or corrected_p >= ALPHA:
        return Verdict.NO_DIFFERENCE_SHOWN
    return Verdict.BETTER if difference < 0 else Verdict.WORSE


def perplexity(nll_nats: float) -> float:
    """exp(mean NLL per token); infinite where that exceeds the range of a float."""
    try:
        return math.exp(nll_nats)
    except OverflowError:
        return math.inf
