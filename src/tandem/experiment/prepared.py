"""What all runs of one variant share: text, tokens, embeddings; and the models that start from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from tandem.contexts import Stream
from tandem.errors import SettingsError
from tandem.experiment.machine import choose_device, multiplies_bfloat16, uses_bfloat16
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.records import DataRecord, Precision
from tandem.settings import Configuration, Settings
from tandem.text.splits import Splits
from tandem.tokens.embeddings import embedding_table
from tandem.tokens.prepare import Corpus, default_cache_dir, prepare_corpus
from tandem.tokens.store import token_counts
from tandem.training.execution import PLAIN, Execution
from tandem.training.initialization import generator_for, initialize_block


@dataclass(frozen=True)
class Prepared:
    """What all runs of one variant share.

    table        [V, E] float32: the embedding they start from
    execution    how each run is trained
    """

    settings: Settings
    corpus: Corpus
    table: npt.NDArray[np.float32]
    table_fingerprint: str
    device: torch.device
    execution: Execution = PLAIN

    @property
    def precision(self) -> Precision:
        """In which matrices are multiplied in training."""
        return "bfloat16" if self.execution.bfloat16 else "float32"

    def data_record(self) -> DataRecord:
        """Provenance of text, tokens and embeddings."""
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
            embeddings_fingerprint=self.table_fingerprint,
        )


def prepare(settings: Settings, on_progress: Callable[[str], None], splits: Splits | None = None) -> Prepared:
    """Read (or take `splits`), split and tokenize the text, and make the embedding table; cached by content.

    Raises DataError for text that cannot be used, SettingsError for sizes that do not fit it.
    """
    corpus = prepare_corpus(settings.data, settings.tokenizer, default_cache_dir(), on_progress, splits)
    _tell_of_bfloat16(settings, on_progress)
    return _prepared(settings, corpus, on_progress)


def prepare_variants(
    settings: Settings, on_progress: Callable[[str], None], splits: Splits | None = None
) -> dict[str | None, Prepared]:
    """As `prepare`, for every variant of the settings by its name, all on the same tokens."""
    corpus = prepare_corpus(settings.data, settings.tokenizer, default_cache_dir(), on_progress, splits)
    _tell_of_bfloat16(settings, on_progress)
    return {
        name: _prepared(settings.with_variant(name), corpus, on_progress) for name in settings.variant_names
    }


def in_precision(variants: Mapping[str | None, Prepared], precision: Precision) -> dict[str | None, Prepared]:
    """The same, to be trained in this precision."""
    return {
        name: replace(one, execution=replace(one.execution, bfloat16=precision == "bfloat16"))
        for name, one in variants.items()
    }


def _tell_of_bfloat16(settings: Settings, on_progress: Callable[[str], None]) -> None:
    if (
        settings.precision == "auto"
        and choose_device(settings.device).type == "cpu"
        and multiplies_bfloat16()
    ):
        on_progress("this processor has matrix units for bf16: --precision bfloat16 trains faster on it")


def _prepared(settings: Settings, corpus: Corpus, on_progress: Callable[[str], None]) -> Prepared:
    _check_sizes(settings, corpus)
    on_progress(f"embeddings: {settings.embeddings.source}")
    table, table_fingerprint = embedding_table(
        settings.embeddings, corpus, settings.model.embed_dim, default_cache_dir()
    )
    device = choose_device(settings.device)
    execution = Execution(bfloat16=uses_bfloat16(settings.precision, device))
    return Prepared(settings, corpus, table, table_fingerprint, device, execution)


def _check_sizes(settings: Settings, corpus: Corpus) -> None:
    tokens = len(corpus.train)
    swept = min(settings.phase1.tokens_per_step or tokens, tokens)
    seed_recipe = settings.recipe == "seed"
    for key, batch, there in (
        *([("phase1.batch_positions", settings.phase1.batch_positions, swept)] if seed_recipe else []),
        ("phase2.batch_positions", settings.phase2.batch_positions, tokens - 1),
    ):
        if batch > there:
            raise SettingsError(
                f"setting {key} = {batch} is larger than the {there} positions of training text; "
                f"lower --{key.replace('_', '-')} or give more text"
            )
    for configuration in settings.grid:
        if settings.model.cell == "gated" and settings.model.context_dim % configuration.context_layers:
            raise SettingsError(
                f"setting model.context_dim = {settings.model.context_dim} cannot be shared evenly by "
                f"{configuration.context_layers} gated layers; give a multiple of that"
            )
    if settings.recipe == "seed" and settings.phase2.start == "phase1":
        raise SettingsError(
            "setting phase2.start = 'phase1' belongs to recipe predictive; phase 1 of recipe seed has no "
            "token layers to start from: use random"
        )
    if settings.recipe == "predictive" and settings.embeddings.trained:
        raise SettingsError(
            "setting embeddings.trained = True belongs to recipe seed; the recipe predictive trains the "
            "embedding in phase 1 in any case, and leaves it as it is in phase 2: leave it out"
        )
    if settings.model.boundary == "reset" and (
        settings.data.separator != "eos" or settings.data.validation_separator not in (None, "eos")
    ):
        raise SettingsError(
            "setting model.boundary = 'reset' needs data.separator = 'eos': the end-of-text token is what "
            "starts a document"
        )


def model_config(prepared: Prepared, configuration: Configuration) -> TandemConfig:
    """The Hugging Face configuration of one of the experiment's models."""
    settings, eos = prepared.settings.model, prepared.corpus.eos_token_id
    return TandemConfig(
        vocab_size=prepared.corpus.vocab_size,
        embed_dim=settings.embed_dim,
        context_dim=settings.context_dim,
        context_layers=configuration.context_layers,
        token_layers=configuration.token_layers,
        cell=settings.cell,
        token_projection=settings.token_projection,
        output_bias=settings.output_bias,
        boundary=settings.boundary,
        weight_init_std=settings.weight_init_std,
        bias_init_std=settings.bias_init_std,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )


def total_parameters(prepared: Prepared, configuration: Configuration) -> int:
    """Of a model of one configuration, without making it."""
    with torch.device("meta"):
        return TandemForCausalLM(model_config(prepared, configuration)).num_params()["total"]


def new_model(prepared: Prepared, configuration: Configuration, seed: int) -> TandemForCausalLM:
    """The untrained model of one run, on its device; a block's weights depend on its depth and the seed."""
    model = TandemForCausalLM(model_config(prepared, configuration)).eval()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.from_numpy(prepared.table))
        if model.lm_head.bias is not None:
            counts = token_counts(prepared.corpus.train.ids, prepared.corpus.vocab_size)
            # Half an occurrence for what never occurs.
            model.lm_head.bias.copy_(torch.from_numpy((counts + 0.5) / (counts + 0.5).sum()).log())
    for name, block, depth in (
        ("context_block", model.context_block, configuration.context_layers),
        ("token_block", model.token_block, configuration.token_layers),
    ):
        initialize_block(block, model, generator_for(seed, name, depth))
    return model.to(prepared.device)


def streams(prepared: Prepared, model: TandemForCausalLM) -> tuple[Stream, Stream]:
    """Training and validation text, as the model reads them."""
    corpus = prepared.corpus
    return Stream.of(model, corpus.train.ids), Stream.of(model, corpus.validation.ids)
