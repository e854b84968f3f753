"""The n-gram baselines: nothing is drawn at random."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tandem.baselines.base import Baseline, BaselineInputs, Fitted, Ids
from tandem.settings import Settings

if TYPE_CHECKING:
    from tandem.metrics import Score


class NgramBaseline(Baseline):
    """What n-gram models have in common."""

    seeded = False


class KneserNeyBaseline(NgramBaseline):
    """Interpolated modified Kneser-Ney with n-grams of up to `baselines.order` tokens."""

    title = "KN"
    description = "n-gram model, modified Kneser-Ney smoothing"
    memory_settings = ("baselines.order",)

    def fit(self, inputs: BaselineInputs) -> Fitted:
        return fit_kneser_ney(inputs, inputs.settings.baselines.order)

    def label(self, settings: Settings) -> str:
        """Such as KN-5."""
        return f"{self.title}-{settings.baselines.order}"

    def depends_on(self, settings: Settings, max_parameters: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Its order."""
        return {"order": settings.baselines.order}


class BigramBaseline(NgramBaseline):
    """Kneser-Ney of order 2."""

    title = "bigram"
    description = "bigram model"

    def fit(self, inputs: BaselineInputs) -> Fitted:
        return fit_kneser_ney(inputs, 2)


class UnigramBaseline(NgramBaseline):
    """Relative frequencies with one added to every count (Laplace)."""

    title = "unigram"
    description = "frequency of single tokens"

    def fit(self, inputs: BaselineInputs) -> Fitted:
        return fit_unigram(inputs)


def fit_kneser_ney(inputs: BaselineInputs, order: int) -> Fitted:
    """Count the n-grams of the training stream and score validation. Raises ValueError for orders below 2."""
    from tandem.baselines.kneser_ney import KneserNey

    began = time.perf_counter()
    model = KneserNey.fit(inputs.train, inputs.vocab_size, order)
    return _fitted(inputs, model.score, model.ngrams, began)


def fit_unigram(inputs: BaselineInputs) -> Fitted:
    """Count the tokens of the training stream and score validation, by p(w) = (count(w) + 1) / (T + V)."""
    from tandem.metrics import Score
    from tandem.tokens.store import token_counts

    began = time.perf_counter()
    counts = token_counts(inputs.train, inputs.vocab_size)

    def score(ids: Ids) -> Score:
        targets = ids[1:]
        losses = np.log(counts.sum() + len(counts)) - np.log(counts[targets] + 1.0)
        return Score.of(losses.astype(np.float32), int(np.count_nonzero(targets == counts.argmax())))

    return _fitted(inputs, score, int(np.count_nonzero(counts)), began)


def _fitted(inputs: BaselineInputs, score: "Callable[[Ids], Score]", ngrams: int, began: float) -> Fitted:
    return Fitted(score(inputs.validation), 0, ngrams, None, time.perf_counter() - began, score)
