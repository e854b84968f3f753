"""One run, from text to record: prepare once, phase 1 for each depth and seed, phase 2 for each run."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tandem.contexts import ContextsSample, Stream, compute_contexts
from tandem.errors import SettingsError
from tandem.experiment.machine import choose_device
from tandem.fingerprint import fingerprint
from tandem.metrics import effective_rank, perplexity, validation_record
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.records import (
    ContextsRecord,
    DataRecord,
    Parameters,
    Phase1Record,
    TrainingRecord,
    ValidationRecord,
)
from tandem.settings import Configuration, Settings
from tandem.text.splits import Splits
from tandem.tokens.embeddings import embedding_table
from tandem.tokens.prepare import Corpus, default_cache_dir, prepare_corpus
from tandem.training.initialization import generator_for, initialize_block
from tandem.training.phase1 import train_context_block
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import OnTick, silent


@dataclass(frozen=True)
class Prepared:
    """What all runs of an experiment share. table [V, E] float32: the embedding they start from."""

    settings: Settings
    corpus: Corpus
    table: npt.NDArray[np.float32]
    table_fingerprint: str
    device: torch.device

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
            vocab_size=corpus.vocab_size,
            tokenizer=self.settings.tokenizer.source,
            text_fingerprint=corpus.text_fingerprint,
            tokenizer_fingerprint=corpus.tokenizer_fingerprint,
            tokens_fingerprint=corpus.fingerprint,
            embeddings=self.settings.embeddings.source,
            embeddings_trained=self.settings.embeddings.trained,
            embeddings_fingerprint=self.table_fingerprint,
        )


@dataclass(frozen=True)
class TrainedContexts:
    """Phase 1 of one (context_layers, seed): its model, the contexts of both splits, and how it went.

    phase1    none of a control: its ContextBlock has the weights it started with
    """

    model: TandemForCausalLM
    train: Split
    validation: Split
    phase1: Phase1Record | None
    contexts: ContextsRecord

    @property
    def seconds_s(self) -> float:
        """Time that every run which shares this would have to spend alone."""
        return (self.phase1.seconds_s if self.phase1 else 0.0) + self.contexts.seconds_s


@dataclass(frozen=True)
class TrainedTokens:
    """Phase 2 of one run: the model, how it went, what it scores, and a sample of the contexts it read."""

    model: TandemForCausalLM
    phase2: TrainingRecord
    validation: ValidationRecord
    sample: ContextsSample


def prepare(settings: Settings, on_progress: Callable[[str], None], splits: Splits | None = None) -> Prepared:
    """Read (or take `splits`), split and tokenize the text, and make the embedding table; cached by content.

    Raises DataError for text that cannot be used, SettingsError for sizes that do not fit it.
    """
    device = choose_device(settings.device)
    cache = default_cache_dir()
    corpus = prepare_corpus(settings.data, settings.tokenizer, cache, on_progress, splits)
    _check_sizes(settings, corpus)
    on_progress(f"embeddings: {settings.embeddings.source}")
    table, table_fingerprint = embedding_table(settings.embeddings, corpus, settings.model.embed_dim, cache)
    return Prepared(settings, corpus, table, table_fingerprint, device)


def _check_sizes(settings: Settings, corpus: Corpus) -> None:
    tokens = len(corpus.train)
    swept = min(settings.phase1.max_tokens or tokens, tokens)
    for key, batch, there in (
        ("phase1.batch_positions", settings.phase1.batch_positions, swept),
        ("phase2.batch_positions", settings.phase2.batch_positions, tokens - 1),
    ):
        if batch > there:
            raise SettingsError(
                f"setting {key} = {batch} is larger than the {there} positions of training text; "
                f"lower --{key.replace('_', '-')} or give more text"
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
        boundary=settings.boundary,
        weight_init_std=settings.weight_init_std,
        bias_init_std=settings.bias_init_std,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )


def new_model(prepared: Prepared, configuration: Configuration, seed: int) -> TandemForCausalLM:
    """The untrained model of one run, on its device; a block's weights depend on its depth and the seed."""
    model = TandemForCausalLM(model_config(prepared, configuration)).eval()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.from_numpy(prepared.table))
    for name, block, depth in (
        ("context_block", model.context_block, configuration.context_layers),
        ("token_block", model.token_block, configuration.token_layers),
    ):
        initialize_block(block, model, generator_for(seed, name, depth))
    return model.to(prepared.device)


def phase1_fingerprint(prepared: Prepared, context_layers: int, seed: int) -> str:
    """Of everything that phase 1 depends on: the context depth, the seed, and what they are trained on."""
    settings = prepared.settings
    return fingerprint(
        "phase1",
        settings.model.model_dump(mode="json"),
        settings.phase1.model_dump(mode="json"),
        prepared.corpus.fingerprint,
        prepared.table_fingerprint,
        context_layers,
        seed,
    )


