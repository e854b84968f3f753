"""The LSTM baseline; its network is in `lstm_network`."""

from tandem.baselines.base import Baseline, BaselineInputs, Fitted
from tandem.settings import Settings


class LstmBaseline(Baseline):
    """An LSTM, as wide as the parameters allow."""

    title = "LSTM"
    description = "LSTM (recurrent network)"
    section = "baselines.lstm"
    sized = True

    def fit(self, inputs: BaselineInputs) -> Fitted:
        """See Baseline."""
        from tandem.baselines.lstm_network import fit_lstm

        assert inputs.seed is not None
        return fit_lstm(
            inputs.task,
            inputs.settings.model.embed_dim,
            inputs.max_parameters,
            inputs.settings.baselines.lstm,
            inputs.seed,
            inputs.device,
            inputs.settings.phase2.chunk_positions,
            inputs.on_tick,
            inputs.execution,
        )

    def least_parameters(self, settings: Settings, vocab_size: int) -> int:
        """Of one of width 1."""
        from tandem.baselines.lstm_network import parameter_count

        return parameter_count(vocab_size, settings.model.embed_dim, 1, settings.baselines.lstm.layers)
