"""The original's experiment at its own sizes, phase by phase, beside what the machine does at best.

`bench/original_scale.py` prints the table and explains the formulas; `bench/gpu.py` measures it on a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from measuring import SMALL, timed
from torch import nn

from tandem.contexts import Contexts, Stream, compute_contexts
from tandem.errors import ScanError
from tandem.experiment.machine import PeakMemory, uses_bfloat16
from tandem.group import Execution
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.objectives.original import DispersionRecord, windows_of
from tandem.records import ScanRecord
from tandem.settings import Configuration, Settings, load_settings
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import OnTick, silent

from .inputs import CONTEXTS, random_model, zipf_ids

TOKENS = 2_400_000
FEW_TOKENS, WINDOW_TOKENS = (1_000, 400) if SMALL else (20_000, 5_000)
VALIDATION_SHARE = 0.01
"""Of the original: 22,723 tokens beside 2,403,563."""
V, E, C = (1_000, 32, 24) if SMALL else (50_257, 768, 500)
WEIGHT_INIT_STD = 0.3 if SMALL else 0.1
"""With the preset's 0.1, a block this narrow takes long to forget."""
ORIGINAL = load_settings("original")
CONFIGURATIONS = tuple(Configuration(*depths) for depths in ORIGINAL.configurations)
DEPTHS = tuple(sorted({configuration.context_layers for configuration in CONFIGURATIONS}))
IN_MEMORY = CONTEXTS.model_copy(update={"keep": "memory"})
LONGEST_LOOP = 100_000
"""Tokens up to which contexts of a block that does not forget are computed by the loop."""
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
    """One phase of a depth or of a configuration.

    phase          "phase 1, literal", "phase 1, windows", "contexts" or "phase 2".
    projected_s    for TOKENS tokens.
    work           of phase 2, that of one epoch.
    epoch_s        of phase 2, its last epoch alone, without what comes before and after all epochs.
    note           how it went, such as the iterations it took.
    """

    name: str
    phase: str
    configuration: Configuration
    seconds_s: float
    projected_s: float
    work: Work
    peak_bytes: int | None
    note: str = ""
    epoch_s: float | None = None


def phase_name(phase: str, configuration: Configuration) -> str:
    """Of phase 2 by both depths, of others by that of the ContextBlock: `C1T2, phase 2`, `C1, contexts`."""
    of = configuration.name if phase == "phase 2" else f"C{configuration.context_layers}"
    return f"{of}, {phase}"


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


