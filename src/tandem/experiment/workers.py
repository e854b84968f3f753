"""How the workers of an experiment share a machine; what they work on they claim (`tandem.claims`)."""

from tandem.claims import cores
from tandem.settings import Settings


def threads_each(settings: Settings) -> int | None:
    """CPU threads of every worker: what the settings say, else an equal share; none: as torch chooses."""
    if settings.threads is not None or settings.workers == 1:
        return settings.threads
    return max(1, cores() // settings.workers)
