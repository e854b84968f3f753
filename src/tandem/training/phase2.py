"""Phase 2: the TokenBlock learns next-token prediction from contexts of the frozen ContextBlock (SPEC 4)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tandem.contexts import PIECE_TOKENS, Contexts, ContextsSample, Stream, Window
from tandem.cross_entropy import Loss, training_loss
from tandem.group import PLAIN, Execution
from tandem.metrics import Score, score_stream
from tandem.model import TandemForCausalLM
from tandem.records import TrainingRecord
from tandem.settings import Phase2Settings
from tandem.stopping import nothing_to_save
from tandem.training.checkpoint import Checkpoint, Cursor, Draws
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


class _Samples:
    """A sample of the contexts that the best epoch read, and the embedding that this epoch's came from.

    best    the sample; one is enough where the embedding does not move, and contexts with it.
    """

    def __init__(self, model: TandemForCausalLM, moving: bool) -> None:
        self._weight, self._moving = model.embedding.weight, moving
        self._embedding: Tensor | None = None
        self.best: ContextsSample | None = None
        self.moved()

    def moved(self) -> None:
        """Contexts were computed again."""
        self._embedding = self._weight.detach().clone() if self._moving else None

    def best_epoch(self, train: Split, validation: Split) -> None:
        """The epoch that read these is the best one so far."""
        if self._moving or self.best is None:
            self.best = ContextsSample.of(train.contexts, validation.contexts)

    @contextmanager
    def of_the_epoch(self) -> Iterator[None]:
        """Within the block the embedding is the one that this epoch's contexts came from."""
        with torch.no_grad():
            now = self._weight.clone()
            assert self._embedding is not None
            self._weight.copy_(self._embedding)
            yield
            self._weight.copy_(now)

    def state_dict(self) -> dict[str, Any]:
        """Both."""
        return {"embedding": self._embedding, "best": self.best and vars(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set both."""
        self._embedding = state["embedding"]
        self.best = state["best"] and ContextsSample(**state["best"])


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
    checkpoint: Checkpoint | None = None,
) -> TrainedTokenBlock:
    """Train model.token_block in place; it ends with the weights of the epoch that validates best.

    The training NLL of an epoch is the mean over it, while the weights move (with the dropout and the softmax
    of training).

    With `refresh` the embedding, hence the head, is trained along; contexts then move with it, and `refresh`
    gives those of both splits again before every epoch and every validation. With `keep_start` the weights
    at the start count as epoch 0; its training NLL is exact, on as much of the text as is validated on.
    The processes of `execution` share the positions of every batch. A few steps are kept in `snapshots`.
    What `checkpoint` has of this training is continued. Raises NonFiniteLossError before a non-finite step
    would reach the weights, Stopped where a signal asks to stop.
    """
    modules: list[nn.Module] = [model.token_block] + ([] if refresh is None else [model.embedding])
    first_epoch = 0 if keep_start else 1
    chunk, group = settings.chunk_positions, execution.group
    predicted = len(train.stream) - 1
    negatives, order = generator_for(seed, "phase2 negatives"), generator_for(seed, "phase2 order")
    loss_of_targets = training_loss(
        train.stream.ids.counts(model.config.vocab_size), settings.batch_positions, settings, negatives, chunk
    )
    dropout = DropoutMasks(settings, seed, "phase2")
    snapshots = Snapshots() if snapshots is None else snapshots
    checkpoint = Checkpoint() if checkpoint is None else checkpoint
    monitor = TrainingMonitor(
        *("phase 2", "phase2.lr", settings.max_epochs, on_tick, modules, settings.patience, first_epoch),
        tell=checkpoint.tell,
    )
    cursor, samples = Cursor(first_epoch), _Samples(model, moving=refresh is not None)

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

        resumed = checkpoint.resume(
            group,
            model.device,
            weights=trainable,
            optimizer=optimizer,
            schedule=schedule,
            negatives=Draws(negatives),
            dropout=dropout,
            micro_batches=gradients,
            monitor=monitor,
            samples=samples,
            snapshots=snapshots,
            cursor=cursor,
        )
        if resumed and refresh is not None and monitor.history:
            with samples.of_the_epoch(), nothing_to_save():
                train, validation = refresh()

        while cursor.epoch <= settings.max_epochs and not monitor.out_of_patience:
            order.set_state(cursor.begin(order.get_state))
            for batch in _batches(train, settings, order, cursor.steps) if cursor.epoch else ():
                loss_of_rows, masks_of_rows = loss_of_targets(batch.targets), dropout.next_step(len(batch))
                forward = partial(_forward, model, batch, loss_of_rows, masks_of_rows)
                loss = gradients.backward(forward, len(batch))
                gradient_norm = clip_gradients(trainable.parameters, settings.max_grad_norm)
                monitor.check_step(
                    loss, gradient_norm, cursor, partial(train.stream.read_at, batch.positions)
                )
                read = partial(batch.read, SHOWN if refresh is None else len(batch))
                with snapshots.step(cursor.epoch, cursor.steps + 1, loss, gradient_norm, read):
                    optimizer.step()
                schedule.step()
                cursor.add(loss * len(batch), len(batch), positions=int(batch.positions.sum()))
                monitor.step(cursor.seen / predicted, cursor.mean_loss, gradients.metrics)
                checkpoint.after_step()
            if cursor.epoch > 0:
                train_nll = cursor.mean_loss
            else:
                beginning = train.stream.first(len(validation.stream))
                train_nll = score_stream(model, beginning, train.contexts, chunk, group=group).nll_nats
            if refresh is not None:
                train, validation = refresh()
                samples.moved()
            score = score_stream(model, validation.stream, validation.contexts, chunk, group=group)
            if monitor.end_epoch(train_nll, score, cursor.seen, cursor.position_sum):
                snapshots.best_epoch()
                samples.best_epoch(train, validation)
            cursor.end_epoch()
        score = monitor.restore_best()

    assert samples.best is not None  # some epoch is the best: one that is not finite has raised
    training = monitor.record(trainable.parts, gradients.micro_batches)
    return TrainedTokenBlock(training, score, samples.best)


def _forward(
    model: TandemForCausalLM, batch: Batch, loss: Loss, masks_of_rows: StepMasks, rows: slice
) -> Tensor:
    """Mean NLL in nats of what follows these rows of a batch, a scalar with gradients."""
    positions, masks = batch.positions[rows], masks_of_rows(rows)
    before, after = batch.contexts.before_and_after(positions, batch.stream.resets)
    embeds = masks.embeds(model.embed(batch.stream.ids[positions]))
    hidden = masks.output(model.token_block(before, after, embeds, masks.contexts))
    return loss(hidden, model.lm_head.weight, model.lm_head.bias, rows)


def _batches(train: Split, settings: Phase2Settings, order: torch.Generator, done: int) -> Iterator[Batch]:
    """The batches of an epoch, without the first `done`: all positions that have a next token.

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
        parts = positions.to(train.stream.ids.device).split(size)
        if done >= len(parts):
            done -= len(parts)
            continue
        contexts = train.contexts.windows(runs)
        for part in parts[done:]:
            yield Batch(train.stream, contexts, part)
        done = 0


def block_tokens(batch_positions: int) -> int:
    """Tokens of a block, about BLOCK_TOKENS: whole batches, or an equal part of one."""
    if batch_positions <= BLOCK_TOKENS:
        return BLOCK_TOKENS // batch_positions * batch_positions
    # The longest equal part that is no longer than a block; unless that is far shorter, as of a prime number.
    length = next(length for length in range(BLOCK_TOKENS, 0, -1) if batch_positions % length == 0)
    return length if 4 * length >= BLOCK_TOKENS else batch_positions
