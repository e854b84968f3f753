"""Tables of models against each other, and of the audit: from analysed figures to cells."""

from collections.abc import Sequence

from tandem.baselines import BASELINES
from tandem.report.beside import against_others, against_untrained, ratio_text
from tandem.report.blocks import Table
from tandem.report.cells import MARK, make_table, name_text
from tandem.report.choice import Choice
from tandem.report.findings import effect_interval
from tandem.report.results import Analysis, Comparison
from tandem.report.statistics import Verdict, perplexity
from tandem.report.trust import STATUSES, CheckResult
from tandem.report.variants import variant_pairs
from tandem.report.wording import (
    NONE,
    Texts,
    change_text,
    count_short,
    count_text,
    df_text,
    interval_text,
    literal,
    nats_text,
    number,
    p_text,
    percent,
    perplexity_text,
    plus_minus,
    seconds_text,
    signed,
)


def comparison_table(analysis: Analysis, texts: Texts) -> Table:
    """Every pair of configurations over seeds and documents: what the verdicts rest on."""
    return _effects_table(analysis, texts, "comparison", analysis.comparisons)


def variants_table(analysis: Analysis, texts: Texts) -> Table:
    """Configurations of equal depths in different variants, of the same family as all other pairs."""
    return _effects_table(analysis, texts, "variants", variant_pairs(analysis))


def beside_table(analysis: Analysis, texts: Texts, choice: Choice) -> Table:
    """Best and recommended configuration against the baselines, and each against itself without phase 1."""
    comparisons = [*against_others(analysis, choice), *against_untrained(analysis)]
    return _effects_table(analysis, texts, "beside", comparisons)


def _effects_table(analysis: Analysis, texts: Texts, name: str, comparisons: Sequence[Comparison]) -> Table:
    rows = []
    for c in comparisons:
        effect = c.effect
        interval = effect_interval(c)
        seeds_only = effect.basis == "seeds" and effect.interval is not None
        rows.append(
            [
                _pair(analysis, c),
                nats_text(effect.difference),
                texts("seeds_only", interval=interval) if seeds_only else interval,
                " ".join([ratio_text(effect.difference), interval_text(effect.interval, ratio_text)])
                if effect.interval
                else ratio_text(effect.difference),
                ", ".join(nats_text(value) for value in effect.by_seed.values()) or NONE,
                df_text(effect.df),
                p_text(c.corrected_p),
                _verdict(c.verdict, c.b, texts),
            ]
        )
    columns = "comparison difference crossed_interval ratio by_seed df p verdict"
    return make_table(texts, name, columns, rows, words={4, 7})


def paired_table(analysis: Analysis, texts: Texts) -> Table:
    """Every pair of configurations over seeds, on this validation set; descriptive."""
    rows = []
    for c in analysis.comparisons:
        nll, accuracy = c.nll, c.accuracy
        before, after = (perplexity(m) if m is not None else None for m in (nll.mean_a, nll.mean_b))
        points = None if accuracy.difference is None else 100 * accuracy.difference
        rows.append(
            [
                _pair(analysis, c),
                f"{perplexity_text(before)} → {perplexity_text(after)} ({change_text(nll.difference)})",
                interval_text(nll.interval, change_text),
                p_text(c.paired_p),
                f"{percent(accuracy.mean_a)} → {percent(accuracy.mean_b)} ({signed(points, 1)})",
                interval_text(accuracy.interval, lambda end: signed(100 * end, 1)),
                texts("joined", names=[str(seed) for seed in nll.seeds]) or NONE,
            ]
        )
    columns = "comparison perplexity_change interval p accuracy_change interval common_seeds"
    return make_table(texts, "paired", columns, rows)


def baseline_table(analysis: Analysis, texts: Texts) -> Table:
    """Every baseline's own figures."""
    rows = [
        [
            name_text(analysis, b.name),
            count_short(b.parameters.total if b.parameters else None),
            plus_minus(b.perplexity, perplexity_text, b.mean_perplexity),
            plus_minus(b.bits_per_byte, lambda value: number(value, 3)),
            plus_minus(b.accuracy, percent),
            plus_minus(b.train_perplexity, perplexity_text, b.mean_train_perplexity),
            plus_minus(b.best_epoch, count_text),
            plus_minus(b.seconds_alone, seconds_text),
            texts.of(f"baseline.{b.kind}") or BASELINES[b.kind].description,
        ]
        for b in analysis.baselines
    ]
    columns = "baseline params perplexity bits accuracy train_perplexity best_epoch seconds what"
    return make_table(texts, "baselines", columns, rows, words={8})


def audit_table(analysis: Analysis, texts: Texts) -> Table:
    """Every check: its worst outcome, and how many runs had which."""
    rows = []
    for result in analysis.trust.checks:
        counts = [
            texts(f"audit.count.{status}", count=str(result.counts[status]))
            for status in STATUSES
            if status in result.counts
        ]
        rows.append(
            [
                literal(result.name),
                _shown(analysis, result, texts),
                texts(f"audit.status.{result.check.status}"),
                literal(result.check.figure),
                texts("joined", names=counts),
                literal(result.check.looked_at),
            ]
        )
    return make_table(
        texts, "audit", "check shown outcome_here figure counts looked_at", rows, words={1, 2, 3, 4, 5}
    )


def _shown(analysis: Analysis, result: CheckResult, texts: Texts) -> str:
    """Whose outcome it is: the data's, one run's, or, for instance, that run's."""
    if result.shown is None:
        return texts("audit.data")
    run = literal(result.shown) + (f" {MARK}" if result.shown in analysis.trust.untrusted else "")
    several = result.check.status != "fail" and result.counts[result.check.status] > 1
    return texts("audit.example", run=run) if several else run


def _pair(analysis: Analysis, c: Comparison) -> str:
    return f"{name_text(analysis, c.a)} → {name_text(analysis, c.b)}"


def _verdict(verdict: Verdict, name: str, texts: Texts) -> str:
    return texts(f"verdict.{verdict}", name=name)
