"""Phase 2: the TokenBlock learns next-token prediction from contexts of the frozen ContextBlock (SPEC 4)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tandem.contexts import PIECE_TOKENS, Contexts, ContextsSample, Stream, Window
from tandem.cross_entropy import Loss, training_loss
from tandem.group import PLAIN, Execution
from tandem.metrics import Score, score_stream
from tandem.model import TandemForCausalLM
from tandem.records import TrainingRecord
from tandem.settings import Phase2Settings
from tandem.training.dropout import DropoutMasks, StepMasks
from tandem.training.gradients import GradientAccumulator
from tandem.training.initialization import generator_for
from tandem.training.monitor import TrainingMonitor
from tandem.training.optimizer import adamw, clip_gradients, linear_share
from tandem.training.progress import OnTick, silent
from tandem.training.snapshots import Snapshots
from tandem.training.trainable import training_only

BLOCK_TOKENS = 512
"""Tokens of a block; shuffling permutes blocks."""
WARM_UP_STEPS = 50
SHOWN = 64
"""Positions of a batch whose contexts a snapshot has; all of them where contexts move with the embedding."""


@dataclass(frozen=True)
class Split:
    """A stream and its contexts, computed by the same scan for training and validation."""

    stream: Stream
    contexts: Contexts


@dataclass(frozen=True)
class Batch:
    """The positions [n] of one step in a stream, and contexts among which are those around them."""

    stream: Stream
    contexts: Window
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def targets(self) -> Tensor:
        """The tokens [n] that follow."""
        return self.stream.ids[self.positions + 1]

    def read(self, shown: int) -> dict[str, Tensor]:
        """For a snapshot: the positions [n], and the contexts before and after the first so many of them."""
        before, after = self.contexts.before_and_after(self.positions[:shown], self.stream.resets)
        return {"positions": self.positions, "previous": before, "current": after}


class TrainedTokenBlock(NamedTuple):
    """What phase 2 gives beside the weights.

    validation    score of the best epoch.
    sample        of the contexts that training and validation read in that epoch.
    """

    training: TrainingRecord
    validation: Score
    sample: ContextsSample


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
    snapshots: Snapshots | None = None,
) -> TrainedTokenBlock:
    """Train model.token_block in place; it ends with the weights of the epoch that validates best.

    The training NLL of an epoch is the mean over it, while the weights move (with the dropout and the softmax
    of training).

    With `refresh` the embedding, hence the head, is trained along; contexts then move with it, and `refresh`
    gives those of both splits again before every epoch and every validation. With `keep_start` the weights
    at the start count as epoch 0; its training NLL is exact, on as much of the text as is validated on.
    The processes of `execution` share the positions of every batch. A few steps are kept in `snapshots`.
    Raises NonFiniteLossError before a non-finite step would reach the weights.
    """
    modules: list[nn.Module] = [model.token_block] + ([] if refresh is None else [model.embedding])
    first_epoch = 0 if keep_start else 1
    monitor = TrainingMonitor(
        "phase 2", "phase2.lr", settings.max_epochs, on_tick, modules, settings.patience, first_epoch
    )
    chunk, group = settings.chunk_positions, execution.group
    predicted = len(train.stream) - 1
    loss_of_targets = training_loss(
        train.stream.ids.counts(model.config.vocab_size),
        settings.batch_positions,
        settings,
        generator_for(seed, "phase2 negatives"),
        chunk,
    )
    order, dropout = generator_for(seed, "phase2 order"), DropoutMasks(settings, seed, "phase2")
    snapshots = Snapshots() if snapshots is None else snapshots
    sample = best_sample = None

    with training_only(model, *modules) as trainable:
        gradients = GradientAccumulator(trainable.parameters, execution)
        optimizer = adamw(trainable.parameters, settings.weight_decay, settings.lr)
        epoch_steps = math.ceil(predicted / settings.batch_positions)
        steps = settings.max_epochs * epoch_steps
        shares: dict[str, Callable[[int], float]] = {
            "constant": lambda _: 1.0,
            "linear": lambda step: linear_share(step, steps, min(WARM_UP_STEPS, steps // 10)),
        }
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shares[settings.schedule])
        snapshots.follow(trainable.named, optimizer, epoch_steps)

        for epoch in range(first_epoch, settings.max_epochs + 1):
            loss_sum, seen, position_sum = 0.0, 0, 0
            for step, batch in enumerate(_batches(train, settings, order) if epoch else (), start=1):
                loss_of_rows, masks_of_rows = loss_of_targets(batch.targets), dropout.next_step(len(batch))
                forward = partial(_forward, model, batch, loss_of_rows, masks_of_rows)
                loss = gradients.backward(forward, len(batch))
                gradient_norm = clip_gradients(trainable.parameters, settings.max_grad_norm)
                monitor.check_finite(loss, gradient_norm, f"step {step}")
                read = partial(batch.read, SHOWN if refresh is None else len(batch))
                with snapshots.step(epoch, step, loss, gradient_norm, read):
                    optimizer.step()
                schedule.step()
                loss_sum += loss * len(batch)
                seen += len(batch)
                position_sum += int(batch.positions.sum())
                monitor.step(seen / predicted, loss_sum / seen, gradients.metrics)
            if epoch > 0:
                train_nll = loss_sum / seen
            else:
                beginning = train.stream.first(len(validation.stream))
                train_nll = score_stream(model, beginning, train.contexts, chunk, group=group).nll_nats
            if refresh is not None:
                train, validation = refresh()
                sample = None
            score = score_stream(model, validation.stream, validation.contexts, chunk, group=group)
            if monitor.end_epoch(train_nll, score, seen, position_sum):
                snapshots.best_epoch()
                sample = best_sample = sample or ContextsSample.of(train.contexts, validation.contexts)
            if monitor.out_of_patience:
                break
        score = monitor.restore_best()

    assert best_sample is not None  # some epoch is the best: one that is not finite has raised
    training = monitor.record(trainable.parts, gradients.micro_batches)
    return TrainedTokenBlock(training, score, best_sample)


def _forward(
    model: TandemForCausalLM, batch: Batch, loss: Loss, masks_of_rows: StepMasks, rows: slice
) -> Tensor:
    """Mean NLL in nats of what follows these rows of a batch, a scalar with gradients."""
    positions, masks = batch.positions[rows], masks_of_rows(rows)
    before, after = batch.contexts.before_and_after(positions, batch.stream.resets)
    embeds = masks.embeds(model.embed(batch.stream.ids[positions]))
    hidden = masks.output(model.token_block(before, after, embeds, masks.contexts))
    return loss(hidden, model.lm_head.weight, model.lm_head.bias, rows)


def _batches(train: Split, settings: Phase2Settings, order: torch.Generator) -> Iterator[Batch]:
    """The batches of an epoch: all positions that have a next token.

    The text is read in pieces of about PIECE_TOKENS tokens, whether contexts are in memory or computed again.
    So both give the same batches. With `shuffle` a piece consists of blocks from all over the text, drawn for
    each epoch, and positions are drawn within it. A batch then has positions from many places, which matters
    (LOG.md has what pieces of consecutive tokens cost).
    """
    count, size = len(train.stream) - 1, settings.batch_positions
    block = block_tokens(size)
    blocks = list(pairwise([*range(0, count, block), count]))
    in_piece = max(1, PIECE_TOKENS // size) * size // block
    if settings.shuffle and len(blocks) > in_piece:
        whole = count // block  # a shorter last one stays the last, so that no batch before it is short
        shuffled = torch.randperm(whole, generator=order).tolist()
        blocks = [*(blocks[number] for number in shuffled), *blocks[whole:]]
    for start in range(0, len(blocks), in_piece):
        runs = sorted(blocks[start : start + in_piece])
        positions = torch.cat([torch.arange(first, last) for first, last in runs])
        if settings.shuffle:
            positions = positions[torch.randperm(len(positions), generator=order)]
        contexts = train.contexts.windows(runs)
        for part in positions.to(train.stream.ids.device).split(size):
            yield Batch(train.stream, contexts, part)


def block_tokens(batch_positions: int) -> int:
    """Tokens of a block, about BLOCK_TOKENS: whole batches, or an equal part of one."""
    if batch_positions <= BLOCK_TOKENS:
        return BLOCK_TOKENS // batch_positions * batch_positions
    # The longest equal part that is no longer than a block; unless that is far shorter, as of a prime number.
    length = next(length for length in range(BLOCK_TOKENS, 0, -1) if batch_positions % length == 0)
    return length if 4 * length >= BLOCK_TOKENS else batch_positions
