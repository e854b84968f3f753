"""One run, from tokens to record: phase 1 for each depth and seed, phase 2 for each run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tandem.contexts import ContextsSample, Stream
from tandem.experiment.contexts import contexts_of
from tandem.experiment.handover import (
    PHASE1_PARTS,
    SavedPhase1,
    head_for,
    head_state,
    load_heads,
    new_heads,
    phase1_state,
    take_phase1,
)
from tandem.experiment.prepared import Prepared, new_model, streams
from tandem.metrics import score_stream, validation_record
from tandem.model import TandemForCausalLM, TokenBlock
from tandem.records import (
    ContextsRecord,
    HeadRecord,
    Parameters,
    Phase1Record,
    PredictionRecord,
    TrainingRecord,
    ValidationRecord,
)
from tandem.settings import Configuration, Settings
from tandem.training.initialization import start_from_head
from tandem.training.phase1 import train_context_block
from tandem.training.phase2 import Split, train_token_block
from tandem.training.prediction import train_predictive_contexts
from tandem.training.progress import OnTick, silent


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
    model = new_model(prepared, Configuration(context_layers=context_layers), seed)
    heads = new_heads(prepared, context_layers, seed)
    train, validation = streams(prepared, model)
    if saved is None:
        phase1 = train_phase1(prepared, model, heads, train, seed, on_tick)
    else:
        weights, phase1 = saved
        take_phase1(model, weights)
        load_heads(heads, weights)
    train_split, validation_split, contexts = contexts_of(prepared, model, train, validation)
    if saved is None and heads:
        scored = _scored(prepared, model, heads, validation_split)
        phase1 = phase1.model_copy(update={"heads": scored})
    return TrainedContexts(model, train_split, validation_split, phase1, contexts, tuple(heads))


def train_phase1(
    prepared: Prepared,
    model: TandemForCausalLM,
    heads: Sequence[TokenBlock],
    stream: Stream,
    seed: int,
    on_tick: OnTick,
) -> Phase1Record | PredictionRecord:
    """Phase 1 alone, of the settings' recipe, in place. Raises NonFiniteLossError."""
    settings, execution = prepared.settings, prepared.execution
    if settings.recipe == "predictive":
        chunk = settings.phase2.chunk_positions
        return train_predictive_contexts(
            model, heads, stream, settings.prediction, seed, chunk, on_tick, execution
        )
    return train_context_block(model, stream, settings.phase1, seed, on_tick, execution)


def _scored(
    prepared: Prepared, model: TandemForCausalLM, heads: Sequence[TokenBlock], validation: Split
) -> tuple[HeadRecord, ...]:
    """What each head of phase 1 reaches on validation text: as good as training end to end gets."""
    chunk, group = prepared.settings.phase2.chunk_positions, prepared.execution.group

    def record(head: TokenBlock) -> HeadRecord:
        score = score_stream(model, validation.stream, validation.contexts, chunk, head, group)
        return HeadRecord(
            token_layers=len(head.layers),
            parameters=sum(p.numel() for p in head.parameters()),
            nll_nats=score.nll_nats,
            accuracy=score.accuracy,
        )

    return tuple(map(record, heads))


def untrained_contexts(prepared: Prepared, context_layers: int, seed: int) -> TrainedContexts:
    """The control of phase 1: the weights it would have started from, and their contexts.

    Raises ScanError where that block does not forget its start.
    """
    model = new_model(prepared, Configuration(context_layers=context_layers), seed)
    splits = contexts_of(prepared, model, *streams(prepared, model))
    return TrainedContexts(model, *splits[:2], phase1=None, contexts=splits[2])


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

    def refresh() -> tuple[Split, Split]:
        # Held, since they would otherwise be computed with an embedding that has moved on.
        held = settings.contexts.model_copy(update={"keep": "memory"})
        holding = replace(prepared, settings=settings.model_copy(update={"contexts": held}))
        return contexts_of(holding, model, shared.train.stream, shared.validation.stream)[:2]

    result = train_token_block(
        model,
        shared.train,
        shared.validation,
        settings.phase2,
        seed,
        refresh=refresh if settings.embeddings.trained else None,
        keep_start=head is not None,
        on_tick=on_tick,
        execution=prepared.execution,
    )
    validation = validation_record(result.validation, prepared.corpus.validation)
    return TrainedTokens(model, result.training, validation, result.contexts, head)


_COUNTED = {"lm_head": "head"}
"""How counts of parameters call a child that is called otherwise."""


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
