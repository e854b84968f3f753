"""Numbers over seeds: the spread of one model, the difference of two, Holm's correction, verdicts.

Nothing is called better or worse on fewer than three common seeds. Its p-value, corrected for all
comparisons of its family, must be below 0.05. Validation losses are compared over seeds and documents
(`crossed`). What is known by seed only, such as iterations, is compared by the paired t-test (`Paired`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from scipy import stats

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
    """One figure over seeds. `sd` and `interval` (t, 95%, of the mean) need at least two finite values."""

    values: tuple[float, ...]
    mean: float
    sd: float | None
    interval: Interval | None
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Differences `b − a` of two models over their common seeds.

    All figures are None without a common seed; `sd` and `interval` need two seeds. `p` is that of the
    two-sided paired t-test. It is None below three common seeds, and where a value is not finite.
    """

    seeds: tuple[int, ...]
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    sd: float | None
    interval: Interval | None
    p: float | None

    @property
    def reversed(self) -> "Paired":
        """The same comparison as `a − b`."""
        difference, interval = negated(self.difference, self.interval)
        return Paired(self.seeds, self.mean_b, self.mean_a, difference, self.sd, interval, self.p)


def spread(values: Iterable[float]) -> Spread | None:
    """Mean, standard deviation (n − 1), range and 95% interval of the mean; none without values."""
    values = tuple(values)
    if not values:
        return None
    center, sd = _mean_and_sd(values)
    interval = None if sd is None else _interval(center, sd, len(values))
    return Spread(values, center, sd, interval, min(values), max(values))


def perplexities(figures: Iterable[tuple[float, float]]) -> Spread | None:
    """Spread of perplexities, each given with its NLL in nats per token.

    Their mean is exp of the mean NLL, that is the geometric mean.
    """
    figures = tuple(figures)
    found, nll = spread(value for value, _ in figures), spread(loss for _, loss in figures)
    return None if found is None or nll is None else replace(found, mean=perplexity(nll.mean))


def mean(figure: Spread | None) -> float | None:
    """Its mean; None without values."""
    return None if figure is None else figure.mean


def paired(a: Mapping[int, float], b: Mapping[int, float], resolution: float = RESOLUTION) -> Paired:
    """Compare two models, each given as {seed: value}, over the seeds that both have.

    `resolution` is the step in which the values are known (1 for counts). Rounding to it leaves a difference
    uncertain by `resolution / √6`, and the standard error never goes below what follows from that. So seeds
    that all differ by the same amount are strong evidence only where that amount is many steps.
    """
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        return Paired((), None, None, None, None, None, None)
    n = len(seeds)
    mean_a, mean_b = (math.fsum(side[seed] for seed in seeds) / n for side in (a, b))
    mean, sd = _mean_and_sd([b[seed] - a[seed] for seed in seeds])
    interval, p = None, None
    if sd is not None:
        wide = max(sd, resolution / math.sqrt(6))
        interval = _interval(mean, wide, n)
        if n >= MIN_SEEDS:
            p = float(2 * stats.t.sf(abs(mean) / (wide / math.sqrt(n)), n - 1))
    return Paired(seeds, mean_a, mean_b, mean, sd, interval, p)


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


def negated(difference: float | None, interval: Interval | None) -> tuple[float | None, Interval | None]:
    """A difference and its interval the other way round."""
    return (
        None if difference is None else -difference,
        None if interval is None else (-interval[1], -interval[0]),
    )


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n − 1); no deviation for one value or where one is not finite."""
    n = len(values)
    if not all(math.isfinite(value) for value in values):
        return sum(values) / n, None
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))


def _interval(mean: float, sd: float, n: int) -> Interval:
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    return mean - half, mean + half
