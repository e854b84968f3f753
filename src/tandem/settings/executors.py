"""Settings of where an experiment's further workers run; no result depends on them."""

from typing import Annotated, ClassVar

from pydantic import Field

from tandem.settings.section import OPTION, NonNegativeFloat, Positive, PositiveFloat, Section


class SlurmSettings(Section):
    """What every worker's job asks of Slurm; jobs are submitted as one array, through submitit."""

    path: ClassVar[str] = "slurm"
    changes_results: ClassVar[bool] = False

    partition: str | None = None
    """Partition of the jobs; none: the cluster's default."""
    time_limit_min: Positive = 240
    """Minutes that a job may take; give it time for several runs, as another worker makes anew what it has
    begun by then."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs per worker, one of which it uses."""
    cpus_per_task: Positive | None = None
    """CPUs per worker, and its threads where `threads` names none; none: the cluster's default."""
    memory_gb: PositiveFloat | None = None
    """Memory per worker, in GB; none: the cluster's default."""
    setup: tuple[str, ...] = ()
    """Shell commands that a job begins with, such as `module load cuda`."""
    parameters: tuple[Annotated[str, Field(pattern=OPTION)], ...] = ()
    """Any other options of sbatch, as NAME=VALUE or NAME, such as `account=mine qos=low exclusive`, and
    submitit's own ones (without `slurm_`), such as `array_parallelism=4`."""


class RaySettings(Section):
    """What every worker asks of Ray."""

    path: ClassVar[str] = "ray"
    changes_results: ClassVar[bool] = False

    num_cpus: PositiveFloat = 1.0
    """CPUs per worker, and its threads where `threads` names none."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs per worker, one of which it uses; a part of one lets workers share it. Ray hides GPUs from workers
    that ask for none."""
