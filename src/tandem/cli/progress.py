"""What a person sees while an experiment runs: live bars on a terminal, plain lines elsewhere."""

import time
from pathlib import Path
from types import TracebackType

from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tandem.cli.terminal import Terminal
from tandem.records import RunRecord
from tandem.training.progress import Tick, Watcher


class ProgressView(Watcher):
    """Draws on a console: overall, current run and phase with its figures, and ETA.

    A context manager; without a terminal it prints one line for each phase and run instead of bars.
    """

    def __init__(self, console: Terminal) -> None:
        self._console = console
        self._runs: list[str] = []
        self._done = 0
        self._run = ""
        self._phase: str | None = None
        self._phase_began = 0.0
        self._last: Tick | None = None
        self._overall = Progress(
            SpinnerColumn("line"),  # of characters that every encoding has
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self._current = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}  {task.fields[figures]}", markup=False),
            console=console,
        )
        self._overall_task: TaskID | None = None
        self._phase_task: TaskID | None = None
        grid = Table.grid()
        grid.add_row(self._overall)
        grid.add_row(self._current)
        self._live = Live(grid, console=console, refresh_per_second=5, transient=True)

    def __enter__(self) -> "ProgressView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def preparing(self, what: str) -> None:
        """Text, tokens or embeddings are being made."""
        self._console.say(("prepare", "dim"), f"  {what}")

    def planned(self, run_dir: Path, runs: list[str], finished: int) -> None:
        """The runs of the grid, and how many of them were finished before."""
        self._runs, self._done = runs, finished
        note = f", {finished} of them finished before" if finished else ""
        self._console.say(("run", "dim"), f"      {len(runs)} runs{note}, in {run_dir}")
        self._overall_task = self._overall.add_task(
            "experiment", total=max(len(runs) - finished, 0), count=self._count()
        )

    def run_started(self, run: str) -> None:
        """One run begins."""
        self._run, self._phase, self._last = run, None, None

    def tick(self, tick: Tick) -> None:
        """Progress of the current run."""
        if tick.phase != self._phase:
            self._finish_phase()
            self._phase, self._phase_began = tick.phase, time.perf_counter()
            self._phase_task = self._current.add_task(
                f"{self._run}, {tick.phase}", total=tick.limit, unit=tick.unit, figures=""
            )
        self._last = tick
        if self._phase_task is not None:
            self._current.update(self._phase_task, completed=int(tick.done), figures=_figures(tick))
        if self._overall_task is not None:
            self._overall.update(self._overall_task, completed=self._finished_now() + _share_of_run(tick))

    def run_finished(self, record: RunRecord) -> None:
        """One run was recorded, finished or failed."""
        self._finish_phase()
        self._done += 1
        if self._overall_task is not None:
            self._overall.update(self._overall_task, completed=self._finished_now(), count=self._count())
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
        if self._phase_task is not None and self._last is not None:
            self._current.remove_task(self._phase_task)
            self._phase_task = None
            if not self._console.is_terminal:
                took = time.perf_counter() - self._phase_began
                self._console.say(
                    f"         {self._run}, {self._last.phase}: {self._last.done:.3g} {self._last.unit}s, "
                    f"{_figures(self._last)} ({took:.0f} s)"
                )

    def _finished_now(self) -> int:
        """Runs finished since the plan was made: the overall bar leaves out those finished before."""
        total = self._overall.tasks[0].total if self._overall.tasks else 0
        return self._done - (len(self._runs) - int(total or 0))

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
