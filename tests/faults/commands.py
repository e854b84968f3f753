"""Commands on a tiny text with faults of the disk, and what is lost after each."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import injection
import power
from conftest import sentences, tiny, write_jsonl

from tandem.errors import RunDirError
from tandem.experiment.artefacts import model_damage
from tandem.records import read_records
from tandem.settings import dump_settings

LEFT = (".partial", ".tmp", ".text-")
"""How names of drafts end or begin."""


class Commands:
    """A tiny text, a server, and what each command gives without a fault."""

    def __init__(self, place: Path, commands: tuple[str, ...]) -> None:
        self.place, self.root = place, place / "root"
        text = write_jsonl(place / "text.jsonl", sentences(30))
        settings = tiny(
            text,
            configurations=((1, 1),),
            seeds=(0,),
            threads=1,
            baselines={"models": ("unigram", "lstm"), "lstm": {"max_epochs": 1}},
            phase1={"max_iterations": 3},
            phase2={"max_epochs": 1},
        )
        (place / "settings.yaml").write_text(dump_settings(settings), "utf-8")
        (place / "tmp").mkdir()
        self.server = injection.Server(place, [str(injection.HERE)])
        self.expected: dict[str, dict[str, str]] = {}
        self.after: dict[tuple[str, str], list[str]] = {}
        self.operations: dict[str, int] = {}
        for command in commands:
            self.clear()
            done = self.run(command)
            assert done.code == 0, done.told
            self.expected[command], self.operations[command] = self.contents(), done.operations
            if command == "experiment":
                self.server.run("injection:read_again", str(self.root / "out"), root=self.root, warm=True)

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        shutil.rmtree(self.place / "tmp")
        (self.place / "tmp").mkdir()

    def run(self, command: str, work: str = "command", **fault: Any) -> injection.Outcome:
        return self.server.run(
            f"injection:{work}",
            *(command, str(self.place / "settings.yaml"), "--output", str(self.root / "out")),
            root=self.root,
            environment={"TANDEM_CACHE": str(self.root / "cache"), "TMPDIR": str(self.place / "tmp")},
            **fault,
        )

    def saving(self, command: str, within: str) -> range:
        """The operations, from 1, between the first and the last one on a path with these words in it."""
        log, numbers, number = self.place / "log", list[int](), 0
        self.clear()
        self.run(command, mode="LOG", log=log)
        for kind, said, _ in power.operations(log):
            number += kind == "N"
            if within in said:
                numbers.append(number)
        return range(numbers[0], numbers[-1] + 1)

    def contents(self) -> dict[str, str]:
        """Of what the command was to make; names alone of what it may leave beside it."""
        found: dict[str, str] = self.server.run(
            "injection:contents", str(self.root / "out"), root=self.root
        ).result
        return {
            name: told for name, told in found.items() if not name.endswith(".lock") and "claims" not in name
        }

    def left(self) -> list[str]:
        """Drafts."""
        return [
            str(p) for p in self.root.rglob("*") if p.name.endswith(LEFT[0]) or p.name.startswith(LEFT[1:])
        ]

    def losses_after_any(self, command: str) -> list[str]:
        """As `losses_after`, which runs once for all that leave the same files behind, times aside."""
        state = self.server.run("injection:left_behind", str(self.root), root=self.root).result
        if (known := self.after.get((command, state))) is None:
            known = self.after[command, state] = list(self.losses_after(command))
        return known

    def losses_after(self, command: str) -> Iterator[str]:
        """What is not as it should be once the same command has run again."""
        again = self.run(command)
        if again.code != 0:
            yield f"the same command ended with {again.code}: {again.told.strip()[-300:]}"
        elif (found := self.contents()) != (wanted := self.expected[command]):
            other = sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))
            yield f"other contents: {', '.join(other[:3])}"
        if left := self.left():
            yield f"drafts left: {left[0]}"


def not_one_sentence(done: injection.Outcome, cause: str, root: Path) -> Iterator[str]:
    lines = done.told.strip().splitlines() or [""]
    said = [line for line in lines if line.startswith("tandem: error: ")]
    if done.code == 0:  # what failed was not needed, such as removing a draft
        return
    if "Traceback" in done.told:
        yield f"a traceback: {lines[-1]}"
    elif done.code != 2 or len(said) != 1:
        yield f"exit code {done.code}, {len(said)} sentences: {lines[-1]}"
    else:
        if cause not in said[0]:
            yield f"no cause: {said[0]}"
        if str(root) not in said[0]:
            yield f"no path: {said[0]}"
        if ".partial" in said[0] or "/.tmp" in said[0]:
            yield f"the path of a draft: {said[0]}"


def not_there(bench: Commands, command: str, marks: list[str], place: Path) -> Iterator[str]:
    """What was reported as saved, and is not on the disk."""
    try:
        records = {record.run for record in read_records(place / "out")}
    except RunDirError as error:
        yield f"records: {error}"
        records = set()
    for mark in marks:
        kind, _, name = mark.partition(" ")
        if kind == "record" and name not in records:
            yield f"the record of {name} is lost"
        if kind == "model" and (wrong := model_damage(place / Path(name).relative_to(bench.root))):
            yield f"the model {name}: {wrong}"
    if "done" in marks:
        kept = place.rename(place.with_name("root-after"))
        wanted = bench.expected[command]
        found = bench.server.run("injection:contents", str(kept / "out"), root=bench.root).result
        lost = [name for name, told in wanted.items() if told != (found or {}).get(name)]
        shutil.rmtree(kept)
        if lost:
            yield f"not there after the end: {', '.join(lost[:3])}"
