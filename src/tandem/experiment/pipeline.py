"""One run, from tokens to record: phase 1 for each depth and seed, phase 2 for each run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from tandem.experiment.contexts import contexts_of
from tandem.experiment.prepared import TrainingInputs, new_model, streams
from tandem.metrics import Score, score_stream
from tandem.model import TandemForCausalLM, TokenBlock
from tandem.objectives import OBJECTIVES, Objective, Phase1Inputs
from tandem.records import ContextsRecord, Parameters, Phase1Record
from tandem.settings import Configuration, Settings
from tandem.training.checkpoint import Checkpoint
from tandem.training.initialization import start_from_head
from tandem.training.phase2 import Split, TrainedTokenBlock, train_token_block
from tandem.training.progress import OnTick, silent
from tandem.training.snapshots import Snapshots

SavedPhase1 = tuple[dict[str, torch.Tensor], Phase1Record]


@dataclass(frozen=True)
class TrainedContexts:
    """Phase 1 of one (context_layers, seed): its model, the contexts of both splits, and how it went.

    phase1       none of a control: its ContextBlock has the weights it started with.
    heads        that phase 1 trained beside the model.
    snapshots    a few of its steps; none where it was taken from a file.
    """

    model: TandemForCausalLM
    train: Split
    validation: Split
    contexts: ContextsRecord
    phase1: Phase1Record | None
    heads: nn.ModuleDict
    snapshots: Snapshots

    @property
    def seconds_s(self) -> float:
        """Time that every run which shares this would have to spend alone."""
        return (self.phase1.seconds_s if self.phase1 else 0.0) + self.contexts.seconds_s


@dataclass(frozen=True)
class TrainedTokens:
    """A run's model, and what phase 2 made of it.

    head         weights of phase 1's token layers, where phase 2 started from them
    snapshots    a few steps of phase 2
    """

    model: TandemForCausalLM
    phase2: TrainedTokenBlock
    head: dict[str, torch.Tensor] | None
    snapshots: Snapshots


def new_heads(prepared: TrainingInputs, context_layers: int, seed: int) -> nn.ModuleDict:
    """The modules that phase 1 trains beside the model, drawn from the seed."""
    return OBJECTIVES[prepared.settings.recipe].new_heads(
        prepared.settings,
        lambda depth: new_model(prepared, Configuration(context_layers, depth), seed).token_block,
    )


def phase1_state(model: TandemForCausalLM, objective: Objective) -> dict[str, torch.Tensor]:
    """The weights that phase 1 leaves to phase 2; those of the output head are the embedding's."""
    left = tuple(f"{part}." for part in objective.parts)
    weights = model.named_weights()
    return {name: weights[name] for name in weights if name.startswith(left) and name != "lm_head.weight"}


def load_phase1_state(
    state: Mapping[str, torch.Tensor], model: TandemForCausalLM, heads: nn.ModuleDict | None = None
) -> None:
    """Put what phase 1 left into a new model and new heads. Raises RuntimeError where it does not fit."""
    of_heads = {name: state[name] for name in state if heads and name.split(".")[0] in heads}
    own = {name: state[name] for name in state if name not in of_heads}
    of_base = {name: own.pop(name) for name in list(own) if not name.startswith("lm_head.")}
    for part, weights in ((model.model, of_base), (model, own)):
        if unknown := part.load_state_dict(weights, strict=False).unexpected_keys:
            raise RuntimeError(f"phase 1 left {unknown[0]}, which the model does not have")
    if heads:
        heads.load_state_dict(of_heads)


