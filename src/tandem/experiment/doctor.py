"""What a machine has for Tandem, and what is missing."""

import re
import time
from importlib import metadata

import torch
from pydantic import BaseModel

from tandem.experiment.machine import choose_device, environment, free_memory, uses_bfloat16
from tandem.records import Environment

PRODUCTS = 5
"""Products of matrices that are timed; the fastest counts."""


class Checkup(BaseModel):
    """What a machine has for Tandem.

    environment        versions and hardware, of the device and the precision that `auto` takes.
    free_bytes         memory of that device, or of the machine, that may still be used.
    missing            packages of each extra that are not installed.
    bfloat16_speedup   how many times as fast as in float32 matrices are multiplied in bf16.
    """

    environment: Environment
    free_bytes: int
    missing: dict[str, tuple[str, ...]]
    bfloat16_speedup: float


def examine() -> Checkup:
    """Look at this machine; takes about a second, most of it for products of matrices."""
    device = choose_device("auto")
    return Checkup(
        environment=environment(device, uses_bfloat16("auto", device)),
        free_bytes=free_memory(device),
        missing=missing_packages(),
        bfloat16_speedup=_product_s(device, torch.float32) / _product_s(device, torch.bfloat16),
    )


def missing_packages() -> dict[str, tuple[str, ...]]:
    """The packages of each extra that are not installed, by the extra; `dev` is for Tandem's own tests."""
    installed = {_plain(found.name) for found in metadata.distributions()}
    missing: dict[str, tuple[str, ...]] = {}
    for line in metadata.requires("tandem-lm") or ():
        named = re.match(r"""([\w.-]+).*;\s*extra == ["'](\w+)["']""", line)
        if named and named[2] != "dev":
            missing[named[2]] = missing.get(named[2], ()) + (named[1],) * (_plain(named[1]) not in installed)
    return missing


def _plain(package: str) -> str:
    """A package's name as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _product_s(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a product of two square matrices."""
    size = 512 if device.type == "cpu" else 4096
    matrix = torch.rand(size, size, device=device).to(dtype)

    def once() -> float:
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # which waits for the device
        return time.perf_counter() - began

    return min(once() for _ in range(PRODUCTS))
