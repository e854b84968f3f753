"""A filter for NeMo Curator's pipelines, which have to be installed: `pip install nemo-curator`."""

from pathlib import Path

from nemo_curator.stages.text.filters.doc_filter import DocumentFilter

from tandem.scoring.files import Limits
from tandem.scoring.scorer import Scorer


class TandemDocumentFilter(DocumentFilter):
    """Scores documents by their perplexity (infinite without figures), and keeps those within limits."""

    def __init__(
        self, model: str, min_perplexity: float | None = None, max_perplexity: float | None = None
    ) -> None:
        super().__init__()
        self._model, self._limits = model, Limits(min_perplexity, max_perplexity)
        self._scorer: Scorer | None = None

    def score_document(self, text: str) -> float:
        """As of DocumentFilter; the model is loaded with the first document."""
        if self._scorer is None:
            self._scorer = Scorer(Path(self._model))
        perplexity = self._scorer.score([text])[0].perplexity
        return float("inf") if perplexity is None else perplexity

    def keep_document(self, scores: float) -> bool:
        """As of DocumentFilter."""
        return self._limits.keeps({"perplexity": scores if scores < float("inf") else None})
