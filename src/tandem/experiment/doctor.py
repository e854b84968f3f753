"""What a machine has for Tandem, and what is missing."""

import re
import time
from importlib import metadata

import torch
from pydantic import BaseModel

from tandem.experiment.machine import choose_device, environment, free_memory, uses_bfloat16
from tandem.records import Environment

PRODUCTS = 5  # of matrices, that are timed; the fastest counts


class Checkup(BaseModel):
    """What a machine has for Tandem.

    environment        versions and hardware, of the device and the precision that `auto` takes.
    free_bytes         memory of that device, or of the machine, that may still be used.
    missing            packages of each extra that are not installed.
    bfloat16_speedup   how many times as fast as in float32 matrices are multiplied in bf16.
    """

    environment: Environment
    free_bytes: int
    missing: dict[str, list[str]]
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


def missing_packages() -> dict[str, list[str]]:
    """The packages of each extra that are not installed, by the extra; `dev` is for Tandem's own tests."""
    missing: dict[str, list[str]] = {}
    for line in metadata.requires("tandem-lm") or ():
        found = re.match(r"""([\w.-]+).*;\s*extra == ["'](?!dev)(\w+)["']""", line)
        if found:
            lacking = missing.setdefault(found[2], [])
            lacking += [] if any(metadata.distributions(name=found[1])) else [found[1]]
    return missing


def _product_s(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a product of two square matrices."""
    size, times_s = 512 if device.type == "cpu" else 4096, []
    matrix = torch.rand(size, size, device=device).to(dtype)
    for _ in range(PRODUCTS):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # which waits for the device
        times_s.append(time.perf_counter() - began)
    return min(times_s)
