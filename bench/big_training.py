"""Whether memory and throughput of a training depend on how much text there is: made-up text, several sizes.

    python bench/big_training.py [--megabytes 38] [--times 1 16] [--threads 1] [--folder FOLDER]

Each size is one `tandem train predictive` in a process of its own, from the raw text to the model, with one
epoch of each phase and a small model (or 100 million tokens would take a day). Prints tokens, where contexts
were kept, tokens a second of each part and of all (and beside the first size), the peak memory of the whole
process, and the validation perplexity. Targets: below 4 GB, and throughput within 10%. With the default
sizes the largest corpus has more than 100 million training tokens.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from big_corpus import parser_for, texts_of
from measuring import SMALL, SMALL_SETTINGS, options_of, run, tandem_command

MODEL: dict[str, object] = {
    "--tokenizer.vocab-size": 4096,
    "--model.embed-dim": 64,
    "--model.context-dim": 64,
    "--context-layers": 1,
    "--token-layers": 1,
    "--prediction.max-epochs": 1,
    "--prediction.head-layers": 1,
    "--prediction.streams": 128,
    "--phase2.batch-positions": 8192,
    **(options_of(SMALL_SETTINGS) if SMALL else {}),
}


@dataclass(frozen=True)
class Trained:
    """One training: its record, and the peak memory of its process from start to end in bytes."""

    record: dict[str, Any]
    seconds: float
    peak_bytes: int

    @property
    def tokens(self) -> int:
        """Of the training text."""
        return int(self.record["contexts"]["train"]["tokens"])

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part, and of all."""
        record = self.record
        parts = {
            "phase 1": record["phase1"]["seconds_s"],
            "contexts": record["contexts"]["seconds_s"],
            "phase 2": record["phase2"]["seconds_s"],
        }
        return {**parts, "all": sum(parts.values())}


def train(text: Path, folder: Path, threads: int, keep: str) -> Trained:
    """`tandem train` on a text, with an empty cache."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        options: dict[str, object] = {
            **MODEL,
            "--data.train": text,
            "--contexts.keep": keep,
            "--threads": threads,
            "--output": Path(made) / "model",
        }
        arguments = (part for option in options.items() for part in option)
        with (Path(made) / "record.json").open("w+b") as out:
            process = subprocess.Popen(
                tandem_command("train", "predictive", "--json", *arguments),
                stdout=out,
                env={**os.environ, "TANDEM_CACHE": str(Path(made) / "cache")},
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                sys.exit(f"training on {text} failed")
            out.seek(0)
            record = json.load(out)
    return Trained(record, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def row(size: str, trained: Trained, first: Trained) -> str:
    """Of the table."""
    cells = [size, f"{trained.tokens:,}", trained.record["contexts"]["train"]["storage"]]
    for part, seconds in trained.parts.items():
        rate, rate_of_first = trained.tokens / seconds, first.tokens / first.parts[part]
        cells.append(f"{rate / 1000:,.1f} ({rate / rate_of_first:.2f})")
    cells.append(f"{trained.peak_bytes / 1e9:.2f}")
    cells.append(f"{trained.record['validation']['perplexity']:.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = parser_for(__doc__, 38, [1, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", default="auto", help="as --contexts.keep of tandem train")
    given = parser.parse_args()
    print(
        "| size | tokens | contexts kept | phase 1, 1,000 tokens/s | contexts | phase 2 | all | peak GB "
        "| val PPL |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|", flush=True)
    first = None
    with texts_of(given) as (folder, texts):
        for times, text in texts.items():
            trained = train(text, folder, given.threads, given.keep)
            first = first or trained
            print(row(f"{times}×", trained, first), flush=True)


if __name__ == "__main__":
    run(main)
