"""Language models that people would use instead, trained and scored on the same token streams.

Each is a `Baseline` of its own file, and a line of BASELINES.
Shape letters: T tokens, V vocabulary, E embedding width, H hidden width, B batch.
"""

from tandem.baselines.awd_lstm import AwdLstmBaseline
from tandem.baselines.base import Baseline, BaselineInputs, Fitted
from tandem.baselines.gpt2 import Gpt2Baseline
from tandem.baselines.lstm import LstmBaseline
from tandem.baselines.ngram import BigramBaseline, KneserNeyBaseline, UnigramBaseline
from tandem.baselines.transformer import TransformerBaseline
from tandem.baselines.untrained import UntrainedBaseline

BASELINES: dict[str, Baseline] = {
    "kneser-ney": KneserNeyBaseline(),
    "lstm": LstmBaseline(),
    "awd-lstm": AwdLstmBaseline(),
    "gpt2": Gpt2Baseline(),
    "transformer": TransformerBaseline(),
    "untrained": UntrainedBaseline(),
    "bigram": BigramBaseline(),
    "unigram": UnigramBaseline(),
}
"""By kind, in the order in which they are listed."""

__all__ = ["BASELINES", "Baseline", "BaselineInputs", "Fitted"]
