"""Phase 1 in the report: its tables, and what the records show of it."""

from collections.abc import Iterator

from tandem.report.blocks import Table
from tandem.report.cells import make_table
from tandem.report.depths import DepthResult
from tandem.report.results import Analysis, DepthComparison
from tandem.report.statistics import Verdict
from tandem.report.wording import (
    NONE,
    Message,
    Texts,
    count_text,
    interval_text,
    number,
    p_text,
    percent,
    perplexity_text,
    plus_minus,
    seconds_text,
    seeds_text,
    signed,
)


def dispersion_table(analysis: Analysis, texts: Texts) -> Table:
    """One row per context depth (and variant): phase 1 is shared by the configurations of that depth."""
    rows = [
        [
            d.name,
            texts("joined", names=d.used_by),
            plus_minus(d.iterations, count_text),
            plus_minus(d.convergence_rate, percent),
            plus_minus(d.effective_rank_validation, percent),
            plus_minus(d.effective_rank_train, percent),
            plus_minus(d.seconds, seconds_text),
            _stopped(d, texts),
            _speed(analysis, d, texts),
        ]
        for d in analysis.depths
    ]
    columns = "context_depth used_by iterations convergence rank_validation rank_train seconds stopped speed"
    return make_table(texts, "phase1", columns, rows, words={1, 7, 8})


def prediction_table(analysis: Analysis, texts: Texts) -> Table:
    """One row per context depth (and variant) whose phase 1 predicts."""
    rows = [
        [
            p.name,
            texts("joined", names=p.used_by),
            plus_minus(p.epochs, count_text),
            plus_minus(p.head_perplexity, perplexity_text, p.mean_head_perplexity),
            plus_minus(p.effective_rank_validation, percent),
            plus_minus(p.effective_rank_train, percent),
            plus_minus(p.seconds, seconds_text),
        ]
        for p in analysis.predictions
    ]
    columns = "context_depth used_by epochs head_perplexity rank_validation rank_train seconds"
    return make_table(texts, "prediction", columns, rows, words={1})


def dispersion_findings(analysis: Analysis) -> Iterator[Message]:
    """What phase 1 shared, how it stopped, and which depth needs fewer iterations."""
    depths = [d for d in analysis.depths if d.phase1]
    if depths:
        yield Message("phase1.shared_variants" if analysis.variants else "phase1.shared")
    if depths and not any(d.at_limit for d in depths):
        yield Message("phase1.all_converged")
    for depth in depths:
        if depth.at_limit:
            how = "all_at_limit" if len(depth.at_limit) == len(depth.phase1) else "some_at_limit"
            values = {"depth": str(depth.context_layers), "seeds": seeds_text(depth.at_limit)}
            yield Message(f"phase1.{how}", values, depth.variant)
    for comparison in analysis.depth_comparisons:
        yield speed_message(comparison)


def speed_message(comparison: DepthComparison) -> Message:
    """Which of two context depths converges faster, where the seeds show it."""
    test = comparison.iterations
    slow_is_a = test.difference is not None and test.difference < 0
    fast, slow = (comparison.b, comparison.a) if slow_is_a else (comparison.a, comparison.b)
    fast_mean, slow_mean = (test.mean_b, test.mean_a) if slow_is_a else (test.mean_a, test.mean_b)
    shown = comparison.verdict in (Verdict.BETTER, Verdict.WORSE)
    return Message(
        "phase1.faster" if shown else f"phase1.{comparison.verdict}",
        {
            "fast": str(fast),
            "slow": str(slow),
            "fast_iterations": count_text(fast_mean),
            "slow_iterations": count_text(slow_mean),
            "ratio": number(slow_mean / fast_mean if slow_mean and fast_mean else None, 1),
            "interval": interval_text(test.interval, lambda end: signed(end, 1)),
            "a": str(comparison.a),
            "b": str(comparison.b),
            "p": _p_relation(comparison.corrected_p),
            "seeds": seeds_text(test.seeds),
        },
        comparison.variant,
    )


def _p_relation(p: float | None) -> str:
    shown = p_text(p)
    return f"p < {shown[1:]}" if shown.startswith("<") else f"p = {shown}"


def _stopped(d: DepthResult, texts: Texts) -> str:
    if not d.phase1:
        return NONE
    converged = len(d.phase1) - len(d.at_limit)
    return texts("stopped", converged=str(converged), total=str(len(d.phase1)))


def _speed(analysis: Analysis, d: DepthResult, texts: Texts) -> str:
    """What is shown of this depth's speed against every other of its variant."""
    found = []
    for c in analysis.depth_comparisons:
        if c.variant == d.variant and d.context_layers in (c.a, c.b):
            own = c.verdict if c.b == d.context_layers else c.verdict.reversed
            other = c.a if c.b == d.context_layers else c.b
            found.append(texts(f"speed.{own}", other=f"C{other}"))
    return texts("joined", names=found) if found else NONE
