"""The report's statistics: against scipy, against plain numpy, by hand."""

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from report_records import TOKENS, make_baseline, make_baselines, make_grid, make_record, without_documents
from scipy import stats

from tandem.records import DocumentScores, RunRecord
from tandem.report.analysis import Analysis
from tandem.report.statistics import (
    RESOLUTION,
    Verdict,
    crossed,
    estimate,
    holm,
    paired,
    spread,
)


def test_paired_agrees_with_scipy():
    rng = random.Random(1)
    a = {seed: rng.gauss(5, 0.1) for seed in range(6)}
    b = {seed: a[seed] + rng.gauss(0.02, 0.03) for seed in range(1, 8) if seed in a} | {9: 1.0}
    common = sorted(a.keys() & b.keys())
    expected = stats.ttest_rel([b[s] for s in common], [a[s] for s in common])
    interval = expected.confidence_interval(0.95)
    result = paired(a, b)
    assert list(result.by_seed) == common
    assert result.p == pytest.approx(expected.pvalue)
    assert result.interval == pytest.approx((interval.low, interval.high))
    assert result.difference == pytest.approx(result.means[1] - result.means[0])
    assert paired(b, a) == result.reversed


def test_spread_by_hand():
    result = spread([1.0, 2.0, 3.0, 6.0])
    assert result.mean == 3.0
    assert result.sd == pytest.approx(math.sqrt(14 / 3))
    assert spread([2.0]).sd is None
    assert spread([]) is None
    assert spread([1.0, math.inf]).mean == math.inf


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.02, None]) == [None, 0.02, None]
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def judge(a: Sequence[float], b: Sequence[float], **options: float) -> Verdict:
    test = paired(dict(enumerate(a)), dict(enumerate(b)), **options)
    return test.verdict(holm([test.p])[0])


def test_verdicts():
    assert judge([5.0, 5.1, 4.9], [4.8, 4.91, 4.7]) is Verdict.BETTER
    assert judge([5.0, 5.1, 4.9], [5.2, 5.29, 5.1]) is Verdict.WORSE
    assert judge([5.0, 5.1, 4.9], [5.1, 5.0, 4.9]) is Verdict.NO_DIFFERENCE_SHOWN
    assert judge([5.0, 5.1], [1.0, 1.1]) is Verdict.TOO_FEW_SEEDS
    assert judge([], []) is Verdict.TOO_FEW_SEEDS
    assert judge([5.0, 5.1, 4.9], [4.8, 4.9, math.inf]) is Verdict.NO_DIFFERENCE_SHOWN


def test_identical_differences():
    assert judge([5.0] * 3, [5.0] * 3) is Verdict.NO_DIFFERENCE_SHOWN
    assert judge([5.0] * 3, [5.0 + 1e-9] * 3) is Verdict.NO_DIFFERENCE_SHOWN  # rounding, not a difference
    assert judge([5.0] * 3, [5.5] * 3) is Verdict.WORSE
    assert judge([30.0] * 3, [14.0] * 3, resolution=1) is Verdict.BETTER
    assert judge([30.0] * 3, [29.0] * 3, resolution=1) is Verdict.NO_DIFFERENCE_SHOWN


def test_noise_is_seldom_called_a_difference():
    """Four equal configurations, 3 seeds: any claim at all in at most about 5% of experiments."""
    rng, claims = random.Random(0), 0
    for _ in range(400):
        values = [{seed: rng.gauss(5, 0.05) for seed in range(3)} for _ in range(4)]
        tests = [paired(a, b) for a, b in itertools.combinations(values, 2)]
        corrected = holm([t.p for t in tests])
        claims += any(
            t.verdict(p) in (Verdict.BETTER, Verdict.WORSE) for t, p in zip(tests, corrected, strict=True)
        )
    assert claims / 400 < 0.07


# Seeds × documents


