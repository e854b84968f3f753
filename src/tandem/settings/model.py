"""Settings of the two blocks and of how contexts are computed."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tandem.settings.names import OneOf
from tandem.settings.section import NonNegativeFloat, Positive, PositiveFloat, Section


class ModelSettings(Section):
    """Sizes of the two blocks; their depths come from `configurations`."""

    path: ClassVar[str] = "model"

    embed_dim: Annotated[int, Field(ge=2)] = 256
    """E, the length of an embedding vector."""
    context_dim: Annotated[int, Field(ge=2)] = 160
    """C, the length of the context vector (at least 2: a LayerNorm of one element is constant)."""
    cell: Annotated[str, OneOf("tandem.model.cells_tandem:CELLS")] = "residual"
    """Layers of the ContextBlock: `residual` (the original's), or `gated` (a gated linear recurrence, whose
    contexts need no sequential scan; the layers share `context_dim` evenly)."""
    token_projection: bool = False
    """Let a second matrix follow the GELU of every token layer, so that it can take away as well as add."""
    output_bias: bool = False
    """Give the head a bias for each token, which starts from the token's frequency in the training text."""
    boundary: Literal["carry", "reset"] = "carry"
    """At document starts: carry the context on, or reset it to zero."""
    weight_init_std: NonNegativeFloat | None = 0.1
    """Standard deviation of the initial linear weights; none: one over the root of their inputs."""
    bias_init_std: NonNegativeFloat = 0.01
    """Standard deviation of the initial biases."""


class ContextSettings(Section):
    """How contexts are computed for training and evaluation."""

    path: ClassVar[str] = "contexts"

    method: Literal["scan", "loop"] = "scan"
    """`scan` (segments in parallel, each with a burn-in) or `loop` (the sequential definition, slow)."""
    keep: Literal["auto", "memory", "disk", "recompute"] = "auto"
    """Where contexts of a whole text are: in `memory`, on `disk` (memory-mapped, rounded to bf16), or
    computed again piece by piece in every epoch (`recompute`). With `disk` those of validation are computed
    again. Memory does not grow with the text but for the first. `auto`: the first of these for which half
    of what is free suffices."""
    segment_length: Positive = 512
    """Tokens of a segment of the segment-parallel scan (of `residual`), burn-in not counted. Streams that are
    no longer are computed by the loop."""
    burn_in: Positive | Literal["auto"] = "auto"
    """Tokens read before each segment to reach its context; `auto` measures how fast the block forgets."""
    tolerance: PositiveFloat = 1e-5
    """Largest allowed difference (absolute, per element) between scan and loop; more is an error."""
    check_tokens: Positive = 2048
    """Tokens on which the scan is compared with the loop, each time; four segments at least."""
    rank_positions: Positive = 10_000
    """Effective rank is computed on at most this many positions."""
