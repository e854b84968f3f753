"""What every baseline is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.metrics import Score
from tandem.records import TrainingRecord

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Task:
    """The streams to learn from and to be scored on.

    train         [T] token ids (uint16 or int32, may be memory-mapped), at least two
    validation    [T'] token ids, at least two
    vocab_size    V; every id is below it
    """

    train: Ids
    validation: Ids
    vocab_size: int


@dataclass(frozen=True)
class Fitted:
    """A baseline after training.

    score                   on validation: every token but the first, in stream order
    embedding_parameters    of the tied embedding; 0 for n-gram models
    other_parameters        all the others; of n-gram models the n-grams they keep
    training                how it went; None for n-gram models
    seconds_s               training and scoring
    score_stream            scores any other stream [T] of the same vocabulary with the trained model
    """

    score: Score
    embedding_parameters: int
    other_parameters: int
    training: TrainingRecord | None
    seconds_s: float
    score_stream: Callable[[Ids], Score] = field(repr=False, compare=False)