def normal(seeds: int, documents: int, of_seed: float = 0.3, of_document: float = 1.0) -> np.ndarray:
    """Differences [S, D] of documents of one token, around 0.2."""
    rng = np.random.default_rng(3)
    parts = of_seed * rng.normal(size=(seeds, 1)) + of_document * rng.normal(size=documents)
    return 0.2 + parts + rng.normal(size=(seeds, documents))


def test_equal_documents_give_the_plain_analysis_of_variance():
    """Documents of one length: mean squares, variance, degrees of freedom and p from scratch."""
    for scale in (0.3, 3.0):
        d = normal(4, 30, scale)
        s, n = d.shape
        rows, columns, mean = d.mean(1), d.mean(0), d.mean()
        of_seeds = n * ((rows - mean) ** 2).sum() / (s - 1)
        of_documents = s * ((columns - mean) ** 2).sum() / (n - 1)
        rest = d - rows[:, None] - columns[None, :] + mean
        of_rest = (rest**2).sum() / ((s - 1) * (n - 1))
        assert of_rest < min(of_seeds, of_documents)
        total = of_seeds + of_documents - of_rest
        parts = of_seeds**2 / (s - 1) + of_documents**2 / (n - 1) + of_rest**2 / ((s - 1) * (n - 1))
        df, error = total**2 / parts, math.sqrt(total / (s * n))
        found = estimate(7 * d, np.full(n, 7))
        assert (found.difference, found.standard_error) == pytest.approx((mean, error))
        assert found.df == pytest.approx(df)
        assert found.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, df))
        assert found.interval == pytest.approx(stats.t.interval(0.95, df, mean, error))


def test_satterthwaite_by_hand():
    """Two seeds × three documents: MS_seed 6, MS_doc 7, MS_e 1; variance 12/6, df 144 / (36 + 24.5 + 0.5)."""
    rows, columns = np.array([0.0, 2.0]), np.array([0.0, 2.0, 1.0])
    rest = np.array([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]]) / math.sqrt(2)
    columns = (columns - 1) * math.sqrt(3.5)
    d = 5 + rows[:, None] + columns[None, :] + rest
    found = estimate(d, np.ones(3, int))
    assert found.difference == pytest.approx(6)
    assert found.standard_error == pytest.approx(math.sqrt(12 / 6))
    assert found.df == pytest.approx(144 / (36 + 24.5 + 0.5))


def test_one_document_is_the_paired_t_test():
    d = normal(6, 1)
    expected = stats.ttest_1samp(d[:, 0], 0)
    found = estimate(d * 50, np.array([50]))
    assert (found.p, found.df) == pytest.approx((expected.pvalue, 5))
    interval = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_seeds_alone_or_documents_alone():
    """Where one factor makes no difference, the other stands with its own test."""
    rng = np.random.default_rng(0)
    of_seeds, of_documents = rng.normal(1, 1, 5), rng.normal(1, 1, 40)
    seeds_only = estimate(np.repeat(of_seeds[:, None], 40, 1), np.ones(40, int))
    assert (seeds_only.p, seeds_only.df) == pytest.approx((stats.ttest_1samp(of_seeds, 0).pvalue, 4))
    documents_only = estimate(np.repeat(of_documents[None, :], 5, 0), np.ones(40, int))
    expected = stats.ttest_1samp(of_documents, 0)
    assert (documents_only.p, documents_only.df) == pytest.approx((expected.pvalue, 39))


def test_variance_is_never_below_what_either_factor_gives():
    for draw in range(50):
        rng = np.random.default_rng(draw)
        d = rng.normal(size=(3, 6))  # no factor at all: its variance is often estimated as negative
        found = estimate(d, np.ones(6, int))
        least = max(d.mean(1).var(ddof=1) / 3, d.mean(0).var(ddof=1) / 6)
        assert found.standard_error**2 >= least * (1 - 1e-9)
        assert found.df >= 2 - 1e-9


