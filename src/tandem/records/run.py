"""What is written down of a run: typed, readable without torch.

Units stand in the names: `_s` seconds, `_bytes` bytes, `_nats` natural-log units per token. Shares
(`convergence_rate`, `accuracy`, `effective_rank`) lie between 0 and 1. A missing figure is null, never a
sentinel number.
"""

import base64
import math
import pkgutil
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

# JSON has no infinity: a perplexity that overflows, say, is written as null and read as infinite.
Unbounded = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(
        lambda value: value if math.isfinite(value) else None,
        return_type=float | None,
        when_used="json",
    ),
]


Name = Annotated[
    str,
    Field(
        pattern=r"^[^\x00-\x1f\x7f-\x9f<>&`*\[\]|\\$\x{61c}\x{200e}\x{200f}\x{2028}-\x{202e}\x{2066}-\x{2069}]*$"
    ),
]
"""A name that stands in sentences and tables of the report, where none of its characters acts as markup."""


def perplexity(nll_nats: float) -> float:
    """exp(mean NLL per token); infinite where that exceeds the range of a float."""
    return math.exp(nll_nats) if nll_nats < 700 else math.inf


class Record(BaseModel):
    """Base of all that is written down: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameters(Record):
    """Parameter counts by part; the tied head adds its bias only."""

    embedding: int = 0
    embed_norm: int = 0
    context_block: int = 0
    token_block: int = 0
    head: int = 0
    """Its bias, if it has one."""
    other: int = 0
    """Of a baseline: all but its embedding; of an n-gram model, the n-grams it keeps."""
    total: int
    trained_phase1: int
    trained_phase2: int
    """Of a baseline: all that its training changes."""


class PartRecord(Record):
    """What a training phase did to one part of the model."""

    part: str
    """Such as `context_block.layers.0`."""
    trained: bool
    """Whether the phase was to change it."""
    before: str
    """Fingerprint of its weights."""
    after: str
    start: tuple[float, ...]
    """Some of its weights before the phase: what is drawn from one seed differs in its last digits from one
    processor to another, which fingerprints cannot tell from other weights."""
    gradient: bool
    """Whether every one of its parameters had a gradient other than zero in the phase's last step."""


class Phase1Record(Record):
    """Result of phase 1, shared by runs of one (variant, context_layers, seed); objectives add to it."""

    parts: tuple[PartRecord, ...]
    tokens: int
    """Of the training text that it read."""
    seconds_s: float
    micro_batches: int = 1
    """As of TrainingRecord."""


class Epoch(Record):
    """One pass; training figures are running means over the epoch, validation is at its end."""

    epoch: int
    """0 is what training started from, where that counts; its training figure is of a part of the text."""
    train_nll_nats: Unbounded
    validation_nll_nats: Unbounded
    validation_accuracy: float
    seconds_s: float
    """Since the start of phase 2."""
    positions: int | None = None
    """Tokens that were predicted; none where nobody counted."""
    position_sum: int | None = None
    """Sum of their positions: it tells whether each was read once."""


class RateTrial(Record):
    """One training that was made to choose a learning rate."""

    lr: float
    validation_nll_nats: Unbounded
    """Of its best epoch; infinite where a step was not finite."""
    seconds_s: float


class TrainingRecord(Record):
    """Training for next-token prediction, at its best epoch: phase 2, or the training of a baseline."""

    best_epoch: int
    """0 where phase 2 did not improve on the token layers of phase 1 that it started from."""
    epochs: int
    stopped: Literal["patience", "max_epochs", "seconds"]
    train_nll_nats: Unbounded
    train_perplexity: Unbounded
    seconds_s: float
    history: tuple[Epoch, ...]
    parts: tuple[PartRecord, ...] = ()
    """Empty for baselines."""
    micro_batches: int = 1
    """Parts that a step was computed in, at the end: more than one where memory ran out."""
    steps: int | None = None
    """Of the optimizer; none where nobody counted."""
    search: tuple[RateTrial, ...] = ()
    """By which the learning rate was chosen; their seconds are in none of the others."""

    @property
    def lr(self) -> float | None:
        """The learning rate that was chosen; none where there was no choice."""
        return min(self.search, key=lambda trial: trial.validation_nll_nats).lr if self.search else None


