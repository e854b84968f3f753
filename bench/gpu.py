"""Everything that is to be known of a GPU, in nine minutes: one command, one JSON and one Markdown table.

    python bench/gpu.py [--wikitext FOLDER] [--output runs/gpu] [--parts …] [--minutes 9] [--device cuda]

The parts, in this order, each in a process of its own and with a limit in seconds:

    correctness   both scans, both phases of both recipes, scores and generation beside the CPU's figures, and
                  a group of one process (nccl)
    original      the original's sizes, 2,400,000 made-up tokens: phase 1, contexts, phase 2 with the whole
                  softmax in bf16, four configurations; targets: 60 s in all, contexts within 1 s, phase 2 at
                  half of the measured rate in bf16
    training      recipe `predictive` on WikiText-2 by words, for three minutes; FOLDER has train.txt.gz and
                  valid.txt.gz (default: in the folder of corpora that TANDEM_SHARED names)
    decoding      tokens per second for 1, 64 and 1,024 texts
    profile       the slowest phase of `original`, and phase 1 of `predictive`: what takes the time, launches
                  of kernels, and how much of the time the GPU computes

Every figure is written to OUTPUT/gpu.json and OUTPUT/gpu.md at once. A part that fails, or that takes longer
than its limit, is written down with the reason, and the next one runs; one that no longer fits is skipped.
Nothing is downloaded or compiled. Targets are judged on CUDA at full size alone.

--tiny, or TANDEM_BENCH_SMALL=1, makes everything small and takes the CPU; the figures then say nothing.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

if "--tiny" in sys.argv:
    os.environ["TANDEM_BENCH_SMALL"] = "1"  # for this process, whose modules read it on import, and its parts
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# The group is one process, which may be on a machine without a network.
os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")

from measuring import SMALL, run
from on_gpu.results import JSON_NAME, TABLE_NAME, Results

LIMITS_S = {"correctness": 60, "original": 140, "training": 225, "decoding": 35, "profile": 75}
"""Seconds of each part at most, from the start of its process: 535 in all."""
MINUTES = 9.0
if SMALL:  # on a CPU that may be busy, where the start of a process takes most of the time
    LIMITS_S, MINUTES = {name: 10 * limit for name, limit in LIMITS_S.items()}, 10 * MINUTES
NO_DEVICE = 3
"""Exit code of a part that did not find the device; no other one would."""


def find_wikitext(chosen: Path | None) -> Path | None:
    """The folder that was named, or that in TANDEM_SHARED; none where there is no text."""
    if chosen is None and (shared := os.environ.get("TANDEM_SHARED")):
        chosen = Path(shared) / "corpora" / "wikitext-2"
    return chosen if chosen and (chosen / "train.txt.gz").is_file() else None


def run_in_process(name: str, limit_s: float, chosen: argparse.Namespace) -> tuple[str | None, int]:
    """One part in a process of its own, which writes its figures: why it ended early, and its exit code."""
    command = [sys.executable, str(Path(__file__).resolve()), "--only", name, "--device", chosen.device]
    command += ["--output", str(chosen.output)]
    if chosen.wikitext:
        command += ["--wikitext", str(chosen.wikitext)]
    try:
        code = subprocess.run(command, timeout=limit_s).returncode
    except subprocess.TimeoutExpired:
        return f"it was stopped after {limit_s:.0f} s, its limit; what it had measured is here", 1
    return (f"its process ended with exit code {code}" if code else None), code


def run_parts(chosen: argparse.Namespace) -> int:
    """All that are chosen, as long as there is time; the exit code."""
    began = time.perf_counter()
    chosen.output.mkdir(parents=True, exist_ok=True)
    total_s = 60 * chosen.minutes
    parts = [
        {"name": name, "status": "planned", "reason": "", "seconds_s": None, "budget_s": LIMITS_S[name]}
        | {"peak_bytes": None, "figures": [], "tables": []}
        for name in LIMITS_S
        if name in chosen.parts
    ]
    values = {"machine": None, "judged": False, "small": SMALL, "seconds_s": 0.0, "budget_s": total_s}
    results, code = Results(chosen.output, {**values, "parts": parts}), 0
    results.save()
    for name in [part["name"] for part in parts]:
        left = total_s - (time.perf_counter() - began)
        reason, status, seconds = "", "", None
        if name == "training" and chosen.wikitext is None:
            status, reason = (
                "skipped",
                "no train.txt.gz of WikiText-2 is there: give its folder with --wikitext",
            )
        elif left < LIMITS_S[name]:
            status = "skipped"
            reason = f"{max(0.0, left):.0f} s are left, and it may take {LIMITS_S[name]} s"
        else:
            print(f"{name}, at most {LIMITS_S[name]} s", flush=True)
            part_began = time.perf_counter()
            early, code = run_in_process(name, LIMITS_S[name], chosen)
            seconds = time.perf_counter() - part_began
            results = Results.read(chosen.output)
            if results.part(name)["status"] == "planned":  # it did not come to say how it ended
                status, reason = "stopped", early or "its process said nothing"
        part = results.part(name)
        part |= {"seconds_s": seconds} | ({"status": status, "reason": reason} if status else {})
        results.values["seconds_s"] = time.perf_counter() - began
        results.save()
        told = ": ".join(filter(None, (part["status"], part["reason"])))
        print(f"{name}: {told}", flush=True)
        if code == NO_DEVICE:
            return 2
    print(f"\n{results.markdown()}\n{chosen.output / JSON_NAME} and {chosen.output / TABLE_NAME}")
    return int(any(part["status"] in ("failed", "stopped") for part in results.values["parts"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu" if SMALL else "cuda", help="(default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU if no device is named")
    parser.add_argument("--wikitext", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--parts", nargs="+", choices=LIMITS_S, default=[*LIMITS_S], metavar="PART")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together (default: 9)")
    parser.add_argument("--only", choices=LIMITS_S, help=argparse.SUPPRESS)  # one part, in this process
    chosen = parser.parse_args()
    chosen.wikitext = find_wikitext(chosen.wikitext)
    if chosen.only is None:
        sys.exit(run_parts(chosen))

    from on_gpu.parts import run_part

    from tandem.errors import SettingsError

    try:
        run_part(chosen.only, chosen.device, chosen.output, chosen.wikitext)
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_DEVICE if Results.read(chosen.output).values["machine"] is None else 1)


if __name__ == "__main__":
    run(main)
