"""The report's tables: every column is a key of the texts and the cell of a row."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from tandem.baselines import BASELINES
from tandem.objectives import OBJECTIVES
from tandem.records import DataRecord, Environment, Parameters, RunRecord, ScanRecord
from tandem.report import wording
from tandem.report.analysis import STATUSES, Choice
from tandem.report.markdown import UNTRUSTED, Column, Mark, Table, make_table, spread_column, word_column
from tandem.report.original import Claim, as_the_original, claims, load_original
from tandem.report.phase1 import ORIGINAL, PHASE1_REPORTS, own_columns
from tandem.report.results import Analysis, CheckResult, Comparison, ModelResult, ScanResult, is_baseline
from tandem.report.statistics import Paired, mean, perplexity
from tandem.report.wording import NONE, Texts, code, literal

Item = TypeVar("Item")
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
BITS: Model = spread_column("bits", lambda m: m.bits_per_byte, wording.bits_text)
TOTAL_TIME: Model = spread_column("total_time", lambda m: m.seconds_alone, wording.seconds_text)


def name_text(analysis: Analysis, name: str) -> str:
    """The name of a configuration or baseline, marked if it is untrusted."""
    return f"{name} {UNTRUSTED}" if analysis.untrusted(name) else name


def run_text(analysis: Analysis, run: str) -> str:
    """The name of a run, marked if it is untrusted."""
    return literal(run) + (f" {UNTRUSTED}" if run in analysis.audit.untrusted else "")


def _name_column(analysis: Analysis, key: str = "config") -> Model:
    return Column(key, lambda m: name_text(analysis, m.name))


def _mark(model: ModelResult, choice: Choice | None) -> Mark:
    """The recommended configuration stands out, baselines stand apart."""
    recommended = choice is not None and model is choice.recommended
    return "*" if model.baseline else "**" if recommended else ""


# Models


def summary_table(analysis: Analysis, texts: Texts, choice: Choice | None) -> Table:
    """One row per configuration, in the original report's columns and two more; then one per baseline."""

    def name(m: ModelResult) -> str:
        shown = name_text(analysis, m.name)
        return texts("baseline_label", name=shown) if m.baseline else shown

    def seeds(m: ModelResult) -> str:
        """Finished of planned seeds, as far as is known; none where nothing is drawn at random."""
        recorded = {r.seed for r in analysis.records if r.configuration == m.name}
        planned = analysis.manifest.seeds if analysis.manifest else ()
        missing = {f"{name}-seed{seed}" for name, seed in analysis.missing} | {*analysis.missing_baselines}
        unmade = sum(f"{m.name}-seed{seed}" in missing for seed in planned)
        return NONE if recorded == {None} else f"{len(m.runs)}/{len(recorded) + unmade}"

    own = own_columns("summary_columns")
    columns = [Column("config", name), CONTEXT, TOKEN, PARAMS, *own, RANK, PERPLEXITY, ACCURACY]
    columns += [TOTAL_TIME, BITS, Column("seeds", seeds)]
    models = [*analysis.configurations, *analysis.baselines]
    return make_table(texts, "summary", columns, models, lambda m: _mark(m, choice))


def phase2_table(analysis: Analysis, texts: Texts, choice: Choice | None) -> Table:
    """Figures at the best epoch; against the head of a phase 1 that predicts, where one does."""
    columns: list[Model] = [
        _name_column(analysis),
        BEST_EPOCH,
        TRAIN_PERPLEXITY,
        PERPLEXITY,
        Column("gap", lambda m: wording.number(m.gap, 2)),
        *own_columns("phase2_columns", analysis),
        ACCURACY,
        BITS,
        Column(
            "trained", lambda m: wording.count_short(m.parameters.trained_phase2) if m.parameters else NONE
        ),
        spread_column("seconds", lambda m: m.training_seconds, wording.seconds_text),
    ]
    return make_table(texts, "phase2", columns, analysis.configurations, lambda m: _mark(m, choice))


