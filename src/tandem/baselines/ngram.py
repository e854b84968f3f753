"""The n-gram baselines behind one function."""

import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from tandem.baselines.kneser_ney import KneserNey
from tandem.baselines.task import Fitted, Ids, Task
from tandem.metrics import Score
from tandem.tokens.store import token_counts


def fit_ngram(kind: Literal["kneser-ney", "bigram", "unigram"], task: Task, order: int = 5) -> Fitted:
    """Count the training stream and score the validation stream; nothing is drawn at random.

    kneser-ney    interpolated modified Kneser-Ney with n-grams of up to `order` tokens
    bigram        the same with order 2, whatever `order` is
    unigram       relative frequencies with one added to every count (Laplace), whatever `order` is

    Raises ValueError if a Kneser-Ney order is below 2.
    """
    began = time.perf_counter()
    score: Callable[[Ids], Score]
    if kind == "unigram":
        counts = token_counts(task.train, task.vocab_size)
        score, kept = partial(_score_unigram, counts), int(np.count_nonzero(counts))
    else:
        model = KneserNey.fit(task.train, task.vocab_size, 2 if kind == "bigram" else order)
        score, kept = model.score, model.ngrams
    return Fitted(score(task.validation), 0, kept, None, time.perf_counter() - began, score)


def _score_unigram(counts: npt.NDArray[np.int64], ids: Ids) -> Score:
    """Score of p(w) = (count(w) + 1) / (T + V), from the counts [V] of T tokens."""
    targets = ids[1:]
    losses = np.log(counts.sum() + len(counts)) - np.log(counts[targets] + 1.0)
    correct = int(np.count_nonzero(targets == counts.argmax()))
    return Score.of(losses.astype(np.float32), correct)
