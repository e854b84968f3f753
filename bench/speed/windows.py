"""Phase 1 of recipe `original`: the literal procedure, over the whole text, beside sweeps over less of it.

`whole text` sweeps over all positions and makes one optimizer step a sweep, as the original does. The others
sweep over so many tokens, in windows spread over the text (`phase1.tokens_per_step`). All are trained with
the same seeds up to the same stop rule, then contexts of the whole text are computed, and phase 2 is trained
on them in the same way.
"""

from dataclasses import dataclass
from statistics import fmean

import torch
from measuring import SMALL, Spread, number, print_table

from tandem.experiment.pipeline import train_contexts, train_tokens
from tandem.experiment.prepared import TrainingInputs
from tandem.objectives.original import DispersionRecord
from tandem.records import TrainingRecord
from tandem.settings import Configuration

from .inputs import python_docs

LITERAL = "whole text"
CONFIGURATION = Configuration(1, 1)


@dataclass(frozen=True)
class Sizes:
    """Text in bytes, how many tokens the others sweep over and in windows of how many, which are the batches,
    and the limits of both phases."""

    train_bytes: int
    vocab_size: int
    swept: tuple[tuple[int, int], ...]
    batch_positions: int
    max_iterations: int
    max_epochs: int
    seeds: tuple[int, ...]


FULL = Sizes(900_000, 4096, ((20_000, 5_000), (20_000, 10_000)), 5_000, 150, 20, (0, 1, 2))
FEW = Sizes(20_000, 300, ((1_000, 500),), 500, 3, 1, (0,))


@dataclass(frozen=True)
class Outcome:
    """Of one procedure with one seed."""

    phase1: DispersionRecord
    effective_rank: float
    phase2: TrainingRecord
    nll_nats: float
    perplexity: float


def table(device: torch.device) -> None:
    """Print it."""
    sizes = FEW if SMALL else FULL
    prepared = {LITERAL: _prepared(sizes, device, None, sizes.batch_positions)}
    for tokens, window in sizes.swept:
        prepared[f"{tokens:,} tokens in windows of {window:,}"] = _prepared(sizes, device, tokens, window)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in prepared}
    for seed in sizes.seeds:  # in turn, as in every bench
        for name, made in prepared.items():
            outcomes[name].append(_outcome(made, seed))
    tokens = len(prepared[LITERAL].corpus.train)
    print_table(
        f"Phase 1 of recipe original, {CONFIGURATION.name}, {tokens:,} tokens of python-docs",
        (
            *("sweeps over", "phase 1, s", "time ÷ whole text", "iterations", "Conv%", "ER% on validation"),
            *("phase 2 epochs", "Val PPL, each seed", "Val PPL ÷ whole text"),
        ),
        [_row(name, found, outcomes[LITERAL]) for name, found in outcomes.items()],
        f"{len(sizes.seeds)} seeds; {Spread.how} over seeds. At most {sizes.max_iterations} iterations and "
        f"{sizes.max_epochs} epochs (patience 1).",
    )


def _prepared(
    sizes: Sizes, device: torch.device, tokens_per_step: int | None, batch_positions: int
) -> TrainingInputs:
    return python_docs(
        "dialogue",
        device,
        sizes.train_bytes,
        sizes.vocab_size,
        model={} if SMALL else {"embed_dim": 128, "context_dim": 120},
        phase1={
            "tokens_per_step": tokens_per_step,
            "batch_positions": batch_positions,
            "max_iterations": sizes.max_iterations,
        },
        phase2={"max_epochs": sizes.max_epochs, "batch_positions": 512, "lr": 0.004},
    )


def _outcome(prepared: TrainingInputs, seed: int) -> Outcome:
    contexts = train_contexts(prepared, CONFIGURATION.context_layers, seed)
    trained = train_tokens(prepared, contexts, CONFIGURATION, seed)
    assert isinstance(contexts.phase1, DispersionRecord)
    validation, training = trained.phase2.validation, trained.phase2.training
    rank = contexts.contexts.effective_rank_validation
    return Outcome(contexts.phase1, rank, training, validation.nll_nats, validation.perplexity)


def _row(name: str, found: list[Outcome], literal: list[Outcome]) -> list[str]:
    pairs = list(zip(found, literal, strict=True))
    time = Spread.of([a.phase1.seconds_s / b.phase1.seconds_s for a, b in pairs])
    quality = Spread.of([a.perplexity / b.perplexity for a, b in pairs])
    return [
        name,
        Spread.of([o.phase1.seconds_s for o in found]).show(),
        "1" if found is literal else time.show(),
        f"{fmean(o.phase1.iterations for o in found):.0f}",
        f"{100 * fmean(o.phase1.convergence_rate for o in found):.0f}",
        f"{100 * fmean(o.effective_rank for o in found):.1f}",
        f"{fmean(o.phase2.epochs for o in found):.1f}",
        ", ".join(number(o.perplexity, 1) for o in found),
        "1" if found is literal else quality.show(3),
    ]
