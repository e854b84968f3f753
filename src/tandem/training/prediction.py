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
from typing import NoReturn

import torch
from torch import Tensor, nn

from tandem.contexts import Stream
from tandem.cross_entropy import StepLoss, training_loss
from tandem.errors import NonFiniteLossError
from tandem.metrics import perplexity
from tandem.model import TandemForCausalLM, TokenBlock
from tandem.records import PartRecord, PredictionEpoch
from tandem.settings import PredictionSettings
from tandem.training.dropout import Dropouts, dropped
from tandem.training.execution import PLAIN, Execution
from tandem.training.initialization import START_SIZES, generator_for
from tandem.training.optimizer import adamw, linear_share
from tandem.training.progress import OnTick, Tick, silent
from tandem.training.steps import Steps
from tandem.training.trainable import training_only

WARM_UP_STEPS = 100
BETAS = (0.9, 0.95)
"""Of AdamW: with few steps in all, the second moment must not look back over most of them."""


@dataclass(frozen=True)
class PredictionResult:
    """How phase 1 ended.

    positions        tokens predicted in an epoch
    micro_batches    as of Phase2Result
    """

    epochs: int
    positions: int
    seconds_s: float
    history: tuple[PredictionEpoch, ...]
    parts: tuple[PartRecord, ...]
    micro_batches: int


def train_predictive_contexts(
    model: TandemForCausalLM,
    heads: Sequence[TokenBlock],
    stream: Stream,
    settings: PredictionSettings,
    seed: int,
    chunk_positions: int = 512,
    on_tick: OnTick = silent,
    execution: Execution = PLAIN,
) -> PredictionResult:
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
    length = math.ceil(count / streams)
    epoch_steps = math.ceil(length / window)
    steps = settings.max_epochs * epoch_steps
    depth = len(model.context_block.layers)
    draws = generator_for(seed, "prediction", depth)
    drops = Dropouts(settings, seed, "prediction", depth, along=1)
    counts = stream.ids.counts(model.config.vocab_size)
    loss_of = training_loss(counts, streams * window, settings, draws, chunk_positions)
    history: list[PredictionEpoch] = []
    step = 0
    learners = nn.ModuleDict(
        {
            **{name: part for name, part in model.named_children() if name != "token_block"},
            **{head_name(head): head for head in heads},
        }
    )
    with training_only(learners, learners) as trained:
        decay = settings.decay_per_epoch / (settings.lr * epoch_steps)
        optimizer = adamw(trained.parameters, decay, settings.lr, BETAS)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: linear_share(step, steps, min(WARM_UP_STEPS, steps // 10))
        )
        taken = Steps([learners], trained.parameters, optimizer, schedule, settings.max_grad_norm, execution)
        for epoch in range(1, settings.max_epochs + 1):
            total, norms = torch.zeros(2, dtype=torch.float64), 0
            contexts = None  # of all streams; a process has those of its own share
            for at in windows(count, streams, window, draws):
                at = at.to(model.device)
                step_loss = _StepLoss(model, heads, stream, at, contexts, loss_of, drops)
                value, norm = taken.take(streams, step_loss, partial(_not_finite, history, step))
                contexts = step_loss.contexts
                step += 1
                norms += 1
                total += torch.tensor([value, norm])
                figures = {"train PPL": perplexity(float(total[0]) / norms), **taken.figures}
                on_tick(
                    Tick("phase 1", step / steps * settings.max_epochs, settings.max_epochs, "epoch", figures)
                )
            mean_loss, mean_norm = (total / norms).tolist()
            history.append(
                PredictionEpoch(
                    epoch=epoch,
                    train_nll_nats=mean_loss,
                    grad_norm=mean_norm,
                    seconds_s=time.perf_counter() - began,
                )
            )
    return PredictionResult(
        epochs=len(history),
        positions=streams * length,
        seconds_s=time.perf_counter() - began,
        history=tuple(history),
        parts=trained.parts,
        micro_batches=taken.parts,
    )


class _StepLoss:
    """The loss of one window [B, W] of all streams, for any of them, and what contexts they end with.

    contexts    [B, C] after the window, of the streams that were read; before it, of all or none
    """

    def __init__(
        self,
        model: TandemForCausalLM,
        heads: Sequence[TokenBlock],
        stream: Stream,
        at: Tensor,
        before: Tensor | None,
        loss_of: StepLoss,
        drops: Dropouts,
    ) -> None:
        self._model, self._heads, self._stream, self._at, self._before = model, heads, stream, at, before
        self._loss = loss_of(stream.ids[at + 1].flatten())
        self._drops = drops
        drops.begin_step()
        self.contexts = torch.empty(len(at), model.config.context_dim, device=at.device, dtype=model.dtype)

    def __call__(self, rows: slice) -> Tensor:
        model, at = self._model, self._at[rows]
        drops = self._drops.rows(rows, len(self._at))
        restart = None if self._stream.restart is None else self._stream.restart[at]
        embeds = dropped(drops.embeds, model.embed(self._stream.ids[at]))
        before = None if self._before is None else self._before[rows]
        previous, current = model.context_block.unroll(embeds, before, restart, drop=drops.contexts)
        self.contexts[rows] = current[:, -1].detach()
        width = at.shape[1]
        positions = slice(rows.start * width, rows.stop * width)
        losses = []
        for head in self._heads:
            hidden = dropped(drops.output, head(previous, current, embeds, drops.contexts))
            losses.append(
                self._loss(hidden.flatten(0, 1), model.lm_head.weight, model.lm_head.bias, positions)
            )
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


def _not_finite(history: list[PredictionEpoch], step: int, loss: float) -> NoReturn:
    last = (
        "no epoch before it was good"
        if not history
        else f"last good values: epoch {history[-1].epoch}, "
        f"training PPL {perplexity(history[-1].train_nll_nats):.4g}"
    )
    raise NonFiniteLossError.of(
        f"phase 1 was stopped in epoch {len(history) + 1}, step {step + 1}",
        loss,
        last,
        *(("prediction.lr",) if step else START_SIZES),
    )
