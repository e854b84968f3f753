"""Phase 2: the TokenBlock learns next-token prediction from contexts of the frozen ContextBlock (SPEC 4)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from tandem.contexts import PIECE_TOKENS, Contexts, ContextsSample, Stream, Window
from tandem.cross_entropy import Loss, StepLoss, training_loss, whole_softmax
from tandem.metrics import Score, score_stream
from tandem.model import TandemForCausalLM
from tandem.records import Epoch, PartRecord
from tandem.settings import Phase2Settings
from tandem.training.dropout import Dropouts, Drops, dropped
from tandem.training.epochs import Epochs
from tandem.training.execution import PLAIN, Execution
from tandem.training.initialization import generator_for
from tandem.training.optimizer import adamw, linear_share
from tandem.training.progress import OnTick, silent
from tandem.training.steps import Steps
from tandem.training.trainable import training_only

BLOCK_TOKENS = 512
"""Of consecutive text, of which a shuffled epoch is made up."""
WARM_UP_STEPS = 50


@dataclass(frozen=True)
class Split:
    """A stream and its contexts, computed by the same scan for training and validation."""

    stream: Stream
    contexts: Contexts


@dataclass(frozen=True)
class Phase2Result:
    """How phase 2 ended; the model holds the weights of the best epoch.

    best_epoch         0 where no epoch was better than what phase 2 started from
    positions          tokens predicted in an epoch
    first_loss_nats    of the first step's batch, before any weight moved: exact, and without dropout
    micro_batches      parts that a step was computed in, at the end: more than one where memory ran out
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
    micro_batches: int
    contexts: ContextsSample


Refresh = Callable[[], tuple[Split, Split]]


