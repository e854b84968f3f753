"""Phase 1 of recipe `predictive`: ContextBlock and embedding learn to predict the next token.

In every epoch the documents stand in a new order, and in most of them some tokens are split. The text is cut
into streams that are read side by side, a window of each a step. Gradients flow back through the window and
stop at its start; the contexts are carried on, so that they remember further than that (truncated
backpropagation through time; Mikolov et al. 2010). What predicts are heads: TokenBlocks of one or several
depths that read the same contexts, so that these serve each depth. Phase 2 trains TokenBlocks of any depth on
the contexts that are left, and may start from a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tandem.errors import MisfitError, NonFiniteLossError, is_finite
from tandem.objectives.base import NewTokenBlock, Objective, Phase1Inputs
from tandem.records import Phase1Record, Record, Unbounded
from tandem.settings import Settings
from tandem.training.progress import Tick

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from tandem.contexts import Stream
    from tandem.cross_entropy import Loss
    from tandem.metrics import Score
    from tandem.model import TandemForCausalLM
    from tandem.training.dropout import StepMasks

WARM_UP_STEPS = 100
WHOLE_SHARE = 0.25
"""Of the epochs, the last ones: in these no token is split, as none is when the model is used."""
SPLIT_TOKENS = 400_000
"""The longest text of which tokens are split. A longer one is not learned by heart so soon: on 3 MB splits
did harm, on 0.8 MB they help (LOG.md)."""
BETAS = (0.9, 0.95)
"""Of AdamW: with few steps in all, the second moment must not look back over most of them."""


class PredictionEpoch(Record):
    """One pass of phase 1 by prediction."""

    epoch: int
    train_nll_nats: Unbounded
    """Mean over the epoch while the weights move, with dropout, a sampled softmax and perhaps split tokens:
    not to be compared with a validation figure."""
    grad_norm: float
    """Mean over the epoch, before clipping."""
    positions: int
    """Tokens predicted."""
    position_sum: int
    """Sum of their positions: it tells which were read twice."""
    text_tokens: int
    """Of the text, once some of its tokens were split; as many are predicted as where none is."""
    seconds_s: float
    """Since the start of phase 1."""


class HeadRecord(Record):
    """Token layers of phase 1's own, at its end."""

    token_layers: int
    parameters: int
    """Trained in phase 1, and in no other count."""
    nll_nats: Unbounded
    """Validation NLL through them; exact softmax, no dropout."""
    accuracy: float


class PredictionRecord(Phase1Record):
    """Result of phase 1 by prediction; `tokens` are those of the training text."""

    epochs: int
    heads: tuple[HeadRecord, ...] = ()
    """Through which it predicted, the shallowest first; scored once the contexts are there."""
    history: tuple[PredictionEpoch, ...]

    def head_for(self, token_layers: int) -> HeadRecord:
        """The head that a TokenBlock of this depth may start from, and is to be compared with."""
        by_depth = {head.token_layers: head for head in self.heads}
        return by_depth[nearest_head(by_depth, token_layers)]


