"""How fast Tandem is, in ratios that are measured side by side: the tables of docs/performance.md.

    python bench/performance.py TABLE … [--threads 1] [--device cpu] [--quick]

    contexts         the sequential loop, Jacobi sweeps, and the parallel scans
    cross-entropy    the softmax over a large vocabulary: plain, in chunks, and sampled
    training         a trained token: ours, the LSTM's, the GPT-2's
    decoding         scoring a text, and generating token after token, beside GPT-2
    scaling          cost against the size of the text
    windows          phase 1 of recipe original, over the whole text and by windows

`all` prints all of them. Candidates take turns within a round and are given as the median ratio with the
smallest and largest of all rounds (bench/measuring.py). `--quick` makes everything small: it shows that the
program works, and its figures say nothing. Text is python-docs or drawn from a seed; nothing is downloaded.
"""

import argparse
import os
from collections.abc import Callable
from importlib import import_module

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from measuring import start

from tandem.shown import tolerate_any_encoding

TABLES = {
    "contexts": "speed.contexts",
    "cross-entropy": "speed.softmax",
    "training": "speed.training",
    "decoding": "speed.decoding",
    "scaling": "speed.scaling",
    "windows": "speed.windows",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=(*TABLES, "all"), metavar="TABLE")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, … (default: cpu)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
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
    if chosen.quick:
        print("--quick: these figures say nothing")
    for name, module in TABLES.items():
        if name in chosen.tables or "all" in chosen.tables:
            table: Callable[..., None] = import_module(module).table
            table(chosen.quick, device)


if __name__ == "__main__":
    tolerate_any_encoding()
    main()
