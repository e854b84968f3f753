"""The machine a run is on: which device, what versions, how much memory."""

import ctypes
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil
import torch
import transformers

import tandem
from tandem.advice import advice
from tandem.errors import SettingsError
from tandem.fingerprint import Fingerprint
from tandem.launch import local_rank
from tandem.records import Environment


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA, else MPS, else CPU. Raises SettingsError for a device that is not there."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    available = [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), *available]
    if available[0].startswith("cuda"):  # each process of a group on one machine takes the next
        first = f"cuda:{local_rank()}"
    else:
        first = available[0] if wanted == "auto" else "cuda:0"
    name = first if wanted in ("auto", "cuda") else wanted
    if name not in available:
        raise SettingsError(
            f"there is no device '{wanted}' here, but auto, {', '.join(available)}"
            + advice(("give one of these with {}", "device"))
        )
    return torch.device(name)


def uses_bfloat16(wanted: str, device: torch.device) -> bool:
    """Whether to train in bf16: `auto` does on GPUs that compute with it, and not on CPUs.

    Few CPUs are faster in bf16; without it, the same command gives the same figures on all of them.
    """
    if wanted == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return wanted == "bfloat16"


def environment(device: torch.device, bfloat16: bool = False) -> Environment:
    """Versions and hardware, for the records; `bfloat16` if matrices are multiplied in it in training."""
    name = _line_of("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    memory = psutil.virtual_memory().total
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    return Environment(
        device=str(device),
        precision="bfloat16" if bfloat16 else "float32",
        device_name=name,
        device_memory_bytes=memory,
        cpu_count=os.cpu_count() or 1,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tandem=metadata.version("tandem-lm"),
        code_fingerprint=code_fingerprint(),
        git_commit=_git_commit(),
    )


@cache
def code_fingerprint() -> str:
    """Of the package's own source files, in order of their names."""
    root = Path(tandem.__file__).parent
    whole = Fingerprint("code")
    for path in sorted(root.rglob("*.py")):
        whole.update(path.relative_to(root).as_posix())
        whole.update(path.read_bytes())
    return whole.hexdigest()


class PeakMemory:
    """Peak memory in bytes since it was made: the device's on CUDA, otherwise the process's own.

    Where the system cannot reset the process's peak (other than Linux), it is that since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            give_back_freed_memory()
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", "ascii")

    def read(self) -> int | None:
        """The peak so far; none where the system does not tell (Windows)."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if peak := _line_of("/proc/self/status", "VmHWM"):
            return int(peak.split()[0]) * 1024
        try:
            import resource
        except ImportError:
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _line_of(file: str, name: str) -> str:
    """What follows `name:` in a file of the system's; empty where it does not say."""
    try:
        found = re.search(rf"^{name}\s*:(.*)", Path(file).read_text("utf-8"), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


KEPT_BYTES = 512 << 20
LARGEST_HEAP_BLOCKS = (KEPT_BYTES // 2, 32 << 20)
"""Blocks above which memory is mapped, and goes back when freed; older versions of glibc refuse the first."""


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what is freed, up to KEPT_BYTES, instead of giving it back after every step.

    A training step asks for tens of megabytes and frees them. Taking them from the system anew, page by page,
    took up to 40% of the time of training small models (LOG.md). Only glibc can be told; others are left
    alone.
    """
    if (libc := _glibc()) is not None:
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
        # The first that is not refused; to set the other alone would make things worse.
        if any(libc.mallopt(mmap_threshold, size) for size in LARGEST_HEAP_BLOCKS):
            libc.mallopt(trim_threshold, KEPT_BYTES)


def give_back_freed_memory() -> None:
    """What `keep_freed_memory` keeps, so that it counts as free and not as this process's."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def free_memory(device: torch.device) -> int:
    """Bytes that may still be used: the device's on CUDA, else the machine's, or what its group may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # without such a group, or with the limit "max"
        group = Path("/sys/fs/cgroup")  # version 2, as in a container
        limit, used = (int((group / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return int(free)


@cache
def _git_commit() -> str | None:
    """Commit of the checkout the package runs from; none for an installed package."""
    root = Path(tandem.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="ascii", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
