"""Numbers over seeds: the spread of one model, the difference of two, Holm's correction, verdicts.

Nothing is called better or worse on fewer than three common seeds. Its p-value, corrected for all
comparisons of its family, must be below 0.05. What is known by seed only, such as iterations, is compared by
the paired t-test. Validation losses are compared over seeds × documents: both are samples, and both make a
difference uncertain.

A seed stands for another training, a document for another validation text. Every pair of trainings scores
the same documents, so the two factors are crossed, once each. This is a two-way random-effects analysis
of variance without replication. Documents are the unit, never tokens: the tokens of a document resemble
each other.

Let d[s, i] be the NLL of document i under b less that under a with seed s, n[i] its tokens, and N = Σ n.
The estimate weighs tokens equally, as perplexity does:

    δ[s] = Σ_i d[s, i] / N,    δ = mean of δ[s]

It is a ratio of sums, and long documents weigh more. Its residuals are those of the jackknife over
documents (Tukey's pseudo-values less δ[s]), which for documents of one length are plain deviations from
the mean:

    e[s, i] = (D − 1) (d[s, i] − δ[s] n[i]) / (N − n[i])

    MS_seed = D Σ_s (δ[s] − δ)² / (S − 1)
    MS_doc  = S Σ_i ē[i]² / (D − 1)                              ē[i] = mean of e[s, i] over s.
    MS_e    = Σ_si (e[s, i] − ē[i])² / ((S − 1) (D − 1)).

    variance of δ = (MS_seed + MS_doc − MS_e) / (S D)

The degrees of freedom are Satterthwaite's, (MS_seed + MS_doc − MS_e)² over the sum of each MS² / df, but
at least the smaller of S − 1 and D − 1. A mean square of seeds or documents below MS_e is a variance
estimated as negative. It is left out together with MS_e, and the other one stands alone with its own
degrees of freedom. Of two such mean squares the larger one stands. So the variance is never below what
either factor gives.

Satterthwaite, F. E. (1946). An approximate distribution of estimates of variance components. Biometrics
Bull. 2, 110–114. Cochran, W. G. (1977). Sampling Techniques, 3rd ed., sections 6.4 and 6.17 (ratios).
`bench/false_positives.py` holds the rule to its nominal 5%.

Power. With S' seeds, MS_seed and MS_e are expected as they are, and MS_doc as MS_doc + (S' − S) σ², where
σ² = (MS_doc − MS_e) / S, or 0. They give a standard error and degrees of freedom by the rule above. A true
difference of λ standard errors is shown with the probability that a noncentral t of this λ exceeds the
critical value. The level is the one that Holm's correction leaves to a pair, given all other p-values.

Westfall, J., Kenny, D. A. & Judd, C. M. (2014). Statistical power and optimal design in experiments in
which samples of participants respond to samples of stimuli. J. Exp. Psychol. Gen. 143, 2020–2045.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean, stdev
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from tandem.records import perplexity as perplexity

MIN_SEEDS = 3
"""Common seeds. With fewer nothing is called better or worse."""
ALPHA = 0.05
"""A claim needs a Holm-corrected p-value below this."""
CONFIDENCE = 0.95
"""Level of every interval."""
RESOLUTION = 1e-6
"""Nats per token. A smaller difference is rounding of single-precision arithmetic."""
POWER = 0.8
"""Probability of showing a true difference."""
MOST_SEEDS = 1000
"""More seeds are not looked for."""
NORMAL = np.linspace(-8, 8, 401)
WEIGHTS = np.exp(-np.square(NORMAL) / 2) / np.exp(-np.square(NORMAL) / 2).sum()
"""Of the standard normal distribution, for integrals over it."""
Interval = tuple[float, float]
Floats = npt.NDArray[np.float64]


class Verdict(StrEnum):
    """What the records show of the second of two models, measured against the first."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE_SHOWN = "no_difference_shown"
    TOO_FEW_SEEDS = "too_few_seeds"

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


def perplexities(losses: Iterable[float]) -> Spread | None:
    """Spread of the perplexities of these NLLs, nats per token; their mean is the geometric one."""
    losses = tuple(losses)
    found, nll = spread(map(perplexity, losses)), spread(losses)
    return found and nll and replace(found, mean=perplexity(nll.mean))


def mean(figure: Spread | None) -> float | None:
    """Its mean; None without values."""
    return None if figure is None else figure.mean


def t_interval(center: float, standard_error: float, df: float) -> Interval:
    """The 95% interval of Student's t around `center`."""
    half = float(special.stdtrit(df, (1 + CONFIDENCE) / 2)) * standard_error
    return center - half, center + half


