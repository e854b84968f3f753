"""Results of bench/gpu.py: one JSON and one Markdown table, written anew with every figure."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import byte_size, number

JSON_NAME, TABLE_NAME = "gpu.json", "gpu.md"


@dataclass(frozen=True)
class Target:
    """What a figure is to be: at most or at least so much."""

    limit: float
    least: bool = False

    def holds(self, value: float) -> bool:
        """Not a number reaches no target."""
        return value >= self.limit if self.least else value <= self.limit


class Results:
    """What is known so far, in a folder.

    values    machine (none until a part is on it), judged (whether targets are judged), small, seconds_s,
              budget_s, and parts: name, status, reason, seconds_s, budget_s, peak_bytes, figures, tables.
    """

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder, self.values = folder, values

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Those that another process wrote."""
        return cls(folder, json.loads((folder / JSON_NAME).read_text("utf-8")))

    def part(self, name: str) -> dict[str, Any]:
        """Of this name."""
        return next(part for part in self.values["parts"] if part["name"] == name)

    def save(self) -> None:
        """Write both files; whoever reads them meanwhile finds the old ones or the new ones."""
        self._write(JSON_NAME, json.dumps(self.values, indent=1, allow_nan=False) + "\n")
        self._write(TABLE_NAME, self.markdown())

    def _write(self, name: str, text: str) -> None:
        unfinished = self.folder / f"{name}.new"
        unfinished.write_text(text, "utf-8")
        unfinished.replace(self.folder / name)

    def markdown(self) -> str:
        """The table of all figures, and the parts' own tables below it."""
        machine = self.values["machine"] or {}
        card = machine.get("device_name", "–")
        rows = []
        for part in self.values["parts"]:
            for figure in part["figures"]:
                rows.append(
                    [
                        part["name"],
                        figure["name"],
                        " · ".join(filter(None, (shown(figure["value"], figure["unit"]), figure["note"]))),
                        target_shown(figure),
                        {True: "yes", False: "no", None: "–"}[figure["holds"]],
                        card,
                    ]
                )
            took = "–" if part["seconds_s"] is None else f"{part['seconds_s']:.0f} s"
            state = ": ".join(filter(None, (part["status"], part["reason"])))
            rows.append(
                [part["name"], "whole part", f"{took} · {state}", f"≤ {part['budget_s']:.0f} s", "–", card]
            )
            if part["peak_bytes"] is not None:
                rows.append([part["name"], "peak memory", byte_size(part["peak_bytes"]), "–", "–", card])
        head = ("part", "what", "figure", "target", "holds", "card")
        known = "; ".join(f"{name} {machine[name]}" for name in ("torch", "python", "platform") if machine)
        lines = [f"# Tandem on {card}", "", f"{known or 'The device is not known yet.'}"]
        if machine:
            lines[-1] += f"; commit {machine['git_commit']}."
        if self.values["small"]:
            lines += ["", "Everything is small, and these figures say nothing."]
        if not self.values["judged"]:
            lines += ["", "Targets are judged on CUDA at full size alone."]
        tables = [("Figures", head, rows)]
        for part in self.values["parts"]:
            tables += [(table["title"], table["head"], table["rows"]) for table in part["tables"]]
        for title, columns, cells in tables:
            lines += ["", f"## {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n".join(lines) + "\n"


class PartResults:
    """Where one part puts its figures; each is written at once."""

    def __init__(self, results: Results, name: str) -> None:
        self._results, self._part = results, results.part(name)

    def add(
        self, name: str, value: float, unit: str = "", target: Target | None = None, note: str = ""
    ) -> None:
        """A figure, or a later one of the same name."""
        judged = target is not None and self._results.values["judged"]
        figure = {
            "name": name,
            "value": value if math.isfinite(value) else None,
            "unit": unit,
            "target": None if target is None else target.limit,
            "at_least": target is not None and target.least,
            "holds": target.holds(value) if judged and target else None,
            "note": note,
        }
        names = [known["name"] for known in self._part["figures"]]
        if name in names:
            self._part["figures"][names.index(name)] = figure
        else:
            self._part["figures"].append(figure)
        print(f"  {name}: {shown(figure['value'], unit)} {note}".rstrip(), flush=True)
        self._results.save()

    def add_table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of its own, below that of figures."""
        self._part["tables"].append({"title": title, "head": list(head), "rows": [list(row) for row in rows]})
        self._results.save()

    def add_peak(self, size: int | None) -> None:
        """Bytes of memory at the peak of some step; the largest counts. None where no one says."""
        if size is not None:
            self._part["peak_bytes"] = max(size, self._part["peak_bytes"] or 0)
            self._results.save()


def shown(value: float | None, unit: str) -> str:
    """A figure for people; none is one that is not finite, and a whole number is a count."""
    if value is None:
        return "not finite"
    if isinstance(value, int):
        return f"{value:,} {unit}".strip()
    if unit == "%":
        return f"{100 * value:.0f}%"
    small = 0 < abs(value) < 1e-3
    return " ".join(filter(None, (f"{value:.1e}" if small else number(value), unit)))


def target_shown(figure: dict[str, Any]) -> str:
    """`≤ 60 s`."""
    if figure["target"] is None:
        return "–"
    return f"{'≥' if figure['at_least'] else '≤'} {shown(figure['target'], figure['unit'])}"
