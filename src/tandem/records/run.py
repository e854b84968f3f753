"""What is written down of a run: typed, readable without torch.

Units stand in the names: `_s` seconds, `_bytes` bytes, `_nats` natural-log units per token. Shares
(`convergence_rate`, `accuracy`, `effective_rank`) lie between 0 and 1. A missing figure is null, never a
sentinel number.
"""

import base64
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

SCHEMA_VERSION: Literal[2] = 2


def _finite_or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


# JSON has no infinity: a perplexity that overflows, say, is written as null and read as infinite.
Unbounded = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(_finite_or_null, return_type=float | None, when_used="json"),
]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameters(_Record):
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


class PartRecord(_Record):
    """What a training phase did to one part of the model."""

    part: str
    """Such as `context_block.layers.0`."""
    trained: bool
    """Whether the phase was to change it."""
    before: str
    """Fingerprint of its weights."""
    after: str
    start: tuple[float, ...] = ()
    """Some of its weights before the phase: what is drawn from one seed differs in its last digits from one
    processor to another, which fingerprints cannot tell from other weights."""
    gradient: bool
    """Whether every one of its parameters had a gradient other than zero in the phase's last step."""


class Phase1Iteration(_Record):
    """One iteration; the random start is iteration 1 and has no entry."""

    iteration: int
    loss: float
    grad_norm: float
    convergence_rate: float
    """Share of positions whose mean squared change since the last iteration is below the threshold."""
    seconds_s: float
    """Since the start of phase 1."""


class Phase1Record(_Record):
    """Result of phase 1 by dispersion; shared by all runs of the same (variant, context_layers, seed)."""

    objective: Literal["dispersion"] = "dispersion"
    parts: tuple[PartRecord, ...] = ()
    """Empty in records of schema 1."""

    iterations: int
    stopped: Literal["converged", "max_iterations"]
    convergence_rate: float
    effective_rank_train: float
    effective_rank_validation: float
    tokens: int
    seconds_s: float
    history: tuple[Phase1Iteration, ...]


class PredictionEpoch(_Record):
    """One pass of phase 1 by prediction."""

    epoch: int
    train_nll_nats: Unbounded
    """Mean over the epoch while the weights move, with dropout and a sampled softmax: not to be compared with
    a validation figure."""
    grad_norm: float
    """Mean over the epoch, before clipping."""
    seconds_s: float
    """Since the start of phase 1."""


class HeadRecord(_Record):
    """Token layers of phase 1's own, at its end."""

    token_layers: int
    parameters: int
    """Trained in phase 1, and in no other count."""
    nll_nats: Unbounded
    """Validation NLL through them; exact softmax, no dropout."""
    accuracy: float


class PredictionRecord(_Record):
    """Result of phase 1 by prediction; shared by all runs of the same (variant, context_layers, seed)."""

    objective: Literal["prediction"] = "prediction"
    parts: tuple[PartRecord, ...]
    epochs: int
    positions: int
    """Tokens predicted in an epoch."""
    tokens: int
    """Of the training text."""
    heads: Annotated[tuple[HeadRecord, ...], Field(min_length=1)]
    """Through which it predicted, the shallowest first."""
    effective_rank_train: float
    effective_rank_validation: float
    seconds_s: float
    history: tuple[PredictionEpoch, ...]
    micro_batches: int = 1
    """As of TrainingRecord."""

    def head_for(self, token_layers: int) -> HeadRecord:
        """The head that a TokenBlock of this depth may start from, and is to be compared with."""
        return next(
            head
            for head in self.heads
            if head.token_layers == nearest_head([head.token_layers for head in self.heads], token_layers)
        )


class Epoch(_Record):
    """One pass; training figures are running means over the epoch, validation is at its end."""

    epoch: int
    """0 is what training started from, where that counts; its training figure is of a part of the text."""
    train_nll_nats: Unbounded
    validation_nll_nats: Unbounded
    validation_accuracy: float
    seconds_s: float
    """Since the start of phase 2."""


class TrainingRecord(_Record):
    """Training for next-token prediction, at its best epoch: phase 2, or the training of a baseline."""

    best_epoch: int
    """0 where phase 2 did not improve on the token layers of phase 1 that it started from."""
    epochs: int
    stopped: Literal["patience", "max_epochs"]
    train_nll_nats: Unbounded
    train_perplexity: Unbounded
    seconds_s: float
    history: tuple[Epoch, ...]
    parts: tuple[PartRecord, ...] = ()
    """Empty for baselines, and in records of schema 1."""
    positions: int | None = None
    """Tokens predicted in an epoch; none for baselines, and in records of schema 1."""
    first_loss_nats: float | None = None
    """Loss of the first step, before any weight moved; none for baselines, and in records of schema 1."""
    micro_batches: int = 1
    """Parts that a step was computed in, at the end: more than one where memory ran out."""


class DocumentScores(_Record):
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


