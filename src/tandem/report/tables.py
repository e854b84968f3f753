"""The report's tables of results: from analysed figures to cells."""

from collections.abc import Iterable, Sequence

from tandem.objectives.original import DispersionRecord
from tandem.records import RunRecord, ScanRecord
from tandem.report.blocks import Table
from tandem.report.cells import MARK, baseline_text, make_table, name_text, recommended_rows
from tandem.report.choice import Choice
from tandem.report.original import as_the_original, claims, load_original
from tandem.report.results import Analysis, ModelResult
from tandem.report.statistics import Spread
from tandem.report.wording import (
    NONE,
    Texts,
    bytes_text,
    change_text,
    count_short,
    count_text,
    error_text,
    literal,
    number,
    percent,
    perplexity_text,
    plus_minus,
    seconds_text,
    span,
)


def summary_table(analysis: Analysis, texts: Texts, choice: Choice | None) -> Table:
    """One row per configuration, in the original report's columns and two more; then one per baseline."""
    models = [*analysis.configurations, *analysis.baselines]
    own = len(analysis.configurations)
    rows = [
        [
            name_text(analysis, m.name) if i < own else baseline_text(analysis, m, texts),
            _whole(m.context_layers),
            _whole(m.token_layers),
            count_short(m.parameters.total if m.parameters else None),
            plus_minus(m.iterations, count_text),
            plus_minus(m.convergence_rate, percent),
            plus_minus(m.effective_rank, percent),
            plus_minus(m.perplexity, perplexity_text, m.mean_perplexity),
            plus_minus(m.accuracy, percent),
            plus_minus(m.seconds_alone, seconds_text),
            plus_minus(m.bits_per_byte, _three),
            _seeds(analysis, m),
        ]
        for i, m in enumerate(models)
    ]
    columns = (
        "config context token params iterations convergence rank perplexity accuracy total_time bits seeds"
    )
    emphasised, apart = recommended_rows(models, choice), frozenset(range(own, len(models)))
    return make_table(texts, "summary", columns, rows, emphasised, apart)


def phase2_table(analysis: Analysis, texts: Texts, choice: Choice | None) -> Table:
    """Figures at the best epoch; beside the head of a phase 1 that predicts, where one does."""
    heads = bool(analysis.predictions)
    rows = [
        [
            name_text(analysis, c.name),
            plus_minus(c.best_epoch, count_text),
            plus_minus(c.train_perplexity, perplexity_text, c.mean_train_perplexity),
            plus_minus(c.perplexity, perplexity_text, c.mean_perplexity),
            number(c.gap, 2),
            *([change_text(c.over_head.mean if c.over_head else None)] if heads else []),
            plus_minus(c.accuracy, percent),
            plus_minus(c.bits_per_byte, _three),
            count_short(c.parameters.trained_phase2 if c.parameters else None),
            plus_minus(c.training_seconds, seconds_text),
        ]
        for c in analysis.configurations
    ]
    over_head = "over_head " if heads else ""
    columns = f"config best_epoch train_perplexity perplexity gap {over_head}accuracy bits trained seconds"
    return make_table(texts, "phase2", columns, rows, recommended_rows(analysis.configurations, choice))


def scan_table(analysis: Analysis, texts: Texts) -> Table:
    """How exact the contexts are: the largest errors over seeds."""
    rows = [
        [
            s.name,
            texts(f"split.{s.split}"),
            texts("joined", names=sorted({_method(scan, texts) for scan in s.scans})),
            span_of(scan.segments for scan in s.scans),
            span_of(scan.burn_in for scan in s.scans),
            error_text(s.loop_error),
            error_text(s.join_error),
            error_text(s.tolerance),
            texts("scan.within" if s.within else "scan.beyond"),
        ]
        for s in analysis.scans
    ]
    columns = "context_depth split method segments burn_in loop_error join_error tolerance exactness"
    return make_table(texts, "scans", columns, rows, words={1, 2, 8})


def _method(scan: ScanRecord, texts: Texts) -> str:
    method = f"`{scan.method}`"
    return method if scan.kept == "memory" else texts(f"scan.{scan.kept}", method=method)


def efficiency_table(analysis: Analysis, texts: Texts, choice: Choice | None) -> Table:
    """Parameters by part and accuracy for their number."""
    rows = []
    for c in analysis.configurations:
        if c.parameters is None:
            rows.append([name_text(analysis, c.name), *[NONE] * 6])
            continue
        p, accuracy = c.parameters, c.accuracy.mean if c.accuracy else None
        rows.append(
            [
                name_text(analysis, c.name),
                f"{p.total:,}",
                f"{p.context_block:,}",
                f"{p.token_block:,}",
                f"{p.trained_phase2:,} ({percent(p.trained_phase2 / p.total)})",
                f"{percent(accuracy)} / {count_short(p.total)}" if accuracy is not None else NONE,
                number(100 * accuracy / (p.total / 1e6) if accuracy is not None else None, 3),
            ]
        )
    columns = "config total context_block token_block trained_share efficiency per_million"
    return make_table(texts, "efficiency", columns, rows, recommended_rows(analysis.configurations, choice))


