"""What preparing a large corpus takes: text made up here, prepared as users would, at several sizes.

    python bench/big_corpus.py [--megabytes 35] [--times 1 4 16] [--processes 1] [--folder FOLDER]

Prints for every size: tokens, seconds, processor seconds (of all threads), tokens a second and the peak
resident memory of a process that does nothing else; then how these grow, as the exponent b of size^b fitted
to them. With the default sizes the largest corpus has about 100 million tokens.
"""

import argparse
import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tandem.shown import tolerate_any_encoding

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

SYLLABLES = [a + b for a in "bdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ol")]
WORDS, ZIPF = 60_000, 1.05
DOCUMENT_WORDS = 400
"""Median; lengths are log-normal."""


def write_text(path: Path, megabytes: float, seed: int = 0) -> None:
    """Documents of made-up words by Zipf's law, as gzipped JSON lines with so much text."""
    draws = np.random.default_rng(seed)
    lengths = 1 + draws.geometric(0.45, WORDS)
    words = np.array(["".join(draws.choice(SYLLABLES, length)) for length in lengths])
    shares = 1 / np.arange(1, WORDS + 1) ** ZIPF
    edges = np.cumsum(shares / shares.sum())
    written = 0
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        while written < megabytes * 1e6:
            count = max(20, round(DOCUMENT_WORDS * math.exp(draws.standard_normal())))
            drawn = words[np.minimum(np.searchsorted(edges, draws.random(count)), WORDS - 1)]
            ends = np.where(draws.random(count) < 0.08, ".\n", " ")
            text = "".join(f"{word}{end}" for word, end in zip(drawn, ends, strict=True))
            file.write(json.dumps({"text": text}) + "\n")
            written += len(text)


def peak_bytes() -> int:
    """Peak resident memory of this process so far (Linux)."""
    status = Path("/proc/self/status").read_text("ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def prepare(text: Path, vocab_size: int, processes: int) -> None:
    """In a process of its own: prepare, and print the figures as JSON."""
    from tandem.settings import DataSettings, TokenizerSettings
    from tandem.tokens.prepare import prepare_corpus

    start = peak_bytes()
    began = time.perf_counter()
    stages: list[tuple[str, float]] = []

    def note(what: str) -> None:
        stages.append((what, time.perf_counter() - began))

    settings = TokenizerSettings(vocab_size=vocab_size, processes=processes)
    with tempfile.TemporaryDirectory(dir=text.parent) as cache:
        corpus = prepare_corpus(DataSettings(train=str(text)), settings, Path(cache), note)
        seconds = time.perf_counter() - began
        figures = {
            "tokens": len(corpus.train) + len(corpus.validation),
            "documents": corpus.train_documents + corpus.validation_documents,
            "seconds_s": seconds,
            "cpu_s": sum(os.times()[:4]),
            "start_bytes": start,
            "peak_bytes": peak_bytes(),
            "fingerprint": corpus.fingerprint,
        }
    for what, at in stages:
        print(f"  {at:7.1f} s  {what}", file=sys.stderr)
    print(json.dumps(figures))


def exponent(sizes: list[float], values: list[float]) -> float:
    """b of value = a · size^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=35, help="text of size 1")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16], help="sizes")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--folder", type=Path, help="where text and tokens go (kept); none: a temporary one")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        prepare(given.prepare, given.vocab_size, given.processes)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measured = []
        print("  size      tokens  documents   seconds     CPU s  tokens/s  peak MB (of which before)")
        for times in given.times:
            text = folder / f"made-up-{given.megabytes * times:g}MB.jsonl.gz"
            if not text.is_file():
                draft = folder / f"draft-{text.name}"
                write_text(draft, given.megabytes * times)
                draft.replace(text)
            options = ["--vocab-size", str(given.vocab_size), "--processes", str(given.processes)]
            done = subprocess.run(
                [sys.executable, __file__, "--prepare", str(text), *options],
                stdout=subprocess.PIPE,
                encoding="utf-8",
                check=True,
            )
            made = json.loads(done.stdout.splitlines()[-1])
            measured.append(made)
            print(
                f"{times:5d}× {made['tokens']:11,} {made['documents']:10,} {made['seconds_s']:9.1f} "
                f"{made['cpu_s']:9.1f} "
                f"{made['tokens'] / made['seconds_s']:9,.0f} {made['peak_bytes'] / 1e6:8.0f} "
                f"({made['start_bytes'] / 1e6:.0f})  {made['fingerprint']}",
                flush=True,
            )
        if len(measured) > 1:
            tokens = [m["tokens"] for m in measured]
            for name in ("seconds_s", "cpu_s", "peak_bytes"):
                print(f"{name} grows with tokens^{exponent(tokens, [m[name] for m in measured]):.2f}")


if __name__ == "__main__":
    tolerate_any_encoding()
    main()
