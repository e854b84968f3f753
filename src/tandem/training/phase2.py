"""Phase 2: the TokenBlock learns next-token prediction from contexts of the frozen ContextBlock (SPEC 4)."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tandem.contexts import ContextsSample, Stream, previous_contexts
from tandem.cross_entropy import mean_nll
from tandem.metrics import Score, score_stream
from tandem.model import TandemForCausalLM
from tandem.records import Epoch, PartRecord
from tandem.settings import Phase2Settings
from tandem.training.epochs import Epochs
from tandem.training.initialization import generator_for
from tandem.training.progress import OnTick, silent
from tandem.training.trainable import training_only


@dataclass(frozen=True)
class Split:
    """A stream and its contexts [T, C], computed by the same scan for training and validation."""

    stream: Stream
    contexts: Tensor


@dataclass(frozen=True)
class Phase2Result:
    """How phase 2 ended; the model holds the weights of the best epoch.

    positions          tokens predicted in an epoch
    first_loss_nats    of the first step, before any weight moved
    contexts           a sample of the contexts that training and validation of that epoch read
    """

    best_epoch: int
    stopped: Literal["patience", "max_epochs"]
    train_nll_nats: float
    validation: Score
    seconds_s: float
    history: tuple[Epoch, ...]
    parts: tuple[PartRecord, ...]
    positions: int
    first_loss_nats: float
    contexts: ContextsSample


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
    watch = Epochs("phase 2", "phase2.lr", settings.max_epochs, on_tick)
    trained: list[nn.Module] = [model.token_block] + ([model.embedding] if train_embedding else [])
    order = generator_for(seed, "phase2 order")
    best: tuple[Epoch, Score, ContextsSample, list[dict[str, Tensor]]] | None = None

    with training_only(model, *trained) as trainable:
        optimizer = torch.optim.Adam(trainable.parameters, lr=settings.lr)
        for _ in range(settings.max_epochs):
            train_nll = _one_epoch(model, train, optimizer, settings, order, watch)
            if refresh is not None:
                train, validation = refresh()
            score = score_stream(model, validation.stream, validation.contexts, settings.chunk_positions)
            epoch = watch.epoch_done(train_nll, score)
            if best is None or score.nll_nats < best[1].nll_nats:
                sample = ContextsSample.of(train.contexts, validation.contexts)
                best = (epoch, score, sample, [copy.deepcopy(module.state_dict()) for module in trained])
            elif epoch.epoch - best[0].epoch >= settings.patience:
                break
        assert best is not None  # max_epochs is at least 1, and a non-finite epoch has raised
        for module, state in zip(trained, best[3], strict=True):
            module.load_state_dict(state)

    history = watch.history
    return Phase2Result(
        best_epoch=best[0].epoch,
        stopped="patience" if history[-1].epoch - best[0].epoch >= settings.patience else "max_epochs",
        train_nll_nats=best[0].train_nll_nats,
        validation=best[1],
        seconds_s=watch.seconds_s,
        history=tuple(history),
        parts=trainable.parts,
        positions=watch.positions,
        first_loss_nats=watch.first_loss,
        contexts=best[2],
    )


def _one_epoch(
    model: TandemForCausalLM,
    train: Split,
    optimizer: torch.optim.Optimizer,
    settings: Phase2Settings,
    order: torch.Generator,
    watch: Epochs,
) -> float:
    """One pass over all positions that have a next token; returns their mean NLL in nats."""
    ids, contexts = train.stream.ids, train.contexts
    positions = len(ids) - 1
    chosen = torch.randperm(positions, generator=order) if settings.shuffle else torch.arange(positions)
    chosen = chosen.to(ids.device)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total, seen = 0.0, 0
    for at in chosen.split(settings.batch_positions):
        before = previous_contexts(contexts, at, train.stream.restart, wrap=False)
        hidden = model.token_block(before, contexts[at], model.embed(ids[at]))
        loss = mean_nll(hidden, model.embedding.weight, ids[at + 1], settings.chunk_positions)
        optimizer.zero_grad()
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        value = float(loss.detach())
        if not (value < math.inf and torch.isfinite(gradient_norm)):
            watch.not_finite(value, f"step {seen // settings.batch_positions + 1}")
        optimizer.step()
        total += value * len(at)
        seen += len(at)
        watch.step_done(seen / positions, value, total / seen)
    watch.positions = seen
    return total / positions