class Prediction(Objective):
    """Trains contexts, embedding and output bias through heads that predict the next token."""

    section = "prediction"
    record_type = PredictionRecord
    parts = ("context_block", "embedding", "embed_norm", "lm_head")
    memory_settings = ("prediction.streams", *Objective.memory_settings)

    def train(self, inputs: Phase1Inputs) -> PredictionRecord:
        """The loss is the mean over the heads, which are trained in place as well.

        `phase2.chunk_positions` bounds the logits held at once where the softmax is over the whole
        vocabulary. The processes share the streams. Raises NonFiniteLossError before a
        non-finite step would reach the weights, SettingsError for fewer streams than processes.
        """
        import torch
        from torch import nn

        from tandem.cross_entropy import training_loss
        from tandem.metrics import perplexity
        from tandem.training.checkpoint import Cursor, Draws, History, Stopwatch
        from tandem.training.dropout import DropoutMasks
        from tandem.training.gradients import GradientAccumulator
        from tandem.training.initialization import generator_for
        from tandem.training.optimizer import adamw, clip_gradients, linear_share
        from tandem.training.split_tokens import split_tokens
        from tandem.training.trainable import training_only

        clock, model, heads, stream = Stopwatch(), inputs.model, inputs.heads, inputs.stream
        execution, settings, seed = inputs.execution, inputs.settings, inputs.seed
        own, count = settings.prediction, len(stream) - 1
        window, streams = own.window, min(own.streams, count)
        execution.group.check_enough(streams, "prediction.streams")
        length = math.ceil(count / streams)
        epoch_steps = math.ceil(length / window)
        steps = own.max_epochs * epoch_steps
        depth = len(model.context_block.layers)
        draws = generator_for(seed, "prediction", depth)
        dropout = DropoutMasks(own, seed, "prediction", depth, along=1)
        children = (*model.model.named_children(), *model.named_children())
        parts = {name: part for name, part in children if name in self.parts}
        learners = nn.ModuleDict({**parts, **heads})
        cursor = Cursor(group=execution.group, device=model.device)
        history = History(PredictionEpoch)

        with training_only(learners, learners) as trainable:
            gradients = GradientAccumulator(trainable.parameters, execution)
            decay = own.decay_per_epoch / (own.lr * epoch_steps)
            optimizer = adamw(trainable.parameters, decay, own.lr, BETAS)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: linear_share(step, steps, min(WARM_UP_STEPS, steps // 10))
            )
            if execution.group.size == 1:  # else what a step read is spread over the processes
                inputs.snapshots.follow(trainable.named, optimizer, epoch_steps)
            inputs.checkpoint.resume(
                execution.group,
                model.device,
                weights=trainable,
                optimizer=optimizer,
                schedule=schedule,
                draws=Draws(draws),
                dropout=dropout,
                micro_batches=gradients,
                snapshots=inputs.snapshots,
                history=history,
                clock=clock,
                cursor=cursor,
            )
            while cursor.epoch <= own.max_epochs:
                text, purpose = stream, (depth, cursor.epoch)
                if inputs.pieces is not None and cursor.epoch <= split_epochs(own.max_epochs, len(stream)):
                    splits = generator_for(seed, "prediction splits", *purpose)
                    text = split_tokens(stream, inputs.pieces, own.split_tokens, splits)
                count = len(text) - 1
                loss_of_targets = training_loss(
                    text.ids.counts(model.config.vocab_size),
                    *(streams * window, own, draws, settings.phase2.chunk_positions),
                )
                start = cursor.begin(partial(first_position, count, draws))
                order = generator_for(seed, "prediction order", *purpose)
                of_text = shuffled_documents(text.document_starts, count, order)
                for places in windows(count, streams, window, start, cursor.steps, length):
                    positions = of_text(places)
                    # Of all streams; a process has those of its own share.
                    contexts = cursor.carried.get("contexts")
                    after = torch.empty(
                        streams, model.config.context_dim, device=model.device, dtype=model.dtype
                    )
                    batch = WindowBatch(text, positions.to(model.device), contexts, after)
                    loss_of_rows = loss_of_targets(text.ids[batch.positions + 1].flatten())
                    forward = partial(_forward, model, heads, batch, loss_of_rows, dropout.next_step(streams))
                    loss = gradients.backward(forward, streams)
                    gradient_norm = clip_gradients(trainable.parameters, own.max_grad_norm)
                    read_documents = partial(text.read_at, batch.positions)
                    _check_finite(loss, gradient_norm, history, cursor.steps + 1, read_documents)
                    with inputs.snapshots.step(
                        cursor.epoch, cursor.steps + 1, loss, gradient_norm, batch.read
                    ):
                        optimizer.step()
                    schedule.step()
                    cursor.add(loss, positions.numel(), gradient_norm, int(positions.sum()))
                    cursor.carried["contexts"] = batch.after
                    done = cursor.epoch - 1 + cursor.steps / epoch_steps
                    metrics = {"train PPL": perplexity(cursor.loss_sum / cursor.steps), **gradients.metrics}
                    inputs.on_tick(Tick("phase 1", done, own.max_epochs, "epoch", metrics))
                    inputs.checkpoint.after_step()
                history.append(
                    PredictionEpoch(
                        epoch=cursor.epoch,
                        train_nll_nats=cursor.loss_sum / cursor.steps,
                        grad_norm=cursor.norm_sum / cursor.steps,
                        positions=cursor.seen,
                        position_sum=cursor.position_sum,
                        text_tokens=len(text),
                        seconds_s=clock.seconds_s,
                    )
                )
                cursor.end_epoch()
        return PredictionRecord(
            epochs=len(history),
            tokens=len(stream),
            seconds_s=clock.seconds_s,
            history=tuple(history),
            parts=trainable.parts,
            micro_batches=gradients.micro_batches,
        )

    def new_heads(self, settings: Settings, new_token_block: NewTokenBlock) -> nn.ModuleDict:
        """TokenBlocks of the depths that the settings name: `head2` has two layers."""
        from torch import nn

        depths = sorted(set(settings.prediction.head_layers))
        return nn.ModuleDict({f"head{depth}": new_token_block(depth) for depth in depths})

    def head_for(self, heads: nn.ModuleDict, token_layers: int) -> str:
        """The deepest that is no deeper, else the shallowest."""
        return f"head{nearest_head((int(name.removeprefix('head')) for name in heads), token_layers)}"

    def score_heads(
        self, record: PredictionRecord, heads: nn.ModuleDict, score: Callable[[nn.Module], Score]
    ) -> PredictionRecord:
        """What each head reaches: as good as training end to end gets."""
        found = tuple(
            HeadRecord(
                token_layers=int(name.removeprefix("head")),
                parameters=sum(p.numel() for p in head.parameters()),
                nll_nats=(reached := score(head)).nll_nats,
                accuracy=reached.accuracy,
            )
            for name, head in heads.items()
        )
        return record.model_copy(update={"heads": found})

    def misfits(self, settings: Settings, tokens: int) -> Iterator[MisfitError]:
        """An embedding that phase 2 is to train."""
        if settings.embeddings.trained:
            yield MisfitError.of(
                f"setting embeddings.trained = True is not possible: recipe {settings.recipe} trains the "
                "embedding in phase 1 in any case, and leaves it as it is in phase 2",
                {"embeddings.trained": "false"},
            )

    def for_one_run(self, settings: Settings, token_layers: int) -> Settings:
        """One head only, that from which the TokenBlock starts."""
        head = nearest_head(settings.prediction.head_layers, token_layers)
        prediction = settings.prediction.model_copy(update={"head_layers": (head,)})
        return settings.model_copy(update={"prediction": prediction})

    def summary(self, record: PredictionRecord) -> str:
        """Epochs, and the perplexity through each head."""
        from tandem.metrics import perplexity

        heads = ", ".join(
            f"{perplexity(head.nll_nats):.1f} through {head.token_layers} token layer"
            + ("s" if head.token_layers > 1 else "")
            for head in record.heads
        )
        return f"{record.epochs} epochs, PPL {heads} of its own"

    def audit(self, record: PredictionRecord, settings: Settings, tokens: int) -> Iterator[str]:
        """Positions and epochs."""
        own = settings.prediction
        seen = {record.tokens - 1, *(epoch.positions for epoch in record.history)}
        if wrong := [count for count in seen if not tokens - 1 <= count < tokens - 1 + own.streams]:
            yield f"an epoch predicted {wrong[0]} of {tokens - 1} tokens"
        if not own.max_epochs == record.epochs == len(record.history):
            yield (
                f"it made {record.epochs} epochs ({len(record.history)} in its history) instead of "
                f"{own.max_epochs}"
            )


def nearest_head(depths: Iterable[int], token_layers: int) -> int:
    """Of the depths of heads, the deepest that is no deeper than a TokenBlock; else the shallowest."""
    depths = sorted(depths)
    return max((depth for depth in depths if depth <= token_layers), default=depths[0])


@dataclass
class WindowBatch:
    """One window [B, W] of all streams.

    positions    [B, W] in the text.
    before       [B, C] the context of each stream before the window; none at the start of an epoch: zero.
    after        [B, C] the context after it, as far as it has been computed.
    """

    stream: Stream
    positions: Tensor
    before: Tensor | None
    after: Tensor

    def read(self) -> dict[str, Tensor]:
        """For a snapshot: the positions, and the context of each stream before the window."""
        return {"positions": self.positions} | ({} if self.before is None else {"before": self.before})


def _forward(
    model: TandemForCausalLM,
    heads: nn.ModuleDict,
    batch: WindowBatch,
    loss: Loss,
    masks_of_rows: StepMasks,
    rows: slice,
) -> Tensor:
    """Mean NLL in nats over the heads of what these streams read next, a scalar with gradients.

    Also leaves the contexts that they end with in `batch.after`.
    """
    import torch

    positions, masks = batch.positions[rows], masks_of_rows(rows)
    embeds = masks.embeds(model.embed(batch.stream.ids[positions]))
    restart = None if batch.stream.resets is None else batch.stream.resets[positions]
    before = None if batch.before is None else batch.before[rows]
    previous, current = model.context_block.unroll(embeds, before, restart, drop=masks.contexts)
    batch.after[rows] = current[:, -1].detach()
    width = positions.shape[1]
    predicted = slice(rows.start * width, rows.stop * width)
    losses = []
    for head in heads.values():
        hidden = masks.output(head(previous, current, embeds, masks.contexts))
        losses.append(loss(hidden.flatten(0, 1), model.lm_head.weight, model.lm_head.bias, predicted))
    return torch.stack(losses).mean()


def first_position(count: int, draws: torch.Generator) -> int:
    """Where the first stream of an epoch starts, of positions 0..count-1."""
    import torch

    return int(torch.randint(count, (), generator=draws))


def shuffled_documents(
    starts: npt.NDArray[np.int64] | None, count: int, draws: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Positions 0..count-1 of a text, of places in the text with its documents in a drawn order.

    `starts` [D] ascending, the position of each document's first token. A text whose documents are not known
    stays as it is.
    """
    import torch

    if starts is None:
        return lambda places: places
    first = torch.from_numpy(starts).clamp(max=count)
    lengths = torch.diff(first, append=torch.tensor([count]))
    order = torch.randperm(len(first), generator=draws)
    ends = lengths[order].cumsum(0)
    moved = first[order] - (ends - lengths[order])  # by which a document's positions lie further on

    def of_text(places: Tensor) -> Tensor:
        return places + moved[torch.searchsorted(ends, places, right=True)]

    return of_text


def split_epochs(epochs: int, tokens: int) -> int:
    """The epochs, of so many over a text of so many tokens, in which some are split: the first ones."""
    return int(epochs * (1 - WHOLE_SHARE)) if tokens <= SPLIT_TOKENS else 0


def windows(
    count: int, streams: int, window: int, start: int, done: int = 0, length: int | None = None
) -> Iterator[Tensor]:
    """One pass over places 0..count-1: places [streams, window or fewer] of every step after `done`.

    Stream b reads on where it stopped. The streams start at a random place and go round the end of the text,
    so that windows are cut elsewhere in every epoch; a few places are read twice where `count` is no
    multiple of `streams`. With a `length` each stream reads so many places alone.
    """
    import torch

    share = math.ceil(count / streams)
    length = share if length is None else length
    starts = start + share * torch.arange(streams)
    for first in range(done * window, length, window):
        yield (starts[:, None] + torch.arange(first, min(first + window, length))) % count


def _check_finite(
    loss: float,
    gradient_norm: float,
    history: list[PredictionEpoch],
    step: int,
    read: Callable[[], str],
) -> None:
    if is_finite(loss, gradient_norm):
        return
    from tandem.metrics import perplexity
    from tandem.training.initialization import START_SIZES

    stopped = f"phase 1 was stopped in epoch {len(history) + 1}, step {step}{read()}"
    last = "no epoch before it was good"
    if history:
        perplexity_then = perplexity(history[-1].train_nll_nats)
        last = f"last good values: epoch {history[-1].epoch}, training PPL {perplexity_then:.4g}"
    lower = ("prediction.lr",) if history or step > 1 else START_SIZES
    NonFiniteLossError.check(loss, gradient_norm, stopped, last, *lower)
