"""Sections of the results: the overview, the summary, the original report, and every phase in detail."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tandem.records import ContextsRecord, Parameters, ScanRecord
from tandem.report import sentences, wording
from tandem.report.analysis import DepthResult, ModelResult, ScanResult
from tandem.report.markdown import Column, Report, bullets, spread_column, warning, word_column
from tandem.report.original import Claim, as_the_original, claims, load_original
from tandem.report.phase1 import ORIGINAL, PHASE1_REPORTS, over_records, own_columns, phase1_reports_of
from tandem.report.statistics import mean, spread
from tandem.report.wording import NONE, Message, Value, code, literal

Model = Column[ModelResult]
CONTEXT: Model = Column("context", lambda m: str(m.context_layers or NONE))
TOKEN: Model = Column("token", lambda m: str(m.token_layers or NONE))
PARAMS: Model = Column("params", lambda m: wording.count_short(m.total_parameters))
RANK: Model = spread_column("rank", lambda m: m.effective_rank, wording.percent)
BEST_EPOCH: Model = spread_column("best_epoch", lambda m: m.best_epoch, wording.count_text)
TRAIN_PERPLEXITY: Model = spread_column(
    "train_perplexity", lambda m: m.train_perplexity, wording.perplexity_text
)
PERPLEXITY: Model = spread_column("perplexity", lambda m: m.perplexity, wording.perplexity_text)
ACCURACY: Model = spread_column("accuracy", lambda m: m.accuracy, wording.percent)
BITS: Model = spread_column("bits", lambda m: m.bits_per_byte, lambda bits: wording.number(bits, 3))
TOTAL_TIME: Model = spread_column("total_time", lambda m: m.seconds_alone, wording.seconds_text)


def _models_table(report: Report, name: str, columns: Sequence[Model], models: Sequence[ModelResult]) -> str:
    """One row per model: the recommended configuration in bold, baselines in italics."""
    best = report.analysis.choice and report.analysis.choice.recommended
    return report.table(name, columns, models, lambda m: "*" if m.baseline else "**" if m is best else "")


def _configurations_table(report: Report, name: str, *columns: Model) -> str:
    first: Model = Column("config", lambda m: report.name(m.name))
    return _models_table(report, name, [first, *columns], report.analysis.configurations)


# Overview and summary


def overview(report: Report) -> Iterator[str]:
    analysis, choice, texts = report.analysis, report.analysis.choice, report.texts
    yield report.heading("overview")
    yield from (warning(texts.say(message)) for message in sentences.audit_warnings(analysis))
    purpose = Message("overview.purpose", count=str(len(analysis.configurations)))
    yield texts.say(purpose, *([Message("overview.named")] if analysis.variants else []))
    if choice is None:
        yield warning(texts.say(sentences.no_conclusion(analysis)))
    else:
        messages = [
            sentences.standing(analysis, choice),
            *sentences.recommendation(analysis, choice),
            *sentences.baseline_summary(analysis, choice),
        ]
        yield f"> {texts.say(*messages)}"
    data = next(iter(analysis.data))
    sizes = {
        name: dict.fromkeys(size for r in analysis.records if (size := getattr(r, name)) is not None)
        for name in ("embed_dim", "context_dim")
    }
    facts: dict[str, Value] = {
        "configurations": [c.name for c in analysis.configurations],
        **({"variants": analysis.variants} if analysis.variants else {}),
        "recipe": [*map(code, dict.fromkeys(c.recipe for c in analysis.configurations))],
        "baselines": [b.name for b in analysis.baselines],
        "seeds": sorted({r.seed for r in analysis.records if r.seed is not None}),
        "devices": sorted({literal(e.device_name) for e in analysis.environments}),
        "train_tokens": f"{data.train_tokens:,}",
        "validation_tokens": f"{data.validation_tokens:,}",
        "vocabulary": f"{data.vocab_size:,}",
        **{name: list(found) for name, found in sizes.items()},
    }
    yield bullets(texts(f"overview.{key}", value=value) for key, value in facts.items())


def summary(report: Report) -> Iterator[str]:
    analysis = report.analysis
    yield report.heading("summary")
    for message in (*sentences.audit_warnings(analysis), *sentences.warnings(analysis)):
        yield warning(report.texts.say(message))
    yield _models_table(report, "summary", summary_columns(report), [*analysis.models.values()])
    yield from report.figure("validation_perplexity")


def summary_columns(report: Report) -> list[Model]:
    """The original report's columns and two more."""
    analysis = report.analysis

    def name(m: ModelResult) -> str:
        shown = report.name(m.name)
        return report.texts("baseline_label", name=shown) if m.baseline else shown

    def seeds(m: ModelResult) -> str:
        """Finished of planned seeds, as far as is known; none where nothing is drawn at random."""
        recorded = {r.seed for r in analysis.records if r.configuration == m.name}
        planned = analysis.manifest.seeds if analysis.manifest else ()
        missing = {f"{name}-seed{seed}" for name, seed in analysis.missing} | {*analysis.missing_baselines}
        unmade = sum(f"{m.name}-seed{seed}" in missing for seed in planned)
        return NONE if recorded == {None} else f"{len(m.runs)}/{len(recorded) + unmade}"

    own = own_columns("summary_columns")
    columns: list[Model] = [Column("config", name), CONTEXT, TOKEN, PARAMS, *own, RANK, PERPLEXITY, ACCURACY]
    return [*columns, TOTAL_TIME, BITS, Column("seeds", seeds)]


