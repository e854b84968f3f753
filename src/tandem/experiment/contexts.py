"""Contexts of both splits, kept where the settings and the room there is say."""

import shutil
import time
from typing import Literal

import torch

from tandem.advice import advice
from tandem.contexts import Contexts, Stream, compute_contexts, measure_memory
from tandem.errors import StorageError
from tandem.experiment.machine import free_memory
from tandem.experiment.prepared import TrainingInputs
from tandem.launch import local_processes
from tandem.metrics import effective_rank
from tandem.model import TandemForCausalLM
from tandem.objectives import OBJECTIVES
from tandem.records import ContextsRecord, ScanRecord
from tandem.settings import Settings
from tandem.tokens.prepare import default_cache_dir
from tandem.training.phase2 import Split


def room_in_memory(model: TandemForCausalLM, settings: Settings) -> int:
    """Bytes up to which one split's contexts are held in memory where the settings leave that open.

    All workers share what is free, and the rest of the machine has as much; a GPU is a process's own.
    """
    processes = 1 if model.device.type == "cuda" else local_processes()
    return free_memory(model.device) // (2 * settings.workers * processes)


def bytes_on_disk(tokens: int, context_dim: int) -> int:
    """What contexts of so many tokens take there, in bf16."""
    return torch.bfloat16.itemsize * tokens * context_dim


def check_disk_for_contexts(prepared: TrainingInputs) -> None:
    """StorageError where contexts are to be on disk, and it has no room for them: before phase 1, not after.

    For those of one run, by all processes of a group on this machine.
    """
    settings = prepared.settings
    if settings.contexts.keep == "disk" and settings.contexts.method != "loop":
        free = shutil.disk_usage(default_cache_dir()).free
        size = local_processes() * bytes_on_disk(len(prepared.corpus.train), settings.model.context_dim)
        if size > free:
            raise _no_room(size, f"{free / 1e6:,.0f} MB are free")


def _no_room(size: int, reason: str) -> StorageError:
    return StorageError(
        f"contexts cannot be kept in {default_cache_dir()} ({reason}): they take {size / 1e6:,.0f} MB"
        + advice("make room", "set TANDEM_CACHE to another folder", ("use {}", "contexts.keep recompute"))
    )


def kept_outside_memory(
    model: TandemForCausalLM, tokens: int, settings: Settings
) -> Literal["disk", "recompute"]:
    """Where contexts of so many training tokens are, if not in memory: as the settings and the room say."""
    if settings.contexts.keep != "auto":
        return "recompute" if settings.contexts.keep == "recompute" else "disk"
    free = shutil.disk_usage(default_cache_dir()).free // (2 * settings.workers * local_processes())
    return "disk" if bytes_on_disk(tokens, model.config.context_dim) <= free else "recompute"


def contexts_of(
    prepared: TrainingInputs, model: TandemForCausalLM, train: Stream, validation: Stream
) -> tuple[Split, Split, ContextsRecord]:
    """Both splits' contexts, in the same way; the processes of the group compute them together.

    Those of the training text are kept as the settings and the room say; on disk they are rounded. Those of
    validation are never rounded, and held only beside the training text's: else memory would grow with a
    large text after all.
    """
    settings, group = prepared.settings, prepared.execution.group
    ours, train_scan = compute_contexts(
        model, train, settings.contexts, room_in_memory(model, settings), group
    )
    if not ours.in_memory:
        on_disk = kept_outside_memory(model, len(train), settings) == "disk"
        if group.agrees(on_disk, model.device):  # those on disk are rounded, so all processes read alike
            size = bytes_on_disk(len(train), settings.model.context_dim)
            ours, train_scan = _on_disk(ours, train_scan, size)
    keep = {} if ours.in_memory else {"keep": "recompute"}
    own = settings.contexts.model_copy(update=keep)
    theirs, validation_scan = compute_contexts(model, validation, own, room_in_memory(model, settings), group)
    record = ContextsRecord(
        train=train_scan,
        validation=validation_scan,
        # That of a ContextBlock which phase 1 leaves as it is was measured where it was trained.
        memory=measure_memory(model, validation, group) if OBJECTIVES[settings.recipe].parts else (),
        effective_rank_train=effective_rank(ours, settings.contexts.rank_positions),
        effective_rank_validation=effective_rank(theirs, settings.contexts.rank_positions),
        seconds_s=train_scan.seconds_s + validation_scan.seconds_s,
    )
    return Split(train, ours), Split(validation, theirs), record


def _on_disk(contexts: Contexts, scan: ScanRecord, size: int) -> tuple[Contexts, ScanRecord]:
    """Contexts moved to disk, and their record with that; StorageError where there is no room."""
    began = time.perf_counter()
    try:
        contexts, rounding = contexts.on_disk(default_cache_dir())
    except OSError as error:
        raise _no_room(size, str(error.strerror or error)) from None
    seconds = scan.seconds_s + time.perf_counter() - began
    return contexts, scan.model_copy(update={"storage": "disk", "rounding": rounding, "seconds_s": seconds})
