"""The n-gram baselines behind one function."""

import time
from typing import Literal

import numpy as np

from tandem.baselines.kneser_ney import KneserNey
from tandem.baselines.task import Fitted, Ids, Task
from tandem.metrics import Score


def fit_ngram(kind: Literal["kneser-ney", "bigram", "unigram"], task: Task, order: int = 5) -> Fitted:
    """Count the training stream and score the validation stream; nothing is drawn at random.

    kneser-ney    interpolated modified Kneser-Ney with n-grams of up to `order` tokens
    bigram        the same with order 2, whatever `order` is
    unigram       relative frequencies with one added to every count (Laplace), whatever `order` is

    Raises ValueError if a Kneser-Ney order is below 2.
    """
    began = time.perf_counter()
    if kind == "unigram":
        score, kept = _unigram(task.train, task.validation, task.vocab_size)
    else:
        model = KneserNey.fit(task.train, task.vocab_size, 2 if kind == "bigram" else order)
        score, kept = model.score(task.validation), model.ngrams
    return Fitted(score, 0, kept, None, time.perf_counter() - began)


def _unigram(train: Ids, validation: Ids, vocab_size: int) -> tuple[Score, int]:
    """Score of p(w) = (count(w) + 1) / (T + V), and how many distinct tokens were counted."""
    counts = np.bincount(train, minlength=vocab_size)
    targets = validation[1:]
    losses = np.log(len(train) + vocab_size) - np.log(counts[targets] + 1.0)
    correct = int(np.count_nonzero(targets == counts.argmax()))
    return Score.of(losses.astype(np.float32), correct), int(np.count_nonzero(counts))
