"""Contexts of both splits, kept where the settings and the room there is say."""

import shutil
import time

from tandem.contexts import Contexts, Stream, compute_contexts, measure_memory
from tandem.errors import DataError
from tandem.experiment.machine import free_memory
from tandem.experiment.prepared import Prepared
from tandem.group import Group
from tandem.launch import local_processes
from tandem.model import TandemForCausalLM
from tandem.records import ContextsRecord, ScanRecord
from tandem.settings import Settings
from tandem.tokens.prepare import default_cache_dir
from tandem.training.phase2 import Split


def _compute_contexts(
    model: TandemForCausalLM, stream: Stream, settings: Settings, group: Group, rounded: bool
) -> tuple[Contexts, ScanRecord]:
    """Contexts of one split, kept as the settings say; on disk only where they may be `rounded`."""
    # Workers and processes on one machine share what is free; a GPU is a process's own.
    share = 2 * settings.workers * (1 if model.device.type == "cuda" else local_processes())
    free = free_memory(model.device) // share
    contexts, scan = compute_contexts(model, stream, settings.contexts, free, group)
    folder, began = default_cache_dir(), time.perf_counter()
    if contexts.held or not rounded or settings.contexts.keep == "recompute":
        return contexts, scan
    size = 2 * len(stream) * model.config.context_dim
    if settings.contexts.keep == "auto" and size > shutil.disk_usage(folder).free // share:
        return contexts, scan
    try:
        contexts, rounding = contexts.on_disk(folder)
    except OSError as error:
        raise DataError(
            f"contexts cannot be kept in {folder} ({error.strerror or error}): they take "
            f"{size / 1e6:,.0f} MB; make room, set TANDEM_CACHE to another folder, or use "
            "--contexts.keep recompute"
        ) from None
    seconds = scan.seconds_s + time.perf_counter() - began
    return contexts, scan.model_copy(update={"kept": "disk", "rounding": rounding, "seconds_s": seconds})


def contexts_of(
    prepared: Prepared, model: TandemForCausalLM, train: Stream, validation: Stream
) -> tuple[Split, Split, ContextsRecord]:
    """Both splits' contexts, in the same way; the processes of the group compute them together."""
    settings, group = prepared.settings, prepared.execution.group
    train_contexts, train_scan = _compute_contexts(model, train, settings, group, rounded=True)
    validation_contexts, validation_scan = _compute_contexts(
        model, validation, settings, group, rounded=False
    )
    return (
        Split(train, train_contexts),
        Split(validation, validation_contexts),
        ContextsRecord(
            train=train_scan,
            validation=validation_scan,
            memory=measure_memory(model, validation),
            seconds_s=train_scan.seconds_s + validation_scan.seconds_s,
        ),
    )
