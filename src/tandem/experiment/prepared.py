"""What all runs of one variant share: text, tokens, embeddings; and the models that start from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from tandem.contexts import Stream
from tandem.errors import DataError, MisfitError
from tandem.experiment.machine import choose_device, uses_bfloat16
from tandem.experiment.misfits import config_for, misfits, parameters_for
from tandem.group import PLAIN, Execution
from tandem.model import TandemForCausalLM
from tandem.objectives import OBJECTIVES
from tandem.records import DataRecord, Precision
from tandem.settings import Configuration, Settings, TokenizerSettings
from tandem.text.splits import Splits
from tandem.tokens.embeddings import embedding_table, table_seed
from tandem.tokens.prepare import Corpus, default_cache_dir, prepare_corpus, read_splits
from tandem.tokens.store import token_counts
from tandem.tokens.tokenizer import VOCABULARY, VocabularyError
from tandem.training.initialization import generator_for, initialize_block


@dataclass(frozen=True)
class TrainingInputs:
    """What all runs of one variant share.

    table        of a seed: [V, E] float32, the embedding that its runs start from, and its fingerprint.
    execution    how each run is trained.
    """

    settings: Settings
    corpus: Corpus
    table: Callable[[int], tuple[npt.NDArray[np.float32], str]]
    device: torch.device
    execution: Execution = PLAIN

    @property
    def precision(self) -> Precision:
        """In which matrices are multiplied in training."""
        return "bfloat16" if self.execution.bfloat16 else "float32"

    def data_record(self, seed: int | None) -> DataRecord:
        """Provenance of text, tokens and embeddings, for a run with this seed."""
        corpus = self.corpus
        return DataRecord(
            train_source=corpus.train_source,
            validation_source=corpus.validation_source,
            train_documents=len(corpus.train.document_starts),
            train_tokens=len(corpus.train),
            train_bytes=int(corpus.train.document_bytes.sum()),
            validation_documents=len(corpus.validation.document_starts),
            validation_tokens=len(corpus.validation),
            validation_bytes=int(corpus.validation.document_bytes.sum()),
            duplicates_dropped=corpus.duplicates_dropped,
            overlap_documents=corpus.overlap_documents,
            train_lost_bytes=corpus.train.lost.bytes,
            validation_lost_bytes=corpus.validation.lost.bytes,
            vocab_size=corpus.vocab_size,
            tokenizer=self.settings.tokenizer.source,
            text_fingerprint=corpus.text_fingerprint,
            tokenizer_fingerprint=corpus.tokenizer_fingerprint,
            tokens_fingerprint=corpus.fingerprint,
            embeddings=self.settings.embeddings.source,
            embeddings_trained=self.settings.embeddings.trained,
            embeddings_fingerprint=self.table(seed or 0)[1],
        )


def prepare(settings: Settings, on_progress: Callable[[str], None]) -> TrainingInputs:
    """Read, split and tokenize the text, and make the embedding table; cached by content.

    Raises DataError for text that cannot be used, MisfitError for settings that do not fit it or each other.
    """
    splits = read_splits(settings.data, default_cache_dir(), on_progress)
    corpus = _fitting_corpus(settings, {None: settings}, splits, on_progress, baselines=False)
    return _prepared(settings, corpus, on_progress)


def prepare_variants(
    settings: Settings, on_progress: Callable[[str], None], splits: Splits | None = None
) -> dict[str | None, TrainingInputs]:
    """As `prepare`, for every variant of the settings by its name, on the same tokens, maybe of `splits`."""
    variants = {name: settings.with_variant(name) for name in settings.variant_names}
    splits = splits or read_splits(settings.data, default_cache_dir(), on_progress)
    corpus = _fitting_corpus(settings, variants, splits, on_progress, baselines=True)
    return {name: _prepared(one, corpus, on_progress) for name, one in variants.items()}


def _fitting_corpus(
    settings: Settings,
    variants: Mapping[str | None, Settings],
    splits: Splits,
    on_progress: Callable[[str], None],
    baselines: bool,
) -> Corpus:
    """The tokens of the text. Raises MisfitError, with all that does not fit, or DataError."""

    def tokens(tokenizer: TokenizerSettings) -> Corpus:
        return prepare_corpus(settings.data, tokenizer, default_cache_dir(), on_progress, splits)

    found: list[MisfitError] = []
    try:
        corpus = tokens(settings.tokenizer)
    except VocabularyError as error:
        # Only with the vocabulary that fits is it seen what else does not.
        found.append(error)
        try:
            corpus = tokens(settings.tokenizer.model_copy(update={"vocab_size": error.fitting[VOCABULARY]}))
        except DataError as other:
            raise MisfitError.of_all([error, MisfitError.of(str(other), {})]) from None
    found += misfits(variants, settings.variants, corpus, baselines)
    if found:
        raise MisfitError.of_all(found)
    return corpus


def _prepared(settings: Settings, corpus: Corpus, on_progress: Callable[[str], None]) -> TrainingInputs:
    on_progress(f"embeddings: {settings.embeddings.source}")
    embed_dim, device = settings.model.embed_dim, choose_device(settings.device)

    @lru_cache(1)  # a run asks several times, and large tables are many megabytes
    def table(seed: int) -> tuple[npt.NDArray[np.float32], str]:
        return embedding_table(settings.embeddings, corpus, embed_dim, default_cache_dir(), seed)

    table(0)  # a source that cannot be used is told at once
    execution = Execution(bfloat16=uses_bfloat16(settings.precision, device))
    own = settings.embeddings
    return TrainingInputs(settings, corpus, lambda seed: table(table_seed(own, seed)), device, execution)


def in_precision(
    variants: Mapping[str | None, TrainingInputs], precision: Precision
) -> dict[str | None, TrainingInputs]:
    """The same, to be trained in this precision."""
    return {
        name: replace(one, execution=replace(one.execution, bfloat16=precision == "bfloat16"))
        for name, one in variants.items()
    }


def total_parameters(prepared: TrainingInputs, configuration: Configuration) -> int:
    """Of a model of one configuration, without making it."""
    return parameters_for(prepared.settings, prepared.corpus, configuration)


def new_model(prepared: TrainingInputs, configuration: Configuration, seed: int) -> TandemForCausalLM:
    """The untrained model of one run, on its device; a block's weights depend on its depth and the seed."""
    corpus = prepared.corpus
    model = TandemForCausalLM(config_for(prepared.settings, corpus, configuration)).eval()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.from_numpy(prepared.table(seed)[0]))
        if model.lm_head.bias is not None:
            counts = token_counts(corpus.train.ids, corpus.vocab_size)
            # Half an occurrence for what never occurs.
            model.lm_head.bias.copy_(torch.from_numpy((counts + 0.5) / (counts + 0.5).sum()).log())
    for name, block, depth in (
        ("context_block", model.context_block, configuration.context_layers),
        ("token_block", model.token_block, configuration.token_layers),
    ):
        initialize_block(block, model, generator_for(seed, name, depth))
    OBJECTIVES[prepared.settings.recipe].start(model, prepared.settings)
    return model.to(prepared.device)


def streams(prepared: TrainingInputs, model: TandemForCausalLM) -> tuple[Stream, Stream]:
    """Training and validation text, as the model reads them."""
    train, validation = (
        Stream.of(model, split.ids, split.document_starts)
        for split in (prepared.corpus.train, prepared.corpus.validation)
    )
    return train, validation
