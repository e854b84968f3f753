"""The results as a person reads them in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tandem.cli.terminal import Part, Terminal
from tandem.objectives import OBJECTIVES
from tandem.records import (
    AuditRecord,
    DataRecord,
    RunRecord,
    TrainingRecord,
    read_audit,
    read_manifest,
    read_records,
)
from tandem.records.audit import Status
from tandem.report import summary_rows, wording
from tandem.report.statistics import perplexity
from tandem.shown import command

if TYPE_CHECKING:  # they import torch, and `tandem report` does without
    from tandem.experiment.doctor import Checkup
    from tandem.experiment.estimate import Estimate
    from tandem.experiment.evaluate import Adapted, Evaluation, Mixture
    from tandem.experiment.inference import Ensemble, QuantizedModel
    from tandem.report.experiments import ComparedExperiments
    from tandem.scoring.files import Counts
    from tandem.scoring.pairs import PairScores

STORAGE = {
    "memory": "held in memory",
    "disk": "on disk, rounded to bf16",
    "recompute": "computed again in every epoch",
}


def print_summary(console: Terminal, run_dir: Path, lang: str, report: list[Path]) -> None:
    """The summary table of an experiment, and where its report is."""
    records = read_records(run_dir)
    heads, rows = summary_rows(records, read_manifest(run_dir), lang, read_audit(run_dir))
    console.print()
    console.table(heads, rows, right=range(1, len(heads)))
    console.print()
    if records:
        console.say(f"text: {_text(records[0].data)}")
    for path in report:
        if path.suffix != ".svg":
            console.say(f"report: {path}")


def print_run(console: Terminal, record: RunRecord, folder: Path) -> None:
    """One training's figures, and how to use the model."""
    assert record.recipe is not None
    assert record.phase1 is not None
    assert record.phase2 is not None
    assert record.contexts is not None
    assert record.validation is not None
    assert record.parameters is not None
    phase1, phase2, validation = record.phase1, record.phase2, record.validation
    _print_pairs(
        console,
        {
            "text": _text(record.data),
            "configuration": f"{record.configuration}, {record.parameters.total:,} parameters",
            "phase 1": f"{OBJECTIVES[record.recipe].summary(phase1)}, "
            f"ER {record.contexts.effective_rank_validation:.1%}",
            "contexts": STORAGE[record.contexts.train.storage],
            "phase 2": f"best epoch {phase2.best_epoch} of {phase2.epochs}, "
            f"train PPL {phase2.train_perplexity:.1f}{_before(phase2)}",
            "validation": f"PPL {validation.perplexity:.1f}, "
            f"accuracy {validation.accuracy:.1%}, {validation.bits_per_byte:.3f} bits per byte",
            "time": f"{record.seconds_alone_s:.0f} s",
            **_in_parts(record),
            "model": str(folder),
        },
    )
    console.print()
    console.say("try: ", command("tandem", "generate", folder, "--prompt", "…"))


def _before(phase2: TrainingRecord) -> str:
    """The validation perplexity that a phase 2 started from and was better than, where that is known."""
    start = phase2.history[0]
    better = start.epoch == 0 < phase2.best_epoch
    return f", val PPL {perplexity(start.validation_nll_nats):.1f} before it" if better else ""


def _text(data: DataRecord) -> str:
    """How much text there is, and what was dropped of it."""
    return (
        f"{data.train_documents:,} documents ({data.train_tokens:,} tokens) to train on, "
        f"{data.validation_documents:,} ({data.validation_tokens:,} tokens) for validation"
        + (f"; {data.duplicates_dropped:,} dropped as duplicates" if data.duplicates_dropped else "")
    )


def _in_parts(record: RunRecord) -> dict[str, str]:
    """Where memory ran out, and what was done."""
    assert record.phase2 is not None
    assert record.phase1 is not None
    micro_batches = {"phase 1": record.phase1.micro_batches, "phase 2": record.phase2.micro_batches}
    said = [f"{phase} in {parts} parts a step" for phase, parts in micro_batches.items() if parts > 1]
    return {"memory": f"ran out; computed {', '.join(said)}, with the same gradient"} if said else {}


