"""What the benches share: small sizes, timing side by side, memory in a process of its own, tables.

With `TANDEM_BENCH_SMALL=1` in the environment every bench takes seconds. That shows that it works; its
figures say nothing.

Seconds differ from machine to machine, and from minute to minute on a shared one; ratios of what ran side by
side are what counts. So candidates are timed in turn (A B A B …), a ratio is taken within each round, and its
median is given with the smallest and the largest.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from made_up_text import write_text

from tandem.shown import tolerate_any_encoding

PYTHON_DOCS = "python-docs"
SMALL = os.environ.get("TANDEM_BENCH_SMALL") == "1"
"""Whether every bench is to be small."""
SMALL_MEGABYTES = 0.004
"""The text of a small bench."""
SMALL_SETTINGS: Mapping[str, int | float | str] = {
    "device": "cpu",
    "threads": 1,
    "tokenizer.vocab_size": 300,
    "model.embed_dim": 32,
    "model.context_dim": 8,
    "model.weight_init_std": 0.3,
    "embeddings.norm": 1,
    "contexts.segment_length": 64,
    "contexts.check_tokens": 256,
    "phase1.max_iterations": 3,
    "phase1.batch_positions": 2000,
    "prediction.max_epochs": 1,
    "prediction.streams": 32,
    "phase2.max_epochs": 1,
    "phase2.batch_positions": 1024,
    "baselines.lstm.max_epochs": 1,
    "baselines.gpt2.max_epochs": 1,
}
"""What makes a training small."""


def run(main: Callable[[], None]) -> None:
    """Start a bench, after a warning if it is small."""
    tolerate_any_encoding()
    if SMALL:
        print("TANDEM_BENCH_SMALL: everything is small, and these figures say nothing", flush=True)
    main()


def options_of(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings by dotted name, as options of the command line."""
    return {f"--{name.replace('_', '-')}": str(value) for name, value in settings.items()}


def tandem_command(command: str, *arguments: object, processes: int = 1) -> list[str]:
    """What starts `tandem` in one process or several; a small training, but for what the arguments say."""
    words = [str(argument) for argument in arguments]
    if SMALL:
        words = [small_text() if word == PYTHON_DOCS else word for word in words]
        small = {**options_of(SMALL_SETTINGS), "--data.train": small_text()}
        if command == "experiment":
            small |= {"--configurations": "1 1", "--seeds": "0"}
        given = {word.split("=")[0].replace("_", "-") for word in words}
        words += [word for name in small if name not in given for word in (name, *small[name].split())]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else []), "-m", "tandem", command, *words]


