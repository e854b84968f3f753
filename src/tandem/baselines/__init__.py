"""Language models that people would use instead, trained and scored on the same token streams.

Shape letters: T tokens, V vocabulary, E embedding width, H hidden width, B batch.
"""

from tandem.baselines.gpt2 import fit_gpt2
from tandem.baselines.lstm import fit_lstm
from tandem.baselines.ngram import fit_ngram
from tandem.baselines.task import Fitted, Task

__all__ = ["Fitted", "Task", "fit_gpt2", "fit_lstm", "fit_ngram"]