def efficiency_table(analysis: Analysis, texts: Texts, choice: Choice | None) -> Table:
    """Parameters by part and accuracy for their number."""

    def part(key: str, of: Callable[[Parameters], str]) -> Model:
        return Column(key, lambda m: of(m.parameters) if m.parameters else NONE)

    def efficiency(m: ModelResult) -> str:
        accuracy = wording.percent(mean(m.accuracy))
        return f"{accuracy} / {wording.count_short(m.total_parameters)}" if m.accuracy else NONE

    def per_million(m: ModelResult) -> str:
        if m.accuracy is None or m.parameters is None:
            return NONE
        return wording.number(100 * m.accuracy.mean / (m.parameters.total / 1e6), 3)

    columns = [
        _name_column(analysis),
        part("total", lambda p: f"{p.total:,}"),
        part("context_block", lambda p: f"{p.context_block:,}"),
        part("token_block", lambda p: f"{p.token_block:,}"),
        part(
            "trained_share", lambda p: f"{p.trained_phase2:,} ({wording.percent(p.trained_phase2 / p.total)})"
        ),
        Column("efficiency", efficiency),
        Column("per_million", per_million),
    ]
    return make_table(texts, "efficiency", columns, analysis.configurations, lambda m: _mark(m, choice))


def baselines_table(analysis: Analysis, texts: Texts) -> Table:
    """Every baseline's own figures."""

    def what(m: ModelResult) -> str:
        """What it is, in the words of the report or of its own file; the name of an unknown kind."""
        own = BASELINES[m.kind].description if m.kind in BASELINES else literal(m.kind)
        return texts.of(f"baseline.{m.kind}") or own

    columns: list[Model] = [
        _name_column(analysis, "baseline"),
        PARAMS,
        PERPLEXITY,
        BITS,
        ACCURACY,
        TRAIN_PERPLEXITY,
        BEST_EPOCH,
        spread_column("seconds", lambda m: m.seconds_alone, wording.seconds_text),
        word_column("what", what),
    ]
    return make_table(texts, "baselines", columns, analysis.baselines)


# Models against each other


def effects_table(analysis: Analysis, texts: Texts, name: str, comparisons: Sequence[Comparison]) -> Table:
    """Pairs over seeds and documents: what the verdicts rest on."""

    def interval(c: Comparison) -> str:
        shown = wording.interval_text(c.effect.interval)
        seeds_only = c.effect.basis == "seeds" and c.effect.interval is not None
        return texts("seeds_only", interval=shown) if seeds_only else shown

    def ratio(c: Comparison) -> str:
        shown = wording.ratio_text(c.effect.difference)
        around = wording.interval_text(c.effect.interval, wording.ratio_text)
        return f"{shown} {around}" if c.effect.interval else shown

    def by_seed(c: Comparison) -> str:
        return ", ".join(wording.nats_text(value) for value in c.effect.by_seed.values()) or NONE

    columns: list[Column[Comparison]] = [
        _pair_column(analysis),
        Column("difference", lambda c: wording.nats_text(c.effect.difference)),
        Column("crossed_interval", interval),
        Column("ratio", ratio),
        word_column("by_seed", by_seed),
        Column("df", lambda c: wording.number(c.effect.df, 1 if (c.effect.df or 0) < 100 else 0)),
        Column("p", lambda c: wording.p_text(c.corrected_p)),
        word_column("verdict", lambda c: texts(f"verdict.{c.verdict}", name=c.b)),
    ]
    return make_table(texts, name, columns, comparisons)


