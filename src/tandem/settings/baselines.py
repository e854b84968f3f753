"""Settings of the models to compare with."""

from typing import Annotated, ClassVar

from pydantic import Field

from tandem.settings.names import OneOf
from tandem.settings.section import NonNegativeFloat, Positive, PositiveFloat, Probability, Section


class LstmSettings(Section):
    """The LSTM baseline: one embedding for input and output, truncated backpropagation through time."""

    path: ClassVar[str] = "baselines.lstm"

    layers: Positive = 1
    """Layers; their width follows from the parameters allowed."""
    streams: Positive = 16
    """The text is cut into so many streams, read side by side."""
    window: Positive = 32
    """Tokens of a stream per optimizer step; no gradient flows further back, the state does."""
    dropout: Probability = 0.2
    """Of embeddings and outputs."""
    lr: PositiveFloat = 0.01
    """AdamW's largest learning rate; it falls to a tenth along a cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    max_epochs: Positive = 6
    """Epochs; the best one counts."""


class Gpt2Settings(Section):
    """The GPT-2 baseline: transformers' own class, small; its width follows from the parameters allowed."""

    path: ClassVar[str] = "baselines.gpt2"

    layers: Positive = 2
    """Layers."""
    heads: Positive = 4
    """Attention heads."""
    window: Annotated[int, Field(ge=2)] = 64
    """Tokens it sees at once; in scoring every token but the first ones sees at least half of that."""
    batch_windows: Positive = 8
    """Windows per optimizer step."""
    dropout: Probability = 0.1
    """Of embeddings, attention and residuals."""
    lr: PositiveFloat = 0.003
    """AdamW's largest learning rate; it rises for a tenth of the steps and falls along a cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    max_epochs: Positive = 6
    """Epochs; the best one counts."""


class BaselineSettings(Section):
    """What people would use instead, and the control of phase 1, on the same tokens in the same run."""

    path: ClassVar[str] = "baselines"

    models: tuple[Annotated[str, OneOf("tandem.baselines:BASELINES")], ...] = ()
    """Which ones: `kneser-ney` (interpolated, modified), `lstm`, `gpt2`, `untrained` (a ContextBlock with
    random weights), `bigram`, `unigram`. `tandem experiment --baselines` runs all."""
    order: Annotated[int, Field(ge=2, le=8)] = 5
    """Kneser-Ney: tokens of the longest n-grams."""
    max_parameters: Positive | None = None
    """Parameters that the LSTM and the GPT-2 may have. All of them are trained. None: as many as the smallest
    of the `configurations` has in all."""
    untrained: tuple[tuple[Positive, Positive], ...] | None = None
    """Configurations of the control without phase 1, as pairs of depths; none: the first of the
    `configurations`."""
    lstm: LstmSettings = LstmSettings()
    gpt2: Gpt2Settings = Gpt2Settings()
