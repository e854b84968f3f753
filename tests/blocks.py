"""Small blocks and the stream that they read, and its contexts by the sequential loop."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tandem.contexts import Stream
from tandem.group import PLAIN, Execution
from tandem.model import TandemConfig, TandemForCausalLM, TokenBlock, sequential_contexts
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.settings import Phase1Settings, PredictionSettings, Settings
from tandem.training.checkpoint import Checkpoint
from tandem.training.initialization import generator_for, initialize_block
from tandem.training.progress import OnTick, silent

TOKENS = 1500


def block_and_stream(
    boundary: str = "carry", tokens: int = TOKENS, **more: object
) -> tuple[TandemForCausalLM, Stream]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 120, "embed_dim": 48, "context_dim": 30, "context_layers": 2}
    model = TandemForCausalLM(
        TandemConfig(**{**sizes, "boundary": boundary, "bos_token_id": 0, "weight_init_std": 0.25, **more})
    ).eval()
    initialize_block(model.context_block, model, generator_for(0, "test"))
    ids = torch.randint(1, model.config.vocab_size, (tokens,))
    ids[::97] = 0
    return model, Stream.of(model, ids)


def loop(model: TandemForCausalLM, stream: Stream) -> torch.Tensor:
    restart = None if stream.resets is None else stream.resets[:][None]
    with torch.no_grad():
        embeds = model.embed(stream.ids[:])[None]
        return sequential_contexts(model.context_block, embeds, reset_mask=restart)[1][0]


def train_phase1(
    model: TandemForCausalLM,
    stream: Stream,
    own: Phase1Settings | PredictionSettings,
    seed: int = 0,
    heads: Sequence[TokenBlock] | None = None,
    on_tick: OnTick = silent,
    execution: Execution = PLAIN,
    chunk_positions: int = 512,
    checkpoint: Checkpoint | None = None,
) -> Any:
    """Phase 1 of the recipe whose section `own` is; by prediction through the model's own TokenBlock."""
    (recipe,) = (name for name, objective in OBJECTIVES.items() if objective.section == own.path)
    settings = Settings(recipe=recipe, phase2={"chunk_positions": chunk_positions})
    settings = settings.model_copy(update={own.path: own})
    heads = heads or ([model.token_block] if recipe == "predictive" else [])
    named = nn.ModuleDict({f"head{len(head.layers)}": head for head in heads})
    inputs = Phase1Inputs(model, named, stream, settings, seed, on_tick, execution)
    return OBJECTIVES[recipe].train(replace(inputs, checkpoint=checkpoint or Checkpoint()))
