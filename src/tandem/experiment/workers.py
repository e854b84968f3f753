"""How the workers of an experiment share a machine; what they work on they claim (`tandem.claims`)."""

from tandem.claims import cores
from tandem.settings import Settings


def threads_each(settings: Settings) -> int | None:
    """CPU threads of every worker; none: as torch chooses.

    What the settings say, else as many as the CPUs that a worker is given; on one machine an equal share.
    """
    if settings.threads is not None or settings.workers == 1:
        return settings.threads
    if settings.executor == "slurm":
        return settings.slurm.cpus_per_task
    if settings.executor == "ray":
        return max(1, int(settings.ray.num_cpus))
    return max(1, cores() // settings.workers)
