"""What --dry-run says that an experiment or a training would take, and what it then takes.

    python bench/estimate.py train predictive --data.max-train-bytes 400000
    python bench/estimate.py experiment demo

Time is that of the phases and contexts (said: with the scores of phase 1's heads and effective ranks),
memory the largest run's at its peak: both are to be within 30%. Disk is that of models and records at the
end; what is said of it is room enough, with a margin for each model.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from measuring import print_table, run, tandem_command

from tandem.records import RunRecord, read_records


def tandem(*arguments: object) -> str:
    """What the command prints, in a process of its own."""
    command = tandem_command(*map(str, arguments))
    return subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout


def records_in(folder: Path, command: str) -> list[RunRecord]:
    """Of all runs, in a run directory or a model folder."""
    if command == "experiment":
        return list(read_records(folder))
    return [RunRecord.model_validate_json((folder / "record.json").read_text("utf-8"))]


def bytes_in(folder: Path, command: str) -> int:
    """Of models and records."""
    models = folder / "models" if command == "experiment" else folder
    files = [file for file in models.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["experiment", "train"])
    parser.add_argument("preset")
    chosen, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "output"
        arguments = [chosen.command, chosen.preset, *options, "--output", folder]
        told = json.loads(tandem(*arguments, "--dry-run", "--json"))
        tandem(*arguments)
        records = records_in(folder, chosen.command)
        peak = max(record.peak_memory_bytes or 0 for record in records)
        rows = [
            ("minutes", told["seconds_s"] / 60, sum(record.seconds_spent_s for record in records) / 60),
            ("GB of memory", told["memory_bytes"] / 1e9, peak / 1e9),
            ("MB on disk", told["disk_bytes"] / 1e6, bytes_in(folder, chosen.command) / 1e6),
        ]
    print_table(
        f"{chosen.command} {chosen.preset}, {len(records)} runs",
        ("", "said", "then", "said ÷ then"),
        [[what, f"{said:.2f}", f"{then:.2f}", f"{said / then:.2f}"] for what, said, then in rows],
    )


if __name__ == "__main__":
    run(main)
