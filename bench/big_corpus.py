"""What preparing a large corpus takes: text made up here, prepared as users would, at several sizes.

    python bench/big_corpus.py [--megabytes 35] [--times 1 4 16] [--processes 1] [--folder FOLDER]

Prints for every size: tokens, seconds, processor seconds (of all threads), tokens a second and the peak
resident memory of a process that does nothing else; then how these grow, as the exponent b of size^b fitted
to them. With the default sizes the largest corpus has about 100 million tokens.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from made_up_text import write_text
from measuring import SMALL, SMALL_MEGABYTES, run


def parser_for(description: str | None, megabytes: float, times: list[int]) -> argparse.ArgumentParser:
    """Of a bench over texts of several sizes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    megabytes, times = (SMALL_MEGABYTES, [1, 2]) if SMALL else (megabytes, times)
    parser.add_argument("--megabytes", type=float, default=megabytes, help="text of size 1")
    parser.add_argument("--times", type=int, nargs="+", default=times, help="sizes")
    parser.add_argument("--folder", type=Path, help="where text goes (kept); none: a temporary folder")
    return parser


@contextmanager
def texts_of(given: argparse.Namespace) -> Iterator[tuple[Path, dict[int, Path]]]:
    """The folder, and in it a text of each size, which is written unless it is there."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {times: folder / f"made-up-{given.megabytes * times:g}MB.jsonl.gz" for times in given.times}
        for times, text in texts.items():
            if not text.is_file():
                draft = folder / f"draft-{text.name}"
                write_text(draft, given.megabytes * times)
                draft.replace(text)
        yield folder, texts


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
            "documents": len(corpus.train.document_starts) + len(corpus.validation.document_starts),
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
    parser = parser_for(__doc__, 35, [1, 4, 16])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--vocab-size", type=int, default=300 if SMALL else 8192)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        prepare(given.prepare, given.vocab_size, given.processes)
        return
    with texts_of(given) as (_, texts):
        measured = []
        print("  size      tokens  documents   seconds     CPU s  tokens/s  peak MB (of which before)")
        for times, text in texts.items():
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
    run(main)