def phase1_work(layers: int, tokens: int, distinct: int, iterations: int, precision: str) -> Work:
    """So many sweeps over so many tokens; `distinct` ones in each batch, added up over the batches."""
    # What the token adds, product, GELU, sum, LayerNorm; the same backwards.
    of_layers = layers * (11 * C + 10 * C) + (layers - 1) * 2 * C
    # Noise, contexts read and kept, the loss, the convergence rate.
    others = (6 + 4 + 6 + 6) * C
    # Embeddings, their norm and product of each distinct token; and the gradient of its weights.
    of_tokens = 4 * E + layers * 2 * (C + E)
    flop = tokens * (3 * layers - 1) * 2 * C * C + distinct * layers * 2 * 2 * C * E
    moved = tokens * (of_layers + others) + distinct * of_tokens
    return Work(iterations * flop, 4 * iterations * moved, precision)


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

    def __init__(
        self,
        device: torch.device,
        tokens: int,
        tell: Callable[[Measured], None],
        iterations: int | None = None,
        epochs: int = 1,
        on_tick: OnTick = silent,
    ) -> None:
        """At most so many iterations of phase 1 (none: as the preset), and exactly so many epochs of phase 2.

        `tell` is told of every phase as it ends, `on_tick` of every step of a training.
        """
        self.device, self.tokens, self._tell, self._on_tick = device, tokens, tell, on_tick
        self.scale = TOKENS / tokens
        self.execution = Execution(bfloat16=uses_bfloat16("auto", device))
        self.precision = "bf16" if self.execution.bfloat16 else "fp32"
        self.phase1_settings = ORIGINAL.phase1.model_copy(
            update={
                "max_iterations": iterations or (4 if SMALL else ORIGINAL.phase1.max_iterations),
                "batch_positions": min(ORIGINAL.phase1.batch_positions, tokens),
            }
        )
        self.phase2_settings = ORIGINAL.phase2.model_copy(update={"max_epochs": epochs, "patience": epochs})
        self.ids = zipf_ids(tokens, V)
        self.validation_ids = zipf_ids(max(256, round(tokens * VALIDATION_SHARE)), V, seed=1)
        self.distinct = len(set(self.ids.tolist()))
        self.results: list[Measured] = []

    def run(self) -> None:
        """Everything."""
        for layers in DEPTHS:
            self.run_depth(layers)

    def run_depth(self, layers: int) -> None:
        """All configurations with so many context layers."""
        self.phase1(layers, "windows", WINDOW_TOKENS)
        model = self.phase1(layers)
        contexts = self.contexts(layers, model)
        for configuration in CONFIGURATIONS:
            if configuration.context_layers == layers:
                self.phase2(configuration, model, contexts)

    def find(self, phase: str, configuration: Configuration) -> Measured | None:
        """What was measured of this phase; of one that configurations share, by its depth alone."""
        wanted = configuration if phase == "phase 2" else Configuration(configuration.context_layers)
        return next((m for m in self.results if (m.phase, m.configuration) == (phase, wanted)), None)

    def model(self, configuration: Configuration) -> TandemForCausalLM:
        """One with the weights that training starts from."""
        config = TandemConfig(
            vocab_size=V,
            embed_dim=E,
            context_dim=C,
            context_layers=configuration.context_layers,
            token_layers=configuration.token_layers,
            weight_init_std=WEIGHT_INIT_STD,
        )
        return random_model(config, self.device)

    def phase1(
        self, layers: int, how: str = "literal", tokens_per_step: int | None = None
    ) -> TandemForCausalLM:
        """A new model of this depth, trained over all tokens or over so many in windows."""
        model = self.model(Configuration(layers))
        settings = self.phase1_settings.model_copy(update={"tokens_per_step": tokens_per_step})
        inputs = Phase1Inputs(
            *(model, nn.ModuleDict(), Stream.of(model, self.ids), Settings(phase1=settings)),
            *(0, self._on_tick, self.execution),
        )
        result, seconds, peak = self._timed(lambda: OBJECTIVES["original"].train(inputs))
        assert isinstance(result, DispersionRecord)
        batches = windows_of(inputs.stream, settings).ids[:].split(settings.batch_positions)
        distinct = sum(len(batch.unique()) for batch in batches)
        work = phase1_work(layers, result.tokens, distinct, result.iterations - 1, self.precision)
        projected = seconds * (self.scale if how == "literal" else 1)
        note = f"{result.iterations} iterations of {result.tokens:,} tokens, {result.stopped}"
        phase, depth = f"phase 1, {how}", Configuration(layers)
        self._keep(Measured(*(phase_name(phase, depth), phase, depth, seconds, projected, work, peak, note)))
        return model

    def contexts(self, layers: int, model: TandemForCausalLM) -> Contexts:
        """Of all tokens; raises ScanError for a block that does not forget, where there are many."""
        stream = Stream.of(model, self.ids)

        def computed() -> tuple[Contexts, ScanRecord]:
            try:
                return compute_contexts(model, stream, IN_MEMORY)
            except ScanError:
                if len(stream) > LONGEST_LOOP:
                    raise
                return compute_contexts(model, stream, IN_MEMORY.model_copy(update={"method": "loop"}))

        (contexts, record), seconds, peak = self._timed(computed)
        work = contexts_work(layers, len(stream), self.distinct, record)
        error, depth = max(record.loop_error, record.join_error), Configuration(layers)
        note = f"{record.method}, burn-in {record.burn_in}, error {error:.0e}"
        self._keep(
            Measured(
                *(phase_name("contexts", depth), "contexts", depth),
                *(seconds, seconds * self.scale, work, peak, note),
            )
        )
        return contexts

    def phase2(self, configuration: Configuration, trained: TandemForCausalLM, contexts: Contexts) -> None:
        """On the contexts of a trained model."""
        model = self.model(configuration)
        model.context_block.load_state_dict(trained.context_block.state_dict())
        stream, held_out = Stream.of(model, self.ids), Stream.of(model, self.validation_ids)
        validation = Split(held_out, Contexts.of(contexts.whole()[: len(held_out)]))
        train = Split(stream, contexts)
        result, seconds, peak = self._timed(
            lambda: train_token_block(
                *(model, train, validation, self.phase2_settings, 0),
                on_tick=self._on_tick,
                execution=self.execution,
            )
        )
        ends = [0.0, *(epoch.seconds_s for epoch in result.training.history)]
        work = phase2_work(model, len(stream) - 1, len(held_out) - 1, self.precision)
        epochs = "one epoch" if len(ends) == 2 else f"{len(ends) - 1} epochs"
        self._keep(
            Measured(
                *(f"{phase_name('phase 2', configuration)}, {epochs}", "phase 2", configuration),
                *(seconds, seconds * self.scale, work, peak),
                epoch_s=ends[-1] - ends[-2],
            )
        )

    def _timed(self, run: Callable[[], T]) -> tuple[T, float, int | None]:
        """What it gives, seconds, and peak memory: of the device on CUDA, else of the whole process."""
        results: list[T] = []
        memory = PeakMemory(self.device)
        seconds = timed(lambda: results.append(run()))
        return results[0], seconds, memory.read()

    def _keep(self, measured: Measured) -> None:
        self.results.append(measured)
        self._tell(measured)
