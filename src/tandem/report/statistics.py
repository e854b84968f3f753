"""Numbers over seeds: the spread of one model, the paired comparison of two, Holm's correction, verdicts.

Nothing is called better or worse on fewer than three common seeds, nor unless its p-value, corrected for all
comparisons of its family, is below 0.05. Validation losses are compared over seeds and documents both (see
`crossed`); what is known by seed only, such as iterations, by the paired t-test here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy import stats

MIN_SEEDS = 3
"""With fewer common seeds nothing is called better or worse."""
ALPHA = 0.05
"""A claim needs a Holm-corrected p-value below this."""
CONFIDENCE = 0.95
"""Of every interval."""
RESOLUTION = 1e-6
"""Differences smaller than this are rounding of single-precision arithmetic, not differences."""


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


@dataclass(frozen=True)
class Spread:
    """One figure over seeds; `sd` and `interval` (t, 95%, of the mean) need two finite values or more."""

    values: tuple[float, ...]
    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Differences `b − a` of two models over their common seeds.

    All figures are null without a common seed; `sd` and `interval` need two seeds. `p` (two-sided paired
    t-test) is null where no test is made: fewer than three common seeds, or a value that is not finite.
    """

    seeds: tuple[int, ...]
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    sd: float | None
    interval: tuple[float, float] | None
    p: float | None

    @property
    def reversed(self) -> "Paired":
        """The same comparison as `a − b`."""
        difference = None if self.difference is None else -self.difference
        interval = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return Paired(self.seeds, self.mean_b, self.mean_a, difference, self.sd, interval, self.p)


def spread(values: Iterable[float]) -> Spread | None:
    """Mean, standard deviation (n − 1), range and 95% interval of the mean; none without values."""
    values = tuple(values)
    if not values:
        return None
    mean, sd = _mean_and_sd(values)
    interval = None if sd is None else _interval(mean, sd, len(values))
    return Spread(values, mean, sd, interval, min(values), max(values))


def paired(a: Mapping[int, float], b: Mapping[int, float], resolution: float = RESOLUTION) -> Paired:
    """Compare two models, each given as {seed: value}, over the seeds that both have.

    `resolution` is the step in which the values are known (1 for counts). Rounding to it leaves a difference
    uncertain by `resolution / √6`, and the standard error never goes below what follows from that. So seeds
    that all differ by the same amount count as strong evidence where that amount is many steps, and as none
    where it is about one.
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


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n − 1); no deviation for one value or where one is not finite."""
    n = len(values)
    if not all(math.isfinite(value) for value in values):
        return sum(values) / n, None
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))


def _interval(mean: float, sd: float, n: int) -> tuple[float, float]:
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    return mean - half, mean + half