def paired_table(analysis: Analysis, texts: Texts) -> Table:
    """Every pair of configurations over seeds, on this validation set; descriptive."""

    def from_to(test: Paired, text: Callable[[float | None], str], difference: str) -> str:
        return f"{text(test.mean_a)} → {text(test.mean_b)} ({difference})"

    def perplexity_of(nll: float | None) -> str:
        return wording.perplexity_text(None if nll is None else perplexity(nll))

    def points(difference: float | None) -> str:
        return wording.signed(None if difference is None else 100 * difference)

    columns: list[Column[Comparison]] = [
        _pair_column(analysis),
        Column("perplexity_change",
               lambda c: from_to(c.nll, perplexity_of, wording.change_text(c.nll.difference))),
        Column("interval", lambda c: wording.interval_text(c.nll.interval, wording.change_text)),
        Column("p", lambda c: wording.p_text(c.paired_p)),
        Column("accuracy_change",
               lambda c: from_to(c.accuracy, wording.percent, points(c.accuracy.difference))),
        Column("interval", lambda c: wording.interval_text(c.accuracy.interval, points)),
        Column("common_seeds", lambda c: texts("joined", names=[str(seed) for seed in c.nll.seeds]) or NONE),
    ]  # fmt: skip
    return make_table(texts, "paired", columns, analysis.comparisons)


def _pair_column(analysis: Analysis) -> Column[Comparison]:
    return Column("comparison", lambda c: f"{name_text(analysis, c.a)} → {name_text(analysis, c.b)}")


# Contexts, audit, runs


def scans_table(analysis: Analysis, texts: Texts) -> Table:
    """How exact the contexts are: the largest errors over seeds."""

    def method(scan: ScanRecord) -> str:
        shown = f"`{scan.method}`"
        return shown if scan.storage == "memory" else texts(f"scan.{scan.storage}", method=shown)

    columns: list[Column[ScanResult]] = [
        Column("context_depth", lambda s: s.name),
        word_column("split", lambda s: texts(f"split.{s.split}")),
        word_column("method", lambda s: texts("joined", names=sorted({*map(method, s.scans)}))),
        Column("segments", lambda s: wording.range_text([scan.segments for scan in s.scans])),
        Column("burn_in", lambda s: wording.range_text([scan.burn_in for scan in s.scans])),
        Column("loop_error", lambda s: wording.error_text(max(scan.loop_error for scan in s.scans))),
        Column("join_error", lambda s: wording.error_text(max(scan.join_error for scan in s.scans))),
        Column("tolerance", lambda s: wording.error_text(min(scan.tolerance for scan in s.scans))),
        word_column("exactness", lambda s: texts(f"scan.{'within' if s.within else 'beyond'}")),
    ]
    return make_table(texts, "scans", columns, analysis.scans)


def audit_table(analysis: Analysis, texts: Texts) -> Table:
    """Every check: its worst outcome, and how many runs had which."""

    def shown(result: CheckResult) -> str:
        """The data, one run, or a run as an example of several."""
        if result.shown is None:
            return texts("audit.data")
        run = run_text(analysis, result.shown)
        several = result.check.status != "fail" and result.counts[result.check.status] > 1
        return texts("audit.example", run=run) if several else run

    def counts(result: CheckResult) -> str:
        found = [(status, result.counts[status]) for status in STATUSES if status in result.counts]
        return texts("joined", names=[texts(f"audit.count.{s}", count=str(count)) for s, count in found])

    columns = [
        Column("check", lambda r: literal(r.name)),
        word_column("shown", shown),
        word_column("outcome_here", lambda r: texts(f"audit.status.{r.check.status}")),
        word_column("figure", lambda r: literal(r.check.figure)),
        word_column("counts", counts),
        word_column("looked_at", lambda r: literal(r.check.looked_at)),
    ]
    return make_table(texts, "audit", columns, analysis.audit.checks)


