"""How the LSTM and the GPT-2 are trained: steps, schedule, the best epoch, refusals."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tandem.metrics import Score
from tandem.records import TrainingRecord
from tandem.settings import Gpt2Settings, LstmSettings
from tandem.training.monitor import TrainingMonitor
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
    monitor = TrainingMonitor(course.title, f"{course.section}.lr", settings.max_epochs, on_tick, [model])
    parameters = list(model.parameters())
    optimizer = adamw(parameters, settings.weight_decay, settings.lr)
    steps = course.epoch_steps * settings.max_epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_share(step, steps, round(steps * course.warm_up))
    )
    for _ in range(settings.max_epochs):
        model.train()
        loss_sum, seen = 0.0, 0
        for step, (loss, tokens) in enumerate(losses_of_epoch(), start=1):
            optimizer.zero_grad()
            loss.backward()
            gradient_norm = clip_gradients(parameters, settings.max_grad_norm)
            monitor.check_finite(float(loss.detach()), gradient_norm, f"step {step}")
            optimizer.step()
            schedule.step()
            loss_sum += float(loss.detach()) * tokens
            seen += tokens
            monitor.step(seen / course.epoch_tokens, loss_sum / seen)
        model.eval()
        monitor.end_epoch(loss_sum / seen, score())
    return monitor.restore_best(), monitor.record()
