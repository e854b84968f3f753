"""What a person sees while an experiment runs: live bars on a terminal, plain lines elsewhere."""

import time
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tandem.cli.terminal import Terminal
from tandem.records import RunRecord
from tandem.training.progress import Tick, Watcher


class ProgressView(Watcher):
    """Draws on a console: a bar for all runs, and one for the phase of the current run with its figures.

    A context manager; without a terminal it prints one line for each phase and run instead of bars.
    """

    def __init__(self, console: Terminal) -> None:
        self._console = console
        self._runs: list[str] = []
        self._before = self._done = 0
        self._run = ""
        self._phase_began = 0.0
        self._last: Tick | None = None
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=5,
            transient=True,
        )
        self._overall: TaskID | None = None
        self._phase: TaskID | None = None

    def __enter__(self) -> "ProgressView":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def preparing(self, what: str) -> None:
        """Text, tokens or embeddings are being made."""
        self._console.say(("prepare", "dim"), f"  {what}")

    def planned(self, run_dir: Path, runs: list[str], finished: int) -> None:
        """The runs of the grid, and how many of them were finished before."""
        self._runs, self._before, self._done = runs, finished, finished
        note = f", {finished} of them finished before" if finished else ""
        self._console.say(("run", "dim"), f"      {len(runs)} runs{note}, in {run_dir}")
        self._overall = self._bars.add_task("experiment", total=len(runs) - finished, status=self._count())

    def run_started(self, run: str) -> None:
        """One run begins."""
        self._run, self._last = run, None

    def tick(self, tick: Tick) -> None:
        """Progress of the current run."""
        if self._last is None or tick.phase != self._last.phase:
            self._finish_phase()
            self._phase_began = time.perf_counter()
            self._phase = self._bars.add_task(f"{self._run}, {tick.phase}", total=tick.limit, status="")
        self._last = tick
        status = f"{int(tick.done)}/{tick.limit} {tick.unit}  {_figures(tick)}"
        if self._phase is not None:
            self._bars.update(self._phase, completed=tick.done, status=status)
        if self._overall is not None:
            self._bars.update(self._overall, completed=self._done - self._before + _share_of_run(tick))

    def run_finished(self, record: RunRecord) -> None:
        """One run was recorded, finished or failed."""
        self._finish_phase()
        self._done += 1
        if self._overall is not None:
            self._bars.update(self._overall, completed=self._done - self._before, status=self._count())
        if record.status == "failed":
            self._console.say(("failed", "red"), f"   {record.run}: {record.failure}")
        elif record.validation is not None:
            self._console.say(
                ("done", "green"),
                f"     {record.run}: val PPL {record.validation.perplexity:.1f}, "
                f"acc {record.validation.accuracy:.1%}, {record.seconds_spent_s:.0f} s  ",
                (f"({self._count()})", "dim"),
            )

    def _finish_phase(self) -> None:
        if self._phase is not None and self._last is not None:
            self._bars.remove_task(self._phase)
            self._phase = None
            if not self._console.is_terminal:
                took = time.perf_counter() - self._phase_began
                self._console.say(
                    f"         {self._run}, {self._last.phase}: {self._last.done:.3g} {self._last.unit}s, "
                    f"{_figures(self._last)} ({took:.0f} s)"
                )

    def _count(self) -> str:
        return f"{self._done}/{len(self._runs)} runs"


def _share_of_run(tick: Tick) -> float:
    """How much of a run is behind it: phase 1 counts little, since later runs share it."""
    share = min(tick.done / tick.limit, 1.0)
    return 0.1 * share if tick.phase == "phase 1" else 0.1 + 0.9 * share


def _figures(tick: Tick) -> str:
    shown = []
    for name, value in tick.figures.items():
        is_share = name in {"converged", "val acc"}
        shown.append(f"{name} {value:.1%}" if is_share else f"{name} {value:.4g}")
    return ", ".join(shown)
