"""Small blocks and the stream that they read, and its contexts by the sequential loop."""

import torch

from tandem.contexts import Stream
from tandem.model import TandemConfig, TandemForCausalLM, sequential_contexts
from tandem.training.initialization import generator_for, initialize_block

TOKENS = 3000


def block_and_stream(boundary: str = "carry", **more: object) -> tuple[TandemForCausalLM, Stream]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 120, "embed_dim": 48, "context_dim": 30, "context_layers": 2}
    model = TandemForCausalLM(
        TandemConfig(**{**sizes, "boundary": boundary, "bos_token_id": 0, "weight_init_std": 0.25, **more})
    ).eval()
    initialize_block(model.context_block, model, generator_for(0, "test"))
    ids = torch.randint(1, model.config.vocab_size, (TOKENS,))
    ids[::97] = 0
    return model, Stream.of(model, ids)


def loop(model: TandemForCausalLM, stream: Stream) -> torch.Tensor:
    restart = None if stream.restart is None else stream.restart[:][None]
    with torch.no_grad():
        embeds = model.embed(stream.ids[:])[None]
        return sequential_contexts(model.context_block, embeds, reset_mask=restart)[1][0]
