"""Sections of where the report comes from: audit, runs, environment and data, terms."""

from collections.abc import Iterator, Mapping, Sequence

import yaml

from tandem.objectives import OBJECTIVES
from tandem.records import DataRecord, Environment, RunRecord
from tandem.report import wording
from tandem.report.analysis import STATUSES, CheckResult, is_baseline
from tandem.report.markdown import Column, Report, bullets, fenced, folded, warning, word_column
from tandem.report.phase1 import ORIGINAL, PHASE1_REPORTS, own_columns, phase1_reports_of, shared_unit
from tandem.report.wording import NONE, code, literal

DEFINITIONS = (
    "config variant baseline params phase1 rank perplexity bits accuracy "
    "plus_minus interval verdict power efficiency time"
)
"""Keys of the definitions in order; those of `phase1` are its recipes'."""


def audit(report: Report) -> Iterator[str]:
    """Every check: its worst outcome, and how many runs had which."""
    texts, status = report.texts, report.analysis.audit
    yield report.heading("audit")
    if status.audited_at is None:
        yield texts("audit.none")
        return

    def shown(result: CheckResult) -> str:
        """The data, one run, or a run as an example of several."""
        if result.shown is None:
            return texts("audit.data")
        run = report.run(result.shown)
        several = result.check.status != "fail" and result.counts[result.check.status] > 1
        return texts("audit.example", run=run) if several else run

    def counts(result: CheckResult) -> str:
        found = [(status, result.counts[status]) for status in STATUSES if status in result.counts]
        return texts.join(texts(f"audit.count.{status}", count=str(count)) for status, count in found)

    columns: list[Column[CheckResult]] = [
        Column("check", lambda r: literal(r.name)),
        word_column("run", shown),
        word_column("outcome_here", lambda r: texts(f"audit.status.{r.check.status}")),
        word_column("figure", lambda r: literal(r.check.figure)),
        word_column("counts", counts),
        word_column("looked_at", lambda r: literal(r.check.looked_at)),
    ]
    yield texts("audit.made", date=literal(status.audited_at[:10]))
    if status.checks:
        yield report.table("audit", columns, status.checks)
        yield texts("audit.as_recorded")
    if status.unrecomputed:
        yield texts("audit.unrecomputed", runs=[*map(literal, status.unrecomputed)])
    if status.unaudited:
        yield warning(texts("audit.unaudited", runs=[*map(literal, status.unaudited)]))


def runs(report: Report) -> Iterator[str]:
    analysis, texts = report.analysis, report.texts
    spent: Column[RunRecord] = Column("spent", lambda r: wording.seconds_text(r.seconds_spent_s))
    failures: list[Column[RunRecord]] = [
        Column("run", lambda r: literal(r.run)),
        word_column("reason", lambda r: literal(r.failure or NONE)),
        spent,
    ]
    columns: list[Column[RunRecord]] = [
        Column("run", lambda r: report.run(r.run)),
        Column("seed", lambda r: wording.number(r.seed)),
        word_column("status", lambda r: texts(f"status.{r.status}")),
        *own_columns("run_columns"),
        Column("best_epoch", lambda r: wording.number(r.trained.best_epoch) if r.trained else NONE),
        Column(
            "perplexity", lambda r: wording.perplexity_text(r.validation.perplexity) if r.validation else NONE
        ),
        Column("accuracy", lambda r: wording.percent(r.validation.accuracy) if r.validation else NONE),
        spent,
        Column("alone", lambda r: wording.seconds_text(r.seconds_alone_s)),
        Column("memory", lambda r: wording.bytes_text(r.peak_memory_bytes)),
    ]
    together, alone = map(wording.seconds_text, (analysis.seconds_spent, analysis.seconds_alone))
    yield report.heading("runs")
    yield texts("runs.time", spent=together, alone=alone, unit=shared_unit(analysis))
    if analysis.failed:
        yield report.table("failures", failures, analysis.failed)
    yield report.table("runs", columns, analysis.records, lambda r: "*" if is_baseline(r) else "")


