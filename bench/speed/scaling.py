"""Cost of contexts and of each phase against the size of the text, with the exponent of its growth.

The exponent is the slope of a least squares line through the logarithms of tokens and seconds: 1 is
proportional to the text, 0 does not depend on it, 2 is quadratic. Each round gives one; the median counts.
Costs that every call has below its cost per token (such as checking the scan) make it smaller than 1.
Tokens are random, models small, and weights random: costs do not depend on them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from measuring import SMALL, Candidate, Spread, Timings, interleaved, number, print_table
from torch import nn

from tandem.contexts import Contexts, Stream, compute_contexts
from tandem.group import PLAIN
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.settings import Phase1Settings, Phase2Settings, PredictionSettings, Settings
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import silent

from .inputs import CONTEXTS, random_model, zipf_ids

ITERATIONS = 4
"""Of phase 1 of recipe original, the start included; its number does not follow from the size of the text."""


@dataclass(frozen=True)
class Sizes:
    """Tokens of the smallest text, the multiples of it, and how often all is timed."""

    tokens: int
    multiples: tuple[int, ...]
    rounds: int


FULL = Sizes(5_000, (1, 4, 16, 64), 3)
FEW = Sizes(500, (1, 2), 1)


def table(device: torch.device) -> None:
    """Print it."""
    sizes = FEW if SMALL else FULL
    parts = _parts(device, max(sizes.multiples) * sizes.tokens)
    candidates = {
        f"{name} {multiple}": Candidate(part(multiple * sizes.tokens))
        for name, part in parts.items()
        for multiple in sizes.multiples
    }
    timings = interleaved(candidates, sizes.rounds)
    rows = [
        [
            name,
            *(number(timings.ns(f"{name} {multiple}") / 1e9) for multiple in sizes.multiples),
            number(timings.ns(f"{name} {sizes.multiples[-1]}") / (sizes.multiples[-1] * sizes.tokens)),
            exponent(timings, name, sizes).show(),
        ]
        for name in parts
    ]
    largest = sizes.multiples[-1]
    print_table(
        f"Cost against the size of the text; 1× is {sizes.tokens:,} tokens",
        ("what", *(f"{n}×, s" for n in sizes.multiples), f"ns per token at {largest}×", "exponent"),
        rows,
        f"{sizes.rounds} rounds; {Spread.how}. Phase 1 of recipe original: {ITERATIONS - 1} iterations.",
    )


def exponent(timings: Timings, name: str, sizes: Sizes) -> Spread:
    """Slopes of log seconds over log tokens, one a round."""
    logs = np.log([timings[f"{name} {multiple}"] for multiple in sizes.multiples])
    slopes = np.polyfit(np.log(sizes.multiples), logs, deg=1)[0]
    return Spread.of([float(slope) for slope in slopes])


Part = Callable[[int], Callable[[], object]]
"""Number of tokens → what is to be timed."""


def _parts(device: torch.device, tokens: int) -> dict[str, Part]:
    """Everything whose cost is wanted, on the first tokens of one random text."""
    residual, gated = (
        _model("residual", 8 if SMALL else 80, device),
        _model("gated", 8 if SMALL else 192, device),
    )
    ids = zipf_ids(tokens, residual.config.vocab_size)
    whole = Stream.of(residual, ids)
    contexts = torch.randn(tokens, residual.config.context_dim, device=device)

    def scan(model: TandemForCausalLM) -> Part:
        return lambda n: lambda: compute_contexts(model, whole.first(n), CONTEXTS)

    def scan_alone(model: TandemForCausalLM) -> Part:
        again = CONTEXTS.model_copy(update={"keep": "recompute"})
        return lambda n: compute_contexts(model, whole.first(n), again)[0].whole

    def sweeps(tokens_per_step: int | None) -> Part:
        phase1 = Phase1Settings(
            tokens_per_step=tokens_per_step,
            batch_positions=1_000,
            max_iterations=ITERATIONS,
            convergence_stop=2.0,
        )
        settings = Settings(phase1=phase1)

        def part(n: int) -> Callable[[], object]:
            stream = whole.first(n)
            inputs = Phase1Inputs(residual, nn.ModuleDict(), stream, settings, 0, silent, PLAIN)
            return lambda: OBJECTIVES["original"].train(inputs)

        return part

    def prediction(n: int) -> Callable[[], object]:
        settings = Settings(prediction=PredictionSettings(max_epochs=1, head_layers=(1,)))
        heads = nn.ModuleDict({"head1": gated.token_block})
        inputs = Phase1Inputs(gated, heads, whole.first(n), settings, 0, silent, PLAIN)
        return lambda: OBJECTIVES["predictive"].train(inputs)

    def phase2(n: int) -> Callable[[], object]:
        settings = Phase2Settings(max_epochs=1, batch_positions=512)
        train, validation = (Split(whole.first(k), Contexts.of(contexts[:k])) for k in (n, 256))
        return lambda: train_token_block(residual, train, validation, settings, seed=0)

    return {
        "contexts, residual (scan with its checks)": scan(residual),
        "contexts, gated (linear scan with its checks)": scan(gated),
        "… read again, residual": scan_alone(residual),
        "… read again, gated": scan_alone(gated),
        "phase 1 of recipe original, whole text": sweeps(None),
        "phase 1 of recipe original, 1,000 tokens in windows": sweeps(1_000),
        "phase 1 by prediction, an epoch": prediction,
        "phase 2, an epoch": phase2,
    }


def _model(cell: Literal["residual", "gated"], context_dim: int, device: torch.device) -> TandemForCausalLM:
    config = TandemConfig(
        vocab_size=300 if SMALL else 2048,
        embed_dim=32 if SMALL else 128,
        context_dim=context_dim,
        cell=cell,
        weight_init_std=None if cell == "gated" else 0.3 if SMALL else 0.1,
    )
    return random_model(config, device)