# The original report


def original(report: Report) -> Iterator[str]:
    """Stands beside our own table, so that one sees both."""
    analysis, texts, printed = report.analysis, report.texts, load_original()
    ours = as_the_original(analysis)
    yield report.heading("original")
    if analysis.configurations and not ours:
        yield texts("original.none")
        return
    about = {key: value for key, value in printed.items() if isinstance(value, str)}
    yield warning(texts("original.label", **about))
    if variant := next((c.variant for c in ours.values()), None):
        yield texts("original.variant", variant=variant)
    yield _original_table(report, {name: model for name, model in ours.items() if model.validation})
    yield texts("original.caveats")
    yield bullets(printed["caveats"][texts.language])
    yield texts("original.claims")
    columns: list[Column[Claim]] = [
        Column("claim", lambda c: texts(f"claim.{c.key}")),
        word_column("outcome", lambda c: texts(f"outcome.{c.outcome}")),
        word_column("evidence", lambda c: " ".join(map(texts.say, c.evidence)) or NONE),
    ]
    yield report.table("claims", columns, [*claims(analysis)])


def _original_table(report: Report, ours: Mapping[str, ModelResult]) -> str:
    """The original report's rows and ours, one under the other."""

    def either(column: Model) -> Column[ModelResult | Mapping[str, str]]:
        def cell(row: ModelResult | Mapping[str, str]) -> str:
            return column.cell(row) if isinstance(row, ModelResult) else row[column.key]

        return Column(column.key, cell, column.numeric)

    theirs = [{**row, "source": report.texts("source.original")} for row in load_original()["rows"]]
    rows = [row for printed in theirs for row in (printed, ours.get(printed["config"])) if row]
    own = PHASE1_REPORTS[ORIGINAL].summary_columns
    columns: list[Model] = [
        Column("config", lambda m: report.name(m.name)),
        word_column("source", lambda _: report.texts("source.here")),
        *(PARAMS, *own, RANK, BEST_EPOCH, TRAIN_PERPLEXITY, PERPLEXITY, ACCURACY, TOTAL_TIME),
    ]
    return report.table(
        "original", [*map(either, columns)], rows, lambda row: "**" if isinstance(row, ModelResult) else ""
    )


def details(report: Report) -> Iterator[str]:
    yield report.heading("details")


def phase1(report: Report) -> Iterator[str]:
    analysis, texts = report.analysis, report.texts

    def rank(key: str, share: Callable[[ContextsRecord], float]) -> Column[DepthResult]:
        return spread_column(key, lambda d: spread(map(share, d.contexts.values())), wording.percent)

    yield report.heading("phase1", 3)
    for of_recipe, depths in phase1_reports_of(analysis):
        if lead := texts.say(*of_recipe.lead(analysis)):
            yield lead
        columns: list[Column[Any]] = [
            Column("context_depth", lambda d: d.name),
            word_column("used_by", lambda d: texts.join(d.used_by)),
            *of_recipe.columns(depths),
            rank("rank_validation", lambda c: c.effective_rank_validation),
            rank("rank_train", lambda c: c.effective_rank_train),
            over_records("seconds", lambda p: p.seconds_s, wording.seconds_text),
        ]
        yield report.table(of_recipe.caption, columns, depths, recipe=code(of_recipe.recipe))
        yield from report.findings(of_recipe.findings(analysis, depths))
        for name in of_recipe.figures:
            yield from report.figure(name)


