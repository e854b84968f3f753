"""How fast Tandem is, in ratios that are measured side by side: the tables of docs/results/performance.md.

    python bench/performance.py TABLE … [--threads 1] [--device cpu]

    contexts         the sequential loop, Jacobi sweeps, and the parallel scans
    cross-entropy    the softmax over a large vocabulary: plain, in chunks, and sampled
    training         a trained token: ours, the LSTM's, the GPT-2's
    decoding         scoring a text, and generating token after token, beside GPT-2
    int8             weights of 8 bits: speed, perplexity and bytes beside float32
    scaling          cost against the size of the text
    windows          phase 1 of recipe original, over the whole text and by windows

`all` prints all of them. Candidates take turns within a round and are given as the median ratio with the
smallest and largest of all rounds (bench/measuring.py). Text is python-docs or drawn from a seed; nothing is
downloaded.
"""

import argparse
import os
from collections.abc import Callable
from importlib import import_module

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from measuring import run, start

TABLES = {
    "contexts": "speed.contexts",
    "cross-entropy": "speed.softmax",
    "training": "speed.training",
    "decoding": "speed.decoding",
    "int8": "speed.int8",
    "scaling": "speed.scaling",
    "windows": "speed.windows",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=(*TABLES, "all"), metavar="TABLE")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, … (default: cpu)")
    chosen = parser.parse_args()
    start(chosen.threads)

    from tandem.experiment.machine import choose_device, environment

    device = choose_device(chosen.device)
    machine = environment(device)
    print(
        f"{machine.device_name} ({machine.device}), {machine.threads} of {machine.cpu_count} CPU threads; "
        f"torch {machine.torch}, Python {machine.python}, {machine.platform}; commit {machine.git_commit}",
        flush=True,
    )
    for name, module in TABLES.items():
        if name in chosen.tables or "all" in chosen.tables:
            table: Callable[..., None] = import_module(module).table
            table(device)


if __name__ == "__main__":
    run(main)
