"""One run, from text to record: prepare once, phase 1 for each depth and seed, phase 2 for each run."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tandem.contexts import Contexts, ContextsSample, Stream, compute_contexts, measure_memory
from tandem.errors import DataError, SettingsError
from tandem.experiment.machine import choose_device, free_memory, uses_bfloat16
from tandem.fingerprint import fingerprint
from tandem.metrics import effective_rank, perplexity, score_stream, validation_record
from tandem.model import TandemConfig, TandemForCausalLM, TokenBlock
from tandem.records import (
    ContextsRecord,
    DataRecord,
    HeadRecord,
    Parameters,
    Phase1Record,
    PredictionRecord,
    ScanRecord,
    TrainingRecord,
    ValidationRecord,
    nearest_head,
)
from tandem.settings import Configuration, Recipe, Settings
from tandem.text.splits import Splits
from tandem.tokens.embeddings import embedding_table
from tandem.tokens.prepare import Corpus, default_cache_dir, prepare_corpus
from tandem.tokens.store import token_counts
from tandem.training.execution import PLAIN, Execution
from tandem.training.initialization import generator_for, initialize_block, start_from_head
from tandem.training.phase1 import train_context_block
from tandem.training.phase2 import Split, train_token_block
from tandem.training.prediction import head_name, train_predictive_contexts
from tandem.training.progress import OnTick, silent


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
    heads     through which a phase 1 by prediction predicted
    """

    model: TandemForCausalLM
    train: Split
    validation: Split
    phase1: Phase1Record | PredictionRecord | None
    contexts: ContextsRecord
    heads: tuple[TokenBlock, ...] = ()

    @property
    def seconds_s(self) -> float:
        """Time that every run which shares this would have to spend alone."""
        return (self.phase1.seconds_s if self.phase1 else 0.0) + self.contexts.seconds_s


@dataclass(frozen=True)
class TrainedTokens:
    """Phase 2 of one run: the model, how it went, what it scores, and a sample of the contexts it read.

    head    weights of phase 1's token layers, where phase 2 started from them
    """

    model: TandemForCausalLM
    phase2: TrainingRecord
    validation: ValidationRecord
    sample: ContextsSample
    head: dict[str, torch.Tensor] | None


def prepare(settings: Settings, on_progress: Callable[[str], None], splits: Splits | None = None) -> Prepared:
    """Read (or take `splits`), split and tokenize the text, and make the embedding table; cached by content.

    Raises DataError for text that cannot be used, SettingsError for sizes that do not fit it.
    """
    corpus = prepare_corpus(settings.data, settings.tokenizer, default_cache_dir(), on_progress, splits)
    return _prepared(settings, corpus, on_progress)


def prepare_variants(
    settings: Settings, on_progress: Callable[[str], None], splits: Splits | None = None
) -> dict[str | None, Prepared]:
    """As `prepare`, for every variant of the settings by its name, all on the same tokens."""
    corpus = prepare_corpus(settings.data, settings.tokenizer, default_cache_dir(), on_progress, splits)
    return {
        name: _prepared(settings.with_variant(name), corpus, on_progress) for name in settings.variant_names
    }


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


def phase1_fingerprint(prepared: Prepared, context_layers: int, seed: int) -> str:
    """Of everything that phase 1 depends on: the context depth, the seed, and what they are trained on."""
    settings = prepared.settings
    own = settings.phase1 if settings.recipe == "seed" else settings.prediction
    return fingerprint(
        "phase1",
        settings.recipe,
        settings.model.model_dump(mode="json"),
        own.model_dump(mode="json"),
        prepared.corpus.fingerprint,
        prepared.table_fingerprint,
        context_layers,
        seed,
    )


SavedPhase1 = tuple[dict[str, torch.Tensor], Phase1Record | PredictionRecord]
PHASE1_PARTS: dict[Recipe, tuple[str, ...]] = {
    "seed": ("context_block",),
    "predictive": ("context_block", "embedding", "embed_norm", "lm_head"),
}
"""What phase 1 leaves to phase 2, by the names of the model's children."""
_COUNTED = {"lm_head": "head"}
"""How counts of parameters call a child that is called otherwise."""


