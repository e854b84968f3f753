"""A filter for datatrove's pipelines, which have to be installed: `pip install datatrove`."""

from pathlib import Path
from typing import Any

from datatrove.pipeline.filters.base_filter import BaseFilter

from tandem.scoring.files import Limits
from tandem.scoring.scorer import Scorer


class TandemFilter(BaseFilter):
    """Keeps documents by their perplexity, which goes into their metadata.

    Other arguments are those of BaseFilter.
    """

    name = "Tandem perplexity"

    def __init__(
        self,
        model: str,
        min_perplexity: float | None = None,
        max_perplexity: float | None = None,
        batch_size: int = 1024,
        **more: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **more)
        self._model, self._limits = model, Limits(min_perplexity, max_perplexity)
        self._scorer: Scorer | None = None

    def filter(self, doc: Any) -> bool | tuple[bool, str]:
        """As of BaseFilter: of one document."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Any]) -> list[bool | tuple[bool, str]]:
        """As of BaseFilter; the model is loaded with the first batch, in the process that runs the step."""
        if self._scorer is None:
            self._scorer = Scorer(Path(self._model))
        verdicts: list[bool | tuple[bool, str]] = []
        for doc, score in zip(batch, self._scorer.score([doc.text for doc in batch]), strict=True):
            doc.metadata["perplexity"] = score.perplexity
            passes = self._limits.keeps({"perplexity": score.perplexity})
            verdicts.append(True if passes else (False, "perplexity"))
        return verdicts
