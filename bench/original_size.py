"""The original experiment at its own size: all runs behind docs/results/original.md.

    TANDEM_SHARED=… python bench/original_size.py run [--parts grid …] [--seeds 0 …] [--threads 2]
    python bench/original_size.py tables

The preset `original` with its sizes: V 50,257 (the GPT-2 tokenizer), E 768, C 500, 2.4 million training
tokens, 22,672 of validation. Four things differ from the original: the text (Schema-Guided Dialogue),
spectral embeddings in place of GPT-2's, a softmax over a sample in training, and phase 1 on windows. In
training, products of matrices are in bf16.

    grid              the four configurations, with n-grams
    zero-validation   C1T2 whose validation contexts are all zero, as the original's were
    literal           phase 1 over all tokens, as in the original
    exact, 4096, …    one epoch over the whole vocabulary, and with so many tokens drawn: is a sample enough?

Finished runs are kept, so that the same command goes on where it was stopped.
"""

import argparse
import gzip
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from conclusions import run_part
from conclusions_tables import change, effect, print_configurations, print_grid, runs_in
from measuring import SMALL, made_small, print_table
from measuring import run as run_bench

from tandem.records import RunRecord
from tandem.settings import Configuration, Settings, load_settings

TRAIN_BYTES = 30_000 if SMALL else 9_211_000
"""2.40 million tokens."""
VALIDATION_DIALOGUES = 4 if SMALL else 94
"""Of which the tokens come nearest to the original's 22,723."""
WINDOW_TOKENS = 20_000
NEGATIVES = 1024


@dataclass(frozen=True)
class Part:
    """One experiment: its configurations, what differs from the main one, and the defect planted into it."""

    name: str
    configurations: tuple[tuple[int, int], ...] = ((1, 1),)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    defect: str | None = None


DEPTHS = ((1, 1), (2, 1), (1, 2), (2, 2))
NAMES = tuple(Configuration(*depths).name for depths in DEPTHS)
ONE_EPOCH: dict[str, int | None] = {"exact": None, "4096": 4096, "1024": 1024}
PARTS = (
    Part("grid", DEPTHS, {"baselines": {"models": ("unigram", "bigram", "kneser-ney")}}),
    Part("zero-validation", ((1, 2),), defect="zero_validation_contexts"),
    Part("literal", ((1, 1), (2, 1)), {"phase1": {"tokens_per_step": None}}),
    *(
        Part(name, changes={"phase2": {"negatives": negatives, "max_epochs": 1}})
        for name, negatives in ONE_EPOCH.items()
    ),
)


def settings(shared: Path, part: Part, seeds: tuple[int, ...], threads: int, output: Path) -> Settings:
    """The preset `original` with text, tokenizer and embeddings that are there, and what the part changes."""
    dialogues = shared / "corpora" / "dialogue_sgd"
    values = load_settings("original").model_dump(mode="json")
    values |= {
        "name": f"original-size-{part.name}",
        "configurations": part.configurations,
        "seeds": seeds,
        "threads": threads,
        "precision": "bfloat16",
        "output": str(output / part.name),
    }
    changes: tuple[Mapping[str, Mapping[str, Any]], ...] = (
        {
            "data": {
                "train": str(dialogues / "train.jsonl.gz"),
                "validation": str(_validation(dialogues / "valid.jsonl.gz", output)),
                "max_train_bytes": TRAIN_BYTES,
            },
            "tokenizer": {"source": str(shared / "corpora" / "gpt2_tokenizer" / "tokenizer.json")},
            "embeddings": {"source": "spectral"},
            "phase1": {"tokens_per_step": WINDOW_TOKENS},
            "phase2": {"negatives": NEGATIVES},
        },
        part.changes,
    )
    for one in changes:
        for section, new in one.items():
            values[section] |= new
    return Settings(**made_small(values))


def _validation(source: Path, output: Path) -> Path:
    """The first VALIDATION_DIALOGUES of a file."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        lines = file.readlines()[:VALIDATION_DIALOGUES]
    path = output / "validation.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), "utf-8")
    return path


def print_tables(output: Path) -> None:
    """The grid, phase 1 over all tokens beside it, and what the sampled softmax costs."""
    grid = print_grid("The original's size", output)
    pairs = [
        [f"{a} → {b}", f"{seed}", over_documents(grid[a][seed], grid[b][seed])]
        for a, b in combinations([name for name in NAMES if name in grid], 2)
        for seed in sorted(grid[a].keys() & grid[b].keys(), key=str)
    ]
    print_table("Pairs of one seed, over documents alone", ("pair", "seed", "PPL [95%]"), pairs)
    if literal := runs_in(output / "literal"):
        print_configurations("Phase 1 over all tokens", literal)
    rows = []
    samples = {name: runs_in(output / name).get("C1T1", {}) for name in ONE_EPOCH}
    for name, runs in samples.items():
        for seed, record in sorted(runs.items(), key=str):
            assert record.validation is not None
            assert record.phase2 is not None
            exact = {s: r for s, r in samples["exact"].items() if s == seed}
            rows.append(
                [
                    name,
                    f"{seed}",
                    f"{record.validation.nll_nats:.4f}",
                    f"{record.validation.perplexity:.1f}",
                    change(effect(exact, {seed: record})) if exact and name != "exact" else "–",
                    f"{record.phase2.history[0].seconds_s:.0f}",
                ]
            )
    head = ("softmax", "seed", "Val NLL, nats", "Val PPL", "against exact [95%]", "seconds of the epoch")
    print_table("One epoch of C1T1", head, rows)


def over_documents(a: RunRecord, b: RunRecord) -> str:
    """The perplexity of b against that of a, with the percentile bootstrap's interval over documents."""
    assert a.validation is not None
    assert a.validation.documents is not None
    assert b.validation is not None
    assert b.validation.documents is not None
    tokens, nll_a = a.validation.documents.unpack()
    difference = b.validation.documents.unpack()[1] - nll_a

    def ratio(of_documents: Any, of_tokens: Any, axis: int = -1) -> Any:
        return np.exp(of_documents.sum(axis) / of_tokens.sum(axis)) - 1

    found = bootstrap(
        (difference, tokens), ratio, paired=True, vectorized=True, method="percentile", rng=0
    ).confidence_interval
    low, middle, high = (f"{100 * x:+.1f}%" for x in (found.low, ratio(difference, tokens), found.high))
    return f"{middle} [{low}, {high}]".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("--output", type=Path, default=Path("runs/original-size"))
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.what == "tables":
        print_tables(chosen.output)
    elif not (shared := os.environ.get("TANDEM_SHARED")):
        sys.exit("TANDEM_SHARED does not name a folder with the corpora; nothing was run")
    else:
        for part in PARTS:
            if part.name in chosen.parts:
                seeds = tuple(chosen.seeds)
                run_part(settings(Path(shared), part, seeds, chosen.threads, chosen.output), part.defect)


if __name__ == "__main__":
    run_bench(main)
