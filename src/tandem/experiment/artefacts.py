"""What runs leave on disk beside their records: phase 1, which several share, and model folders."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tandem.advice import advice
from tandem.checksums import (
    ABSENT,
    check_file,
    check_files,
    check_tensors,
    file_digest,
    read_checksums,
    seal_tensors,
    write_checksums,
)
from tandem.decoding import read_text
from tandem.errors import (
    DamageError,
    DataError,
    RunDirError,
    UnsavedError,
    is_out_of_storage,
    storage_reason,
)
from tandem.experiment.card import CARD, has_foreign_card, model_card, write_card
from tandem.fingerprint import fingerprint
from tandem.folders import (
    CONFIG,
    CONTEXTS_SAMPLE,
    PHASE1_HEAD,
    PHASE1_SNAPSHOTS,
    RECORD,
    SNAPSHOTS,
    atomic_folder,
    atomic_write,
    new_folder,
)
from tandem.model_folder.checking import WEIGHTS
from tandem.model_folder.loading import quiet_transformers
from tandem.objectives import OBJECTIVES, Objective
from tandem.records import Phase1Record, RunRecord
from tandem.settings import dump_settings

if TYPE_CHECKING:  # what trains is not needed to load a model
    from tandem.contexts import ContextsSample
    from tandem.experiment.pipeline import SavedPhase1, TrainedTokens
    from tandem.experiment.prepared import TrainingInputs
    from tandem.training.snapshots import Snapshots


def phase1_path(run_dir: Path, variant: str | None, context_layers: int, seed: int) -> Path:
    """Where the phase 1 result that runs of this variant, context depth and seed share lies."""
    own = "" if variant is None else f"{variant}-"
    return run_dir / "phase1" / f"{own}C{context_layers}-seed{seed}.safetensors"


def phase1_fingerprint(prepared: TrainingInputs, context_layers: int, seed: int) -> str:
    """Of everything that phase 1 depends on: the context depth, the seed, and what they are trained on."""
    settings = prepared.settings
    section = OBJECTIVES[settings.recipe].section
    return fingerprint(
        "phase1",
        settings.recipe,
        settings.model.model_dump(mode="json"),
        settings.section(section).model_dump(mode="json") if section else {},
        prepared.corpus.fingerprint,
        prepared.table(seed)[1],
        prepared.execution.bfloat16,
        context_layers,
        seed,
    )


def save_phase1(
    path: Path,
    state: dict[str, torch.Tensor],
    record: Phase1Record,
    fingerprint: str,
    snapshots: Snapshots,
) -> None:
    """Keep the weights that a finished phase 1 leaves, atomically, with a fingerprint of its inputs.

    Beside them lie its snapshots.
    """
    new_folder(path.parent)
    beside = path.with_name(f"{path.stem}-{SNAPSHOTS}")  # before the weights, with which phase 1 is finished
    beside.unlink(missing_ok=True)
    about = {"fingerprint": fingerprint, "record": record.model_dump_json(), "checksum": ABSENT}
    if snapshots:
        with atomic_write(beside) as draft:
            snapshots.save(draft)
        about["beside"] = file_digest(beside)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(path) as draft:
        save_file(tensors, draft, about)
        seal_tensors(draft)


def load_phase1(path: Path, fingerprint: str, objective: Objective) -> SavedPhase1 | None:
    """The kept phase 1, or none where there is none, it is damaged, or it came from anything else."""
    if not path.is_file():
        return None
    try:
        check_tensors(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, objective.record_type.model_validate_json(metadata["record"])
    except (OSError, SafetensorError, KeyError, ValidationError, DamageError):
        return None


def phase1_snapshots(path: Path) -> Snapshots:
    """Those beside a kept phase 1; empty where there are none that can be read."""
    from tandem.training.snapshots import Snapshots

    beside = path.with_name(f"{path.stem}-{SNAPSHOTS}")
    with suppress(OSError, SafetensorError, KeyError, ValueError, DamageError):
        check_tensors(beside)
        return Snapshots.load(beside)
    return Snapshots()


def save_model(
    folder: Path,
    trained: TrainedTokens,
    prepared: TrainingInputs,
    record: RunRecord,
    phase1: Snapshots | None = None,
) -> None:
    """A Hugging Face model folder, with its card, settings, record, a sample of its contexts, and snapshots.

    Those of `phase1` too, where no run directory has them.

    Files of other kinds in the folder stay, and so does a README.md that Tandem did not write.
    """
    with atomic_folder(folder, CONFIG, (PHASE1_HEAD, SNAPSHOTS, PHASE1_SNAPSHOTS)) as draft:
        with quiet_transformers():
            trained.model.save_pretrained(draft)
            prepared.corpus.tokenizer.save_pretrained(draft)
        trained.phase2.sample.save(draft / CONTEXTS_SAMPLE)
        for name, snapshots in ((SNAPSHOTS, trained.snapshots), (PHASE1_SNAPSHOTS, phase1)):
            if snapshots:
                snapshots.save(draft / name)
        if trained.head is not None:
            save_file({name: tensor.cpu() for name, tensor in trained.head.items()}, draft / PHASE1_HEAD)
        (draft / "settings.yaml").write_text(dump_settings(prepared.settings), "utf-8")
        (draft / RECORD).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
        if not has_foreign_card(folder):
            write_card(draft, model_card(record, prepared.settings.model.cell))
        write_checksums(draft, (CARD,))


def save_baseline(
    folder: Path, weights: Mapping[str, torch.Tensor], snapshots: Snapshots, record: RunRecord
) -> None:
    """The weights of a baseline, a few steps of its training and its record, for the audit."""
    with atomic_folder(folder, RECORD, (SNAPSHOTS,)) as draft:
        # A clone each: tensors of one file may not share memory.
        save_file({name: weight.cpu().clone() for name, weight in weights.items()}, draft / WEIGHTS)
        if snapshots:
            snapshots.save(draft / SNAPSHOTS)
        (draft / RECORD).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
        write_checksums(draft)


def save_or_rescue(folder: Path, save: Callable[[Path], None], rescued: str, lost: str) -> None:
    """`save` a model to `folder`, or where the system refuses that, to a temporary folder.

    Raises UnsavedError then. It names both, and ends with what to do where the model is `rescued` or `lost`.
    """
    try:
        save(folder)
    except Exception as error:
        if not is_out_of_storage(error):
            raise
        said = f"cannot save the model in {folder} ({storage_reason(error)})"
        place = None
        try:
            place = Path(tempfile.mkdtemp(prefix=f"tandem-{folder.name}-"))
            save(place)
            said += f"; it is whole in {place} instead{rescued}"
        except Exception:  # the first error is the one to tell
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
            said += lost
        raise UnsavedError(said) from None


def finished_model(folder: Path, prepared: TrainingInputs, run: str) -> RunRecord | None:
    """The record of the model in a folder, none where none is there.

    RunDirError where it is of anything but this run, with these settings and tokens.
    """
    if not (folder / CONFIG).exists():
        return None
    record = model_record(folder)
    if record is None:
        there = "a model whose record cannot be read"
    elif record.run != run:
        there = f"{record.run}, another run than {run}"
    elif record.settings_fingerprint != prepared.settings.fingerprint():
        there = f"a {run} of other settings"
    elif record.data.tokens_fingerprint != prepared.corpus.fingerprint:
        there = f"a {run} of other text or tokens"
    elif record.environment.precision != prepared.precision:
        there = f"a {run} that was trained in {record.environment.precision}"
    else:
        return record
    raise RunDirError(
        f"{folder} holds {there}, which would be lost"
        + advice(("give another {}", "output"), "remove that folder")
    )


def model_record(folder: Path) -> RunRecord | None:
    """The record of the run that made a model folder; none where there is none that can be read."""
    with suppress(OSError, ValueError, DataError):
        if (folder / RECORD).is_file():
            return RunRecord.model_validate_json(read_text(folder / RECORD))
    return None


def model_damage(folder: Path) -> str | None:
    """What is missing or damaged in the folder of a trained model or baseline; none where it is whole.

    Of a folder without checksums only that it is not there, or has no weights.
    """
    try:
        check_files(folder)
    except DamageError as error:
        return str(error)
    return None if (folder / WEIGHTS).is_file() else "its weights are missing"


def load_sample(folder: Path) -> ContextsSample | None:
    """The sample of contexts in a model folder; none where there is none that can be read.

    Raises DamageError for another one than was written.
    """
    check_file(folder / CONTEXTS_SAMPLE, read_checksums(folder).get(CONTEXTS_SAMPLE))
    from tandem.contexts import ContextsSample

    with suppress(OSError, SafetensorError, TypeError):
        return ContextsSample.load(folder / CONTEXTS_SAMPLE)
    return None


def load_head(folder: Path) -> dict[str, torch.Tensor] | None:
    """Phase 1's token layers in a model folder; none where there are none that can be read.

    Raises DamageError for others than were written.
    """
    check_file(folder / PHASE1_HEAD, read_checksums(folder).get(PHASE1_HEAD))
    with suppress(OSError, SafetensorError):
        return load_file(folder / PHASE1_HEAD)
    return None
