"""Settings of the two phases: phase 1 of either recipe, and phase 2."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tandem.settings.section import NonNegativeFloat, Positive, PositiveFloat, Probability, Section


class Phase1Settings(Section):
    """Phase 1 of recipe `original`: Jacobi sweeps teach the ContextBlock contexts that spread out (OACD)."""

    path: ClassVar[str] = "phase1"

    max_iterations: Annotated[int, Field(ge=2)] = 60
    """At most this many iterations; the random start counts as the first."""
    batch_positions: Annotated[int, Field(ge=2)] = 5000
    """Consecutive positions of one OACD batch; gradients are averaged over all batches of a sweep."""
    tokens_per_step: Positive | None = None
    """Sweep over this many training tokens, in windows of `batch_positions` spread evenly over the text.
    None: over all of it, as the original does. Two windows of 10,000 come closer to the whole text's contexts
    than four of 5,000 (docs/results/performance.md)."""
    lr: PositiveFloat = 0.002
    """Adam's learning rate; one step an iteration."""
    max_grad_norm: PositiveFloat = 2.0
    """The averaged gradient is clipped to this norm."""
    start_std: NonNegativeFloat = 0.01
    """Standard deviation of the random contexts at the start."""
    noise_std: NonNegativeFloat = 0.1
    """Standard deviation of the noise added to the contexts that a sweep reads."""
    centroid_weight: NonNegativeFloat = 0.1
    """Weight of the squared centroid in the OACD loss."""
    convergence_mse: PositiveFloat = 0.03
    """A position has converged when its mean squared change between two iterations is below this."""
    convergence_stop: Annotated[float, Field(gt=0)] = 0.9
    """Stop when this share of positions has converged; above 1: never."""


class PredictionSettings(Section):
    """Phase 1 of recipe `predictive`: ContextBlock and embedding learn to predict the next token, through
    token layers of its own."""

    path: ClassVar[str] = "prediction"

    max_epochs: Positive = 8
    """Passes over the training tokens; all are made, as the learning rate falls to zero over them."""
    head_layers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2)
    """Depths of the TokenBlocks through which it predicts, side by side, all with the same weight."""
    streams: Positive = 32
    """The text is cut into so many streams, read side by side."""
    window: Positive = 64
    """Tokens of a stream per optimizer step; no gradient flows further back, the contexts do."""
    lr: PositiveFloat = 0.006
    """AdamW's largest learning rate; it rises over the first tenth of the steps (100 at most) and
    falls linearly to zero."""
    decay_per_epoch: NonNegativeFloat = 1.75
    """Without gradients, matrices (the embedding included) would shrink to exp(-this) in an epoch at the
    largest rate. AdamW's weight decay is this over `lr` and the steps of an epoch, which suits short and long
    texts alike (Wang & Aitchison 2024, arXiv:2405.13698)."""
    dropout: Probability = 0.2
    """Of contexts where they are read; like the other two the same elements all along a window."""
    embed_dropout: Probability = 0.1
    """Of token embeddings where they are read."""
    output_dropout: Probability = 0.1
    """Of what the softmax reads."""
    negatives: Positive | None = 512
    """Tokens drawn for the softmax of a step beside its own targets, corrected for their chance to be in it;
    none: the whole vocabulary. Scores are always of the whole vocabulary."""
    sample_positions: Positive = 2048
    """At most so many positions of a step share such a sample; larger steps have several. A sample grows with
    the targets in it, and with it what each position costs, while a small one estimates worse."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""


class Phase2Settings(Section):
    """Phase 2: the TokenBlock learns to predict the next token from frozen contexts."""

    path: ClassVar[str] = "phase2"

    start: Literal["random", "phase1"] = "random"
    """Initial weights: drawn from the seed, or (recipe `predictive`) those of phase 1's token layers. These
    are of the same depth, else of the nearest. Then the last layers are taken over, others start by
    changing nothing."""

    max_epochs: Positive = 20
    """At most this many passes over the training tokens."""
    patience: Positive = 1
    """Stop after this many epochs in a row without a better validation loss; the best epoch counts."""
    batch_positions: Positive = 4096
    """Positions of one optimizer step."""
    shuffle: bool = False
    """Draw the positions of a batch at random in every epoch, from 65,536 at a time, in blocks of 512 from
    all over the text. Otherwise they are consecutive, in order."""
    lr: PositiveFloat = 0.001
    """Adam's (with a decay AdamW's) largest learning rate."""
    schedule: Literal["constant", "linear"] = "constant"
    """Of the learning rate: `constant` or `linear`. That is a rise over the first tenth of the steps (50 at
    most) and a fall to zero over `max_epochs`."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decay of matrices."""
    dropout: Probability = 0.0
    """Of contexts where they are read."""
    embed_dropout: Probability = 0.0
    """Of token embeddings where the TokenBlock reads them."""
    output_dropout: Probability = 0.0
    """Of what the softmax reads."""
    negatives: Positive | None = None
    """As `prediction.negatives`; none: the whole vocabulary."""
    sample_positions: Positive = 2048
    """As `prediction.sample_positions`."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    chunk_positions: Positive = 512
    """Positions whose logits over the whole vocabulary are held at once (memory only, not results)."""
