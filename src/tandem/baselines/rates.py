"""The learning rate of a network: its own, or the one of several with which it validates best."""

from collections.abc import Sequence
from typing import Any

from tandem.records import RateTrial
from tandem.training.checkpoint import History


class RateSearch:
    """One training with each of the rates, then one more with the best; checkpoints know which one is on.

    trials    the trainings that are behind it.
    """

    def __init__(self, rates: Sequence[float], own: float) -> None:
        """Without `rates` there is only the training with the `own` one."""
        self.rates = rates
        self.trials = History(RateTrial)
        self._own = own

    @property
    def lr(self) -> float:
        """Of the training that is on."""
        if len(self.trials) < len(self.rates):
            return self.rates[len(self.trials)]
        return min(self.trials, key=lambda trial: trial.validation_nll_nats).lr if self.trials else self._own

    def add(self, nll_nats: float, seconds_s: float) -> bool:
        """A training has ended; whether it was a trial, so that another one follows."""
        if len(self.trials) == len(self.rates):
            return False
        self.trials.append(RateTrial(lr=self.lr, validation_nll_nats=nll_nats, seconds_s=seconds_s))
        return True

    def state_dict(self) -> dict[str, Any]:
        return self.trials.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trials.load_state_dict(state)
