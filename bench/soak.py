"""Whether memory and open files grow when one process makes run after run: a soak.

    python bench/soak.py --minutes 120

Each round trains, audits, reports, scores and generates with a tiny experiment, in a new folder. After each
one it notes the memory that the process has (RSS) and its open files. The line at the end compares the median
of the last quarter with that of the second one; in the first, libraries set up.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from made_up_text import write_text

from tandem.cli.main import run
from tandem.shown import tolerate_any_encoding

TINY = (
    *("--seeds", "0", "--device", "cpu", "--tokenizer.vocab-size", "300", "--embeddings.norm", "1"),
    *(
        "--model.embed-dim",
        "24",
        "--model.context-dim",
        "16",
        "--model.weight-init-std",
        "0.3",
        "--contexts.segment-length",
        "64",
    ),
    *("--phase1.max-iterations", "4", "--phase1.batch-positions", "300", "--phase2.max-epochs", "2"),
    *("--phase2.batch-positions", "256", "--baselines.models", "lstm", "unigram"),
    *("--baselines.max-parameters", "9000", "--baselines.lstm.max-epochs", "1", "--checkpoint-every", "0"),
)


def round_in(folder: Path, text: Path) -> None:
    """One of everything."""
    settings = folder / "settings.yaml"
    settings.write_text("configurations: [[1, 1]]\n", "utf-8")
    run_dir, model = folder / "run", folder / "run" / "models" / "C1T1-seed0"
    commands = (
        (
            "experiment",
            settings,
            "--data.train",
            text,
            "--output",
            run_dir,
            *TINY,
        ),
        ("audit", run_dir, "--quick"),
        ("report", run_dir),
        ("evaluate", model, "--data", text),
        ("score", model, text, "--output", folder / "scores.jsonl"),
        ("generate", model, "--prompt", "ba", "--max-new-tokens", "5"),
    )
    for command in commands:
        said = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = run([str(word) for word in command])
        if code not in (0, 1):  # an audit of so little text may fail
            raise SystemExit(
                f"tandem {command[0]} ended with {code}: {said.buffer.getvalue().decode()[-2000:]}"
            )


def main() -> None:
    """Rounds until the time is over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120)
    given = parser.parse_args()
    tolerate_any_encoding()
    torch.set_num_threads(1)
    process, seen, until = psutil.Process(), list[tuple[float, int]](), time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as place:
        os.environ["TANDEM_CACHE"] = str(Path(place) / "cache")
        text = Path(place) / "text.jsonl.gz"
        write_text(text, 0.01)
        while time.monotonic() < until:
            folder = Path(place) / "round"
            folder.mkdir()
            round_in(folder, text)
            shutil.rmtree(folder)
            seen.append((process.memory_info().rss / 1e6, process.num_fds()))
            if len(seen) % 10 == 1:
                sys.stderr.write(f"{len(seen)} rounds, {seen[-1][0]:.0f} MB, {seen[-1][1]} files\n")
    quarter = max(1, len(seen) // 4)
    (memory, files), (memory_after, files_after) = (
        (statistics.median(column) for column in zip(*part, strict=True))
        for part in (seen[quarter : 2 * quarter], seen[-quarter:])
    )
    found = {
        "rounds": len(seen),
        "minutes": given.minutes,
        "memory_mb": memory,
        "memory_mb_at_end": memory_after,
    }
    print(json.dumps({**found, "files": files, "files_at_end": files_after}))


if __name__ == "__main__":
    main()