class ValidationRecord(_Record):
    """What next-token prediction made of the validation text."""

    tokens: int | None
    """Scored ones: all but the first; not known in records of schema 1."""
    nll_nats: Unbounded
    """Mean per scored token."""
    perplexity: Unbounded
    accuracy: float
    bits_per_byte: Unbounded
    """Each byte of text that the tokens cannot give back counts 8 bits."""
    documents: DocumentScores | None
    """None in records of schema 1."""


class ScanRecord(_Record):
    """How the contexts of one stream were computed, and how far from the sequential loop they are."""

    method: Literal["scan", "linear", "loop"]
    """`scan`: segments with a burn-in; `linear`: exact, of gated blocks; `loop`: token after token."""
    tokens: int
    kept: Literal["memory", "disk", "recompute"] = "memory"
    """In memory, on disk in bf16, or not at all: then they were computed again in every epoch."""
    rounding: float = 0.0
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

    @model_validator(mode="before")
    @classmethod
    def _once_held(cls, values: Any) -> Any:
        """Records of a few days told `held` or not, before contexts could be on disk."""
        if isinstance(values, Mapping) and "held" in values:
            kept = "memory" if values["held"] else "recompute"
            return {"kept": kept} | {key: value for key, value in values.items() if key != "held"}
        return values


def nearest_head(depths: Iterable[int], token_layers: int) -> int:
    """Of the depths of heads, the deepest that is no deeper than a TokenBlock; else the shallowest."""
    depths = sorted(depths)
    return max((depth for depth in depths if depth <= token_layers), default=depths[0])


class MemoryPoint(_Record):
    """How much of one token is left in the context some tokens later."""

    distance: int
    """Tokens read since the changed one; 0 is the context right after it."""
    change: float
    """Root mean square change of a context when that token is another one, over that of two contexts at
    different places of the text."""


class ContextsRecord(_Record):
    """Contexts of both splits; computed once per (variant, context_layers, seed)."""

    train: ScanRecord
    validation: ScanRecord
    memory: tuple[MemoryPoint, ...] = ()
    """Measured on validation text; empty in older records, and where that text is too short."""
    seconds_s: float


class DataRecord(_Record):
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
    train_lost_bytes: int = 0
    """Of `train_bytes`, those that the tokens cannot give back; 0 in older records, which count none."""
    validation_lost_bytes: int = 0
    vocab_size: int
    tokenizer: str
    text_fingerprint: str
    tokenizer_fingerprint: str
    tokens_fingerprint: str
    embeddings: str
    embeddings_trained: bool
    embeddings_fingerprint: str


Precision = Literal["float32", "bfloat16"]


class Environment(_Record):
    """Where it ran."""

    device: str
    device_name: str
    device_memory_bytes: int | None
    precision: Precision = "float32"
    """Of products of matrices in training."""
    cpu_count: int
    threads: int
    platform: str
    python: str
    torch: str
    transformers: str
    tandem: str
    code_fingerprint: str
    """Of the package's own source files: the code version even where there is no git."""
    git_commit: str | None


class RunRecord(_Record):
    """One run: one configuration, or one baseline, with one seed."""

    schema_version: Literal[2] = SCHEMA_VERSION
    run: str
    """Such as `C2T1-seed0`, `LSTM-seed0`, `KN-5`."""
    experiment: str
    folder: str | None = None
    """Where it was started, and relative paths of sources count from; none where that was not written."""
    kind: str = "tandem"
    """Else a baseline, by its name in `tandem.baselines`; `untrained` is a Tandem model without phase 1."""
    recipe: Literal["original", "predictive"] | None = "original"
    """How its blocks were trained; none of other models."""
    variant: str | None = None
    """The variant of the settings it was trained with; none where the experiment has no variants."""
    configuration: str
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
    phase1: Phase1Record | PredictionRecord | None = None
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

    @model_validator(mode="before")
    @classmethod
    def _from_schema_1(cls, values: Any) -> Any:
        """Records of schema 1 kept the validation figures in `phase2`, and no documents."""
        if not isinstance(values, Mapping) or values.get("schema_version") != 1:
            return values
        new = {**values, "schema_version": SCHEMA_VERSION}
        if isinstance(values.get("phase2"), Mapping):
            figures = ("nll_nats", "perplexity", "accuracy", "bits_per_byte")
            phase2 = dict(values["phase2"])
            found = {name: phase2.pop(f"validation_{name}", None) for name in figures}
            new |= {"phase2": phase2, "validation": {**found, "tokens": None, "documents": None}}
        return new

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

    def without_times(self) -> dict[str, object]:
        """The record less what differs between two identical runs: times, dates, memory and place."""
        return _strip(self.model_dump(mode="json"))  # type: ignore[return-value]


def _strip(value: object) -> object:
    varying = {"peak_memory_bytes", "finished_at", "folder"}
    if isinstance(value, dict):
        return {k: _strip(v) for k, v in value.items() if not k.endswith("_s") and k not in varying}
    if isinstance(value, list):
        return [_strip(item) for item in value]
    return value
