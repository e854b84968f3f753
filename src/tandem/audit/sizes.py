"""How many parameters a model has by its settings: counted with a pen, from the definitions.

E is `embed_dim`, C `context_dim`, V the vocabulary (SPEC section 1; the cells as their files define them).
"""

import math
from collections.abc import Iterator

from tandem.records import RunRecord
from tandem.settings import Settings


def tandem_sizes(record: RunRecord, settings: Settings) -> dict[str, int]:
    """Fields of `Parameters` of a Tandem model; none of a cell or recipe that is not Tandem's own."""
    model, vocabulary = settings.model, record.data.vocab_size
    depths = record.context_layers, record.token_layers
    known = model.cell in ("residual", "gated") and settings.recipe in ("original", "predictive")
    if not known or depths[0] is None or depths[1] is None:
        return {}
    embed, context, gated = model.embed_dim, model.context_dim, model.cell == "gated"
    context_block = 0
    for layer in range(depths[0]):
        if gated:  # a part of the context; reads the token, and what the layer below had and has
            width = context // depths[0]
            context_block += 2 * width * (embed + (2 * width if layer else 0)) + 2 * width
        else:
            context_block += context * (context + embed) + context + 2 * context
    token_block = 0
    for layer in range(depths[1]):
        reads = context if layer in (0, depths[1] - 1) else 0
        token_block += embed * (reads + embed) + embed + 2 * embed
        token_block += embed * embed if model.token_projection else 0
        token_block += 2 * reads if gated else 0  # gated contexts are normalised where they are read
    sizes = {
        "embedding": vocabulary * embed,
        "embed_norm": 2 * embed,
        "context_block": context_block,
        "token_block": token_block,
        "head": vocabulary if model.output_bias else 0,
    }
    phase1 = context_block
    if settings.recipe == "predictive":
        phase1 = sum(sizes.values()) - token_block
    return {
        **sizes,
        "other": 0,
        "total": sum(sizes.values()),
        "trained_phase1": phase1 if record.kind == "tandem" else 0,
        "trained_phase2": token_block + (sizes["embedding"] if settings.embeddings.trained else 0),
    }


def lstm_sizes(settings: Settings, vocabulary: int, most: int) -> Iterator[tuple[int, int]]:
    """Parameters in all and of the embedding, by width; a layer has four gates and two biases each."""
    embed, layers = settings.model.embed_dim, settings.baselines.lstm.layers
    for width in range(1, math.isqrt(most // 4) + 2):
        total = vocabulary * embed
        for layer in range(layers):
            read = embed if layer == 0 else width
            total += 4 * (width * read + width * width + 2 * width)
        if width != embed:
            total += width * embed + embed  # back to the embedding's width
        yield total, vocabulary * embed


def gpt2_sizes(settings: Settings, vocabulary: int, most: int) -> Iterator[tuple[int, int]]:
    """The same of a GPT-2, whose width is a multiple of its heads; norms and matrices have biases."""
    own = settings.baselines.gpt2
    for width in range(own.heads, max(own.heads, math.isqrt(most // 12)) + 1, own.heads):
        attention = width * 3 * width + 3 * width + width * width + width
        feed_forward = width * 4 * width + 4 * width + 4 * width * width + width
        layer = 2 * width + attention + 2 * width + feed_forward
        yield (vocabulary + own.window) * width + own.layers * layer + 2 * width, vocabulary * width