def runs_table(analysis: Analysis, texts: Texts) -> Table:
    """Every run; those of baselines stand apart."""
    columns: list[Column[RunRecord]] = [
        Column("run", lambda r: run_text(analysis, r.run)),
        Column("seed", lambda r: wording.number(r.seed)),
        word_column("status", lambda r: texts(f"status.{r.status}")),
        *own_columns("run_columns"),
        Column("best_epoch", lambda r: wording.number(r.trained.best_epoch) if r.trained else NONE),
        Column(
            "perplexity", lambda r: wording.perplexity_text(r.validation.perplexity) if r.validation else NONE
        ),
        Column("accuracy", lambda r: wording.percent(r.validation.accuracy) if r.validation else NONE),
        Column("spent", lambda r: wording.seconds_text(r.seconds_spent_s)),
        Column("alone", lambda r: wording.seconds_text(r.seconds_alone_s)),
        Column("memory", lambda r: wording.bytes_text(r.peak_memory_bytes)),
    ]
    return make_table(texts, "runs", columns, analysis.records, lambda r: "*" if is_baseline(r) else "")


def failures_table(analysis: Analysis, texts: Texts) -> Table:
    """Failed runs and why."""
    columns: list[Column[RunRecord]] = [
        Column("run", lambda r: literal(r.run)),
        word_column("reason", lambda r: literal(r.failure or NONE)),
        Column("spent", lambda r: wording.seconds_text(r.seconds_spent_s)),
    ]
    return make_table(texts, "failures", columns, analysis.failed)


# The original report


def original_table(analysis: Analysis, texts: Texts) -> Table:
    """The original report's row and ours, one under the other."""

    def either(column: Model) -> Column[ModelResult | Mapping[str, str]]:
        def cell(row: ModelResult | Mapping[str, str]) -> str:
            return column.cell(row) if isinstance(row, ModelResult) else row[column.key]

        return Column(column.key, cell, column.numeric)

    ours = {name: model for name, model in as_the_original(analysis).items() if model.validation}
    theirs = [{**row, "source": texts("source.original")} for row in load_original().rows]
    rows = [row for printed in theirs for row in (printed, ours.get(printed["config"])) if row]
    source: Model = word_column("source", lambda _: texts("source.here"))
    own = PHASE1_REPORTS[ORIGINAL].summary_columns
    columns: list[Model] = [_name_column(analysis), source, PARAMS, *own, RANK, BEST_EPOCH]
    columns += [TRAIN_PERPLEXITY, PERPLEXITY, ACCURACY, TOTAL_TIME]
    return make_table(
        texts, "original", [*map(either, columns)], rows, lambda row: "**" if row in ours.values() else ""
    )


def claims_table(analysis: Analysis, texts: Texts) -> Table:
    """The original report's claims against these records."""
    columns: list[Column[Claim]] = [
        Column("claim", lambda c: texts(f"claim.{c.key}")),
        word_column("outcome", lambda c: texts(f"outcome.{c.outcome}")),
        word_column("evidence", lambda c: " ".join(map(texts.say, c.evidence)) or NONE),
    ]
    return make_table(texts, "claims", columns, [*claims(analysis)])


# Where the records come from: one row per fact, one column per environment or data set


def environment_table(analysis: Analysis, texts: Texts) -> Table:
    """Where it ran."""
    facts: dict[str, Callable[[Environment], str]] = {
        "device": lambda e: f"{literal(e.device_name)} ({code(e.device)})",
        "device_memory": lambda e: wording.bytes_text(e.device_memory_bytes),
        "cpu": lambda e: texts("cpu_threads", count=str(e.cpu_count), threads=str(e.threads)),
        "platform": lambda e: literal(e.platform),
        "versions": lambda e: (
            f"Python {literal(e.python)}, torch {literal(e.torch)}, "
            f"transformers {literal(e.transformers)}, Tandem {literal(e.tandem)}"
        ),
        "code_version": lambda e: code(e.code_fingerprint),
        "git_commit": lambda e: code(e.git_commit) if e.git_commit else NONE,
    }
    if len(analysis.environments) > 1:
        runs = dict(analysis.environments)
        facts["runs"] = lambda e: literal(", ".join(runs[e]))
    return _facts_table(texts, "environment", "environment", facts, [e for e, _ in analysis.environments])