def test_long_documents_weigh_more_and_residuals_are_those_of_the_jackknife():
    rng = np.random.default_rng(1)
    tokens = np.array([100, 900, 50, 300, 1500])
    d = rng.normal(0.1, 0.5, (1, 5)) * tokens * np.ones((4, 1))  # seeds alike: only documents vary
    ratio = d[0].sum() / tokens.sum()
    without = np.array([np.delete(d[0], i).sum() / np.delete(tokens, i).sum() for i in range(5)])
    found = estimate(d, tokens)
    assert found.difference == pytest.approx(ratio)
    # The jackknife's variance, (D − 1)/D Σ (δ(−i) − δ)², about the estimate itself
    assert found.standard_error == pytest.approx(math.sqrt(4 / 5 * ((without - ratio) ** 2).sum()))


def test_estimates_are_refused_without_what_they_need():
    for differences, tokens in ((np.ones((1, 4)), [1] * 4), (np.ones((3, 2)), [5, 0])):
        with pytest.raises(ValueError, match="needs two seeds"):
            estimate(differences, np.array(tokens))


def test_effect_of_seeds_and_documents():
    tokens = np.array([3, 0, 5, 8])
    rows = {seed: np.array([3.0, 0.0, 6.0, 7.0]) + seed for seed in (4, 7)}
    two = crossed(rows, tokens)
    assert (two.documents, two.p, two.basis) == (3, None, "seeds_documents")
    assert two.interval is not None  # an interval from two seeds on, a test from three
    assert two.by_seed == pytest.approx({4: 28 / 16, 7: 37 / 16})
    assert two.reversed.reversed == two
    one = crossed({4: rows[4]}, tokens)
    assert (one.interval, one.df, one.p) == (None, None, None)
    infinite = crossed({0: rows[4], 1: rows[7], 2: rows[7] * np.inf}, np.array([3, 1, 5, 8]))
    assert (infinite.interval, infinite.p) == (None, None)


def test_ties_are_no_difference():
    tokens = np.full(20, 100)
    nothing = {seed: np.zeros(20) for seed in range(5)}
    assert crossed(nothing, tokens).p == 1
    rounding = {seed: np.full(20, 100 * RESOLUTION / 10) for seed in range(5)}
    assert crossed(rounding, tokens).p > 0.5
    alike = {seed: np.full(20, 100 * 0.01) for seed in range(5)}
    assert crossed(alike, tokens).p < 0.001


def test_false_positives_are_near_nominal():
    """A short run of bench/false_positives.py: equal models, unequal documents, heavy tails."""
    rng, alarms, repetitions = np.random.default_rng(0), 0, 1500
    for _ in range(repetitions):
        tokens = np.maximum(5, rng.lognormal(5.7, 1.0, 50)).astype(int)
        per_token = 0.3 * rng.normal(size=(3, 1)) + rng.standard_t(4, 50) + rng.standard_t(4, (3, 50))
        alarms += estimate(per_token * tokens, tokens).p < 0.05
    assert 0.03 < alarms / repetitions < 0.08


# Records compared


def test_headline_covers_documents_and_the_paired_test_is_secondary():
    records = make_grid([0, 1, 2, 3])
    comparison = Analysis(records, None).compare("C1T1", "C1T2")
    a, b = ({r.seed: r.validation for r in records if r.configuration == n} for n in ("C1T1", "C1T2"))
    differences = {seed: b[seed].documents.unpack()[1] - a[seed].documents.unpack()[1] for seed in sorted(a)}
    assert comparison.effect == crossed(differences, TOKENS)
    assert comparison.effect.documents == 20
    assert comparison.nll == paired(*({s: v.nll_nats for s, v in side.items()} for side in (a, b)))
    assert comparison.effect.difference == pytest.approx(comparison.nll.difference, abs=1e-6)
    width, paired_width = (np.ptp(i) for i in (comparison.effect.interval, comparison.nll.interval))
    assert width > paired_width
    flipped = comparison.reversed
    assert (flipped.a, flipped.b, flipped.verdict) == ("C1T2", "C1T1", Verdict.WORSE)
    assert flipped.effect.difference == -comparison.effect.difference