def original_table(analysis: Analysis, texts: Texts) -> Table:
    """The original report's row and ours, one under the other."""
    ours_by_depth = as_the_original(analysis)
    rows = []
    for theirs in load_original().rows:
        rows.append(
            [
                theirs.configuration, texts("source.original"), theirs.parameters, theirs.iterations,
                theirs.convergence, theirs.rank, theirs.best_epoch, theirs.train_perplexity,
                theirs.perplexity, theirs.accuracy, theirs.time,
            ]
        )  # fmt: skip
        c = ours_by_depth.get(theirs.configuration)
        if c is None or not c.validation:
            continue
        rows.append(
            [
                name_text(analysis, c.name),
                texts("source.here"),
                count_short(c.parameters.total if c.parameters else None),
                plus_minus(c.iterations, count_text),
                plus_minus(c.convergence_rate, percent),
                plus_minus(c.effective_rank, percent),
                plus_minus(c.best_epoch, count_text),
                plus_minus(c.train_perplexity, perplexity_text, c.mean_train_perplexity),
                plus_minus(c.perplexity, perplexity_text, c.mean_perplexity),
                plus_minus(c.accuracy, percent),
                plus_minus(c.seconds_alone, seconds_text),
            ]
        )
    columns = (
        "config source params iterations convergence rank best_epoch train_perplexity perplexity accuracy "
        "total_time"
    )
    ours = frozenset(i for i, row in enumerate(rows) if row[1] == texts("source.here"))
    return make_table(texts, "original", columns, rows, emphasised=ours, words={1})


def claims_table(analysis: Analysis, texts: Texts) -> Table:
    """The original report's claims against these records."""
    rows = [
        [
            texts(f"claim.{claim.key}"),
            texts(f"outcome.{claim.outcome}"),
            " ".join(texts.say(message) for message in claim.evidence) or NONE,
        ]
        for claim in claims(analysis)
    ]
    return make_table(texts, "claims", "claim outcome evidence", rows, words={1, 2})


def runs_table(analysis: Analysis, texts: Texts) -> Table:
    """Every run."""
    rows = [
        [
            literal(r.run) + (f" {MARK}" if r.run in analysis.trust.untrusted else ""),
            _whole(r.seed),
            texts(f"status.{r.status}"),
            number(r.phase1.iterations, 0) if isinstance(r.phase1, DispersionRecord) else NONE,
            number(r.trained.best_epoch, 0) if r.trained else NONE,
            perplexity_text(r.validation.perplexity) if r.validation else NONE,
            percent(r.validation.accuracy) if r.validation else NONE,
            seconds_text(r.seconds_spent_s),
            seconds_text(r.seconds_alone_s),
            bytes_text(r.peak_memory_bytes),
        ]
        for r in analysis.records
    ]
    columns = "run seed status iterations best_epoch perplexity accuracy spent alone memory"
    apart = frozenset(i for i, r in enumerate(analysis.records) if r.kind != "tandem")
    return make_table(texts, "runs", columns, rows, apart=apart, words={2})


def failures_table(failed: Sequence[RunRecord], texts: Texts) -> Table:
    """Failed runs and why."""
    rows = [[literal(r.run), literal(r.failure or NONE), seconds_text(r.seconds_spent_s)] for r in failed]
    return make_table(texts, "failures", "run reason spent", rows, words={1})


def span_of(values: Iterable[float]) -> str:
    """`low–high` of some counts."""
    values = tuple(values)
    return span(Spread(values, 0.0, None, None, min(values), max(values)), lambda v: number(v, 0))


def _whole(layers: int | None) -> str:
    return NONE if layers is None else str(layers)


def _seeds(analysis: Analysis, m: ModelResult) -> str:
    """Finished of planned seeds, as far as is known; none where nothing is drawn at random."""
    recorded = {r.seed for r in analysis.records if r.configuration == m.name}
    if recorded == {None}:
        return NONE
    if m.kind == "tandem":
        missing = sum(name == m.name for name, _ in analysis.missing)
    else:
        planned = analysis.manifest.seeds if analysis.manifest else ()
        missing = sum(f"{m.name}-seed{seed}" in analysis.missing_baselines for seed in planned)
    return f"{len(m.runs)}/{len(recorded) + missing}"


def _three(value: float | None) -> str:
    return number(value, 3)
