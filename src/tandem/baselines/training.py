"""How the LSTM and the GPT-2 are trained: steps, schedule, the best epoch, refusals."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tandem.metrics import Score, perplexity
from tandem.records import Epoch, TrainingRecord
from tandem.settings import Gpt2Settings, LstmSettings
from tandem.training.epochs import Epochs
from tandem.training.optimizer import adamw, clip_gradients, cosine_share
from tandem.training.progress import OnTick

# The losses of one epoch: of every step the mean NLL in nats (a scalar with gradient) and of how many tokens.
Losses = Iterator[tuple[Tensor, int]]


@dataclass(frozen=True)
class Course:
    """How a model is trained, beyond its settings.

    title             for people: "LSTM"
    section           its settings, as on the command line: "baselines.lstm"
    epoch_steps       optimizer steps of every epoch
    epoch_tokens      tokens predicted in every epoch
    warm_up           share of all steps in which the learning rate rises
    """

    title: str
    section: str
    epoch_steps: int
    epoch_tokens: int
    warm_up: float = 0.0


def train(
    model: nn.Module,
    losses_of_epoch: Callable[[], Losses],
    score: Callable[[], Score],
    course: Course,
    settings: LstmSettings | Gpt2Settings,
    on_tick: OnTick,
) -> tuple[Score, TrainingRecord]:
    """Train all parameters of `model` in place by AdamW; it ends with the weights of the best epoch.

    All epochs are run, since the learning rate falls to its end over them; the one that validates best
    counts. The training NLL of an epoch is the mean over it, while the weights move. Returns the score of
    that epoch and the record. Raises NonFiniteLossError before a non-finite step would reach the weights.
    """
    watch = Epochs(course.title, f"{course.section}.lr", settings.max_epochs, on_tick)
    parameters = list(model.parameters())
    optimizer = adamw(parameters, settings.weight_decay, settings.lr)
    steps = course.epoch_steps * settings.max_epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_share(step, steps, round(steps * course.warm_up))
    )
    best: tuple[Epoch, Score, dict[str, Tensor]] | None = None
    for _ in range(settings.max_epochs):
        model.train()
        total, seen = 0.0, 0
        for step, (loss, tokens) in enumerate(losses_of_epoch(), start=1):
            optimizer.zero_grad()
            loss.backward()
            norm = clip_gradients(parameters, settings.max_grad_norm)
            value = float(loss.detach())
            if not (value < math.inf and torch.isfinite(norm)):
                watch.not_finite(value, f"step {step}")
            optimizer.step()
            schedule.step()
            total += value * tokens
            seen += tokens
            watch.step_done(seen / course.epoch_tokens, total / seen)
        model.eval()
        result = score()
        epoch = watch.epoch_done(total / seen, result)
        if best is None or result.nll_nats < best[1].nll_nats:
            best = (epoch, result, {name: value.clone() for name, value in model.state_dict().items()})
    assert best is not None  # max_epochs is at least 1, and a non-finite epoch has raised
    model.load_state_dict(best[2])
    return best[1], TrainingRecord(
        best_epoch=best[0].epoch,
        epochs=len(watch.history),
        stopped="max_epochs",
        train_nll_nats=best[0].train_nll_nats,
        train_perplexity=perplexity(best[0].train_nll_nats),
        seconds_s=watch.seconds_s,
        history=tuple(watch.history),
    )
