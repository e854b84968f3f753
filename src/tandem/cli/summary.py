"""The results as a person reads them in the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from tandem.experiment.evaluate import Evaluation
from tandem.records import RunRecord, read_manifest, read_records
from tandem.report import summary_rows


def print_summary(console: Console, run_dir: Path, lang: str, report: list[Path]) -> None:
    """The summary table of an experiment, and where its report is."""
    heads, rows = summary_rows(read_records(run_dir), read_manifest(run_dir), lang)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, head in enumerate(heads):
        table.add_column(head, justify="left" if column == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("**", "") for cell in row))
    console.print()
    console.print(table)
    console.print()
    for path in report:
        if path.suffix in {".html", ".md"}:
            console.print(f"report: {path}", soft_wrap=True)


def print_run(console: Console, record: RunRecord, folder: Path) -> None:
    """One training's figures, and how to use the model."""
    assert record.phase1 is not None
    assert record.phase2 is not None
    assert record.parameters is not None
    phase1, phase2 = record.phase1, record.phase2
    _print_pairs(
        console,
        {
            "configuration": f"{record.configuration}, {record.parameters.total:,} parameters",
            "phase 1": f"{phase1.iterations} iterations, {phase1.convergence_rate:.1%} converged "
            f"({phase1.stopped.replace('_', ' ')}), ER {phase1.effective_rank_validation:.1%}",
            "phase 2": f"best epoch {phase2.best_epoch} of {phase2.epochs}, "
            f"train PPL {phase2.train_perplexity:.1f}",
            "validation": f"PPL {phase2.validation_perplexity:.1f}, "
            f"accuracy {phase2.validation_accuracy:.1%}, {phase2.validation_bits_per_byte:.3f} bits per byte",
            "time": f"{record.seconds_alone_s:.0f} s",
            "model": str(folder),
        },
    )
    console.print(f'\ntry: tandem generate {folder} --prompt "…"', soft_wrap=True)


def print_evaluation(console: Console, result: Evaluation) -> None:
    """What a model makes of a text."""
    _print_pairs(
        console,
        {
            "text": f"{result.data}: {result.documents:,} documents, {result.tokens:,} tokens, "
            f"{result.text_bytes:,} bytes",
            "perplexity": f"{result.perplexity:.2f}",
            "accuracy": f"{result.accuracy:.2%}",
            "bits per byte": f"{result.bits_per_byte:.4f}",
            "ER": f"{result.effective_rank:.1%}",
            "Conv": f"{result.convergence_rate:.1%} after {result.convergence_iterations} iterations",
            "scan error": f"{result.scan_error:.1e}",
        },
    )


def _print_pairs(console: Console, pairs: dict[str, str]) -> None:
    for name, value in pairs.items():
        console.print(f"{name:14} {value}", soft_wrap=True)
