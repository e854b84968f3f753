"""Numbers over seeds and documents a second time: plainly, by the definitions, for the check `report`.

Nothing of `tandem.report.statistics` is called here; its docstring has the formulas.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

STEP = 1e-6
"""Nats per token: the step in which losses are known."""
Squares = tuple[float, float, float, int, int, float]
"""Mean squares of seeds, of documents and of the rest; seeds, documents, and the step of losses."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)
"""Of integrals from -1 to 1."""


# Numbers over seeds


def mean_of(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def spread_of(values: Iterable[float]) -> tuple[Any, Any, Any] | None:
    """Mean, standard deviation (n - 1) and the 95% t interval of the mean."""
    values = list(values)
    mean = mean_of(values)
    if mean is None:
        return None
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return mean, None, None
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return mean, sd, (mean - half, mean + half)


def perplexity_of(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf


def perplexities_of(losses: Iterable[float]) -> tuple[Any, Any, Any] | None:
    """The same of perplexities, with their geometric mean."""
    losses = list(losses)
    found, nll = spread_of(map(perplexity_of, losses)), mean_of(losses)
    return None if found is None or nll is None else (perplexity_of(nll), *found[1:])


# Two models


class SeedTest(NamedTuple):
    """The difference of two models over common seeds, and how sure it is."""

    by_seed: dict[int, float]
    documents: int | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    df: float | None = None
    p: float | None = None
    squares: Squares | None = None


class PairTest(NamedTuple):
    """Two models compared: what the verdict rests on, and the paired tests beside it."""

    effect: SeedTest
    corrected: float | None
    nll: SeedTest
    paired: float | None
    accuracy: SeedTest
    means: tuple[float, float] | None
    power: tuple[float, int | None] | None

    @property
    def verdict(self) -> str:
        return verdict_of(self.effect, self.corrected)


def verdict_of(test: SeedTest, p: float | None) -> str:
    """Better or worse on three common seeds or more, with a corrected p below 0.05."""
    if len(test.by_seed) < 3:
        return "too_few_seeds"
    if p is None or p >= 0.05 or test.difference is None:
        return "no_difference_shown"
    return "better" if test.difference < 0 else "worse"


def holm_corrected(tests: Sequence[SeedTest]) -> list[float | None]:
    """Each p times the number of those that are no smaller, and never below a smaller one's."""
    known = sorted(test.p for test in tests if test.p is not None)
    steps = [min(1.0, p * (len(known) - rank)) for rank, p in enumerate(known)]
    return [None if t.p is None else max(steps[: known.index(t.p) + 1]) for t in tests]


def crossed_test(differences: dict[int, Any], tokens: Any, step: float = STEP) -> SeedTest:
    """Differences [D] by seed, of documents with `tokens` [D]: random effects, jackknife residuals."""
    if not differences:
        return SeedTest({})
    scored = tokens > 0
    n, total = tokens[scored].astype(float), float(tokens.sum())
    rows = [row[scored] for row in differences.values()]
    by_seed = {seed: float(row.sum()) / total for seed, row in zip(differences, rows, strict=True)}
    count, size, center = len(rows), len(n), math.fsum(by_seed.values()) / len(rows)
    known = SeedTest(by_seed, size, center)
    if count < 2 or not all(np.isfinite(row).all() for row in rows):
        return known
    of_seeds = size * sum((delta - center) ** 2 for delta in by_seed.values()) / (count - 1)
    of_documents = rest = 0.0
    if size > 1:
        residuals = []
        for row, delta in zip(rows, by_seed.values(), strict=True):
            without = (delta * total - row) / (total - n)  # the estimate without one document
            residuals.append(size * delta - (size - 1) * without - delta)
        means = sum(residuals) / count
        of_documents = count * float((means**2).sum()) / (size - 1)
        rest = sum(float(((row - means) ** 2).sum()) for row in residuals) / ((count - 1) * (size - 1))
    squares = (of_seeds, of_documents, rest, count, size, step)
    error, df = _error(squares, count)
    half = float(stats.t.ppf(0.975, df)) * error
    p = float(2 * stats.t.sf(abs(center) / error, df)) if count >= 3 else None
    return known._replace(interval=(center - half, center + half), df=df, p=p, squares=squares)


def _error(squares: Squares, seeds: int) -> tuple[float, float]:
    """Standard error with so many seeds, and its degrees of freedom."""
    of_seeds, of_documents, rest, count, size, step = squares
    if of_documents > rest:  # the component of documents is counted once for every seed
        of_documents += (of_documents - rest) / count * (seeds - count)
    alone = [(of_seeds, seeds - 1.0)] + ([(of_documents, size - 1.0)] if size > 1 else [])
    above = [one for one in alone if one[0] > rest]
    if len(above) < 2:
        variance, df = above[0] if above else max(alone)
    else:
        variance = of_seeds + of_documents - rest
        of_squares = of_seeds**2 / (seeds - 1) + of_documents**2 / (size - 1)
        of_squares += rest**2 / ((seeds - 1) * (size - 1))
        df = max(variance**2 / of_squares, min(seeds, size) - 1.0)
    return max(math.sqrt(variance / (seeds * size)), step / math.sqrt(6 * seeds)), df


def _power(test: SeedTest, known: Sequence[float]) -> tuple[float, int | None] | None:
    """What a test could show in four of five cases, given all p-values of its family, its own included."""
    if test.p is None or test.squares is None:
        return None
    others, shown, squares = sorted(known), 0, test.squares
    others.remove(test.p)
    while shown < len(others) and others[shown] < 0.05 / (len(known) - shown):
        shown += 1
    level, size = 0.05 / (len(known) - shown), abs(test.difference or 0.0)
    enough = bisect_left(range(3, 1001), -size, key=lambda seeds: -_shows(squares, seeds, level))
    return _shows(squares, squares[3], level), enough + 3 if enough < 998 else None


def _shows(squares: Squares, seeds: int, level: float) -> float:
    """The difference that a test shows in four of five cases; its own error varies, too."""
    error, df = _error(squares, seeds)
    critical = stats.t.isf(level / 2, df)
    # Where the error varies little, the integral is over it, else over the normal distribution.
    limits = critical * np.sqrt(stats.chi2.ppf((NODES + 1) / 2, df) / df)
    density = 9 * stats.norm.pdf(9 * NODES)

    def missed(shift: float) -> float:
        if df >= 4:
            return float(WEIGHTS @ special.ndtr(limits - shift)) / 2 - 0.2
        squares = df * (np.maximum(9 * NODES + shift, 0) / critical) ** 2
        return 0.8 - float((WEIGHTS * density) @ special.chdtr(df, squares))

    return error * float(optimize.brentq(missed, 0.0, 4 * critical + 20))


def paired_test(sides: Sequence[Mapping[int, float]], step: float = STEP) -> SeedTest:
    """The paired t-test of two models over common seeds."""
    a, b = sides
    differences = {seed: np.array([b[seed] - a[seed]]) for seed in sorted(a.keys() & b.keys())}
    return crossed_test(differences, np.array([1]), step)._replace(documents=None)


def family_of(
    scores: Mapping[str, Mapping[int | None, Any]], pairs: Iterable[tuple[str, str]]
) -> dict[Any, PairTest]:
    """All pairs with results, their p-values corrected together."""
    names: list[tuple[str, str]] = []
    tests: list[tuple[SeedTest, SeedTest, SeedTest, Any]] = []
    for a, b in pairs:
        if not scores[a] or not scores[b]:
            continue
        seeds = sorted(seed for seed in {*scores[a], *scores[b]} if seed is not None)
        # What has no seed stands beside every seed of the other.
        both = {seed: [scores[m].get(seed, scores[m].get(None)) for m in (a, b)] for seed in seeds}
        common = {seed: pair for seed, pair in both.items() if None not in pair}
        sides = [{seed: pair[side] for seed, pair in common.items()} for side in (0, 1)]
        nll, accuracy = (
            paired_test([{seed: getattr(v, name) for seed, v in side.items()} for side in sides])
            for name in ("nll_nats", "accuracy")
        )
        means = tuple(mean_of([v.nll_nats for v in side.values()]) for side in sides) if common else None
        names.append((a, b))
        tests.append((_by_documents(common) or nll, nll, accuracy, means))
    effects, nlls = ([test[place] for test in tests] for place in (0, 1))
    known = [test.p for test in effects if test.p is not None]
    families = holm_corrected(effects), holm_corrected(nlls), [_power(test, known) for test in effects]
    return {
        name: PairTest(effect, p, nll, paired, accuracy, means, power)
        for name, (effect, nll, accuracy, means), p, paired, power in zip(
            names, tests, *families, strict=True
        )
    }


def _by_documents(common: Mapping[int, Sequence[Any]]) -> SeedTest | None:
    """Over seeds and documents; None unless all scores are of the same two documents or more."""
    scores = [score.documents and score.documents.unpack() for pair in common.values() for score in pair]
    if not scores or None in [score and 1 for score in scores]:
        return None
    tokens = scores[0][0]
    if (tokens > 0).sum() < 2 or not all(np.array_equal(tokens, other) for other, _ in scores):
        return None
    rows = {seed: scores[2 * i + 1][1] - scores[2 * i][1] for i, seed in enumerate(common)}
    return crossed_test(rows, tokens)
