"""Numbers over seeds, and the difference of two models over seeds and documents, with its verdict.

Nothing is called better or worse on fewer than three common seeds. Its p-value, corrected for all comparisons
of its family, must be below 0.05. Validation losses are compared over seeds and documents (`Effect`). What is
known by seed only, such as iterations, is compared by the paired t-test (`Paired`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special, stats

MIN_SEEDS = 3
"""Common seeds. With fewer nothing is called better or worse."""
ALPHA = 0.05
"""A claim needs a Holm-corrected p-value below this."""
CONFIDENCE = 0.95
"""Level of every interval."""
RESOLUTION = 1e-6
"""Nats per token. A smaller difference is rounding of single-precision arithmetic."""
Floats = npt.NDArray[np.float64]
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
        difference, interval = _negated(self.difference, self.interval)
        return Paired(self.seeds, self.mean_b, self.mean_a, difference, self.sd, interval, self.p)


@dataclass(frozen=True)
class Effect:
    """The difference b − a of two models in validation NLL, nats per token."""

    basis: Literal["seeds_documents", "seeds"]
    """What the interval generalises to: other seeds and other documents, or other seeds only."""
    by_seed: Mapping[int, float]
    """The difference of every common seed."""
    documents: int | None
    """Documents with scored tokens; None where documents are not used."""
    difference: float | None
    """Mean over common seeds; None without one."""
    interval: Interval | None
    """95%; None below two seeds, or where a difference is not finite."""
    df: float | None
    """Degrees of freedom of `interval` and `p`."""
    p: float | None
    """Two-sided, uncorrected; None below three seeds, or without an interval."""

    @property
    def reversed(self) -> "Effect":
        """The same as a − b."""
        difference, interval = _negated(self.difference, self.interval)
        by_seed = {seed: -value for seed, value in self.by_seed.items()}
        return replace(self, by_seed=by_seed, difference=difference, interval=interval)


def spread(values: Iterable[float]) -> Spread | None:
    """Mean, standard deviation (n − 1), range and 95% interval of the mean; none without values."""
    values = tuple(values)
    if not values:
        return None
    center, sd = _mean_and_sd(values)
    interval = None if sd is None else _interval(center, sd, len(values))
    return Spread(values, center, sd, interval, min(values), max(values))


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


def _negated(difference: float | None, interval: Interval | None) -> tuple[float | None, Interval | None]:
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


# Seeds × documents


@dataclass(frozen=True)
class CrossedEstimate:
    """A mean difference, its standard error (both in nats per token) and the error's degrees of freedom."""

    difference: float
    standard_error: float
    df: float

    @property
    def p(self) -> float:
        """Two-sided p of no difference."""
        if self.standard_error == 0:
            return 1.0 if self.difference == 0 else 0.0
        return float(2 * special.stdtr(self.df, -abs(self.difference) / self.standard_error))

    @property
    def interval(self) -> Interval:
        """Its 95% interval."""
        half = float(special.stdtrit(self.df, (1 + CONFIDENCE) / 2)) * self.standard_error
        return self.difference - half, self.difference + half


def estimate(differences: Floats, tokens: npt.NDArray[np.int64], resolution: float = 0.0) -> CrossedEstimate:
    """The mean difference of two models over seeds × documents. Both are samples, and both make it uncertain.

    `differences` [S, D] are nats, summed over each document's scored `tokens` [D]. The standard error never
    goes below `resolution / √(6 S)`, what rounding to steps of `resolution` (nats per token) leaves
    uncertain; see `paired`. One document gives the paired t-test over seeds. Raises ValueError below two
    seeds, without a document, and for a document without tokens.

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
        MS_doc  = S Σ_i ē[i]² / (D − 1)                              ē[i] = mean of e[s, i] over s
        MS_e    = Σ_si (e[s, i] − ē[i])² / ((S − 1) (D − 1))

        variance of δ = (MS_seed + MS_doc − MS_e) / (S D)

    The degrees of freedom are Satterthwaite's, (MS_seed + MS_doc − MS_e)² over the sum of each MS² / df, but
    at least the smaller of S − 1 and D − 1. A mean square of seeds or documents below MS_e is a variance
    estimated as negative. It is left out together with MS_e, and the other one stands alone with its own
    degrees of freedom. Of two such mean squares the larger one stands. So the variance is never below what
    either factor gives.

    Satterthwaite, F. E. (1946). An approximate distribution of estimates of variance components. Biometrics
    Bull. 2, 110–114. Cochran, W. G. (1977). Sampling Techniques, 3rd ed., sections 6.4 and 6.17 (ratios).
    `bench/false_positives.py` holds the rule to its nominal 5%.
    """
    seeds, documents = differences.shape
    if seeds < 2 or documents < 1 or tokens.min() < 1:
        raise ValueError("an estimate needs two seeds, a document, and tokens in every document")
    total = tokens.sum()
    by_seed = differences.sum(axis=1) / total
    difference = float(by_seed.mean())
    of_seeds = documents * float(np.square(by_seed - difference).sum()) / (seeds - 1)
    if documents == 1:
        variance, df = of_seeds, seeds - 1.0
    else:
        residuals = (documents - 1) * (differences - by_seed[:, None] * tokens) / (total - tokens)
        of_documents = residuals.mean(axis=0)
        variance, df = _variance(
            of_seeds,
            seeds * float(np.square(of_documents).sum()) / (documents - 1),
            float(np.square(residuals - of_documents).sum()) / ((seeds - 1) * (documents - 1)),
            seeds - 1,
            documents - 1,
        )
    least = resolution / math.sqrt(6 * seeds)
    return CrossedEstimate(difference, max(math.sqrt(variance / (seeds * documents)), least), df)


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


def over_seeds_and_documents(
    differences: Mapping[int, Floats], tokens: npt.NDArray[np.int64], resolution: float = RESOLUTION
) -> Effect:
    """The effect from every seed's differences [D] in nats per document, of documents with `tokens` [D].

    Documents without scored tokens are not used.
    """
    scored = tokens > 0
    of_documents = np.stack([row[scored] for row in differences.values()])
    values = of_documents.sum(axis=1) / tokens.sum()
    by_seed = {seed: float(value) for seed, value in zip(differences, values, strict=True)}
    documents, interval, df, p = int(scored.sum()), None, None, None
    if len(by_seed) > 1 and np.isfinite(of_documents).all():
        found = estimate(of_documents, tokens[scored], resolution)
        interval, df = found.interval, found.df
        p = found.p if len(by_seed) >= MIN_SEEDS else None
    mean = sum(by_seed.values()) / len(by_seed)
    return Effect("seeds_documents", by_seed, documents, mean, interval, df, p)


def over_seeds(test: Paired, by_seed: Mapping[int, float]) -> Effect:
    """The effect where no scores of documents are known: the paired t-test, on this validation text only."""
    df = None if test.interval is None else len(test.seeds) - 1.0
    return Effect("seeds", by_seed, None, test.difference, test.interval, df, test.p)