def data_table(analysis: Analysis, texts: Texts) -> Table:
    """What it was trained and scored on, with every fingerprint."""

    def split(source: str, **counts: int) -> str:
        sizes = {unit: f"{count:,}" for unit, count in counts.items()}
        return texts("split_size", source=code(source), **sizes)

    def embeddings(r: RunRecord) -> str:
        """Where they come from, and which phase trains them."""
        trained = "trained" if r.data.embeddings_trained else "frozen"
        if not is_baseline(r) and r.recipe in OBJECTIVES and "embedding" in OBJECTIVES[r.recipe].parts:
            trained = "trained_phase1"
        return f"{code(r.data.embeddings)} {texts(f'embeddings.{trained}')}"

    # What tells of embeddings are the configurations: a control has none of what phase 1 makes of them.
    own = [r for r in analysis.records if not is_baseline(r)] or analysis.records
    by_variant = {
        "embeddings": [(r.variant, embeddings(r)) for r in own],
        "embeddings_fingerprint": [(r.variant, code(r.data.embeddings_fingerprint)) for r in own],
        "settings_fingerprint": [(variant, code(found)) for variant, found in analysis.settings],
    }
    said = {key: _by_variant(found, texts) for key, found in by_variant.items()}
    facts: dict[str, Callable[[DataRecord], str]] = {
        "train": lambda d: split(d.train_source, documents=d.train_documents, tokens=d.train_tokens,
                                 bytes=d.train_bytes),
        "validation": lambda d: split(d.validation_source, documents=d.validation_documents,
                                      tokens=d.validation_tokens, bytes=d.validation_bytes),
        "duplicates": lambda d: f"{d.duplicates_dropped:,}",
        "overlap": lambda d: f"{d.overlap_documents:,}",
        "lost": lambda d: texts("lost_bytes", train=f"{d.train_lost_bytes:,}",
                                validation=f"{d.validation_lost_bytes:,}"),
        "tokenizer": lambda d: texts("tokenizer", source=code(d.tokenizer), size=f"{d.vocab_size:,}"),
        "embeddings": lambda _: said["embeddings"],
        "text_fingerprint": lambda d: code(d.text_fingerprint),
        "tokenizer_fingerprint": lambda d: code(d.tokenizer_fingerprint),
        "tokens_fingerprint": lambda d: code(d.tokens_fingerprint),
        "embeddings_fingerprint": lambda _: said["embeddings_fingerprint"],
        "settings_fingerprint": lambda _: said["settings_fingerprint"],
    }  # fmt: skip
    return _facts_table(texts, "data", "data_set", facts, [data for data, _ in analysis.data])


def _facts_table(
    texts: Texts, name: str, head: str, facts: Mapping[str, Callable[[Item], str]], items: Sequence[Item]
) -> Table:
    numbers = [str(place) for place in range(1, len(items) + 1)] if len(items) > 1 else [""]
    heads = [texts("fact.fact"), *(texts(f"fact.{head}", number=number) for number in numbers)]
    rows = [[texts(f"fact.{key}"), *(show(item) for item in items)] for key, show in facts.items()]
    return Table(texts(f"caption.{name}"), heads, rows, [False] * len(heads), [""] * len(rows))


def _by_variant(found: Iterable[tuple[str | None, str]], texts: Texts) -> str:
    """What is the same for all variants once; else each variant's, and what belongs to baselines."""
    own: dict[str | None, dict[str, None]] = {}
    for variant, said in found:
        own.setdefault(variant, {})[said] = None
    if len({tuple(said) for said in own.values()}) == 1:
        return texts("joined", names=list(next(iter(own.values()))))
    names = [
        texts("of_variant", variant=variant or texts("of_baselines"), said=" ".join(said))
        for variant, said in own.items()
    ]
    return texts("joined", names=names)
