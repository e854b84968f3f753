"""The control of phase 1: Tandem models whose ContextBlock stays as it was drawn."""

from tandem.baselines.base import Baseline, BaselineInputs, Fitted
from tandem.settings import Configuration, Settings


class UntrainedBaseline(Baseline):
    """Tandem models without phase 1."""

    title = "untrained"
    description = "without phase 1, the ContextBlock stays as it was drawn"

    def fit(self, inputs: BaselineInputs) -> Fitted:  # noqa: ARG002
        """Not called: the experiment trains its configurations as it trains all Tandem models."""
        raise TypeError("a control is trained as a Tandem model")

    def configurations(self, settings: Settings) -> tuple[Configuration, ...]:
        """Those that the settings name; none: the first that is compared."""
        depths = settings.baselines.untrained
        return settings.grid[:1] if depths is None else tuple(Configuration(*pair) for pair in depths)
