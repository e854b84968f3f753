"""What every training by epochs keeps and tells: its history, its ticks, and its refusal of a bad step."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from tandem.errors import NonFiniteLossError
from tandem.metrics import Score, perplexity
from tandem.records import Epoch
from tandem.training.progress import OnTick, Tick


@dataclass
class Epochs:
    """Epochs so far, told to whoever watches; a loss that is not finite ends the training here.

    title         what is trained, for people: "phase 2", "LSTM"
    lr_setting    the learning rate's name
    first         number of the first epoch; 0 is what training starts from
    also          further figures to show with every tick
    """

    title: str
    lr_setting: str
    limit: int
    on_tick: OnTick
    first: int = 1
    history: list[Epoch] = field(default_factory=list)
    also: Mapping[str, float] = field(default_factory=dict)
    first_loss: float = math.nan
    positions: int = 0
    began: float = field(default_factory=time.perf_counter)

    @property
    def next(self) -> int:
        """Number of the epoch that is not done yet."""
        return self.first + len(self.history)

    @property
    def seconds_s(self) -> float:
        """Since training began."""
        return time.perf_counter() - self.began

    def step_done(self, share: float, train_nll: float) -> None:
        """One step; so much of the epoch is done, with this mean NLL so far, in nats."""
        figures = {"train PPL": perplexity(train_nll)}
        if self.history:
            figures["val PPL"] = perplexity(self.history[-1].validation_nll_nats)
        if share < 1:
            self._tick(self.next - 1 + share, figures)

    def epoch_done(self, train_nll: float, score: Score) -> Epoch:
        """The epoch that just ended, added to the history. Raises NonFiniteLossError if it scored nothing."""
        if not score.nll_nats < math.inf:
            self.not_finite(score.nll_nats, "validation")
        epoch = Epoch(
            epoch=self.next,
            train_nll_nats=train_nll,
            validation_nll_nats=score.nll_nats,
            validation_accuracy=score.accuracy,
            seconds_s=self.seconds_s,
        )
        self.history.append(epoch)
        figures = {"train PPL": perplexity(train_nll), "val PPL": score.perplexity, "val acc": score.accuracy}
        self._tick(epoch.epoch, figures)
        return epoch

    def not_finite(self, loss: float, where: str) -> NoReturn:
        """Raises NonFiniteLossError, with the last good values."""
        last = "no epoch before it was good"
        if self.history:
            good = self.history[-1]
            last = (
                f"last good values: epoch {good.epoch}, training PPL {perplexity(good.train_nll_nats):.4g}, "
                f"validation PPL {perplexity(good.validation_nll_nats):.4g}"
            )
        raise NonFiniteLossError.of(
            f"{self.title} was stopped at epoch {self.next}, {where}", loss, last, self.lr_setting
        )

    def _tick(self, done: float, figures: dict[str, float]) -> None:
        self.on_tick(Tick(self.title, done, self.limit, "epoch", {**figures, **self.also}))
