"""How `torchrun` started this process, if it did (https://docs.pytorch.org/docs/stable/elastic/run.html)."""

import os


def processes() -> int:
    """How many processes train together; 1 where `torchrun` did not start this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def process_rank() -> int:
    """The number of this one among them, from 0, which tells and saves."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))
