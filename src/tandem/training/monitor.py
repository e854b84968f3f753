"""What every training by epochs keeps and tells: history, progress, the best epoch, non-finite losses."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from tandem.errors import NonFiniteLossError, is_finite
from tandem.metrics import Score, perplexity
from tandem.records import Epoch, PartRecord, TrainingRecord
from tandem.training.checkpoint import Cursor, History, Stopwatch
from tandem.training.progress import OnTick, Tick

SPIKE = 100
"""Times the mean loss of an epoch so far, beyond which the loss of a step is told."""


@dataclass
class TrainingMonitor:
    """Follows one training: keeps its history and the weights of its best epoch.

    title            what is trained, for people: "phase 2", "LSTM".
    lr_setting       the learning rate's name.
    modules          whose weights are kept at the best epoch.
    patience         epochs in a row without a better validation loss after which training ends; none: never.
    first_epoch      0 where what training starts from counts as an epoch.
    limit_s          seconds that the training is given; none: it is given epochs.
    tell             is told (once) of a loss that is far above those before it.
    """

    title: str
    lr_setting: str
    max_epochs: int
    on_tick: OnTick
    modules: Sequence[nn.Module]
    patience: int | None = None
    first_epoch: int = 1
    limit_s: float | None = None
    tell: Callable[[str], None] = lambda _: None
    history: History[Epoch] = field(default_factory=lambda: History(Epoch))
    best_epoch: Epoch | None = None
    best_score: Score | None = None
    _weights: list[dict[str, Tensor]] = field(default_factory=list)
    _metrics: Mapping[str, float] = field(default_factory=dict)
    _clock: Stopwatch = field(default_factory=Stopwatch)
    _spike_told: bool = False

    @property
    def epoch(self) -> int:
        """Number of the epoch that is not finished yet."""
        return self.first_epoch + len(self.history)

    @property
    def seconds_s(self) -> float:
        """Seconds of the training so far, without those in which it was stopped."""
        return self._clock.seconds_s

    def step(self, share: float, train_nll: float, metrics: Mapping[str, float] | None = None) -> None:
        """Tell of one step: the share of the epoch done, its mean NLL so far in nats, more metrics."""
        self._metrics = metrics or {}
        if share < 1:
            shown = {"train PPL": perplexity(train_nll)}
            if self.history:
                shown["val PPL"] = perplexity(self.history[-1].validation_nll_nats)
            self._tell(self.epoch - 1 + share, shown)

    def end_epoch(
        self, train_nll: float, score: Score, positions: int | None = None, position_sum: int | None = None
    ) -> bool:
        """Add the epoch to the history; whether it is the best so far, and its weights were kept.

        The counts are as of the record.

        Raises NonFiniteLossError where the validation loss is not finite.
        """
        self.check_finite(score.nll_nats, 0.0, "validation")
        epoch = Epoch(
            epoch=self.epoch,
            train_nll_nats=train_nll,
            validation_nll_nats=score.nll_nats,
            validation_accuracy=score.accuracy,
            seconds_s=self._clock.seconds_s,
            positions=positions,
            position_sum=position_sum,
        )
        self.history.append(epoch)
        metrics = {"train PPL": perplexity(train_nll), "val PPL": score.perplexity, "val acc": score.accuracy}
        self._tell(epoch.epoch, metrics)
        best = self.best_score is None or score.nll_nats < self.best_score.nll_nats
        if best:
            self.best_epoch, self.best_score = epoch, score
            self._weights = [
                {name: value.clone() for name, value in module.state_dict().items()}
                for module in self.modules
            ]
        return best

    @property
    def out_of_patience(self) -> bool:
        """Whether so many epochs in a row were no better that training is to end."""
        if self.best_epoch is None or self.patience is None:
            return False
        return self.history[-1].epoch - self.best_epoch.epoch >= self.patience

    def restore_best(self) -> Score:
        """Put the weights of the best epoch back; returns its score."""
        assert self.best_score is not None  # max_epochs is at least 1, and a non-finite epoch has raised
        for module, weights in zip(self.modules, self._weights, strict=True):
            module.load_state_dict(weights)
        return self.best_score

    def record(
        self, parts: tuple[PartRecord, ...] = (), micro_batches: int = 1, steps: int | None = None
    ) -> TrainingRecord:
        """How the training went, at its best epoch; arguments as of the record's fields."""
        assert self.best_epoch is not None
        by_epochs: Literal["patience", "max_epochs"] = "patience" if self.out_of_patience else "max_epochs"
        return TrainingRecord(
            best_epoch=self.best_epoch.epoch,
            epochs=self.history[-1].epoch,
            stopped=by_epochs if self.limit_s is None else "seconds",
            train_nll_nats=self.best_epoch.train_nll_nats,
            train_perplexity=perplexity(self.best_epoch.train_nll_nats),
            seconds_s=self._clock.seconds_s,
            history=tuple(self.history),
            parts=parts,
            micro_batches=micro_batches,
            steps=steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """The history, the best epoch with its score and weights, and the seconds so far."""
        return {
            "history": self.history.state_dict(),
            "best_epoch": self.best_epoch and self.best_epoch.epoch,
            "best_score": None if self.best_score is None else vars(self.best_score),
            "weights": self._weights,
            "clock": self._clock.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.history.load_state_dict(state["history"])
        self.best_epoch = next((epoch for epoch in self.history if epoch.epoch == state["best_epoch"]), None)
        self.best_score = None if state["best_score"] is None else Score(**state["best_score"])
        self._weights = state["weights"]
        self._clock.load_state_dict(state["clock"])

    def check_step(
        self, loss: float, gradient_norm: float, cursor: Cursor, read: Callable[[], str] = str
    ) -> None:
        """Raises NonFiniteLossError for a step that `cursor` does not count yet; `read` says what it read.

        A loss that is SPIKE times the mean so far is told once: clipping makes its gradient small.
        """
        where = f"step {cursor.steps + 1}"
        self.check_finite(loss, gradient_norm, where, read)
        if cursor.steps and loss > SPIKE * cursor.mean_loss and not self._spike_told:
            self._spike_told = True
            self.tell(
                f"the loss of {self.title} is {loss:.4g} in epoch {self.epoch}, {where}{read()}, "
                f"and the mean before it {cursor.mean_loss:.4g}; its gradient is clipped and training goes on"
            )

    def check_finite(
        self, loss: float, gradient_norm: float, where: str, read: Callable[[], str] = str
    ) -> None:
        """Raises NonFiniteLossError, with the last good values, where either is not finite."""
        if is_finite(loss, gradient_norm):
            return
        last = "no epoch before it was good"
        if self.history:
            good = self.history[-1]
            last = (
                f"last good values: epoch {good.epoch}, training PPL {perplexity(good.train_nll_nats):.4g}, "
                f"validation PPL {perplexity(good.validation_nll_nats):.4g}"
            )
        stopped = f"{self.title} was stopped at epoch {self.epoch}, {where}{read()}"
        NonFiniteLossError.check(loss, gradient_norm, stopped, last, self.lr_setting)

    def _tell(self, epochs: float, metrics: dict[str, float]) -> None:
        done, limit, unit = epochs, self.max_epochs, "epoch"
        if self.limit_s is not None:
            done, limit, unit = min(self.seconds_s, self.limit_s), math.ceil(self.limit_s), "second"
        self.on_tick(Tick(self.title, done, limit, unit, {**metrics, **self._metrics}))
