"""What a second process brings to one training: two processes of one thread beside one of one thread.

    python bench/distributed.py predictive [--times 3] [--max-train-bytes 400000] [options of tandem train]

The same command, `tandem train` with a preset, with and without torchrun, in turn, on the embedded text: the
same global batches, so the same losses. Efficiency is the seconds of one process over twice those of two; 1
would be perfect. "whole" is the three phases; "command" all that the clock showed, with the start of Python,
of torchrun, and what is read and saved.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PARTS = ("phase1", "contexts", "phase2", "whole", "command")


def train(processes: int, arguments: list[str], folder: Path) -> dict[str, float]:
    """Seconds of one training, and its validation NLL."""
    began = time.perf_counter()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [
            *(sys.executable, *(torchrun if processes > 1 else []), "-m", "tandem", "train"),
            *(*arguments, "--threads", "1", "--output", str(folder)),
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
        "command": time.perf_counter() - began,
        "nll": record["validation"]["nll_nats"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--max-train-bytes", type=int, default=400_000)
    chosen, options = parser.parse_known_args()
    arguments = [chosen.preset, "--data.max-train-bytes", str(chosen.max_train_bytes), *options]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(chosen.times):
            pair = [train(count, arguments, Path(folder) / str(count)) for count in (1, 2)]
            rounds.append(pair)
            print(json.dumps(pair), file=sys.stderr, flush=True)
    print("| | one process, s | two, s | efficiency | from … to |\n|---|---:|---:|---:|---:|")
    for part in PARTS:
        one, two = (statistics.median(pair[at][part] for pair in rounds) for at in (0, 1))
        shares = [pair[0][part] / (2 * pair[1][part]) for pair in rounds]
        print(
            f"| {part} | {one:.1f} | {two:.1f} | {statistics.median(shares):.3f} | "
            f"{min(shares):.3f} … {max(shares):.3f} |"
        )
    difference = max(abs(one["nll"] - two["nll"]) for one, two in rounds)
    print(f"\nValidation NLL differs by {difference:.1e} nats at most.")


if __name__ == "__main__":
    main()
