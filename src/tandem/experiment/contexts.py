"""Contexts of both splits, kept where the settings and the room there is say."""

import shutil
import time
from pathlib import Path
from typing import Literal

import torch

from tandem.advice import advice
from tandem.contexts import Contexts, Stream, compute_contexts, measure_memory
from tandem.errors import StorageError
from tandem.experiment.machine import free_memory
from tandem.experiment.prepared import Prepared
from tandem.group import Group
from tandem.launch import local_processes
from tandem.metrics import effective_rank
from tandem.model import TandemForCausalLM
from tandem.records import ContextsRecord, ScanRecord
from tandem.settings import Settings
from tandem.tokens.prepare import default_cache_dir
from tandem.training.phase2 import Split


def room_in_memory(model: TandemForCausalLM, settings: Settings) -> int:
    """Bytes up to which one split's contexts are held in memory where the settings leave that open."""
    return free_memory(model.device) // _sharers(model, settings)


def _sharers(model: TandemForCausalLM, settings: Settings) -> int:
    """Who shares what is free, the rest of the machine among them; a GPU is a process's own."""
    return 2 * settings.workers * (1 if model.device.type == "cuda" else local_processes())


def bytes_on_disk(tokens: int, context_dim: int) -> int:
    """What contexts of so many tokens take there, in bf16."""
    return torch.bfloat16.itemsize * tokens * context_dim


def check_disk_for_contexts(prepared: Prepared) -> None:
    """DataError where contexts are to be on disk, and it has no room for them: before phase 1, not after.

    For those of one run, by all processes of a group on this machine.
    """
    settings, tokens = prepared.settings, len(prepared.corpus.train)
    if settings.contexts.keep != "disk" or settings.contexts.method == "loop":
        return
    folder, size = default_cache_dir(), bytes_on_disk(tokens, settings.model.context_dim)
    size *= local_processes()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise _no_room(folder, size, f"{free / 1e6:,.0f} MB are free")


def _no_room(folder: Path, size: int, reason: str) -> StorageError:
    return StorageError(
        f"contexts cannot be kept in {folder} ({reason}): they take {size / 1e6:,.0f} MB"
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


def _train_contexts(
    model: TandemForCausalLM, stream: Stream, settings: Settings, group: Group
) -> tuple[Contexts, ScanRecord]:
    """Those of the training text, kept as the settings and the room say; on disk they are rounded."""
    contexts, scan = compute_contexts(
        model, stream, settings.contexts, room_in_memory(model, settings), group
    )
    if contexts.in_memory:
        return contexts, scan
    on_disk = kept_outside_memory(model, len(stream), settings) == "disk"
    if not group.agrees(on_disk, model.device):  # those on disk are rounded, so all processes read alike
        return contexts, scan
    folder, began = default_cache_dir(), time.perf_counter()
    try:
        contexts, rounding = contexts.on_disk(folder)
    except OSError as error:
        size = bytes_on_disk(len(stream), model.config.context_dim)
        raise _no_room(folder, size, str(error.strerror or error)) from None
    seconds = scan.seconds_s + time.perf_counter() - began
    return contexts, scan.model_copy(update={"storage": "disk", "rounding": rounding, "seconds_s": seconds})


def contexts_of(
    prepared: Prepared, model: TandemForCausalLM, train: Stream, validation: Stream
) -> tuple[Split, Split, ContextsRecord]:
    """Both splits' contexts, in the same way; the processes of the group compute them together.

    Those of validation are held only beside the training text's, or memory would grow with a large text
    after all; and they are never rounded.
    """
    settings, group = prepared.settings, prepared.execution.group
    train_contexts, train_scan = _train_contexts(model, train, settings, group)
    keep = {} if train_contexts.in_memory else {"keep": "recompute"}
    validation_contexts, validation_scan = compute_contexts(
        model,
        validation,
        settings.contexts.model_copy(update=keep),
        room_in_memory(model, settings),
        group,
    )
    return (
        Split(train, train_contexts),
        Split(validation, validation_contexts),
        ContextsRecord(
            train=train_scan,
            validation=validation_scan,
            memory=measure_memory(model, validation, group),
            effective_rank_train=effective_rank(train_contexts, settings.contexts.rank_positions),
            effective_rank_validation=effective_rank(validation_contexts, settings.contexts.rank_positions),
            seconds_s=train_scan.seconds_s + validation_scan.seconds_s,
        ),
    )