def phase1_state(model: TandemForCausalLM, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The weights that phase 1 leaves to phase 2; those of the output head are the embedding's."""
    kept = tuple(f"{part}." for part in PHASE1_PARTS[recipe])
    weights = model.state_dict()
    return {name: weights[name] for name in weights if name.startswith(kept) and name != "lm_head.weight"}


def new_heads(prepared: Prepared, context_layers: int, seed: int) -> list[TokenBlock]:
    """The TokenBlocks through which phase 1 is to predict, as the seed draws them; none of recipe `seed`."""
    settings = prepared.settings
    if settings.recipe == "seed":
        return []
    depths = sorted(set(settings.prediction.head_layers))
    return [new_model(prepared, Configuration(context_layers, depth), seed).token_block for depth in depths]


def head_state(head: TokenBlock) -> dict[str, torch.Tensor]:
    """Its weights, named as in records and files."""
    return {f"{head_name(head)}.{name}": tensor for name, tensor in head.state_dict().items()}


def load_heads(heads: Sequence[TokenBlock], state: Mapping[str, torch.Tensor]) -> None:
    """Put kept weights into new heads; raises RuntimeError where one's are not there."""
    for head in heads:
        prefix = f"{head_name(head)}."
        own = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        head.load_state_dict(own)


def head_for(heads: Sequence[TokenBlock], token_layers: int) -> TokenBlock:
    """The head that a TokenBlock of this depth starts from."""
    by_depth = {len(head.layers): head for head in heads}
    return by_depth[nearest_head(by_depth, token_layers)]


def take_phase1(model: TandemForCausalLM, state: dict[str, torch.Tensor]) -> None:
    """Put what phase 1 left into a new model."""
    model.load_state_dict(state, strict=False)


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
    heads = new_heads(prepared, context_layers, seed)
    train, validation = streams(prepared, model)
    if saved is not None:
        take_phase1(model, saved[0])
        load_heads(heads, saved[0])
        train_split, validation_split, contexts = _contexts_of(model, train, validation, settings)
        return TrainedContexts(model, train_split, validation_split, saved[1], contexts, tuple(heads))
    if settings.recipe == "predictive":
        return _train_predictive(prepared, model, heads, train, validation, seed, on_tick)
    result = train_context_block(model, train, settings.phase1, seed, on_tick, prepared.execution)
    train_split, validation_split, contexts = _contexts_of(model, train, validation, settings)
    phase1 = Phase1Record(
        iterations=result.iterations,
        stopped=result.stopped,
        convergence_rate=result.convergence_rate,
        **_ranks(train_split, validation_split, settings),
        tokens=result.tokens,
        seconds_s=result.seconds_s,
        history=result.history,
        parts=result.parts,
    )
    return TrainedContexts(model, train_split, validation_split, phase1, contexts)


def _train_predictive(
    prepared: Prepared,
    model: TandemForCausalLM,
    heads: Sequence[TokenBlock],
    train: Stream,
    validation: Stream,
    seed: int,
    on_tick: OnTick,
) -> TrainedContexts:
    settings, chunk = prepared.settings, prepared.settings.phase2.chunk_positions
    result = train_predictive_contexts(
        model, heads, train, settings.prediction, seed, chunk, on_tick, prepared.execution
    )
    train_split, validation_split, contexts = _contexts_of(model, train, validation, settings)
    scores = [score_stream(model, validation, validation_split.contexts, chunk, head) for head in heads]
    phase1 = PredictionRecord(
        parts=result.parts,
        micro_batches=result.micro_batches,
        epochs=result.epochs,
        positions=result.positions,
        tokens=len(train),
        heads=tuple(
            HeadRecord(
                token_layers=len(head.layers),
                parameters=sum(p.numel() for p in head.parameters()),
                nll_nats=score.nll_nats,
                accuracy=score.accuracy,
            )
            for head, score in zip(heads, scores, strict=True)
        ),
        **_ranks(train_split, validation_split, settings),
        seconds_s=result.seconds_s,
        history=result.history,
    )
    return TrainedContexts(model, train_split, validation_split, phase1, contexts, tuple(heads))


def _ranks(train: Split, validation: Split, settings: Settings) -> dict[str, float]:
    """Effective rank of both splits' contexts."""
    positions = settings.phase1.rank_positions
    return {
        "effective_rank_train": effective_rank(train.contexts, positions),
        "effective_rank_validation": effective_rank(validation.contexts, positions),
    }


def untrained_contexts(prepared: Prepared, context_layers: int, seed: int) -> TrainedContexts:
    """The control of phase 1: the weights it would have started from, and their contexts.

    Raises ScanError where that block does not forget its start.
    """
    model = new_model(prepared, Configuration(context_layers=context_layers), seed)
    splits = _contexts_of(model, *streams(prepared, model), prepared.settings)
    return TrainedContexts(model, *splits[:2], phase1=None, contexts=splits[2])


def streams(prepared: Prepared, model: TandemForCausalLM) -> tuple[Stream, Stream]:
    """Training and validation text, as the model reads them."""
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
    take_phase1(model, phase1_state(shared.model, settings.recipe))
    head = None
    if settings.phase2.start == "phase1" and shared.phase1 is not None:
        started_from = head_for(shared.heads, configuration.token_layers)
        head = head_state(started_from)
        start_from_head(model.token_block, started_from)
    trained = settings.embeddings.trained

    def refresh() -> tuple[Split, Split]:
        # Held, since they would otherwise be computed with an embedding that has moved on.
        hold = settings.model_copy(
            update={"contexts": settings.contexts.model_copy(update={"keep": "memory"})}
        )
        return _contexts_of(model, shared.train.stream, shared.validation.stream, hold)[:2]

    result = train_token_block(
        model,
        shared.train,
        shared.validation,
        settings.phase2,
        seed,
        train_embedding=trained,
        refresh=refresh if trained else None,
        keep_start=head is not None,
        on_tick=on_tick,
        execution=prepared.execution,
    )
    phase2 = TrainingRecord(
        best_epoch=result.best_epoch,
        epochs=result.history[-1].epoch,
        stopped=result.stopped,
        train_nll_nats=result.train_nll_nats,
        train_perplexity=perplexity(result.train_nll_nats),
        seconds_s=result.seconds_s,
        history=result.history,
        parts=result.parts,
        positions=result.positions,
        first_loss_nats=result.first_loss_nats,
        micro_batches=result.micro_batches,
    )
    validation = validation_record(result.validation, prepared.corpus.validation)
    return TrainedTokens(model, phase2, validation, result.contexts, head)


def count_parameters(model: TandemForCausalLM, settings: Settings, phase1: bool = True) -> Parameters:
    """Parameters by part, and how many each phase trains; without `phase1`, of a control."""
    counts = model.num_params()
    return Parameters(
        **counts,
        trained_phase1=sum(counts[_COUNTED.get(part, part)] for part in PHASE1_PARTS[settings.recipe])
        if phase1
        else 0,
        trained_phase2=counts["token_block"] + (counts["embedding"] if settings.embeddings.trained else 0),
    )


def _compute_contexts(
    model: TandemForCausalLM, stream: Stream, settings: Settings, rounded: bool
) -> tuple[Contexts, ScanRecord]:
    """Contexts of one split, kept as the settings say; on disk only where they may be `rounded`."""
    # Workers on one machine share what is free.
    share = 2 * settings.workers
    contexts, scan = compute_contexts(model, stream, settings.contexts, free_memory(model.device) // share)
    folder, began = default_cache_dir(), time.perf_counter()
    if contexts.held or not rounded or settings.contexts.keep == "recompute":
        return contexts, scan
    size = 2 * len(stream) * model.config.context_dim
    if settings.contexts.keep == "auto" and size > shutil.disk_usage(folder).free // share:
        return contexts, scan
    try:
        contexts, rounding = contexts.on_disk(folder)
    except OSError as error:
        raise DataError(
            f"contexts cannot be kept in {folder} ({error.strerror or error}): they take "
            f"{size / 1e6:,.0f} MB; make room, set TANDEM_CACHE to another folder, or use "
            "--contexts.keep recompute"
        ) from None
    seconds = scan.seconds_s + time.perf_counter() - began
    return contexts, scan.model_copy(update={"kept": "disk", "rounding": rounding, "seconds_s": seconds})


def _contexts_of(
    model: TandemForCausalLM, train: Stream, validation: Stream, settings: Settings
) -> tuple[Split, Split, ContextsRecord]:
    """Both splits' contexts, in the same way."""
    train_contexts, train_scan = _compute_contexts(model, train, settings, rounded=True)
    validation_contexts, validation_scan = _compute_contexts(model, validation, settings, rounded=False)
    return (
        Split(train, train_contexts),
        Split(validation, validation_contexts),
        ContextsRecord(
            train=train_scan,
            validation=validation_scan,
            memory=measure_memory(model, validation),
            seconds_s=train_scan.seconds_s + validation_scan.seconds_s,
        ),
    )
