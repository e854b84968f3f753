"""What a second process brings to one training: two processes of one thread beside one of one thread.

    python bench/distributed.py [--times 3] [--max-train-bytes 400000]

The same command, `tandem train predictive`, with and without torchrun, in turn, on the embedded text: the
same global batches, so the same losses. Efficiency is the seconds of one process over twice those of two; 1
would be perfect.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PHASES = ("phase1", "contexts", "phase2", "whole")


def train(processes: int, train_bytes: int, folder: Path) -> dict[str, float]:
    """Seconds of one training, and its validation NLL."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    options = {"--data.max-train-bytes": train_bytes, "--threads": 1, "--output": folder}
    done = subprocess.run(
        [
            *(sys.executable, *(torchrun if processes > 1 else []), "-m", "tandem", "train", "predictive"),
            *(str(part) for option in options.items() for part in option),
            "--json",
        ],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    record: dict[str, Any] = json.loads(done.stdout)
    return {
        "phase1": record["phase1"]["seconds_s"],
        "contexts": record["contexts"]["seconds_s"],
        "phase2": record["phase2"]["seconds_s"],
        "whole": record["seconds_alone_s"],
        "nll": record["validation"]["nll_nats"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--max-train-bytes", type=int, default=400_000)
    chosen = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(chosen.times):
            pair = [train(count, chosen.max_train_bytes, Path(folder) / str(count)) for count in (1, 2)]
            rounds.append(pair)
            print(json.dumps(pair), file=sys.stderr, flush=True)
    print("| | one process, s | two, s | efficiency | from … to |\n|---|---:|---:|---:|---:|")
    for phase in PHASES:
        one, two = (statistics.median(pair[at][phase] for pair in rounds) for at in (0, 1))
        shares = [pair[0][phase] / (2 * pair[1][phase]) for pair in rounds]
        print(
            f"| {phase} | {one:.1f} | {two:.1f} | {statistics.median(shares):.2f} | "
            f"{min(shares):.2f} … {max(shares):.2f} |"
        )
    difference = max(abs(one["nll"] - two["nll"]) for one, two in rounds)
    print(f"\nValidation NLL differs by {difference:.1e} nats at most.")


if __name__ == "__main__":
    main()
