"""What is written down of a run: typed, one JSON object a line, readable without torch.

Units stand in the names: `_s` seconds, `_bytes` bytes, `_nats` natural-log units per token. Shares
(`convergence_rate`, `accuracy`, `effective_rank`) lie between 0 and 1. A missing figure is null, never a
sentinel number.
"""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from tandem.errors import RunDirError

SCHEMA_VERSION: Literal[1] = 1


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
    """Parameter counts by part; the tied head adds none."""

    embedding: int
    embed_norm: int
    context_block: int
    token_block: int
    total: int
    trained_phase1: int
    trained_phase2: int


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
    """Result of phase 1; shared by all runs of the same (context_layers, seed)."""

    iterations: int
    stopped: Literal["converged", "max_iterations"]
    convergence_rate: float
    effective_rank_train: float
    effective_rank_validation: float
    tokens: int
    seconds_s: float
    history: tuple[Phase1Iteration, ...]


class Phase2Epoch(_Record):
    """One pass; training figures are running means over the epoch, validation is at its end."""

    epoch: int
    train_nll_nats: Unbounded
    validation_nll_nats: Unbounded
    validation_accuracy: float
    seconds_s: float
    """Since the start of phase 2."""


class Phase2Record(_Record):
    """Result of phase 2 at its best epoch."""

    best_epoch: int
    epochs: int
    stopped: Literal["patience", "max_epochs"]
    train_nll_nats: Unbounded
    train_perplexity: Unbounded
    validation_nll_nats: Unbounded
    validation_perplexity: Unbounded
    validation_accuracy: float
    validation_bits_per_byte: Unbounded
    seconds_s: float
    history: tuple[Phase2Epoch, ...]


class ScanRecord(_Record):
    """How the contexts of one stream were computed, and how far from the sequential loop they are."""

    method: Literal["scan", "loop"]
    tokens: int
    segments: int
    burn_in: int
    loop_error: float
    """Largest absolute difference from the loop on `checked_tokens` tokens of the stream."""
    join_error: float
    """Largest absolute difference at any join of two segments, between the two ways of reaching it."""
    checked_tokens: int
    tolerance: float
    seconds_s: float


class ContextsRecord(_Record):
    """Contexts of both splits; computed once per (context_layers, seed)."""

    train: ScanRecord
    validation: ScanRecord
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
    vocab_size: int
    tokenizer: str
    text_fingerprint: str
    tokenizer_fingerprint: str
    tokens_fingerprint: str
    embeddings: str
    embeddings_trained: bool
    embeddings_fingerprint: str


class Environment(_Record):
    """Where it ran."""

    device: str
    device_name: str
    device_memory_bytes: int | None
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
    """One run: one configuration with one seed."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: str
    """Such as `C2T1-seed0`."""
    experiment: str
    configuration: str
    context_layers: int
    token_layers: int
    embed_dim: int
    context_dim: int
    seed: int
    status: Literal["finished", "failed"]
    failure: str | None = None
    """One sentence, for a failed run; its results are null."""
    settings_fingerprint: str
    data: DataRecord
    environment: Environment
    parameters: Parameters | None = None
    phase1: Phase1Record | None = None
    phase1_computed_here: bool | None = None
    """False: taken from a sibling run with the same context_layers and seed."""
    contexts: ContextsRecord | None = None
    phase2: Phase2Record | None = None
    seconds_spent_s: float
    """Time this run really took, shared work counted only where it was done."""
    seconds_alone_s: float
    """Time it would have taken alone: phase 1, contexts and phase 2."""
    peak_memory_bytes: int | None = None
    """Of the process during this run (host), or of the device where it is not the CPU."""
    finished_at: str
    """UTC, ISO 8601."""

    def without_times(self) -> dict[str, object]:
        """The record less everything that differs between two identical runs: times, dates and memory."""
        return _strip(self.model_dump(mode="json"))  # type: ignore[return-value]


class Manifest(_Record):
    """RUN_DIR/manifest.json: what the experiment is."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    settings: dict[str, object]
    settings_fingerprint: str
    tokens_fingerprint: str
    configurations: tuple[str, ...]
    seeds: tuple[int, ...]
    created_at: str


def _strip(value: object) -> object:
    varying = {"peak_memory_bytes", "finished_at"}
    if isinstance(value, dict):
        return {k: _strip(v) for k, v in value.items() if not k.endswith("_s") and k not in varying}
    if isinstance(value, list):
        return [_strip(item) for item in value]
    return value


def records_path(run_dir: Path) -> Path:
    """Where the records of an experiment lie."""
    return run_dir / "records.jsonl"


def append_record(run_dir: Path, record: RunRecord) -> None:
    """Append one record and force it to disk; a torn last line of an earlier crash is cut off first."""
    path = records_path(run_dir)
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
        file.write(record.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(run_dir: Path) -> list[RunRecord]:
    """The latest record of every run, in order of first appearance.

    A torn last line (the process died while writing it) is passed over: that run counts as not done.
    Raises RunDirError where any other line is not a record, naming file and line.
    """
    path = records_path(run_dir)
    if not path.is_file():
        return []
    latest: dict[str, RunRecord] = {}
    content = path.read_bytes()
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            record = RunRecord.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            raise RunDirError(
                f"{path}, line {number} is not a record of this version of Tandem ({where}: {first['msg']}); "
                "restore the file, or use a new run directory with --output"
            ) from None
        latest[record.run] = record
    return list(latest.values())


def manifest_path(run_dir: Path) -> Path:
    """Where the manifest of an experiment lies."""
    return run_dir / "manifest.json"


def write_manifest(run_dir: Path, manifest: Manifest) -> None:
    """Write the manifest atomically."""
    path = manifest_path(run_dir)
    draft = path.with_suffix(".json.partial")
    draft.write_text(
        json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    draft.replace(path)


def read_manifest(run_dir: Path) -> Manifest | None:
    """The manifest of a run directory; none where there is none. Raises RunDirError if it is damaged."""
    path = manifest_path(run_dir)
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_text("utf-8"))
    except (ValidationError, UnicodeDecodeError):
        raise RunDirError(
            f"{path} is damaged; restore it, or use a new run directory with --output"
        ) from None