def made_small(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by section, which are changed to small ones if the bench is small."""
    values = deepcopy(dict(settings))
    if SMALL:
        for name, value in SMALL_SETTINGS.items():
            *sections, key = name.split(".")
            reduce(lambda inner, section: inner.setdefault(section, {}), sections, values)[key] = value
        if values.get("data", {}).get("train") == PYTHON_DOCS:
            values["data"]["train"] = small_text()
    return values


@cache
def small_text() -> str:
    """A file that is there until the bench ends. Python's documentation would take seconds to read."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "text.jsonl.gz"
    write_text(path, SMALL_MEGABYTES)
    return str(path)


@dataclass(frozen=True)
class Candidate:
    """Something to be timed: `run` is called, and deals with so many `units` (tokens, mostly)."""

    run: Callable[[], object]
    units: float = 1.0


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of what the rounds gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value a round."""
        return cls(median(values), min(values), max(values))

    how = "median [smallest–largest]"

    def show(self, digits: int = 2) -> str:
        """`1.23 [1.20–1.31]`; large numbers without decimals."""
        median, low, high = (number(value, digits) for value in (self.median, self.low, self.high))
        return f"{median} [{low}–{high}]"


class Timings:
    """Seconds per unit of every candidate, one value a round."""

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self._seconds = dict(seconds)

    def __getitem__(self, name: str) -> Sequence[float]:
        """Of one candidate, round after round."""
        return self._seconds[name]

    def ns(self, name: str) -> float:
        """Median nanoseconds per unit."""
        return 1e9 * median(self._seconds[name])

    def ratio(self, name: str, base: str) -> Spread:
        """Seconds of a candidate over those of `base`, within each round."""
        return Spread.of([a / b for a, b in zip(self._seconds[name], self._seconds[base], strict=True)])

    def with_sum(self, name: str, weights: Mapping[str, float]) -> "Timings":
        """These, and a candidate made of others: the weighted sum of their seconds."""
        rounds = zip(*(self._seconds[part] for part in weights), strict=True)
        made = [sum(w * s for w, s in zip(weights.values(), parts, strict=True)) for parts in rounds]
        return Timings({**self._seconds, name: made})


def timed(run: Callable[[], object]) -> float:
    """Seconds that one call takes, work that it left to a GPU included."""
    _synchronize()
    began = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - began


def interleaved(candidates: Mapping[str, Candidate], rounds: int, warm_up: bool = True) -> Timings:
    """Every candidate once a round, in turn; `warm_up`: a first round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + warm_up):
        for name, candidate in candidates.items():
            taken = timed(candidate.run) / candidate.units
            if number >= warm_up:
                seconds[name].append(taken)
    return Timings(seconds)


def extra_memory(run: Callable[[], object], device: str = "cpu") -> int:
    """Bytes at the peak of `run` beyond what was held before it: the device's on CUDA, else the process's.

    Only in a fresh process (`in_subprocess`) can memory that an earlier step gave back to the allocator, but
    not to the system, not hide what a later one takes.
    """
    import torch

    from tandem.experiment.machine import PeakMemory

    _synchronize()
    held = torch.cuda.memory_allocated() if device.startswith("cuda") else _resident_memory()
    peak = PeakMemory(torch.device(device))
    run()
    _synchronize()
    return (peak.read() or 0) - held


def in_subprocess(function: Callable[..., Any], **arguments: Any) -> Any:
    """What `function` gives in a process of its own: a function of a module in this folder, not of a script.

    Arguments and result are JSON. Raises CalledProcessError where it fails.
    """
    import torch

    command = [sys.executable, __file__, function.__module__, function.__name__]
    done = subprocess.run(
        [*command, str(torch.get_num_threads()), json.dumps(arguments)],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def start(threads: int | None) -> None:
    """Put torch into the state in which the package trains; before any work, and once a process."""
    from tandem.experiment.one_run import set_up_process
    from tandem.settings import Settings

    set_up_process(Settings(threads=threads))


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *notes: str) -> None:
    """A markdown table below its title; the first column is text, the others are figures."""
    print(f"\n## {title}\n\n| " + " | ".join(head) + " |")
    print("|" + "|".join("---" if n == 0 else "---:" for n in range(len(head))) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    for note in notes:
        print(f"\n{note}")
    sys.stdout.flush()


def number(value: float, digits: int = 2) -> str:
    """For people: `0.0123`, `1.23`, `12.3`, `1,234`: `digits` decimals near 1, fewer above, more below."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.{max(0, digits - 1)}f}"
    return f"{value:.{digits}f}" if size >= 1 else f"{value:.{digits + 1}g}"


def byte_size(size: float) -> str:
    """For people, in powers of 1,000: `3.6 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{number(size, 1)} {unit}"


def _resident_memory() -> int:
    """Bytes of this process in memory now. Raises OSError where the system does not tell: only Linux does."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _answer(module: str, function: str, threads: str, arguments: str) -> None:
    """The other side of `in_subprocess`."""
    start(int(threads))
    print(json.dumps(getattr(import_module(module), function)(**json.loads(arguments))))


if __name__ == "__main__":
    tolerate_any_encoding()
    _answer(*sys.argv[1:])
