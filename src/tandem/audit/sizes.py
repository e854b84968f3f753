"""How many parameters a model has by its settings: counted with a pen, from the definitions.

E is `embed_dim`, C `context_dim`, V the vocabulary (SPEC section 1; the cells as their files define them).
"""

import math
from collections.abc import Iterator

from tandem.records import RunRecord
from tandem.settings import Settings


def tandem_sizes(record: RunRecord, settings: Settings) -> dict[str, int]:
    """Fields of `Parameters` of a Tandem model; none of a cell or recipe that is not Tandem's own."""
    model, depth, vocabulary = settings.model, record.token_layers, record.data.vocab_size
    layers, parts = CONTEXT_LAYERS.get(model.cell), PHASE1.get(settings.recipe)
    if layers is None or parts is None or depth is None or record.context_layers is None:
        return {}
    embed, token_block = model.embed_dim, 0
    for layer in range(depth):
        reads = model.context_dim if layer in (0, depth - 1) else 0
        token_block += embed * (reads + embed) + embed + 2 * embed
        token_block += embed * embed if model.token_projection else 0
        token_block += reads * CONTEXT_NORM[model.cell]
    sizes = {
        "embedding": vocabulary * embed,
        "embed_norm": 2 * embed,
        "context_block": sum(layers(model.context_dim, embed, record.context_layers)),
        "token_block": token_block,
        "head": vocabulary if model.output_bias else 0,
        "other": 0,
    }
    return {
        **sizes,
        "total": sum(sizes.values()),
        "trained_phase1": sum(sizes[part] for part in parts) if record.kind == "tandem" else 0,
        "trained_phase2": token_block + (sizes["embedding"] if settings.embeddings.trained else 0),
    }


def _residual_layers(context: int, embed: int, depth: int) -> Iterator[int]:
    """A matrix, its bias and a LayerNorm each."""
    for _ in range(depth):
        yield context * (context + embed) + context + 2 * context


def _gated_layers(context: int, embed: int, depth: int) -> Iterator[int]:
    """Two gates each for a part of the context; they read the token, and what the layer below had and has."""
    width = context // depth
    for layer in range(depth):
        yield 2 * width * (embed + (2 * width if layer else 0)) + 2 * width


CONTEXT_LAYERS = {"residual": _residual_layers, "gated": _gated_layers}
"""Parameters of each context layer, by cell."""
CONTEXT_NORM = {"residual": 0, "gated": 2}
"""Parameters for each element of a context that a token layer reads: it normalises those that are not."""
PHASE1 = {"original": ("context_block",), "predictive": ("context_block", "embedding", "embed_norm", "head")}
"""What phase 1 trains, by recipe."""


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


def awd_lstm_sizes(settings: Settings, vocabulary: int, most: int) -> Iterator[tuple[int, int]]:
    """The same of an AWD-LSTM, whose layers are all as wide as the embedding."""
    layers = settings.baselines.awd_lstm.layers
    for width in range(1, math.isqrt(most // (8 * layers)) + 2):
        layer = 4 * (width * width + width * width + 2 * width)
        yield vocabulary * width + layers * layer, vocabulary * width


def transformer_sizes(settings: Settings, vocabulary: int, most: int) -> Iterator[tuple[int, int]]:
    """The same of a transformer without biases; each head has an even width."""
    own = settings.baselines.transformer
    for head in range(2, max(2, math.isqrt(most // 12) // own.heads) + 1, 2):
        width = head * own.heads
        attention = width * 3 * width + width * width + 2 * head
        layer = width + attention + width + width * 4 * width + 4 * width * width
        yield vocabulary * width + own.layers * layer + width, vocabulary * width


NETWORKS = {
    "lstm": lstm_sizes,
    "awd-lstm": awd_lstm_sizes,
    "gpt2": gpt2_sizes,
    "transformer": transformer_sizes,
}
"""Of the baselines that are networks: parameters in all and of the embedding, by width."""
