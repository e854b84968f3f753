"""What the runs of an experiment started from, as the audit makes it again: text, tokens and embeddings."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from tandem.baselines import BaselineInputs
from tandem.group import PLAIN
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.records import DataRecord
from tandem.settings import Settings
from tandem.text.places import counted_from, source_folder
from tandem.tokens.embeddings import embedding_table, table_seed
from tandem.tokens.prepare import Corpus, default_cache_dir

Depths = tuple[int, int]
"""Context layers and token layers."""


@dataclass(frozen=True)
class AuditInputs:
    """Those of one variant.

    table    of a seed: [V, E] float32, the embedding that its runs start from, and its fingerprint.
    """

    settings: Settings
    corpus: Corpus
    device: torch.device
    table: Callable[[int], tuple[npt.NDArray[np.float32], str]]

    @classmethod
    def of(cls, settings: Settings, corpus: Corpus, device: torch.device) -> "AuditInputs":
        """By the settings of the variant."""
        size, place = settings.model.embed_dim, source_folder()

        @lru_cache(1)  # runs of one seed follow on each other, and large tables are many megabytes
        def table(seed: int) -> tuple[npt.NDArray[np.float32], str]:
            with counted_from(place):  # from where the run was started, also when it is asked for later
                return embedding_table(settings.embeddings, corpus, size, default_cache_dir(), seed)

        own = settings.embeddings
        return cls(settings, corpus, device, lambda seed: table(table_seed(own, seed)))

    def config(self, depths: Depths) -> TandemConfig:
        """The configuration of a model of these depths."""
        model, eos = self.settings.model, self.corpus.eos_token_id
        return TandemConfig(
            vocab_size=self.corpus.vocab_size,
            embed_dim=model.embed_dim,
            context_dim=model.context_dim,
            context_layers=depths[0],
            token_layers=depths[1],
            cell=model.cell,
            token_projection=model.token_projection,
            output_bias=model.output_bias,
            boundary=model.boundary,
            weight_init_std=model.weight_init_std,
            bias_init_std=model.bias_init_std,
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=eos,
        )

    def smallest(self) -> int:
        """Parameters of its smallest configuration, which a baseline may have."""
        with torch.device("meta"):
            models = (TandemForCausalLM(self.config(depths)) for depths in self.settings.configurations)
            return min(model.num_params()["total"] for model in models)

    def for_baseline(self, seed: int | None) -> BaselineInputs:
        """What a baseline of another package is fitted with again."""
        allowed = self.settings.baselines.max_parameters
        return BaselineInputs(
            self.corpus.train.ids,
            self.corpus.validation.ids,
            self.corpus.vocab_size,
            self.settings,
            self.smallest() if allowed is None else allowed,
            seed,
            self.device,
            PLAIN,
            lambda _: None,
        )

    def data_record(self, seed: int | None) -> DataRecord:
        """What a record says of the data, counted again."""
        corpus, settings = self.corpus, self.settings
        train, validation = corpus.train, corpus.validation
        return DataRecord(
            train_source=settings.data.train,
            validation_source=settings.data.validation
            or f"{100 * settings.data.validation_fraction:g}% of {settings.data.train}",
            train_documents=len(train.document_starts),
            train_tokens=len(train.ids),
            train_bytes=int(train.document_bytes.sum()),
            validation_documents=len(validation.document_starts),
            validation_tokens=len(validation.ids),
            validation_bytes=int(validation.document_bytes.sum()),
            duplicates_dropped=corpus.duplicates_dropped,
            overlap_documents=corpus.overlap_documents,
            train_lost_bytes=train.lost.bytes,
            validation_lost_bytes=validation.lost.bytes,
            vocab_size=corpus.vocab_size,
            tokenizer=settings.tokenizer.source,
            text_fingerprint=corpus.text_fingerprint,
            tokenizer_fingerprint=corpus.tokenizer_fingerprint,
            tokens_fingerprint=corpus.fingerprint,
            embeddings=settings.embeddings.source,
            embeddings_trained=settings.embeddings.trained,
            embeddings_fingerprint=self.table(seed or 0)[1],
        )


def measured_by(variants: Iterable[AuditInputs]) -> AuditInputs:
    """The variant by whose sizes baselines are measured: its smallest configuration is the largest."""
    return max(variants, key=AuditInputs.smallest)
