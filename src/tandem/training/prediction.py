"""Phase 1 by prediction: ContextBlock and embedding learn to predict the next token.

The text is cut into streams that are read side by side, a window of each a step. Gradients flow back through
the window and stop at its start; the contexts are carried on, so that they remember further than that
(truncated backpropagation through time; Mikolov et al. 2010). What predicts are heads: TokenBlocks of one or
several depths that read the same contexts, so that these serve each depth. Phase 2 trains TokenBlocks of any
depth on the contexts that are left, and may start from a head.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tandem.contexts import Stream
from tandem.cross_entropy import Loss, training_loss
from tandem.errors import NonFiniteLossError
from tandem.metrics import perplexity
from tandem.model import TandemForCausalLM, TokenBlock
from tandem.records import PredictionEpoch, PredictionRecord
from tandem.settings import PredictionSettings
from tandem.training.dropout import DropoutMasks, StepMasks
from tandem.training.execution import PLAIN, Execution
from tandem.training.gradients import GradientAccumulator
from tandem.training.initialization import START_SIZES, generator_for
from tandem.training.optimizer import adamw, clip_gradients, linear_share
from tandem.training.progress import OnTick, Tick, silent
from tandem.training.trainable import training_only

WARM_UP_STEPS = 100
BETAS = (0.9, 0.95)
"""Of AdamW: with few steps in all, the second moment must not look back over most of them."""


@dataclass
class Batch:
    """One window [B, W] of all streams.

    positions    [B, W] in the text
    before       [B, C] the context of each stream before the window; none at the start of an epoch: zero
    after        [B, C] the context after it, as far as it has been computed
    """

    stream: Stream
    positions: Tensor
    before: Tensor | None
    after: Tensor


def train_predictive_contexts(
    model: TandemForCausalLM,
    heads: Sequence[TokenBlock],
    stream: Stream,
    settings: PredictionSettings,
    seed: int,
    chunk_positions: int = 512,
    on_tick: OnTick = silent,
    execution: Execution = PLAIN,
) -> PredictionRecord:
    """Train model.context_block, the embedding with its norm and the output bias in place, through `heads`.

    The loss is the mean over the heads, which are trained in place as well. `chunk_positions` bounds the
    logits held at once where the softmax is over the whole vocabulary. The processes of `execution` share the
    streams. Raises NonFiniteLossError before a non-finite step would reach the weights, SettingsError for
    fewer streams than processes.
    """
    began = time.perf_counter()
    count = len(stream) - 1
    window, streams = settings.window, min(settings.streams, count)
    execution.group.check_enough(streams, "prediction.streams")
    epoch_steps = math.ceil(math.ceil(count / streams) / window)
    steps = settings.max_epochs * epoch_steps
    depth = len(model.context_block.layers)
    draws = generator_for(seed, "prediction", depth)
    dropout = DropoutMasks(settings, seed, "prediction", depth, along=1)
    token_counts = stream.ids.counts(model.config.vocab_size)
    loss_of_targets = training_loss(token_counts, streams * window, settings, draws, chunk_positions)
    learners = nn.ModuleDict(
        {
            **{name: part for name, part in model.named_children() if name != "token_block"},
            **{head_name(head): head for head in heads},
        }
    )
    history: list[PredictionEpoch] = []

    with training_only(learners, learners) as trainable:
        gradients = GradientAccumulator(trainable.parameters, execution)
        decay = settings.decay_per_epoch / (settings.lr * epoch_steps)
        optimizer = adamw(trainable.parameters, decay, settings.lr, BETAS)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: linear_share(step, steps, min(WARM_UP_STEPS, steps // 10))
        )
        for epoch in range(1, settings.max_epochs + 1):
            loss_sum = norm_sum = 0.0
            seen, contexts = 0, None  # of all streams; a process has those of its own share
            for step, positions in enumerate(windows(count, streams, window, draws), start=1):
                after = torch.empty(streams, model.config.context_dim, device=model.device, dtype=model.dtype)
                batch = Batch(stream, positions.to(model.device), contexts, after)
                loss_of_rows = loss_of_targets(stream.ids[batch.positions + 1].flatten())
                forward = partial(_forward, model, heads, batch, loss_of_rows, dropout.next_step(streams))
                loss = gradients.backward(forward, streams)
                gradient_norm = clip_gradients(trainable.parameters, settings.max_grad_norm)
                _check_finite(loss, gradient_norm, history, step)
                optimizer.step()
                schedule.step()
                contexts = batch.after
                loss_sum += loss
                norm_sum += gradient_norm
                seen += positions.numel()
                done = epoch - 1 + step / epoch_steps
                metrics = {"train PPL": perplexity(loss_sum / step), **gradients.metrics}
                on_tick(Tick("phase 1", done, settings.max_epochs, "epoch", metrics))
            history.append(
                PredictionEpoch(
                    epoch=epoch,
                    train_nll_nats=loss_sum / step,
                    grad_norm=norm_sum / step,
                    seconds_s=time.perf_counter() - began,
                )
            )
    return PredictionRecord(
        epochs=len(history),
        positions=seen,
        tokens=len(stream),
        seconds_s=time.perf_counter() - began,
        history=tuple(history),
        parts=trainable.parts,
        micro_batches=gradients.micro_batches,
    )


def _forward(
    model: TandemForCausalLM,
    heads: Sequence[TokenBlock],
    batch: Batch,
    loss: Loss,
    masks_of_rows: StepMasks,
    rows: slice,
) -> Tensor:
    """Mean NLL in nats over the heads of what these streams read next, a scalar with gradients.

    Also leaves the contexts that they end with in `batch.after`.
    """
    positions, masks = batch.positions[rows], masks_of_rows(rows)
    embeds = masks.embeds(model.embed(batch.stream.ids[positions]))
    restart = None if batch.stream.restart is None else batch.stream.restart[positions]
    before = None if batch.before is None else batch.before[rows]
    previous, current = model.context_block.unroll(embeds, before, restart, drop=masks.contexts)
    batch.after[rows] = current[:, -1].detach()
    width = positions.shape[1]
    predicted = slice(rows.start * width, rows.stop * width)
    losses = []
    for head in heads:
        hidden = masks.output(head(previous, current, embeds, masks.contexts))
        losses.append(loss(hidden.flatten(0, 1), model.lm_head.weight, model.lm_head.bias, predicted))
    return torch.stack(losses).mean()


def head_name(head: TokenBlock) -> str:
    """What a head is called in records: `head2` of two layers."""
    return f"head{len(head.layers)}"


def windows(count: int, streams: int, window: int, draws: torch.Generator) -> Iterator[Tensor]:
    """One pass over positions 0..count-1: positions [streams, window or fewer] of every step.

    Stream b reads on where it stopped. The streams start at a random place and go round the end of the text,
    so that windows are cut elsewhere in every epoch; a few positions are read twice where `count` is no
    multiple of `streams`.
    """
    length = math.ceil(count / streams)
    start = int(torch.randint(count, (), generator=draws))
    starts = start + length * torch.arange(streams)
    for first in range(0, length, window):
        yield (starts[:, None] + torch.arange(first, min(first + window, length))) % count


def _check_finite(loss: float, gradient_norm: float, history: list[PredictionEpoch], step: int) -> None:
    if loss < math.inf and math.isfinite(gradient_norm):
        return
    last = "no epoch before it was good"
    if history:
        perplexity_then = perplexity(history[-1].train_nll_nats)
        last = f"last good values: epoch {history[-1].epoch}, training PPL {perplexity_then:.4g}"
    lower = ("prediction.lr",) if history or step > 1 else START_SIZES
    raise NonFiniteLossError.of(
        f"phase 1 was stopped in epoch {len(history) + 1}, step {step}", loss, last, *lower
    )