class DocumentScores(Record):
    """NLL of every validation document, packed: base64 of little-endian arrays, [D] documents."""

    tokens: str
    """Scored tokens of each document, int32."""
    nll_nats: str
    """Their NLL in nats, summed over each document, float32."""

    @model_validator(mode="after")
    def _unpacks(self) -> "DocumentScores":
        tokens, nll_nats = self.unpack()
        if len(tokens) != len(nll_nats):
            raise ValueError("tokens and nll_nats hold different numbers of documents")
        return self

    @classmethod
    def pack(cls, tokens: npt.NDArray[Any], nll_nats: npt.NDArray[Any]) -> "DocumentScores":
        """From two arrays [D]."""
        return cls(
            tokens=base64.b64encode(tokens.astype("<i4").tobytes()).decode("ascii"),
            nll_nats=base64.b64encode(nll_nats.astype("<f4").tobytes()).decode("ascii"),
        )

    def unpack(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Scored tokens [D] and summed NLL in nats [D]."""
        return (
            np.frombuffer(base64.b64decode(self.tokens), "<i4").astype(np.int64),
            np.frombuffer(base64.b64decode(self.nll_nats), "<f4").astype(np.float64),
        )


class ValidationRecord(Record):
    """What next-token prediction made of the validation text."""

    tokens: int
    """Scored ones: all but the first."""
    nll_nats: Unbounded
    """Mean per scored token."""
    perplexity: Unbounded
    accuracy: float
    bits_per_byte: Unbounded
    """Each byte of text that the tokens cannot give back counts 8 bits."""
    documents: DocumentScores | None
    """Of each one; none: then models are compared over seeds alone."""


class ScanRecord(Record):
    """How the contexts of one stream were computed, and how far from the sequential loop they are."""

    method: Literal["scan", "linear", "loop"]
    """`scan`: segments with a burn-in; `linear`: exact, of gated blocks; `loop`: token after token."""
    tokens: int
    storage: Literal["memory", "disk", "recompute"]
    """In memory, on disk in bf16, or not at all: then they were computed again in every epoch."""
    rounding: float
    """Largest absolute difference that keeping them on disk made."""
    segments: int
    burn_in: int
    """Tokens after which the block has forgotten what came before, to the tolerance; of `linear`, which needs
    no burn-in, all tokens where it does not forget in time."""
    loop_error: float
    """Largest absolute difference from the loop on `checked_tokens` tokens of the stream."""
    join_error: float
    """Largest absolute difference at any join of two segments, between the two ways of reaching it."""
    checked_tokens: int
    tolerance: float
    seconds_s: float


class MemoryPoint(Record):
    """How much of one token is left in the context some tokens later."""

    distance: int
    """Tokens read since the changed one; 0 is the context right after it."""
    change: float
    """Root mean square change of a context when that token is another one, over that of two contexts at
    different places of the text."""


class ContextsRecord(Record):
    """Contexts of both splits; computed once per (variant, context_layers, seed)."""

    train: ScanRecord
    validation: ScanRecord
    memory: tuple[MemoryPoint, ...] = ()
    """Measured on validation text; empty where that text is too short."""
    effective_rank_train: float
    """Of the contexts of each split."""
    effective_rank_validation: float
    seconds_s: float


class DataRecord(Record):
    """What the run was trained and scored on."""

    train_source: str
    validation_source: str
    train_documents: int
    train_tokens: int
    train_bytes: int
    validation_documents: int
    validation_tokens: int
    validation_bytes: int
    duplicates_dropped: int
    overlap_documents: int
    """Validation documents that also occur in training (allowed by name only)."""
    train_lost_bytes: int
    """Of `train_bytes`, those that the tokens cannot give back."""
    validation_lost_bytes: int
    vocab_size: int
    tokenizer: str
    text_fingerprint: str
    tokenizer_fingerprint: str
    tokens_fingerprint: str
    embeddings: str
    embeddings_trained: bool
    embeddings_fingerprint: str


Precision = Literal["float32", "bfloat16"]


class Environment(Record):
    """Where it ran."""

    device: str
    device_name: str
    device_memory_bytes: int | None
    precision: Precision
    """Of products of matrices in training."""
    cpu_count: int
    cpu_capability: str
    """Vector instructions that PyTorch uses there: its random numbers differ in last digits between them."""
    threads: int
    platform: str
    python: str
    torch: str
    transformers: str
    tandem: str
    code_fingerprint: str
    """Of the package's own source files: the code version even where there is no git."""
    git_commit: str | None


class RunRecord(Record):
    """One run: one configuration, or one baseline, with one seed."""

    schema_version: Literal[4] = 4
    run: Name
    """Such as `C2T1-seed0`, `LSTM-seed0`, `KN-5`."""
    experiment: str
    folder: str
    """Where it was started; relative paths of sources count from there."""
    kind: str = "tandem"
    """Else a baseline, by its name in `tandem.baselines`; `untrained` is a Tandem model without phase 1."""
    recipe: str | None
    """Names the objective of its phase 1; none of other models."""
    variant: Name | None = None
    """The variant of the settings it was trained with; none where the experiment has no variants."""
    configuration: Name
    """Such as C2T1, with a variant `predictive-C2T1`; of baselines, such as `C1T1-untrained`, `LSTM`."""
    context_layers: int | None
    """None, like all sizes that the model does not have."""
    token_layers: int | None
    embed_dim: int | None
    context_dim: int | None
    seed: int | None
    """None where nothing is drawn at random (n-gram models)."""
    status: Literal["finished", "failed"]
    failure: str | None = None
    """One sentence, for a failed run; its results are null."""
    settings_fingerprint: str
    """Of what all runs of the experiment share."""
    baseline_fingerprint: str | None = None
    """Of a baseline's own settings."""
    data: DataRecord
    environment: Environment
    parameters: Parameters | None = None
    phase1: SerializeAsAny[Phase1Record] | None = None
    phase1_computed_here: bool | None = None
    """False: taken from a sibling run with the same variant, context_layers and seed."""
    contexts: ContextsRecord | None = None
    phase2: TrainingRecord | None = None
    """Of Tandem models, `untrained` ones included."""
    training: TrainingRecord | None = None
    """Of baselines trained by gradient steps."""
    validation: ValidationRecord | None = None
    seconds_spent_s: float
    """Time this run really took, shared work counted only where it was done."""
    seconds_alone_s: float
    """Time it would have taken alone: phase 1, contexts and phase 2."""
    peak_memory_bytes: int | None = None
    """Of the process during this run (host), or of the device where it is not the CPU."""
    finished_at: str
    """UTC, ISO 8601."""

    @field_validator("kind")
    @classmethod
    def _of_a_known_kind(cls, value: str) -> str:
        # Named by text, as modules import from rooms above their own alone.
        if value not in ("tandem", *pkgutil.resolve_name("tandem.baselines:BASELINES")):
            raise ValueError(f"baseline '{value}' is of a package that is not installed here")
        return value

    @field_validator("phase1", mode="before")
    @classmethod
    def _of_its_objective(cls, value: Any, info: ValidationInfo) -> Any:
        """The record that the recipe's objective writes."""
        if not isinstance(value, Mapping):
            return value
        objectives, recipe = pkgutil.resolve_name("tandem.objectives:OBJECTIVES"), info.data.get("recipe")
        if recipe not in objectives:
            raise ValueError(f"recipe '{recipe}' is of a package that is not installed here")
        return objectives[recipe].record_type.model_validate(value)

    @model_validator(mode="after")
    def _finished_with_results(self) -> "RunRecord":
        needed = ["parameters", "validation"]
        if self.is_tandem:
            needed += ["context_layers", "token_layers", "seed", "contexts", "phase2"]
            needed += ["phase1"] if self.kind == "tandem" else []
        missing = [name for name in needed if getattr(self, name) is None]
        if self.status == "finished" and missing:
            raise ValueError(f"a finished run of kind {self.kind} has no {missing[0]}")
        return self

    @property
    def is_tandem(self) -> bool:
        """Whether it is a Tandem model, controls included."""
        return self.kind == "tandem" or self.context_layers is not None

    @property
    def trained(self) -> TrainingRecord | None:
        """Phase 2, or the training of a baseline."""
        return self.phase2 or self.training