def phase2(report: Report) -> Iterator[str]:
    """Figures at the best epoch; against the head of a phase 1 that predicts, where one does."""
    yield report.heading("phase2", 3)
    trained: Model = _parameters_column("trained", lambda p: wording.count_short(p.trained_phase2))
    yield _configurations_table(
        report,
        "phase2",
        *(BEST_EPOCH, TRAIN_PERPLEXITY, PERPLEXITY),
        Column("gap", lambda m: wording.number(m.gap, 2)),
        *own_columns("phase2_columns", report.analysis),
        *(ACCURACY, BITS, trained),
        spread_column("seconds", lambda m: m.training_seconds, wording.seconds_text),
    )
    yield from report.findings(sentences.phase2_findings(report.analysis))
    yield from report.figure("learning_curves")


def efficiency(report: Report) -> Iterator[str]:
    """Parameters by part and accuracy for their number."""

    def both(m: ModelResult) -> str:
        accuracy = wording.percent(mean(m.accuracy))
        return f"{accuracy} / {wording.count_short(m.total_parameters)}" if m.accuracy else NONE

    def per_million(m: ModelResult) -> str:
        if m.accuracy is None or m.total_parameters is None:
            return NONE
        return wording.number(100 * m.accuracy.mean / (m.total_parameters / 1e6), 3)

    yield report.heading("efficiency", 3)
    yield _configurations_table(
        report,
        "efficiency",
        _parameters_column("total", lambda p: f"{p.total:,}"),
        _parameters_column("context_block", lambda p: f"{p.context_block:,}"),
        _parameters_column("token_block", lambda p: f"{p.token_block:,}"),
        _parameters_column(
            "trained_share", lambda p: f"{p.trained_phase2:,} ({wording.percent(p.trained_phase2 / p.total)})"
        ),
        Column("efficiency", both),
        Column("per_million", per_million),
    )


def _parameters_column(key: str, text: Callable[[Parameters], str]) -> Model:
    return Column(key, lambda m: text(m.parameters) if m.parameters else NONE)


def scans(report: Report) -> Iterator[str]:
    """How exact the contexts are: the largest errors over seeds."""
    analysis, texts = report.analysis, report.texts
    if not analysis.scans:
        return

    def method(scan: ScanRecord) -> str:
        shown = f"`{scan.method}`"
        return shown if scan.storage == "memory" else texts(f"scan.{scan.storage}", method=shown)

    def span(field: str) -> Column[ScanResult]:
        """`low–high`, or the one value."""

        def cell(s: ScanResult) -> str:
            counts = [getattr(scan, field) for scan in s.scans]
            return "–".join(map(wording.number, dict.fromkeys((min(counts), max(counts)))))

        return Column(field, cell)

    def error(field: str, worst: Callable[[Iterable[float]], float] = max) -> Column[ScanResult]:
        """A numerical error, in powers of ten."""

        def cell(s: ScanResult) -> str:
            value = worst(getattr(scan, field) for scan in s.scans)
            return f"{value:.1e}".replace("-", "−") if value else "0"

        return Column(field, cell)

    columns: list[Column[ScanResult]] = [
        Column("context_depth", lambda s: s.name),
        word_column("split", lambda s: texts(f"split.{s.split}")),
        word_column("method", lambda s: texts.join(sorted({*map(method, s.scans)}))),
        *(span("segments"), span("burn_in")),
        *(error("loop_error"), error("join_error"), error("tolerance", min)),
        word_column("exactness", lambda s: texts(f"scan.{'within' if s.within else 'beyond'}")),
    ]
    yield report.heading("scans", 3)
    yield texts("scan.meaning")
    methods = dict.fromkeys(scan.method for result in analysis.scans for scan in result.scans)
    yield from filter(None, (texts.of(f"scan.method.{method}") for method in methods))
    yield report.table("scans", columns, analysis.scans)


def memory(report: Report) -> Iterator[str]:
    if report.analysis.memories:
        yield report.heading("memory", 3)
        yield report.texts("memory.meaning")
        yield report.list_of(sentences.memory_findings(report.analysis))
        yield from report.figure("memory")
