"""The run directory: made or taken up again, checked to be writable, large enough, and of this experiment."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from tandem.advice import advice
from tandem.baselines import BASELINES
from tandem.claims import CLAIMS, locked, try_lock
from tandem.errors import RunDirError, naming
from tandem.experiment.baseline import measured_against, parameters_allowed
from tandem.experiment.grid import RunSpec
from tandem.experiment.prepared import TrainingInputs, total_parameters
from tandem.fingerprint import fingerprint
from tandem.folders import Wanted, check_writing, new_folder, remove_drafts
from tandem.objectives import OBJECTIVES
from tandem.records import (
    Manifest,
    Precision,
    RunRecord,
    append_record,
    read_manifest,
    read_records,
    records_path,
    write_manifest,
)
from tandem.settings import DataSettings, Settings
from tandem.text.recorded import holds_text
from tandem.tokens.prepare import Corpus
from tandem.training.snapshots import BUDGET_BYTES

Item = TypeVar("Item")
# What a model folder takes beside its weights (tokenizer, code, record), and the records with their report.
MODEL_FOLDER_BYTES = 8 << 20
RECORDS_BYTES = 16 << 20


def check_output(folder: Path, wanted: Wanted, data: DataSettings) -> None:
    """Raises RunDirError where what is to be made in `folder` would mix with what is there, or with the text.

    Nothing is written, so this comes before all work.
    """
    check_writing(folder, wanted)
    for source in (data.train, data.validation):
        if source is not None and holds_text(source, folder, below=wanted == "run directory"):
            raise RunDirError(
                f"{folder} holds the text {source}, with which a {wanted} is not to be mixed"
                + advice(("give another {}", "output"))
            )


def check_writable(folder: Path) -> None:
    """Raises RunDirError where `folder` cannot be made or written to. Nothing stays behind.

    So this comes before all work, which may be refused for other reasons.
    """
    _write(folder, lambda: tempfile.TemporaryFile(dir=_there(folder)).close())


def _there(folder: Path) -> Path:
    """The folder itself, or the nearest one around it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def make_folder(folder: Path) -> None:
    """Make sure that `folder` exists and can be written to; raises RunDirError otherwise."""
    _write(folder, lambda: new_folder(folder))
    check_writable(folder)


def _write(folder: Path, work: Callable[[], None]) -> None:
    """Do the work; an OSError means that the folder cannot be written to."""
    try:
        work()
    except OSError as error:
        raise RunDirError(
            f"cannot write to {folder} ({error.strerror or error})"
            + advice(("choose another place with {}", "output"), "make it writable")
        ) from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within the block the folder is there, and no other training makes a model in it.

    Folders that were missing are removed again if nothing was put into them. Raises RunDirError where another
    training does so, or the folder cannot be made or written to.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    with try_lock(folder, "training") as free:
        if not free:
            raise RunDirError(
                f"another training is making a model in {folder} just now"
                + advice(("give another {}", "output"), "wait until it has ended")
            )
        remove_drafts(folder.parent)
        remove_drafts(folder, below=True)
        try:
            yield
        finally:  # a model folder is to hold what belongs to the model; other claims, of an experiment, stay
            with suppress(OSError):
                (folder / CLAIMS / "training.lock").unlink()
                for place in (folder / CLAIMS, *missing):
                    place.rmdir()


def run_dir_of(settings: Settings, corpus: Corpus) -> Path:
    """Where an experiment has its records. Raises RunDirError where they would mix with what is there."""
    identity = fingerprint("experiment", settings.fingerprint(), corpus.fingerprint)
    run_dir = Path(settings.output or Path("runs") / f"{settings.name}-{identity[:8]}")
    check_output(run_dir, "run directory", settings.data)
    return run_dir