# The difference of two models


class MeanSquares(NamedTuple):
    """MS_seed, MS_doc and MS_e (0 of one document), their S and D, and `resolution` as in `estimate`."""

    seed: float
    document: float
    rest: float
    seeds: int
    documents: int
    resolution: float

    def error(self, seeds: int) -> tuple[float, float]:
        """The standard error in nats per token, and its degrees of freedom, with so many seeds."""
        document = self.document + max(0.0, self.document - self.rest) * (seeds / self.seeds - 1)
        variance, df = _variance(self.seed, document, self.rest, seeds - 1, self.documents - 1)
        least = self.resolution / math.sqrt(6 * seeds)
        return max(math.sqrt(variance / (seeds * self.documents)), least), df


@dataclass(frozen=True)
class Effect:
    """The difference b − a of two models, of validation NLL in nats per token unless it is said otherwise."""

    by_seed: Mapping[int, float]
    """The difference of every common seed."""
    documents: int | None = None
    """Documents with scored tokens; None where the difference is known by seed only."""
    difference: float | None = None
    """Mean over common seeds; None without one."""
    interval: Interval | None = None
    """95%; None below two seeds, or where a difference is not finite."""
    df: float | None = None
    """Degrees of freedom of `interval` and `p`."""
    p: float | None = None
    """Two-sided, uncorrected; None below three seeds, or without an interval."""
    squares: MeanSquares | None = None
    """What `interval` comes from."""
    means: tuple[float, float] | None = None
    """Of a and of b over common seeds, where `paired` compares them."""

    @property
    def basis(self) -> Literal["seeds_documents", "seeds"]:
        """What the interval generalises to: other seeds and other documents, or other seeds only."""
        return "seeds" if self.documents is None else "seeds_documents"

    def verdict(self, corrected_p: float | None) -> Verdict:
        """What it shows of b, where lower values are better."""
        if len(self.by_seed) < MIN_SEEDS:
            return Verdict.TOO_FEW_SEEDS
        if corrected_p is None or self.difference is None or corrected_p >= ALPHA:
            return Verdict.NO_DIFFERENCE_SHOWN
        return Verdict.BETTER if self.difference < 0 else Verdict.WORSE

    @property
    def reversed(self) -> "Effect":
        """The same as a − b."""
        return replace(
            self,
            by_seed={seed: -value for seed, value in self.by_seed.items()},
            difference=None if self.difference is None else -self.difference,
            interval=self.interval and (-self.interval[1], -self.interval[0]),
            means=self.means and self.means[::-1],
        )


@dataclass(frozen=True)
class CrossedEstimate:
    """A mean difference, its standard error (both in nats per token) and the error's degrees of freedom."""

    difference: float
    standard_error: float
    df: float
    squares: MeanSquares

    @property
    def p(self) -> float:
        """Two-sided p of no difference."""
        if self.standard_error == 0:
            return 1.0 if self.difference == 0 else 0.0
        return float(2 * special.stdtr(self.df, -abs(self.difference) / self.standard_error))

    @property
    def interval(self) -> Interval:
        """Its 95% interval."""
        return t_interval(self.difference, self.standard_error, self.df)


def estimate(differences: Floats, tokens: npt.NDArray[np.int64], resolution: float = 0.0) -> CrossedEstimate:
    """The mean difference of two models over seeds × documents; the formulas stand at the top of this file.

    `differences` [S, D] are nats, summed over each document's scored `tokens` [D]. The standard error never
    goes below `resolution / √(6 S)`, what rounding to steps of `resolution` (nats per token) leaves
    uncertain. One document gives the paired t-test over seeds. Raises ValueError below two
    seeds, without a document, and for a document without tokens.
    """
    seeds, documents = differences.shape
    if seeds < 2 or documents < 1 or tokens.min() < 1:
        raise ValueError("an estimate needs two seeds, a document, and tokens in every document")
    total = tokens.sum()
    by_seed = differences.sum(axis=1) / total
    difference = float(by_seed.mean())
    of_seeds = documents * float(np.square(by_seed - difference).sum()) / (seeds - 1)
    of_documents, rest = 0.0, 0.0
    if documents > 1:
        residuals = (documents - 1) * (differences - by_seed[:, None] * tokens) / (total - tokens)
        means = residuals.mean(axis=0)
        of_documents = seeds * float(np.square(means).sum()) / (documents - 1)
        rest = float(np.square(residuals - means).sum()) / ((seeds - 1) * (documents - 1))
    squares = MeanSquares(of_seeds, of_documents, rest, seeds, documents, resolution)
    return CrossedEstimate(difference, *squares.error(seeds), squares)


