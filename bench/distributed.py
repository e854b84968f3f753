"""What a second process brings to one training: two processes of one thread beside one of one thread.

    python bench/distributed.py predictive [--times 3] [--scaling weak] [--max-train-bytes 400000]
                                           [options of tandem train]

The same command, `tandem train` with a preset, with and without torchrun, in turn, on the embedded text.
Efficiency is the seconds of one process over twice those of two, on the same text and epochs; 1 would be
perfect. "whole" is the three phases; "command" all that the clock showed, with the start of Python, of
torchrun, and what is read and saved.

--scaling strong (the default): both take the same global batches, so their losses are the same, and each of
two processes half of every batch. weak: each process takes a batch of the preset's size, so two take half as
many steps, of twice the size; what is usual where processes are added to train faster (recipe predictive).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import SMALL, made_small, print_table, run, tandem_command

from tandem.settings import load_settings

BATCHES = ("prediction.streams", "phase2.batch_positions")
"""What grows with the processes in weak scaling; phase 1's `batch_positions` are those of recipe original."""
PARTS = ("phase1", "contexts", "phase2", "whole", "command")


def train(processes: int, arguments: list[str], folder: Path) -> dict[str, float]:
    """Seconds of one training, and its validation NLL."""
    began = time.perf_counter()
    options = ("--threads", 1, "--output", folder, "--json")
    done = subprocess.run(
        tandem_command("train", *arguments, *options, processes=processes),
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


def doubled_batches(preset: str, options: list[str]) -> list[str]:
    """Options of `tandem train` for twice the batches that it would take with these."""
    settings = load_settings(preset)
    if settings.recipe != "predictive":
        sys.exit(f"--scaling weak needs a preset of recipe predictive; {preset} is of {settings.recipe}")
    there = {option.split("=")[0].replace("-", "_") for option in options}
    if given := [name for name in BATCHES if f"--{name}".replace("-", "_") in there]:
        sys.exit(f"--scaling weak doubles what the preset says of {given[0]}; leave --{given[0]} out")
    values = made_small(settings.model_dump())
    doubled = []
    for name in BATCHES:
        section, key = name.split(".")
        doubled += [f"--{name}", str(2 * values[section][key])]
    return doubled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--max-train-bytes", type=int, default=400_000)
    parser.add_argument("--scaling", choices=["strong", "weak"], default="strong")
    chosen, options = parser.parse_known_args()
    options_of_two = doubled_batches(chosen.preset, options) if chosen.scaling == "weak" else []
    arguments = [chosen.preset, "--data.max-train-bytes", str(chosen.max_train_bytes), *options]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 if SMALL else chosen.times):
            pair = [
                train(count, [*arguments, *more], Path(folder) / str(count))
                for count, more in ((1, []), (2, options_of_two))
            ]
            rounds.append(pair)
            print(json.dumps(pair), file=sys.stderr, flush=True)
    rows = []
    for part in PARTS:
        one, two = (statistics.median(pair[at][part] for pair in rounds) for at in (0, 1))
        shares = [pair[0][part] / (2 * pair[1][part]) for pair in rounds]
        efficiency = f"{statistics.median(shares):.3f}"
        rows.append([part, f"{one:.1f}", f"{two:.1f}", efficiency, f"{min(shares):.3f} … {max(shares):.3f}"])
    if chosen.scaling == "strong":
        difference = max(abs(one["nll"] - two["nll"]) for one, two in rounds)
        note = f"Validation NLL differs by {difference:.1e} nats at most."
    else:
        ppl = [[round(math.exp(one["nll"]), 1) for one in pair] for pair in rounds]
        note = f"Validation perplexity of one and of two, each round: {ppl}"
    head = ("", "one process, s", "two, s", "efficiency", "from … to")
    print_table(f"{chosen.preset}, {chosen.scaling} scaling", head, rows, note)


if __name__ == "__main__":
    run(main)