def open_run_dir(
    run_dir: Path, settings: Settings, corpus: Corpus, specs: Sequence[RunSpec], precision: Precision
) -> Precision:
    """Make the run directory for these runs, or take it up again; returns the precision they are trained in.

    That is `precision` for a new one. Raises RunDirError if it is of another experiment, or was begun in
    another precision than the settings name.
    """
    make_folder(run_dir)
    remove_drafts(run_dir, below=True)
    with locked(run_dir, "manifest"):
        before = check_same(run_dir, settings, corpus)
        if before is None and read_records(run_dir):
            raise RunDirError(
                f"{run_dir} has records but no manifest.json"
                + advice("restore it", ("give another {}", "output"))
            )
        precision = before.precision if before else precision
        ours, others = ([spec for spec in specs if (spec.kind == "tandem") is own] for own in (True, False))
        # What the run directory holds already comes first.
        manifest = Manifest(
            name=settings.name,
            settings=settings.model_dump(mode="json"),
            settings_fingerprint=settings.fingerprint(),
            tokens_fingerprint=corpus.fingerprint,
            precision=precision,
            configurations=_union(before and before.configurations, [spec.label for spec in ours]),
            seeds=_union(before and before.seeds, settings.seeds),
            baselines=_union(before and before.baselines, [spec.name for spec in others]),
            created_at=before.created_at if before else datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_manifest(run_dir, manifest)
        # Machines that share the directory remember for a while that a file was not there.
        with naming(records_path(run_dir)):
            records_path(run_dir).touch()
    return precision


def _union(before: Iterable[Item] | None, now: Iterable[Item]) -> tuple[Item, ...]:
    """Both without repeats, in order."""
    return tuple(dict.fromkeys([*(before or ()), *now]))


def check_same(run_dir: Path, settings: Settings, corpus: Corpus) -> Manifest | None:
    """The manifest of the run directory, if it has one.

    Raises RunDirError if it is of another experiment, or trains in another precision than the settings name.
    """
    manifest = read_manifest(run_dir)
    if manifest is not None:
        for what, theirs, ours in (
            ("settings", manifest.settings_fingerprint, settings.fingerprint()),
            ("text or tokens", manifest.tokens_fingerprint, corpus.fingerprint),
        ):
            if theirs != ours:
                raise RunDirError(
                    f"{run_dir} holds an experiment with other {what}, which cannot be mixed with this one"
                    + advice(("give another {}", "output"))
                )
    if manifest is not None and settings.precision not in ("auto", manifest.precision):
        begun = manifest.precision
        raise RunDirError(
            f"{run_dir} holds an experiment that trains in {begun}, which cannot be mixed with "
            f"{settings.precision}"
            + advice(("give {} (or auto)", f"precision {begun}"), ("give another {}", "output"))
        )
    return manifest


def keep_record(run_dir: Path, record: RunRecord) -> None:
    """Append a record to the run directory; raises RunDirError where there is no room."""
    try:
        append_record(run_dir, record)
    except OSError as error:
        raise RunDirError(
            f"cannot write the record of {record.run} to {run_dir} ({error.strerror or error}); everything "
            "recorded before is kept; make room and give the same command again to continue"
        ) from None


def disk_needed(prepared: Mapping[str | None, TrainingInputs], specs: Sequence[RunSpec]) -> int:
    """Bytes that the runs will save, about."""
    sizes = [
        total_parameters(prepared[spec.variant], spec.configuration)
        for spec in specs
        if spec.configuration is not None and prepared[spec.variant].settings.save_models
    ]
    sizes_on_disk = [4 * size + 2 * min(96 * size, BUDGET_BYTES) + MODEL_FOLDER_BYTES for size in sizes]
    # No sized baseline has more parameters than it may; it has snapshots of one training.
    reference = measured_against(prepared.values())
    if reference.settings.save_models:
        size = parameters_allowed(reference)
        networks = sum(BASELINES[spec.kind].sized for spec in specs if spec.configuration is None)
        sizes_on_disk.append(networks * (4 * size + min(96 * size, BUDGET_BYTES)))
    return (
        sum(sizes_on_disk) + RECORDS_BYTES + reference.settings.workers * _checkpoint_bytes(prepared.values())
    )


def _checkpoint_bytes(prepared: Iterable[TrainingInputs]) -> int:
    """What the largest checkpoint of these takes, about, while the one before it is still there.

    It has weights, two moments of each, and those of the best epoch; and the contexts of a sweep.
    """
    sizes = []
    for inputs in prepared:
        settings = inputs.settings
        weights = max(total_parameters(inputs, configuration) for configuration in settings.grid)
        swept = OBJECTIVES[settings.recipe].swept_tokens(settings, len(inputs.corpus.train))
        sizes.append(16 * weights + 4 * swept * settings.model.context_dim + BUDGET_BYTES)
    return 2 * max(sizes)


def check_disk(folder: Path, prepared: Mapping[str | None, TrainingInputs], specs: Sequence[RunSpec]) -> None:
    """RunDirError where what the runs will save does not fit the disk."""
    needed, free = disk_needed(prepared, specs), shutil.disk_usage(_there(folder)).free
    saving = any(spec.configuration is not None or BASELINES[spec.kind].sized for spec in specs)
    if saving and needed > free:
        raise RunDirError(
            f"{len(specs)} runs need about {needed / 1e6:,.0f} MB in {folder}, and {free / 1e6:,.0f} MB are "
            "free" + advice("make room", ("choose another {}", "output"), ("use {}", "save_models false"))
        )