def _variance(
    seed: float, document: float, rest: float, df_seed: int, df_document: int
) -> tuple[float, float]:
    """S D times the variance of the mean, and its degrees of freedom, from the three mean squares."""
    if document <= rest and document <= seed:
        return seed, df_seed
    if seed <= rest:
        return document, df_document
    variance = seed + document - rest
    uncertainty = seed**2 / df_seed + document**2 / df_document + rest**2 / (df_seed * df_document)
    return variance, max(variance**2 / uncertainty, min(df_seed, df_document))


def crossed(
    differences: Mapping[int, Floats], tokens: npt.NDArray[np.int64], resolution: float = RESOLUTION
) -> Effect:
    """The effect from every seed's differences [D] in nats per document, of documents with `tokens` [D].

    Documents without scored tokens are not used.
    """
    if not differences:
        return Effect({})
    scored = tokens > 0
    of_documents = np.stack([row[scored] for row in differences.values()])
    values = of_documents.sum(axis=1) / tokens.sum()
    by_seed = {seed: float(value) for seed, value in zip(differences, values, strict=True)}
    effect = Effect(by_seed, int(scored.sum()), fmean(by_seed.values()))
    if len(by_seed) < 2 or not np.isfinite(of_documents).all():
        return effect
    found = estimate(of_documents, tokens[scored], resolution)
    p = found.p if len(by_seed) >= MIN_SEEDS else None
    return replace(effect, interval=found.interval, df=found.df, p=p, squares=found.squares)


def paired(a: Mapping[int, float], b: Mapping[int, float], resolution: float = RESOLUTION) -> Effect:
    """Two models, each given as {seed: value}, over the seeds that both have: the paired t-test.

    `resolution` is the step in which the values are known (1 for counts). Seeds that all differ by the same
    amount are strong evidence only where that amount is many steps; see `estimate`.
    """
    seeds = sorted(a.keys() & b.keys())
    differences = {seed: np.array([b[seed] - a[seed]]) for seed in seeds}
    effect = replace(crossed(differences, np.array([1]), resolution), documents=None)
    return (
        replace(effect, means=(fmean(a[s] for s in seeds), fmean(b[s] for s in seeds))) if seeds else effect
    )


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


class Power(NamedTuple):
    """What a comparison can show with probability `POWER`."""

    detectable: float
    """The smallest true difference that its seeds and documents show, nats per token."""
    seeds: int | None
    """Seeds that show the difference at hand, if it is the true one; None: more than `MOST_SEEDS`."""


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """The p below which Holm's correction shows each of a family, the others being what they are."""
    tested, levels = sorted(p_values), []
    for place in map(tested.index, p_values):
        others = enumerate(tested[:place] + tested[place + 1 :])
        unshown = (rank for rank, other in others if other * (len(tested) - rank) >= ALPHA)
        levels.append(ALPHA / (len(tested) - next(unshown, len(tested) - 1)))
    return levels


def powers(effects: Sequence[Effect]) -> list[Power | None]:
    """Of each test of a family; None where there was none."""
    levels = iter(holm_levels([effect.p for effect in effects if effect.p is not None]))
    return [None if effect.p is None else power_of(effect, next(levels)) for effect in effects]


def power_of(effect: Effect, level: float) -> Power:
    """The power of the test behind an effect at this level."""
    squares, difference = effect.squares, abs(effect.difference or 0.0)
    assert squares is not None, "an effect without an interval has no test"

    def detectable(seeds: int) -> float:
        error, df = squares.error(seeds)
        return error * _noncentrality(df, level)

    enough = range(MIN_SEEDS, MOST_SEEDS + 1)
    found = bisect_left(enough, True, key=lambda seeds: detectable(seeds) <= difference)
    return Power(detectable(squares.seeds), enough[found] if found < len(enough) else None)


def _noncentrality(df: float, level: float) -> float:
    """Of the t that exceeds the two-sided critical value of `level` with probability `POWER`."""
    critical = float(special.stdtrit(df, 1 - level / 2))
    if df >= 4:
        return float(special.nctdtrinc(df, 1 - POWER, critical))

    def excess(shift: float) -> float:  # SciPy's own is inexact here, or does not end
        ratios = np.square(np.maximum(NORMAL + shift, 0.0) / critical)
        return float(WEIGHTS @ special.gammainc(df / 2, df / 2 * ratios)) - POWER

    return float(optimize.brentq(excess, 0.0, 4 * critical + 20))
