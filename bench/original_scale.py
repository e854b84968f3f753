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

    phase 1     an iteration: N · (3L − 1) · 2C(C + E)
                  (a product forward, one for the gradient of the weights, and above the first layer one for
                  that of what it reads)
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
`contexts_work` and `phase2_work` count them. With caches it can be less, so that a share may exceed 100%.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from measuring import SMALL, byte_size, number, print_table, run, start, timed
from speed.inputs import CONTEXTS, random_model, zipf_ids
from torch import nn

from tandem.contexts import Contexts, Stream, compute_contexts
from tandem.errors import ScanError
from tandem.experiment.machine import PeakMemory, choose_device, environment, uses_bfloat16
from tandem.group import Execution
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.objectives.original import DispersionRecord
from tandem.records import ScanRecord
from tandem.settings import Configuration, Settings, load_settings
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import silent

TOKENS = 2_400_000
FEW_TOKENS, WINDOW_TOKENS = (1_000, 400) if SMALL else (20_000, 5_000)
VALIDATION_SHARE = 0.01
"""Of the original: 22,723 tokens beside 2,403,563."""
V, E, C = (1_000, 32, 24) if SMALL else (50_257, 768, 500)
ORIGINAL = load_settings("original")
IN_MEMORY = CONTEXTS.model_copy(update={"keep": "memory"})
T = TypeVar("T")
PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Limits:
    """What this machine does at best: FLOP of matrix products by precision, and bytes of copies, a second."""

    flop_per_s: dict[str, float]
    bytes_per_s: float


@dataclass(frozen=True)
class Work:
    """What something takes by formula: FLOP in one precision, and bytes moved."""

    flop: float
    moved_bytes: float
    precision: str = "fp32"


@dataclass(frozen=True)
class Measured:
    """One phase. projected_s: for TOKENS tokens; note: how it went, such as the iterations it took."""

    name: str
    seconds_s: float
    projected_s: float
    work: Work
    peak_bytes: int | None
    note: str = ""


