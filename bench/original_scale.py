"""The original's sizes on this machine: time, and how much of the machine each phase uses.

    python bench/original_scale.py [--tokens N] [--device auto] [--threads N] [--json FILE]

V 50,257, E 768, C 500; the four configurations with the settings of the preset `original`, on random tokens
that are as uneven as words. Phase 1 (over all tokens, and over WINDOW_TOKENS of them in windows), contexts by
the scan, and one epoch of phase 2 are run on N tokens: 2,400,000 on CUDA, 20,000 elsewhere (minutes). Time is
projected to 2,400,000 tokens in proportion, which is too much for what costs the same for any text, such as
checking the scan; that of phase 1 by windows is given as it is.

The machine's limits are measured first: the best of several matrix products of square matrices, in each
precision, and of large copies (bytes read plus bytes written). Shares are of these, in the precision in which
the package computes: both phases in bf16 on GPUs that have it, else in single; the scan in double.

**FLOP**: 2 for each multiplication and addition of a matrix product, nothing else. With C, E, V, L context
layers, T token layers, N tokens, U distinct tokens, M validation tokens, B a batch:

    phase 1     an iteration: N · (3L − 1) · 2C²
                  (a product forward, one for the gradient of the weights, and above the first layer one for
                  that of what it reads)
                  + U' · L · 4CE    (U': distinct tokens of each batch; two products)
    contexts    (1 + burn-in / 512) · N · L · 2C²            what is recurrent, in segments of 512 tokens
                  + U · L · 2CE                              what each distinct token adds
                  + 2048 · L · 2C(C + E)                     the loop that it is compared with
                  + 64 · 0.8 · burn-in · L · 2C²             measuring the burn-in
                  (once; a burn-in that was too short is tried again, which is not counted)
    phase 2     D = 2E(C + E) a token layer, 2E·E a layer that reads no context
                N · (3 ΣD − D of the first layer + 4VE) + (M + B) · (ΣD + 2VE)
                  (the head is frozen: a product forward, one for the gradient of what it reads; B: the loss
                  before the first step)

**Bytes moved**: every operation on tensors reads its inputs and writes its result once, 4 bytes a number (in
bf16 some are 2, which is not counted), 8 in the scan; weights are read once a batch. `phase1_work`,
`contexts_work` and `phase2_work` of speed/original.py count them. With caches it can be less, so that a share
may exceed 100%.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from measuring import SMALL, byte_size, number, print_table, run, start
from speed.original import (
    CONFIGURATIONS,
    FEW_TOKENS,
    ORIGINAL,
    TOKENS,
    WINDOW_TOKENS,
    C,
    E,
    Limits,
    Measured,
    OriginalScale,
    V,
    measure_limits,
)

from tandem.experiment.machine import choose_device, environment, uses_bfloat16


def _phases_table(scale: OriginalScale, limits: Limits) -> None:
    rows = []
    for found in scale.results:
        work, seconds = found.work, found.seconds_s
        of_flop = work.flop / seconds / limits.flop_per_s[work.precision]
        of_bytes = work.moved_bytes / seconds / limits.bytes_per_s
        rows.append(
            [
                found.name,
                number(seconds),
                number(found.projected_s),
                number(work.flop / 1e12),
                f"{number(work.flop / seconds / 1e9)} {work.precision}",
                f"{100 * of_flop:.0f}%",
                number(work.moved_bytes / seconds / 1e9),
                f"{100 * of_bytes:.0f}%",
                "–" if found.peak_bytes is None else byte_size(found.peak_bytes),
                found.note or "–",
            ]
        )
    print_table(
        f"Seed scale: V {V:,}, E {E}, C {C}, {scale.tokens:,} tokens",
        (
            *("phase", "s", f"s, projected to {TOKENS:,} tokens", "TFLOP", "GFLOP/s", "of its limit"),
            *("GB/s", "of the limit", "peak memory", "how it went"),
        ),
        rows,
        f"Windows: {WINDOW_TOKENS:,} tokens an iteration.",
    )


def _totals_table(scale: OriginalScale) -> None:
    epochs = ORIGINAL.phase2.max_epochs
    rows = []
    for configuration in CONFIGURATIONS:
        contexts, epoch = (scale.find(phase, configuration) for phase in ("contexts", "phase 2"))
        assert contexts is not None
        assert epoch is not None
        for how in ("literal", "windows"):
            if (phase1 := scale.find(f"phase 1, {how}", configuration)) is not None:
                parts = (phase1.projected_s, contexts.projected_s, epoch.projected_s)
                total = sum(parts[:2]) + epochs * parts[2]
                rows.append([configuration.name, how, *(number(part) for part in (*parts, total))])
    print_table(
        f"Projected seconds for {TOKENS:,} tokens",
        ("configuration", "phase 1", "phase 1, s", "contexts, s", "epoch, s", f"all, {epochs} epochs, s"),
        rows,
    )


def _tell(measured: Measured) -> None:
    print(f"{measured.name}: {measured.seconds_s:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, help=f"default: {TOKENS:,} on CUDA, else {FEW_TOKENS:,}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: as torch chooses)")
    parser.add_argument("--json", type=Path, help="keep limits and all figures in this file")
    chosen = parser.parse_args()
    start(chosen.threads)
    device = choose_device(chosen.device)
    machine = environment(device, uses_bfloat16("auto", device))
    print(f"{machine.device_name} ({machine.device}), {machine.threads} CPU threads; torch {machine.torch}")
    limits = measure_limits(device)
    rates = ", ".join(f"{name} {number(rate / 1e9)} GFLOP/s" for name, rate in limits.flop_per_s.items())
    print(f"limits: {rates}; copies {number(limits.bytes_per_s / 1e9)} GB/s", flush=True)

    default = TOKENS if device.type == "cuda" and not SMALL else FEW_TOKENS
    scale = OriginalScale(device, chosen.tokens or default, _tell)
    began = time.perf_counter()
    scale.run()
    _phases_table(scale, limits)
    _totals_table(scale)
    if chosen.json:
        kept = {
            "machine": machine.model_dump(mode="json"),
            "limits": asdict(limits),
            "tokens": scale.tokens,
            "small": SMALL,
            "phases": [asdict(found) for found in scale.results],
            "seconds_s": time.perf_counter() - began,
        }
        chosen.json.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    run(main)
