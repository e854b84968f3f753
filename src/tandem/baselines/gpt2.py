"""The GPT-2 baseline; how it is built, trained and scored is in `gpt2_network`."""

from tandem.baselines.base import Baseline, BaselineInputs, Fitted
from tandem.settings import Settings


class Gpt2Baseline(Baseline):
    """A GPT-2, as wide as the parameters allow."""

    title = "GPT-2"
    description = "GPT-2 (transformer)"
    section = "baselines.gpt2"
    sized = True

    def fit(self, inputs: BaselineInputs) -> Fitted:
        """See Baseline."""
        from tandem.baselines.gpt2_network import fit_gpt2

        assert inputs.seed is not None
        return fit_gpt2(
            inputs.task,
            inputs.max_parameters,
            inputs.settings.baselines.gpt2,
            inputs.seed,
            inputs.device,
            inputs.settings.phase2.chunk_positions,
            inputs.on_tick,
            inputs.execution,
        )

    def least_parameters(self, settings: Settings, vocab_size: int) -> int:
        """Of one whose heads have width 1."""
        from tandem.baselines.gpt2_network import parameter_count

        own = settings.baselines.gpt2
        return parameter_count(vocab_size, own.heads, own)