def train_token_block(
    model: TandemForCausalLM,
    train: Split,
    validation: Split,
    settings: Phase2Settings,
    seed: int,
    refresh: Refresh | None = None,
    keep_start: bool = False,
    on_tick: OnTick = silent,
    execution: Execution = PLAIN,
) -> Phase2Result:
    """Train model.token_block in place; it ends with the weights of the epoch that validates best.

    With `refresh` the embedding, hence the head, is trained along; contexts then move with it, and `refresh`
    gives those of both splits anew before every epoch and every validation. The training NLL of an epoch is
    the mean over it, while the weights move (with the dropout and the softmax of training). With
    `keep_start` the weights as they come count as epoch 0, whose training NLL is exact, on as much of the
    text as is validated on. The processes of `execution` share the positions of every batch.
    Raises NonFiniteLossError before a non-finite step would reach the weights.
    """
    watch = Epochs("phase 2", "phase2.lr", settings.max_epochs, on_tick, first=0 if keep_start else 1)
    trained: list[nn.Module] = [model.token_block] + ([] if refresh is None else [model.embedding])
    best: tuple[Epoch, Score, ContextsSample, list[dict[str, Tensor]]] | None = None

    with training_only(model, *trained) as trainable:

        def score_of(split: Split, stream: Stream) -> Score:
            return score_stream(
                model, stream, split.contexts, settings.chunk_positions, group=execution.group
            )

        course = _Course.of(model, trained, trainable.parameters, train.stream, settings, seed, execution)
        sample = None
        for number in range(watch.first, settings.max_epochs + 1):
            if number == 0:
                train_nll = score_of(train, train.stream.first(len(validation.stream))).nll_nats
            else:
                train_nll = _one_epoch(model, train, course, watch)
            if refresh is not None:
                train, validation = refresh()
                sample = None
            score = score_of(validation, validation.stream)
            epoch = watch.epoch_done(train_nll, score)
            if best is None or score.nll_nats < best[1].nll_nats:
                sample = sample or ContextsSample.of(train.contexts, validation.contexts)
                best = (epoch, score, sample, [_weights(module) for module in trained])
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
        micro_batches=course.steps.parts,
        contexts=best[2],
    )


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of what it holds."""
    return {name: value.clone() for name, value in module.state_dict().items()}


@dataclass(frozen=True)
class _Course:
    """How the steps of phase 2 are taken: the loss, the optimizer, its learning rate, and the order."""

    settings: Phase2Settings
    loss_of: StepLoss
    steps: Steps
    order: torch.Generator
    drops: Dropouts

    @classmethod
    def of(
        cls,
        model: TandemForCausalLM,
        trained: list[nn.Module],
        parameters: list[nn.Parameter],
        stream: Stream,
        settings: Phase2Settings,
        seed: int,
        execution: Execution,
    ) -> "_Course":
        """Before the first step. Without a weight decay AdamW is Adam."""
        optimizer = adamw(parameters, settings.weight_decay, settings.lr)
        steps = settings.max_epochs * math.ceil((len(stream) - 1) / settings.batch_positions)
        shares: dict[str, Callable[[int], float]] = {
            "constant": lambda _: 1.0,
            "linear": lambda step: linear_share(step, steps, min(WARM_UP_STEPS, steps // 10)),
        }
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shares[settings.schedule])
        loss_of = training_loss(
            stream.ids.counts(model.config.vocab_size),
            settings.batch_positions,
            settings,
            generator_for(seed, "phase2 negatives"),
            settings.chunk_positions,
        )
        return cls(
            settings,
            loss_of,
            Steps(trained, parameters, optimizer, schedule, settings.max_grad_norm, execution),
            generator_for(seed, "phase2 order"),
            Dropouts(settings, seed, "phase2"),
        )


def _one_epoch(model: TandemForCausalLM, train: Split, course: _Course, watch: Epochs) -> float:
    """One pass over all positions that have a next token; returns the mean of their losses in nats."""
    stream, positions = train.stream, len(train.stream) - 1
    total, seen, steps = 0.0, 0, 0

    def not_finite(value: float) -> NoReturn:
        watch.not_finite(value, f"step {steps}")

    for window, at in _batches(train, course):
        steps += 1
        if math.isnan(watch.first_loss):
            watch.first_loss = _first_loss(model, stream, window, at, course)
        step_loss = course.loss_of(stream.ids[at + 1])
        course.drops.begin_step()

        def loss_of(
            rows: slice, window: Window = window, at: Tensor = at, step_loss: Loss = step_loss
        ) -> Tensor:
            drops = course.drops.rows(rows, len(at))
            return _loss(model, stream, window, at, rows, step_loss, drops)

        value, _ = course.steps.take(len(at), loss_of, not_finite)
        total += value * len(at)
        seen += len(at)
        watch.also = course.steps.figures
        watch.step_done(seen / positions, total / seen)
    watch.positions = seen
    return total / positions


def _batches(train: Split, course: _Course) -> Iterator[tuple[Window, Tensor]]:
    """The positions of an epoch, batch after batch, each with a window of contexts in which it lies.

    The text is read in pieces of about PIECE_TOKENS tokens, whether contexts are held or computed again, so
    that both give the same batches. With `shuffle` a piece is of blocks from all over the text, drawn for
    each epoch, and positions are drawn within it: a batch is then of many places, as the whole text is
    (LOG.md has what pieces of consecutive tokens cost).
    """
    settings, positions = course.settings, len(train.stream) - 1
    block = block_tokens(settings.batch_positions)
    blocks = list(pairwise([*range(0, positions, block), positions]))
    in_piece = max(1, PIECE_TOKENS // settings.batch_positions) * settings.batch_positions // block
    if settings.shuffle and len(blocks) > in_piece:
        whole = positions // block  # a shorter last one stays the last, so that no batch before it is short
        order = torch.randperm(whole, generator=course.order).tolist()
        blocks = [*(blocks[number] for number in order), *blocks[whole:]]
    for start in range(0, len(blocks), in_piece):
        runs = sorted(blocks[start : start + in_piece])
        at = torch.cat([torch.arange(first, last) for first, last in runs])
        if settings.shuffle:
            at = at[torch.randperm(len(at), generator=course.order)]
        window = train.contexts.windows(runs)
        for batch in at.to(train.stream.ids.device).split(settings.batch_positions):
            yield window, batch


def block_tokens(batch_positions: int) -> int:
    """Length of the blocks that pieces are made of, about BLOCK_TOKENS: whole batches, or a part of one."""
    if batch_positions <= BLOCK_TOKENS:
        return BLOCK_TOKENS // batch_positions * batch_positions
    parts = (count for count in range(2, batch_positions) if batch_positions % count == 0)
    length = next(
        (batch_positions // count for count in parts if batch_positions // count <= BLOCK_TOKENS), 0
    )
    return length if 4 * length >= BLOCK_TOKENS else batch_positions


@torch.no_grad()
def _first_loss(
    model: TandemForCausalLM, stream: Stream, window: Window, at: Tensor, course: _Course
) -> float:
    """Of the first batch before any step, over the whole vocabulary and without dropout."""
    share = course.steps.group.share(len(at))
    whole = whole_softmax(course.settings.chunk_positions, stream.ids[at + 1])
    part = _loss(model, stream, window, at, share, whole, Drops())
    return float(course.steps.group.total(part * (share.stop - share.start) / len(at)))


def _loss(
    model: TandemForCausalLM,
    stream: Stream,
    window: Window,
    at: Tensor,
    rows: slice,
    loss: Loss,
    drops: Drops,
) -> Tensor:
    """Mean NLL of what follows these of a step's positions `at`."""
    at = at[rows]
    before, after = window.around(at, stream.restart)
    embeds = dropped(drops.embeds, model.embed(stream.ids[at]))
    hidden = dropped(drops.output, model.token_block(before, after, embeds, drops.contexts))
    return loss(hidden, model.lm_head.weight, model.lm_head.bias, rows)