def measure_limits(device: torch.device) -> Limits:
    """By products of square matrices of several sizes, and by copies."""
    sizes: tuple[int, ...] = (2048, 4096, 8192) if device.type == "cuda" else (512, 1024, 2048)
    copied_bytes, times = (2 << 30 if device.type == "cuda" else 256 << 20), 9
    if SMALL:
        sizes, copied_bytes, times = (64,), 1 << 20, 1
    flop = {}
    for name, dtype in PRECISIONS.items():
        rates = [_product_rate(size, dtype, device) for size in sizes]
        if known := [rate for rate in rates if rate is not None]:
            flop[name] = max(known)
    source = torch.ones(copied_bytes // 4, device=device)
    target = torch.empty_like(source)
    fastest = min(timed(lambda: target.copy_(source)) for _ in range(times))
    return Limits(flop, 2 * source.nbytes / fastest)


def _product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float | None:
    """FLOP a second; none where the device does not have the precision."""
    try:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.mm(a, b)
        fastest = min(timed(lambda: torch.mm(a, b, out=out)) for _ in range(5))
    except (RuntimeError, TypeError):
        return None
    return 2 * size**3 / fastest


def phase1_work(layers: int, tokens: int, iterations: int, precision: str) -> Work:
    """So many sweeps over so many tokens."""
    wide = C + E
    # Concatenation, product, GELU, sum, LayerNorm; the same backwards.
    forward, backward = 3 * wide + 8 * C, 7 * C + wide
    of_layers = layers * (forward + backward) + (layers - 1) * (C + wide)
    # Embeddings and their norm; noise, contexts read and kept, the loss, the convergence rate.
    others = 4 * E + (6 + 4 + 6 + 6) * C
    sweeps = tokens * iterations
    return Work(sweeps * (3 * layers - 1) * 2 * C * wide, 4 * sweeps * (of_layers + others), precision)


def contexts_work(layers: int, tokens: int, distinct: int, record: ScanRecord) -> Work:
    """The scan, in double precision (or the loop, where the block does not forget)."""
    step, whole_step = layers * 2 * C * C, layers * 2 * C * (C + E)
    if record.method == "loop":
        return Work(tokens * whole_step, 8 * tokens * layers * C * (C + E), "fp64")
    burn_in, length = record.burn_in, CONTEXTS.segment_length
    read = tokens * (1 + burn_in / length)
    flop = read * step + distinct * layers * 2 * C * E + record.checked_tokens * whole_step
    flop += 64 * 0.8 * burn_in * step
    # Gather, product, GELU, sum, LayerNorm; the result, written and converted; the weights, read each step.
    moved = read * layers * 12 * C + 3 * tokens * C + (burn_in + length) * layers * C * C
    moved += distinct * layers * (E + C) + record.checked_tokens * layers * C * (C + E)
    return Work(flop, 8 * moved, "fp64")


def phase2_work(model: TandemForCausalLM, tokens: int, validation_tokens: int, precision: str) -> Work:
    """One epoch and its validation."""
    reads = [E + (0 if read is None else C) for read in model.token_block.reads]
    layers = [2 * E * wide for wide in reads]
    batch, chunk = min(ORIGINAL.phase2.batch_positions, tokens), ORIGINAL.phase2.chunk_positions
    scored = validation_tokens + batch
    flop = tokens * (3 * sum(layers) - layers[0] + 4 * V * E) + scored * (sum(layers) + 2 * V * E)
    forward = sum(3 * wide + 8 * E for wide in reads) + 4 * C + 4 * E
    backward = sum(7 * E + wide for wide in reads) + sum(E + wide for wide in reads[1:])
    # Logits: written; the largest of them, less it, exp, sum, gradient, its product. Scored: read 3 times.
    trained = forward + backward + 10 * V + 2 * V * E / chunk
    moved = tokens * trained + scored * (forward + 4 * V + V * E / chunk)
    return Work(flop, 4 * moved, precision)


class OriginalScale:
    """All phases on one stream, phase 1 and contexts once for each depth, as the package shares them."""

    def __init__(self, device: torch.device, tokens: int, iterations: int) -> None:
        self.device, self.tokens = device, tokens
        self.scale = TOKENS / tokens
        self.execution = Execution(bfloat16=uses_bfloat16("auto", device))
        self.precision = "bf16" if self.execution.bfloat16 else "fp32"
        self.phase1 = ORIGINAL.phase1.model_copy(
            update={
                "max_iterations": iterations,
                "batch_positions": min(ORIGINAL.phase1.batch_positions, tokens),
            }
        )
        self.phase2 = ORIGINAL.phase2.model_copy(update={"max_epochs": 1})
        self.ids = zipf_ids(tokens, V)
        self.validation_ids = zipf_ids(max(256, round(tokens * VALIDATION_SHARE)), V, seed=1)
        self.distinct = len(set(self.ids.tolist()))
        self.results: list[Measured] = []

    def run(self, configurations: list[Configuration]) -> None:
        """Everything, told as it comes."""
        for layers in sorted({configuration.context_layers for configuration in configurations}):
            model = self._model(Configuration(layers))
            stream = Stream.of(model, self.ids)
            self._phase1(self._model(Configuration(layers)), stream, layers, "windows", WINDOW_TOKENS)
            self._phase1(model, stream, layers, "literal", None)
            contexts = self._contexts(model, stream, layers)
            for configuration in configurations:
                if configuration.context_layers == layers:
                    self._phase2(configuration, model, contexts)

    def find(self, name: str) -> Measured | None:
        """What was measured under this name."""
        return next((found for found in self.results if found.name == name), None)

    def _model(self, configuration: Configuration) -> TandemForCausalLM:
        config = TandemConfig(
            vocab_size=V,
            embed_dim=E,
            context_dim=C,
            context_layers=configuration.context_layers,
            token_layers=configuration.token_layers,
        )
        return random_model(config, self.device)

    def _phase1(
        self, model: TandemForCausalLM, stream: Stream, layers: int, how: str, tokens_per_step: int | None
    ) -> None:
        phase1 = self.phase1.model_copy(update={"tokens_per_step": tokens_per_step})
        inputs = Phase1Inputs(
            model, nn.ModuleDict(), stream, Settings(phase1=phase1), 0, silent, self.execution
        )
        result, seconds, peak = self._timed(lambda: OBJECTIVES["original"].train(inputs))
        assert isinstance(result, DispersionRecord)
        work = phase1_work(layers, result.tokens, result.iterations - 1, self.precision)
        projected = seconds * (self.scale if how == "literal" else 1)
        note = f"{result.iterations} iterations of {result.tokens:,} tokens, {result.stopped}"
        self._keep(Measured(f"C{layers}, phase 1, {how}", seconds, projected, work, peak, note))

    def _contexts(self, model: TandemForCausalLM, stream: Stream, layers: int) -> Contexts:
        def computed() -> tuple[Contexts, ScanRecord]:
            try:
                return compute_contexts(model, stream, IN_MEMORY)
            except ScanError:  # a block that does not forget
                return compute_contexts(model, stream, IN_MEMORY.model_copy(update={"method": "loop"}))

        (contexts, record), seconds, peak = self._timed(computed)
        work = contexts_work(layers, len(stream), self.distinct, record)
        error = max(record.loop_error, record.join_error)
        note = f"{record.method}, burn-in {record.burn_in}, error {error:.0e}"
        self._keep(Measured(f"C{layers}, contexts", seconds, seconds * self.scale, work, peak, note))
        return contexts

    def _phase2(self, configuration: Configuration, trained: TandemForCausalLM, contexts: Contexts) -> None:
        model = self._model(configuration)
        model.context_block.load_state_dict(trained.context_block.state_dict())
        stream, held_out = Stream.of(model, self.ids), Stream.of(model, self.validation_ids)
        validation = Split(held_out, Contexts.of(contexts.whole()[: len(held_out)]))
        train = Split(stream, contexts)
        _, seconds, peak = self._timed(
            lambda: train_token_block(model, train, validation, self.phase2, 0, execution=self.execution)
        )
        work = phase2_work(model, len(stream) - 1, len(held_out) - 1, self.precision)
        name = f"{configuration.name}, phase 2, one epoch"
        self._keep(Measured(name, seconds, seconds * self.scale, work, peak))

    def _timed(self, run: Callable[[], T]) -> tuple[T, float, int | None]:
        """What it gives, seconds, and peak memory: of the device on CUDA, else of the whole process."""
        results: list[T] = []
        memory = PeakMemory(self.device)
        seconds = timed(lambda: results.append(run()))
        return results[0], seconds, memory.read()

    def _keep(self, measured: Measured) -> None:
        self.results.append(measured)
        print(f"{measured.name}: {measured.seconds_s:.1f} s", flush=True)


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


def _totals_table(scale: OriginalScale, configurations: list[Configuration]) -> None:
    epochs = ORIGINAL.phase2.max_epochs
    rows = []
    for configuration in configurations:
        depth = f"C{configuration.context_layers}"
        contexts, epoch = (
            scale.find(f"{depth}, contexts"),
            scale.find(f"{configuration.name}, phase 2, one epoch"),
        )
        assert contexts is not None
        assert epoch is not None
        for how in ("literal", "windows"):
            if (phase1 := scale.find(f"{depth}, phase 1, {how}")) is not None:
                parts = (phase1.projected_s, contexts.projected_s, epoch.projected_s)
                total = sum(parts[:2]) + epochs * parts[2]
                rows.append([configuration.name, how, *(number(part) for part in (*parts, total))])
    print_table(
        f"Projected seconds for {TOKENS:,} tokens",
        ("configuration", "phase 1", "phase 1, s", "contexts, s", "epoch, s", f"all, {epochs} epochs, s"),
        rows,
    )


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
    iterations = 4 if SMALL else ORIGINAL.phase1.max_iterations
    scale = OriginalScale(device, chosen.tokens or default, iterations)
    configurations = [Configuration(*depths) for depths in ORIGINAL.configurations]
    began = time.perf_counter()
    scale.run(configurations)
    _phases_table(scale, limits)
    _totals_table(scale, configurations)
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
