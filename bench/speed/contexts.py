"""Contexts of a whole text: the sequential loop, Jacobi sweeps, and the parallel scans, per token.

The loop is the package's own (`sequential_contexts`), with one stream, in single precision; what reads the
token embeddings is in every candidate's time. Jacobi sweeps are counted until the contexts are within the
tolerance of the loop's, on as many tokens as the loop reads; one sweep is timed, and its time multiplied.
`scan` is `compute_contexts`, which measures the burn-in and compares with the loop on the first tokens each
time it is called; `scan alone` is what each further reading of the same text takes. Errors are the largest
absolute difference from the loop in double precision on the first tokens, and at any join of two segments.
"""

from dataclasses import dataclass

import torch
from measuring import SMALL, Candidate, Spread, interleaved, number, print_table
from torch import Tensor, nn

from tandem.contexts import Stream, compute_contexts, jacobi_sweep
from tandem.experiment.prepared import TrainingInputs, new_model
from tandem.group import PLAIN
from tandem.model import TandemForCausalLM, sequential_contexts
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.records import ScanRecord
from tandem.settings import Configuration
from tandem.training.progress import silent

from .inputs import CONTEXTS, python_docs

TOLERANCE = CONTEXTS.tolerance
SWEEP_BATCH = 5000


@dataclass(frozen=True)
class Sizes:
    """Training text in bytes, and how many tokens each way reads (the scan reads all, up to so many)."""

    train_bytes: int
    vocab_size: int
    loop_tokens: int
    sweep_tokens: int
    scan_tokens: int
    phase1_iterations: int
    rounds: int


FULL = Sizes(800_000, 8192, 4_096, 20_000, 200_000, 60, 7)
FEW = Sizes(20_000, 300, 64, 128, 512, 3, 1)


@dataclass(frozen=True)
class Case:
    """A block of some preset's sizes; residual ones are trained by phase 1 first, as the scan finds them."""

    name: str
    preset: str
    context_layers: int


CASES = (
    Case("residual", "dialogue", 1),
    Case("residual", "dialogue", 2),
    Case("gated", "predictive", 1),
    Case("gated", "predictive", 2),
)


def table(device: torch.device) -> None:
    """Print it."""
    sizes = FEW if SMALL else FULL
    rows = []
    for case in CASES:
        prepared = python_docs(case.preset, device, sizes.train_bytes, sizes.vocab_size)
        rows += _rows(case, _model(case, prepared, sizes), prepared, sizes)
    print_table(
        "Contexts: the loop, sweeps, scans",
        ("block", "way", "tokens", "sweeps", "ns per token", "times less than the loop", "error"),
        rows,
        f"{sizes.rounds} rounds; {Spread.how}. Tolerance {TOLERANCE:g}; the target is 10 times less.",
    )


def _model(case: Case, prepared: TrainingInputs, sizes: Sizes) -> TandemForCausalLM:
    model = new_model(prepared, Configuration(case.context_layers), seed=0)
    if case.name == "residual":
        phase1 = prepared.settings.phase1
        changes = {
            "max_iterations": sizes.phase1_iterations,
            "batch_positions": min(phase1.batch_positions, sizes.sweep_tokens),
        }
        settings = prepared.settings.model_copy(update={"phase1": phase1.model_copy(update=changes)})
        stream = Stream.of(model, prepared.corpus.train.ids)
        inputs = Phase1Inputs(model, nn.ModuleDict(), stream, settings, 0, silent, PLAIN)
        OBJECTIVES["original"].train(inputs)
    return model


@torch.no_grad()
def _rows(case: Case, model: TandemForCausalLM, prepared: TrainingInputs, sizes: Sizes) -> list[list[str]]:
    whole = Stream.of(model, prepared.corpus.train.ids).first(sizes.scan_tokens)
    short, middle = whole.first(sizes.loop_tokens), whole.first(sizes.sweep_tokens)
    exact = compute_contexts(model, short, CONTEXTS.model_copy(update={"method": "loop"}))[0].whole()
    scan, record = compute_contexts(model, whole, CONTEXTS.model_copy(update={"keep": "recompute"}))
    swept = torch.zeros(len(middle), model.config.context_dim, device=model.device)
    timings = interleaved(
        {
            "loop": Candidate(lambda: _loop(model, short), len(short)),
            "sweeps": Candidate(lambda: _sweep(model, middle, swept), len(middle)),
            "scan": Candidate(lambda: compute_contexts(model, whole, CONTEXTS), len(whole)),
            "scan alone": Candidate(scan.whole, len(whole)),
        },
        sizes.rounds,
    )
    sweeps, sweep_error = _sweeps_needed(model, short, exact)
    timings = timings.with_sum("sweeps", {"sweeps": sweeps})
    scan_error = max(_error(scan.window(0, len(short)).contexts, exact), record.join_error)
    errors = {"loop": _error(_loop(model, short), exact), "sweeps": sweep_error}
    tokens = {"loop": len(short), "sweeps": len(middle)}
    block = f"{case.name}, {model.config.context_layers} layer(s), {_sizes_of(model)}"
    return [
        [
            block,
            _way(name, record),
            f"{tokens.get(name, len(whole)):,}",
            str(sweeps) if name == "sweeps" else "–",
            number(timings.ns(name)),
            "1" if name == "loop" else timings.ratio("loop", name).show(),
            f"{errors.get(name, scan_error):.1e}",
        ]
        for name in ("loop", "sweeps", "scan", "scan alone")
    ]


def _way(name: str, record: ScanRecord) -> str:
    if not name.startswith("scan"):
        return "Jacobi sweeps" if name == "sweeps" else name
    kind = "linear scan" if record.method == "linear" else f"segment-parallel scan, burn-in {record.burn_in}"
    return f"{kind}, alone" if name == "scan alone" else f"{kind}, with its checks"


def _sizes_of(model: TandemForCausalLM) -> str:
    return f"E {model.config.embed_dim}, C {model.config.context_dim}"


@torch.no_grad()
def _loop(model: TandemForCausalLM, stream: Stream) -> Tensor:
    resets = None if stream.resets is None else stream.resets[:][None]
    return sequential_contexts(model.context_block, model.embed(stream.ids[:])[None], None, resets)[1][0]


@torch.no_grad()
def _sweep(model: TandemForCausalLM, stream: Stream, contexts: Tensor) -> Tensor:
    """One sweep; position 0 reads zero, as in the loop."""
    restart = (
        torch.zeros(len(stream), dtype=torch.bool, device=model.device)
        if stream.resets is None
        else stream.resets[:]
    )
    restart = restart.index_fill(0, torch.zeros(1, dtype=torch.long, device=restart.device), True)
    sweep = jacobi_sweep(
        model.context_block, contexts, lambda at: model.embed(stream.ids[at]), restart, SWEEP_BATCH
    )
    return torch.cat([new for _, new in sweep])


def _sweeps_needed(model: TandemForCausalLM, stream: Stream, exact: Tensor) -> tuple[int, float]:
    """Sweeps until the contexts are within the tolerance of `exact`, and their error then.

    As many sweeps as there are tokens always do, up to rounding.
    """
    contexts = torch.zeros_like(exact)
    error = float("inf")
    for count in range(1, len(exact) + 1):
        contexts = _sweep(model, stream, contexts)
        error = _error(contexts, exact)
        if error <= TOLERANCE:
            return count, error
    return len(exact), error


def _error(contexts: Tensor, exact: Tensor) -> float:
    return float((contexts[: len(exact)] - exact).abs().max())