def test_a_difference_carried_by_one_document_is_not_shown():
    """Every seed agrees on this text, so the paired test is sure; the next text may lack that document."""
    records = [make_record(1, t, s, nll=5.0) for t in (1, 2) for s in range(5)]
    for i, r in enumerate(records):
        nll = 5.0 * TOKENS.astype(float)
        nll[3] += (r.token_layers == 2) * 3.0 * TOKENS[3] + r.seed
        validation = r.validation.model_copy(
            update={
                "nll_nats": nll.sum() / TOKENS.sum(),
                "documents": DocumentScores.pack(TOKENS, nll),
            }
        )
        records[i] = r.model_copy(update={"validation": validation})
    comparison = Analysis(records, None).comparisons[0]
    assert comparison.paired_p < 0.001
    assert comparison.verdict is Verdict.NO_DIFFERENCE_SHOWN


def basis(records: Sequence[RunRecord]) -> set[str]:
    return {c.effect.basis for c in Analysis(records, None).comparisons}


def test_without_documents_the_interval_rests_on_seeds():
    records = make_grid([0, 1, 2])
    assert basis(records) == {"seeds_documents"}
    for c in Analysis([without_documents(r) for r in records], None).comparisons:
        assert (c.effect.basis, c.effect.df, c.effect.documents) == ("seeds", 2, None)
        assert (c.effect.interval, c.corrected_p) == (c.nll.interval, c.paired_p)
    single = DocumentScores.pack(np.array([500]), np.array([2500.0]))
    other = DocumentScores.pack(np.array([499, 1]), np.array([2495.0, 5.0]))

    def with_documents(r: RunRecord, scores: DocumentScores) -> RunRecord:
        return r.model_copy(update={"validation": r.validation.model_copy(update={"documents": scores})})

    assert basis([with_documents(r, single) for r in records]) == {"seeds"}
    assert basis([with_documents(r, other) for r in records]) == {"seeds_documents"}
    two = [r for r in records if r.context_layers == 1]
    assert basis([with_documents(r, other) if r.token_layers == 1 else r for r in two]) == {"seeds"}


def test_families_are_corrected_apart():
    analysis = Analysis(make_grid() + make_baselines(), None)
    assert len(analysis.comparisons) == 6
    assert len(analysis.baseline_comparisons) == 4 * len({record.kind for record in make_baselines()})
    for family in (analysis.comparisons, analysis.baseline_comparisons):
        assert [c.corrected_p for c in family] == holm([c.effect.p for c in family])
        assert [c.paired_p for c in family] == holm([c.nll.p for c in family])
    alone = Analysis(make_grid(), None)
    assert [c.corrected_p for c in alone.comparisons] == [c.corrected_p for c in analysis.comparisons]


def test_models_without_a_seed_stand_beside_every_seed():
    records = [*make_grid([0, 1, 2]), make_baseline("kneser-ney"), make_baseline("bigram")]
    analysis = Analysis(records, None)
    comparison = analysis.compare("KN-5", "C1T1")
    own = {r.seed: r.validation.documents.unpack()[1] for r in records if r.configuration == "C1T1"}
    theirs = records[-2].validation.documents.unpack()[1]
    expected = crossed({seed: nll - theirs for seed, nll in own.items()}, TOKENS)
    assert comparison.effect == expected
    assert comparison.verdict is Verdict.BETTER
    assert len(analysis.baseline_comparisons) == 8  # and none between two baselines


def test_two_seeds_are_too_few_for_baselines_too():
    analysis = Analysis(make_grid([0, 1]) + make_baselines([0, 1]), None)
    for c in (*analysis.comparisons, *analysis.baseline_comparisons):
        assert c.verdict is Verdict.TOO_FEW_SEEDS
        assert c.corrected_p is None
        assert c.effect.interval is not None
