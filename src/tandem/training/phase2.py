"""Phase 2: the TokenBlock learns next-token prediction from contexts of the frozen ContextBlock (SPEC 4)."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tandem.contexts import Stream, previous_contexts
from tandem.cross_entropy import mean_nll
from tandem.errors import NonFiniteLossError
from tandem.metrics import Score, perplexity, score_stream
from tandem.model import TandemForCausalLM
from tandem.records import Phase2Epoch
from tandem.settings import Phase2Settings
from tandem.training.initialization import generator_for
from tandem.training.progress import OnTick, Tick, silent
from tandem.training.trainable import training_only


@dataclass(frozen=True)
class Split:
    """A stream and its contexts [T, C], computed by the same scan for training and validation."""

    stream: Stream
    contexts: Tensor


@dataclass(frozen=True)
class Phase2Result:
    """How phase 2 ended; the model holds the weights of the best epoch."""

    best_epoch: int
    stopped: Literal["patience", "max_epochs"]
    train_nll_nats: float
    validation: Score
    seconds_s: float
    history: tuple[Phase2Epoch, ...]


Refresh = Callable[[], tuple[Split, Split]]


def train_token_block(
    model: TandemForCausalLM,
    train: Split,
    validation: Split,
    settings: Phase2Settings,
    seed: int,
    train_embedding: bool = False,
    refresh: Refresh | None = None,
    on_tick: OnTick = silent,
) -> Phase2Result:
    """Train model.token_block in place; it ends with the weights of the epoch that validates best.

    The embedding, hence the head, is trained along with `train_embedding`; contexts then move with it, and
    `refresh` gives those of both splits anew before every epoch and every validation. The training NLL of
    an epoch is the mean over it, while the weights move. Raises NonFiniteLossError before a non-finite step
    would reach the weights.
    """
    began = time.perf_counter()
    trained: list[nn.Module] = [model.token_block] + ([model.embedding] if train_embedding else [])
    order = generator_for(seed, "phase2 order")
    history: list[Phase2Epoch] = []
    best: tuple[Phase2Epoch, Score, list[dict[str, Tensor]]] | None = None

    with training_only(model, *trained) as parameters:
        optimizer = torch.optim.Adam(parameters, lr=settings.lr)
        for epoch in range(1, settings.max_epochs + 1):
            train_nll = _one_epoch(
                model, train, parameters, optimizer, settings, order, epoch, history, on_tick
            )
            if refresh is not None:
                train, validation = refresh()
            score = score_stream(model, validation.stream, validation.contexts, settings.chunk_positions)
            if not score.nll_nats < math.inf:
                raise NonFiniteLossError(_non_finite(epoch, None, score.nll_nats, history))
            history.append(
                Phase2Epoch(
                    epoch=epoch,
                    train_nll_nats=train_nll,
                    validation_nll_nats=score.nll_nats,
                    validation_accuracy=score.accuracy,
                    seconds_s=time.perf_counter() - began,
                )
            )
            on_tick(
                Tick(
                    "phase 2",
                    epoch,
                    settings.max_epochs,
                    "epoch",
                    {
                        "train PPL": perplexity(train_nll),
                        "val PPL": score.perplexity,
                        "val acc": score.accuracy,
                    },
                )
            )
            if best is None or score.nll_nats < best[1].nll_nats:
                best = (history[-1], score, [copy.deepcopy(module.state_dict()) for module in trained])
            elif epoch - best[0].epoch >= settings.patience:
                break

    assert best is not None  # max_epochs is at least 1, and a non-finite epoch has raised
    for module, state in zip(trained, best[2], strict=True):
        module.load_state_dict(state)
    return Phase2Result(
        best_epoch=best[0].epoch,
        stopped="patience" if history[-1].epoch - best[0].epoch >= settings.patience else "max_epochs",
        train_nll_nats=best[0].train_nll_nats,
        validation=best[1],
        seconds_s=time.perf_counter() - began,
        history=tuple(history),
    )


def _one_epoch(
    model: TandemForCausalLM,
    train: Split,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: Phase2Settings,
    order: torch.Generator,
    epoch: int,
    history: list[Phase2Epoch],
    on_tick: OnTick,
) -> float:
    """One pass over all positions that have a next token; returns their mean NLL in nats."""
    ids, contexts = train.stream.ids, train.contexts
    positions = len(ids) - 1
    chosen = torch.randperm(positions, generator=order) if settings.shuffle else torch.arange(positions)
    chosen = chosen.to(ids.device)
    total = 0.0
    for start in range(0, positions, settings.batch_positions):
        at = chosen[start : start + settings.batch_positions]
        before = previous_contexts(contexts, at, train.stream.restart, wrap=False)
        hidden = model.token_block(before, contexts[at], model.embed(ids[at]))
        loss = mean_nll(hidden, model.embedding.weight, ids[at + 1], settings.chunk_positions)
        optimizer.zero_grad()
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        value = float(loss.detach())
        if not (value < math.inf and torch.isfinite(gradient_norm)):
            step = start // settings.batch_positions + 1
            raise NonFiniteLossError(_non_finite(epoch, step, value, history))
        optimizer.step()
        total += value * len(at)
        done = epoch - 1 + (start + len(at)) / positions
        if done < epoch:
            figures = {"train PPL": perplexity(total / (start + len(at)))}
            if history:
                figures["val PPL"] = perplexity(history[-1].validation_nll_nats)
            on_tick(Tick("phase 2", done, settings.max_epochs, "epoch", figures))
    return total / positions


def _non_finite(epoch: int, step: int | None, loss: float, history: list[Phase2Epoch]) -> str:
    where = f"epoch {epoch}" + (f", step {step}" if step else ", validation")
    last = (
        f"last good values: epoch {history[-1].epoch}, training PPL "
        f"{perplexity(history[-1].train_nll_nats):.4g}, validation PPL "
        f"{perplexity(history[-1].validation_nll_nats):.4g}"
        if history
        else "no epoch before it was good"
    )
    return (
        f"phase 2 was stopped at {where}: the loss or its gradient is not finite (loss {loss}); {last}; "
        "try a lower --phase2.lr"
    )