def print_evaluation(console: Terminal, result: Evaluation) -> None:
    """What a model makes of a text."""
    _print_pairs(
        console,
        {
            "text": f"{result.data}: {result.documents:,} documents, {result.tokens:,} tokens, "
            f"{result.text_bytes:,} bytes",
            "perplexity": f"{result.perplexity:.2f}",
            "accuracy": f"{result.accuracy:.2%}",
            "bits per byte": f"{result.bits_per_byte:.4f}",
            **_lost(result),
            "ER": f"{result.effective_rank:.1%}",
            **_phase1(result),
            "scan error": f"{result.scan_error:.1e}",
            **_mixture(result.mixture),
            **_adapted(result.adapted),
        },
    )


def print_scoring(console: Terminal, counts: Counts, output: Path | None, rejected: Path | None) -> None:
    """How many documents were kept, where they are, and their mean."""
    mean = "nothing to score" if not counts.tokens else f"{counts.nll_nats / counts.tokens:.4f} nats a token"
    console.say(f"kept {counts.passed:,} of {counts.documents:,} documents ({mean} over all of them)")
    for path in (output, rejected):
        if path is not None:
            console.say(f"{'output' if path == output else 'rejected'}: {path}")


def print_pair_scores(console: Terminal, scores: PairScores) -> None:
    """Accuracy by group, and over all pairs."""
    groups = [*scores.groups, scores.overall] if len(scores.groups) > 1 else [scores.overall]
    rows = [
        (one.group, f"{one.pairs:,}", f"{one.accuracy:.1%}", f"{one.low:.1%} to {one.high:.1%}")
        for one in groups
    ]
    console.table(("group", "pairs", "accuracy", "95% interval"), rows, right=range(1, 4))


def print_comparison(console: Terminal, found: ComparedExperiments) -> None:
    """What two experiments have in common, the second against the first."""
    rows = []
    for c in found.comparisons:
        means = [wording.perplexity_text(perplexity(nll)) for nll in c.nll.means or ()] or [wording.NONE] * 2
        basis = c.effect.basis.replace("_", " × ")
        figures = wording.nats_text(c.effect.difference), wording.interval_text(c.effect.interval), basis
        judged = wording.p_text(c.corrected_p), c.verdict.replace("_", " "), *wording.power_texts(c.power)
        rows.append((c.b + " †" * (c.b in found.untrusted), *means, *figures, *judged))
    heads = ("", "first PPL", "second PPL", "nats/token", "95% interval", "over", "p (Holm)", "verdict")
    console.table((*heads, "could show", "seeds needed"), rows, right=range(1, 5))
    console.print()
    for place, run_dir, only in zip(("first", "second"), found.run_dirs, found.only, strict=True):
        console.say(f"{place}: {run_dir}" + (f", which alone has {', '.join(only)}" if only else ""))
    if found.untrusted:
        console.say("†: the audit failed for one of its runs")
    console.say("second against first, over the seeds of both; no audit computes these differences again")


def print_ensemble(console: Terminal, ensemble: Ensemble) -> None:
    """Where it is, and of what."""
    console.say(f"{ensemble.output} averages the probabilities of {len(ensemble.members)} models")


def print_quantized(console: Terminal, copied: QuantizedModel) -> None:
    """Where the copy is, and what it takes."""
    sizes = f"{copied.output_bytes / 1e6:,.1f} MB instead of {copied.model_bytes / 1e6:,.1f} MB"
    console.say(f"{copied.output} holds the model with weights of 8 bits: {sizes}")


def print_checkup(console: Terminal, found: Checkup) -> None:
    """What this machine has, and what is missing."""
    here, speedup = found.environment, found.bfloat16_speedup
    said = {
        "tandem": f"{here.tandem}, code {here.code_fingerprint[:12]}",
        "python": f"{here.python}, torch {here.torch}, transformers {here.transformers}; {here.platform}",
        "device": f"{here.device} ({here.device_name}, {here.cpu_capability})",
        "cores": f"{here.cpu_count}, of which torch uses {here.threads}",
        "memory": f"{(here.device_memory_bytes or 0) / 1e9:.1f} GB, {found.free_bytes / 1e9:.1f} GB free",
        "bf16": f"{speedup:.2g} times as fast as float32",
    }
    if speedup > 1.2 and here.precision == "float32":
        said["bf16"] += "; `--precision bfloat16` trains with it"
    for extra, lacking in found.missing.items():
        fetch = f"not installed: {command('pip', 'install', f'tandem-lm[{extra}]')}"
        said[f"extra {extra}"] = f"{' and '.join(lacking)} {fetch}" if lacking else "installed"
    _print_pairs(console, said)


