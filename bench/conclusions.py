"""The conclusions of the original experiment, put to the test: all runs behind docs/results/conclusions.md.

    TANDEM_SHARED=… python bench/conclusions.py run --output runs/findings
    TANDEM_SHARED=… python bench/conclusions.py tables --output runs/findings

`run` makes, for each of two corpora, the four configurations with the baselines; the same with each known
defect of the original planted (they are those of tests/defects.py); and phase 1 stopped at several
convergence rates. Finished runs are kept, so that the same command goes on where it was stopped. `tables`
prints every table of the document, from the records alone. Some 160 runs; two processes with one corpus each
(`--corpora dialogue`, `--corpora wikitext-2`) take about an hour and a half on 2 cores.
"""

import argparse
import gzip
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from conclusions_tables import print_tables
from measuring import SMALL, made_small
from measuring import run as run_bench

from tandem.settings import Settings

ARTICLES = (
    r"start:^ = (?!and = |De <unk> a |1 <unk> (and|/ s) )(?!.*(, ([A-Z]\w?\w?|<unk>)|\([^)]*) = $)[^=;]+ = $"
)
CORPORA: dict[str, dict[str, str]] = {
    "dialogue": {
        "train": "corpora/dialogue_sgd/train.jsonl.gz",
        "validation": "corpora/dialogue_sgd/valid.jsonl.gz",
    },
    "wikitext-2": {
        "train": "corpora/wikitext-2/train.txt.gz",
        "validation": "corpora/wikitext-2/valid.txt.gz",
        "txt_documents": ARTICLES,
    },
}
VALIDATION_ARTICLES = 20
SEEDS = (0,) if SMALL else (0, 1, 2, 3, 4)
CONVERGENCE = (0.25, 0.5, 0.75, 0.99)
"""Beside 0 (the untrained control) and 0.9 (the experiment itself)."""


@dataclass(frozen=True)
class Part:
    """One experiment of a corpus: what differs from the main one, and the defect planted into it."""

    name: str
    configurations: tuple[tuple[int, int], ...]
    convergence_stop: float = 0.9
    max_iterations: int = 150
    baselines: tuple[str, ...] = ()
    defect: str | None = None


PARTS = (
    Part(
        "grid",
        ((1, 1), (1, 2)) if SMALL else ((1, 1), (2, 1), (1, 2), (2, 2)),
        baselines=("unigram", "untrained")
        if SMALL
        else ("unigram", "bigram", "kneser-ney", "untrained", "lstm", "gpt2"),
    ),
    Part("zero-validation", ((1, 2),), defect="zero_validation_contexts"),
    Part("previous-context", ((2, 1),), defect="previous_context_for_a_single_layer"),
    Part("noisy-sweep", ((2, 1), (1, 2)), defect="noisy_sweep_for_training"),
    *(
        Part(f"converged-{round(100 * stop)}", ((1, 1),), stop, max_iterations=800 if stop > 0.9 else 150)
        for stop in CONVERGENCE
    ),
)


def settings(shared: Path, corpus: str, part: Part, output: Path) -> Settings:
    """Sizes that 2 cores can do; the proportions are the original's, and so is early stopping."""
    data = {
        key: str(shared / value) if key in ("train", "validation") else value
        for key, value in CORPORA[corpus].items()
    }
    if corpus == "wikitext-2":
        data["validation"] = str(_first_articles(shared / CORPORA[corpus]["validation"], output))
    values = {
        "name": f"{corpus}-{part.name}",
        "configurations": part.configurations,
        "seeds": SEEDS,
        "threads": 1,  # two corpora side by side take less time than one after the other
        "output": str(output / corpus / part.name),
        "data": {**data, "max_train_bytes": 300_000},
        "tokenizer": {"vocab_size": 2048},
        "embeddings": {"norm": 1.0},
        "model": {"embed_dim": 128, "context_dim": 80},
        "phase1": {
            "tokens_per_step": 20_000,
            "max_iterations": part.max_iterations,
            "convergence_stop": part.convergence_stop,
        },
        "phase2": {"max_epochs": 20, "batch_positions": 512, "shuffle": True, "lr": 0.004},
        "baselines": {
            "models": part.baselines,
            "untrained": ((1, 1), (1, 2)),
            "lstm": {"max_epochs": 10},
            "gpt2": {"max_epochs": 10},
        },
    }
    return Settings(**made_small(values))


def _first_articles(source: Path, output: Path) -> Path:
    """The first articles of WikiText-2's validation text: all 60 would take longer than the training."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines(keepends=True)
    heading = re.compile(ARTICLES.removeprefix("start:"))
    starts = [number for number, line in enumerate(lines) if heading.search(line.rstrip("\n"))]
    path = output / "wikitext-2" / "validation.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines[: starts[VALIDATION_ARTICLES]]), "utf-8")
    return path


@contextmanager
def planted(defect: str | None) -> Iterator[None]:
    """The program with a defect, for as long as the block lasts."""
    if defect is None:
        yield
        return
    import defects
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        plant: Callable[[pytest.MonkeyPatch], None] = getattr(defects, defect)
        plant(patch)
        yield


def run_part(chosen: Settings, defect: str | None) -> None:
    """An experiment with a defect planted into it, or none; then its audit, by the program without one."""
    from tandem.audit import audit, failures
    from tandem.cli.progress import ProgressView
    from tandem.cli.terminal import ERR
    from tandem.experiment.runner import run_experiment

    print(f"== {chosen.name}", flush=True)
    with planted(defect), ProgressView(ERR) as view:
        run_experiment(chosen, view)
    found = audit(Path(str(chosen.output)))
    print(f"audit: {found.status}", *failures(found), sep="\n  ", flush=True)


def run(shared: Path, output: Path, corpora: list[str], parts: list[str]) -> None:
    """Every part of every corpus."""
    for corpus in corpora:
        for part in PARTS:
            if part.name in parts:
                run_part(settings(shared, corpus, part, output), part.defect)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("--output", type=Path, default=Path("runs/findings"))
    parser.add_argument(
        "--corpora", nargs="+", choices=list(CORPORA), default=list(CORPORA)[:1] if SMALL else list(CORPORA)
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names[:2] if SMALL else names)
    arguments = parser.parse_args()
    if arguments.what == "tables":
        print_tables(arguments.output, arguments.corpora)
    elif not os.environ.get("TANDEM_SHARED"):
        sys.exit("TANDEM_SHARED does not name a folder with the corpora; nothing was run")
    else:
        run(Path(os.environ["TANDEM_SHARED"]), arguments.output, arguments.corpora, arguments.parts)


if __name__ == "__main__":
    run_bench(main)
