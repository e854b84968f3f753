"""Models against each other: over seeds and documents where records hold them, and Holm by family."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from tandem.records import ValidationRecord
from tandem.report.crossed import Effect, over_seeds, over_seeds_and_documents
from tandem.report.depths import DepthResult
from tandem.report.results import Comparison, DepthComparison, ModelResult
from tandem.report.statistics import Verdict, holm, paired, verdict

Scores = Mapping[int, ValidationRecord]


def compare_configurations(configurations: Sequence[ModelResult]) -> tuple[Comparison, ...]:
    """Every pair of configurations with results: one family."""
    return _family([(a, b) for a, b in combinations(configurations, 2) if a.validation and b.validation])


def compare_with_baselines(
    baselines: Sequence[ModelResult], configurations: Sequence[ModelResult]
) -> tuple[Comparison, ...]:
    """Every configuration with results against every such baseline: one family."""
    pairs = product(baselines, configurations)
    return _family([(a, b) for a, b in pairs if a.validation and b.validation])


def compare_depths(depths: Sequence[DepthResult]) -> Iterator[DepthComparison]:
    """Every pair of context depths of one variant, by phase 1 iterations: one family."""
    pairs = [(a, b) for a, b in combinations(depths, 2) if a.variant == b.variant and a.phase1 and b.phase1]
    tests = [paired(a.iterations_by_seed, b.iterations_by_seed, resolution=1) for a, b in pairs]
    for (a, b), test, p in zip(pairs, tests, holm([t.p for t in tests]), strict=True):
        found = verdict(len(test.seeds), test.difference, p)
        faster = {Verdict.BETTER: b, Verdict.WORSE: a}.get(found)
        if faster is not None and set(faster.at_limit) & set(test.seeds):
            found = Verdict.NO_DIFFERENCE_SHOWN
        yield DepthComparison(a.variant, a.context_layers, b.context_layers, test, p, found)


def _family(pairs: Sequence[tuple[ModelResult, ModelResult]]) -> tuple[Comparison, ...]:
    """The comparisons of these pairs, corrected together."""
    scores = [_common(a, b) for a, b in pairs]
    tests = [paired(_nll(of_a), _nll(of_b)) for of_a, of_b in scores]
    effects = [_effect(*of_both) for of_both in scores]
    corrected, paired_p = holm([e.p for e in effects]), holm([t.p for t in tests])
    return tuple(
        Comparison(
            a=a.name,
            b=b.name,
            effect=effects[i],
            corrected_p=corrected[i],
            verdict=verdict(len(effects[i].by_seed), effects[i].difference, corrected[i]),
            nll=tests[i],
            paired_p=paired_p[i],
            accuracy=paired(_accuracy(scores[i][0]), _accuracy(scores[i][1])),
        )
        for i, (a, b) in enumerate(pairs)
    )


def _common(a: ModelResult, b: ModelResult) -> tuple[Scores, Scores]:
    """The scores of both with each common seed; what has no seed stands beside every seed of the other."""
    seeds = [seed for seed in dict.fromkeys([*a.seeds, *b.seeds]) if _with(a, seed) and _with(b, seed)]
    return _by_seed(a, seeds), _by_seed(b, seeds)


def _by_seed(model: ModelResult, seeds: Sequence[int]) -> Scores:
    return {seed: found for seed in sorted(seeds) if (found := _with(model, seed)) is not None}


def _with(model: ModelResult, seed: int) -> ValidationRecord | None:
    return model.validation.get(seed, model.validation.get(None))


def _nll(scores: Scores) -> dict[int, float]:
    return {seed: v.nll_nats for seed, v in scores.items()}


def _accuracy(scores: Scores) -> dict[int, float]:
    return {seed: v.accuracy for seed, v in scores.items()}


def _effect(a: Scores, b: Scores) -> Effect:
    """Over seeds and documents where both hold scores of the same two documents or more, else over seeds."""
    differences: dict[int, npt.NDArray[np.float64]] = {}
    tokens: npt.NDArray[np.int64] | None = None
    for seed in a:
        of_a, of_b = a[seed].documents, b[seed].documents
        if of_a is None or of_b is None:
            break
        (tokens_a, sums_a), (tokens_b, sums_b) = of_a.unpack(), of_b.unpack()
        tokens = tokens_a if tokens is None else tokens
        if not (np.array_equal(tokens, tokens_a) and np.array_equal(tokens, tokens_b)):
            break
        differences[seed] = sums_b - sums_a
    if len(differences) == len(a) and tokens is not None and np.count_nonzero(tokens) > 1:
        return over_seeds_and_documents(differences, tokens)
    nll_a, nll_b = _nll(a), _nll(b)
    return over_seeds(paired(nll_a, nll_b), {seed: nll_b[seed] - nll_a[seed] for seed in nll_a})