SavedPhase1 = tuple[dict[str, torch.Tensor], Phase1Record]


def train_contexts(
    prepared: Prepared,
    context_layers: int,
    seed: int,
    on_tick: OnTick = silent,
    saved: SavedPhase1 | None = None,
) -> TrainedContexts:
    """Phase 1 (or its `saved` result), then the contexts of both splits by the scan.

    Raises NonFiniteLossError or ScanError.
    """
    settings = prepared.settings
    model = new_model(prepared, Configuration(context_layers=context_layers), seed)
    train, validation = _streams(prepared, model)
    if saved is not None:
        model.context_block.load_state_dict(saved[0])
        train_split, validation_split, contexts = _contexts_of(model, train, validation, settings)
        return TrainedContexts(model, train_split, validation_split, saved[1], contexts)
    result = train_context_block(model, train, settings.phase1, seed, on_tick)
    train_split, validation_split, contexts = _contexts_of(model, train, validation, settings)
    positions = settings.phase1.rank_positions
    phase1 = Phase1Record(
        iterations=result.iterations,
        stopped=result.stopped,
        convergence_rate=result.convergence_rate,
        effective_rank_train=effective_rank(train_split.contexts, positions),
        effective_rank_validation=effective_rank(validation_split.contexts, positions),
        tokens=result.tokens,
        seconds_s=result.seconds_s,
        history=result.history,
        parts=result.parts,
    )
    return TrainedContexts(model, train_split, validation_split, phase1, contexts)


def untrained_contexts(prepared: Prepared, context_layers: int, seed: int) -> TrainedContexts:
    """The control of phase 1: the weights it would have started from, and their contexts.

    Raises ScanError where that block does not forget its start.
    """
    model = new_model(prepared, Configuration(context_layers=context_layers), seed)
    splits = _contexts_of(model, *_streams(prepared, model), prepared.settings)
    return TrainedContexts(model, *splits[:2], phase1=None, contexts=splits[2])


def _streams(prepared: Prepared, model: TandemForCausalLM) -> tuple[Stream, Stream]:
    corpus = prepared.corpus
    return Stream.of(model, corpus.train.ids), Stream.of(model, corpus.validation.ids)


def train_tokens(
    prepared: Prepared,
    shared: TrainedContexts,
    configuration: Configuration,
    seed: int,
    on_tick: OnTick = silent,
) -> TrainedTokens:
    """Phase 2 of one configuration on the contexts of its phase 1; `shared` stays as it is.

    Raises NonFiniteLossError; ScanError where contexts are recomputed for a trained embedding.
    """
    settings = prepared.settings
    model = new_model(prepared, configuration, seed)
    model.context_block.load_state_dict(shared.model.context_block.state_dict())
    trained = settings.embeddings.trained

    def refresh() -> tuple[Split, Split]:
        return _contexts_of(model, shared.train.stream, shared.validation.stream, settings)[:2]

    result = train_token_block(
        model,
        shared.train,
        shared.validation,
        settings.phase2,
        seed,
        train_embedding=trained,
        refresh=refresh if trained else None,
        on_tick=on_tick,
    )
    phase2 = TrainingRecord(
        best_epoch=result.best_epoch,
        epochs=len(result.history),
        stopped=result.stopped,
        train_nll_nats=result.train_nll_nats,
        train_perplexity=perplexity(result.train_nll_nats),
        seconds_s=result.seconds_s,
        history=result.history,
        parts=result.parts,
        positions=result.positions,
        first_loss_nats=result.first_loss_nats,
    )
    validation = validation_record(result.validation, prepared.corpus.validation)
    return TrainedTokens(model, phase2, validation, result.contexts)


def count_parameters(
    model: TandemForCausalLM, embeddings_trained: bool, context_block_trained: bool = True
) -> Parameters:
    """Parameters by part, and how many each phase trains."""
    counts = model.num_params()
    return Parameters(
        **counts,
        trained_phase1=counts["context_block"] if context_block_trained else 0,
        trained_phase2=counts["token_block"] + (counts["embedding"] if embeddings_trained else 0),
    )


def _contexts_of(
    model: TandemForCausalLM, train: Stream, validation: Stream, settings: Settings
) -> tuple[Split, Split, ContextsRecord]:
    """Both splits' contexts, in the same way."""
    train_contexts, train_scan = compute_contexts(model, train, settings.contexts)
    validation_contexts, validation_scan = compute_contexts(model, validation, settings.contexts)
    return (
        Split(train, train_contexts),
        Split(validation, validation_contexts),
        ContextsRecord(
            train=train_scan,
            validation=validation_scan,
            seconds_s=train_scan.seconds_s + validation_scan.seconds_s,
        ),
    )