def provenance(report: Report) -> Iterator[str]:
    analysis, texts = report.analysis, report.texts
    yield report.heading("provenance")
    yield texts("provenance.source")
    yield fenced(texts("provenance.command"), "sh")
    environments = [_environment_facts(report, *found) for found in analysis.environments.items()]
    yield _facts_table(report, "environment", "environment", environments)
    yield _facts_table(report, "data", "data_set", [_data_facts(report, data) for data in analysis.data])
    if analysis.manifest is None:
        yield texts("provenance.no_manifest")
        return
    settings = yaml.safe_dump(analysis.manifest.settings, sort_keys=False, allow_unicode=True, width=100)
    yield folded(texts("provenance.settings"), fenced(settings.rstrip(), "yaml"))


def _facts_table(report: Report, name: str, head: str, facts: Sequence[Mapping[str, str]]) -> str:
    """One row per fact, one column per thing that the facts are of."""

    def column(place: int, own: Mapping[str, str]) -> Column[str]:
        number = str(place) if len(facts) > 1 else ""
        return word_column(report.texts(f"fact.{head}", number=number), lambda key: own[key])

    first: Column[str] = Column("fact", lambda key: report.texts(f"fact.{key}"))
    return report.table(name, [first, *map(column, range(1, len(facts) + 1), facts)], [*facts[0]])


def _environment_facts(report: Report, e: Environment, runs: Sequence[RunRecord]) -> dict[str, str]:
    """Where it ran; which runs, where there are several environments."""
    several = len(report.analysis.environments) > 1
    return {
        "device": f"{literal(e.device_name)} ({code(e.device)})",
        "device_memory": wording.bytes_text(e.device_memory_bytes),
        "cpu": report.texts("cpu_threads", count=str(e.cpu_count), threads=str(e.threads)),
        "platform": literal(e.platform),
        "versions": f"Python {literal(e.python)}, torch {literal(e.torch)}, "
        f"transformers {literal(e.transformers)}, Tandem {literal(e.tandem)}",
        "code_version": code(e.code_fingerprint),
        "git_commit": code(e.git_commit) if e.git_commit else NONE,
        **({"runs": literal(", ".join(r.run for r in runs))} if several else {}),
    }


def _data_facts(report: Report, d: DataRecord) -> dict[str, str]:
    """What it was trained and scored on."""
    analysis, texts = report.analysis, report.texts

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
    train = {"documents": d.train_documents, "tokens": d.train_tokens, "bytes": d.train_bytes}
    validation = {"documents": d.validation_documents, "tokens": d.validation_tokens}
    lost = {"train": f"{d.train_lost_bytes:,}", "validation": f"{d.validation_lost_bytes:,}"}

    return {
        "train": split(d.train_source, **train),
        "validation": split(d.validation_source, **validation, bytes=d.validation_bytes),
        "duplicates": f"{d.duplicates_dropped:,}",
        "overlap": f"{d.overlap_documents:,}",
        "lost": texts("lost_bytes", **lost),
        "tokenizer": texts("tokenizer", source=code(d.tokenizer), size=f"{d.vocab_size:,}"),
        "embeddings": texts.join(dict.fromkeys(map(embeddings, own))),
        "tokens_fingerprint": code(d.tokens_fingerprint),
    }


def definitions(report: Report) -> Iterator[str]:
    """The terms of this report. The summary always has the columns of the original recipe."""
    analysis = report.analysis
    recipes = dict.fromkeys([PHASE1_REPORTS[ORIGINAL], *(one for one, _ in phase1_reports_of(analysis))])
    terms = {
        "variant": ["variant"] if analysis.variants else [],
        "phase1": [key for of_recipe in recipes for key in of_recipe.definitions],
    }
    keys = [key for name in DEFINITIONS.split() for key in terms.get(name, [name])]
    yield report.heading("definitions")
    yield bullets(report.texts(f"definition.{key}") for key in keys)