def _lost(result: Evaluation) -> dict[str, str]:
    """What of the text the tokens cannot give back."""
    if not result.lost_bytes:
        return {}
    from tandem.tokens.lost import Lost

    lost = Lost(bytes=result.lost_bytes, such_as=result.lost_such_as)
    return {"lost": lost.sentence("of the text", result.text_bytes)}


def _phase1(result: Evaluation) -> dict[str, str]:
    """What only the objective of phase 1 gives a meaning."""
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.phase1.items())
    return {"phase 1": shown} if shown else {}


def _mixture(mixture: Mixture | None) -> dict[str, str]:
    """The rows of what is not the model alone."""
    if mixture is None:
        return {}
    weights = ", ".join(f"{name} {weight:.0%}" for name, weight in mixture.weights.items())
    return {
        "mixed": f"perplexity {mixture.perplexity:.2f}, {mixture.bits_per_byte:.4f} bits per byte",
        "mean weights": weights,
    }


def _adapted(adapted: Adapted | None) -> dict[str, str]:
    """The row of what the model makes of the text as it learns from it."""
    if adapted is None:
        return {}
    return {
        "learning on": f"perplexity {adapted.perplexity:.2f}, {adapted.bits_per_byte:.4f} bits per byte, "
        f"accuracy {adapted.accuracy:.2%}"
    }


def print_estimate(console: Terminal, estimate: Estimate) -> None:
    """What runs would take, by kind of work."""
    rows = [
        (part.what, str(part.times), f"{part.seconds_s:,.1f}", f"{part.times * part.seconds_s:,.1f}")
        for part in estimate.parts
    ]
    console.table(("work", "times", "seconds each", "seconds"), rows, right=range(1, 4))
    memory = (
        "unknown" if estimate.memory_bytes is None else f"{estimate.memory_bytes / 1e9:.1f} GB at its peak"
    )
    memory += f" in each of {estimate.workers} workers" if estimate.workers > 1 else ""
    megabytes = f"{estimate.context_disk_bytes / 1e6:,.0f} MB"
    contexts = f", and {megabytes} of contexts in the cache while it trains"
    _print_pairs(
        console,
        {
            "runs": str(estimate.runs),
            "time": f"about {estimate.seconds_s / 60:,.1f} min to the last run, if nothing ends early; "
            "audit and report come on top",
            "memory": memory,
            "disk": f"{estimate.disk_bytes / 1e6:,.0f} MB"
            + (contexts if estimate.context_disk_bytes else ""),
        },
    )


NAMED = {"skip": "not checked"}
"""What a status is called, if not by its own name."""


def print_audit(console: Terminal, audit: AuditRecord) -> None:
    """Every check that did not simply pass, with its figure; then what came of all."""
    styles = {"fail": "red", "warn": "yellow"}
    rows: list[list[Part]] = [
        [
            run.run or "data",
            check.name,
            (NAMED.get(check.status, check.status), styles.get(check.status, "dim")),
            check.figure,
        ]
        for run in audit.runs
        for check in run.checks
        if check.status != "pass"
    ]
    if rows:
        console.table(("run", "check", "", "figure"), rows)
    print_audit_lines(console, audit)


def print_audit_lines(console: Terminal, audit: AuditRecord) -> None:
    """What came of an audit, and which figures it says not to trust."""
    from tandem.audit import failures

    checks = [check for run in audit.runs for check in run.checks]
    counts = {status: sum(check.status == status for check in checks) for status in get_args(Status)}
    shown = ", ".join(f"{count} {NAMED.get(status, status)}" for status, count in counts.items() if count)
    console.say(f"audit: {shown} of {len(checks)} checks")
    for line in failures(audit):
        console.say(("not to be trusted", "red"), f": {line}")


def _print_pairs(console: Terminal, pairs: dict[str, str]) -> None:
    for name, value in pairs.items():
        console.say(f"{name:14} {value}")
