"""What an experiment will take, before it is run: each kind of work is begun, timed for a moment, and scaled.

Text and tokens are prepared as for the run itself. Trainings that may end early are counted to their limit.
"""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from tandem.experiment.baseline import measured_against
from tandem.experiment.grid import RunSpec, claims
from tandem.experiment.machine import PeakMemory
from tandem.experiment.prepared import TrainingInputs
from tandem.experiment.run_dir import disk_needed
from tandem.experiment.trial import CostItem, Trial, baseline_trial
from tandem.settings import Settings


class Estimate(BaseModel):
    """What an experiment will take on this machine, beside nothing else.

    seconds_s             until all runs are made, by all workers; the audit and the report come on top
    memory_bytes          of one worker, the largest, at its peak: of the device on CUDA, else of the process
    disk_bytes            of what is saved
    context_disk_bytes    of contexts that all workers together keep on disk while they train
    """

    model_config = ConfigDict(frozen=True)
    runs: int
    workers: int
    seconds_s: float
    memory_bytes: int | None
    disk_bytes: int
    context_disk_bytes: int
    parts: tuple[CostItem, ...]


def estimated(
    variants: Mapping[str | None, TrainingInputs], settings: Settings, specs: list[RunSpec]
) -> Estimate:
    """What these runs of an experiment will take, or the training of a single one.

    Raises what they would raise in their first steps.
    """
    reference = measured_against(variants.values())
    memory = PeakMemory(reference.device)
    parts: list[CostItem] = []
    held_bytes, on_disk = 0, 0
    for group in _alike(specs):
        first, configuration = group[0], group[0].configuration
        prepared = reference if configuration is None else variants[first.variant]
        if configuration is None:
            seconds, grown = baseline_trial(prepared, first)
            held_bytes = held_bytes if reference.device.type == "cuda" else max(held_bytes, grown)
            parts.append(CostItem(what=first.label, times=len(group), seconds_s=seconds))
        else:
            trial = Trial(prepared, configuration.context_layers)
            parts += trial.parts(group)
            held_bytes, on_disk = max(held_bytes, trial.held_bytes), max(on_disk, trial.disk_bytes)
    peak = memory.read()
    total = sum(part.times * part.seconds_s for part in parts)
    workers = min(settings.workers, max(1, len(claims(specs))))
    return Estimate(
        runs=len(specs),
        workers=workers,
        seconds_s=total / workers,
        memory_bytes=None if peak is None else peak + held_bytes,
        disk_bytes=disk_needed(variants, specs),
        context_disk_bytes=workers * on_disk,
        parts=tuple(parts),
    )


def _alike(specs: list[RunSpec]) -> list[list[RunSpec]]:
    """Runs that differ in their seed or token depth alone."""
    groups: dict[object, list[RunSpec]] = {}
    for spec in specs:
        depth = spec.configuration and spec.configuration.context_layers
        key = (spec.kind, spec.variant, depth, spec.label if depth is None else None)
        groups.setdefault(key, []).append(spec)
    return list(groups.values())