def train_contexts(
    prepared: TrainingInputs,
    context_layers: int,
    seed: int,
    on_tick: OnTick = silent,
    saved: SavedPhase1 | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainedContexts:
    """Phase 1 (or its `saved` result), then the contexts of both splits by the scan.

    What `checkpoint` has of this phase 1 is continued. Raises NonFiniteLossError or ScanError, and Stopped.
    """
    settings, objective = prepared.settings, OBJECTIVES[prepared.settings.recipe]
    model = new_model(prepared, Configuration(context_layers=context_layers), seed)
    heads = new_heads(prepared, context_layers, seed)
    text, snapshots = streams(prepared, model), Snapshots()
    if saved is None:
        inputs = Phase1Inputs(
            model,
            heads,
            text[0],
            settings,
            seed,
            on_tick,
            prepared.execution,
            snapshots,
            checkpoint or Checkpoint(),
            prepared.corpus.pieces,
        )
        phase1 = objective.train(inputs)
    else:
        weights, phase1 = saved
        load_phase1_state(weights, model, heads)
    train, validation, contexts = contexts_of(prepared, model, *text)

    trained = TrainedContexts(model, train, validation, contexts, phase1, heads, snapshots)
    if saved is None:
        phase1 = objective.score_heads(phase1, heads, partial(score_head, prepared, trained))
    return replace(trained, phase1=phase1)


def score_head(prepared: TrainingInputs, shared: TrainedContexts, head: nn.Module) -> Score:
    """What phase 1 reaches on the validation text through one of its heads."""
    assert isinstance(head, TokenBlock)
    split, chunk = shared.validation, prepared.settings.phase2.chunk_positions
    return score_stream(shared.model, split.stream, split.contexts, chunk, head, prepared.execution.group)


def untrained_contexts(prepared: TrainingInputs, context_layers: int, seed: int) -> TrainedContexts:
    """The control of phase 1: the weights it would have started from, and their contexts.

    Raises ScanError where that block does not forget its start.
    """
    model = new_model(prepared, Configuration(context_layers=context_layers), seed)
    splits = contexts_of(prepared, model, *streams(prepared, model))
    return TrainedContexts(model, *splits, phase1=None, heads=nn.ModuleDict(), snapshots=Snapshots())


def train_tokens(
    prepared: TrainingInputs,
    shared: TrainedContexts,
    configuration: Configuration,
    seed: int,
    on_tick: OnTick = silent,
    checkpoint: Checkpoint | None = None,
) -> TrainedTokens:
    """Phase 2 of one configuration on the contexts of its phase 1; `shared` stays as it is.

    What `checkpoint` has of it is continued. Raises NonFiniteLossError; Stopped; ScanError where contexts
    are recomputed for a trained embedding.
    """
    settings, objective = prepared.settings, OBJECTIVES[prepared.settings.recipe]
    model = new_model(prepared, configuration, seed)
    load_phase1_state(phase1_state(shared.model, objective), model)
    head, snapshots = None, Snapshots()
    if settings.phase2.start == "phase1" and shared.heads:
        name = objective.head_for(shared.heads, configuration.token_layers)
        started_from = shared.heads[name]
        assert isinstance(started_from, TokenBlock)
        head = nn.ModuleDict({name: started_from}).state_dict()
        start_from_head(model.token_block, started_from)

    def refresh() -> tuple[Split, Split]:
        # Held, since they would otherwise be computed with an embedding that has moved on.
        in_memory = settings.contexts.model_copy(update={"keep": "memory"})
        holding = replace(prepared, settings=settings.model_copy(update={"contexts": in_memory}))
        return contexts_of(holding, model, shared.train.stream, shared.validation.stream)[:2]

    phase2 = train_token_block(
        model,
        shared.train,
        shared.validation,
        settings.phase2,
        seed,
        refresh=refresh if settings.embeddings.trained else None,
        keep_start=head is not None,
        on_tick=on_tick,
        execution=prepared.execution,
        snapshots=snapshots,
        checkpoint=checkpoint,
    )
    return TrainedTokens(model, phase2, head, snapshots)


def count_parameters(model: TandemForCausalLM, settings: Settings, phase1: bool = True) -> Parameters:
    """Parameters by part, and how many each phase trains; without `phase1`, of a control."""
    counts = model.num_params()
    parts = OBJECTIVES[settings.recipe].parts if phase1 else ()
    return Parameters(
        **counts,
        trained_phase1=sum(counts["head" if part == "lm_head" else part] for part in parts),
        trained_phase2=counts["token_block"] + (counts["embedding"] if settings.embeddings.trained else 0),
    )
