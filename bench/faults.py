"""Faults of the disk, injected for real, and what is lost after each: the table of docs/reliability.md.

    python bench/faults.py kill torn errors power damage [--every 1] [--replays 1000] [--flips 10000]

    kill      SIGKILL before every file operation of `tandem train` and `tandem experiment`; then the same
              command has to end with the same bits
    torn      the same, but every write writes half of its bytes first
    errors    from every operation on, ENOSPC, EIO or EDQUOT: one sentence with path and cause, exit code 2;
              then the same command has to end with the same bits
    power     a loss of power at random operations: whatever was reported as saved is there, and is read
    damage    flipped bits in every kind of artefact, an end cut off at every 512 bytes, files that are
              empty, missing, swapped or pipes: named, or harmless, or (a loss) silently used

`--every N` takes each N-th operation only. Where two injections leave the same files, times aside, the same
command is given again once for both. With `--results FILE`, injections of the first three rows are written
there and not made twice, so that they can be made in pieces; name another file once the code has changed.
A C compiler and Linux are needed.
"""

import argparse
import errno
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from measuring import SMALL, print_table, run

from tandem.settings import DataSettings, TokenizerSettings, load_settings
from tandem.tokens.prepare import prepare_corpus, read_splits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))
import damage
import power
from commands import Commands, not_one_sentence, not_there

COMMANDS = ("train", "experiment")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
Injected = tuple[str, list[str]]
"""What was injected, and what was lost."""


@dataclass(frozen=True)
class Results:
    """Injections that are done, by row and label, and those of a file that is continued."""

    path: Path | None
    known: dict[tuple[str, str], list[str]]

    @classmethod
    def read(cls, path: Path | None, operations: dict[str, int]) -> "Results":
        """Of a file, which is begun where it is not there. SystemExit for one of other operations."""
        about = {"operations": operations}
        if path is None or not path.exists():
            if path is not None:
                path.write_text(json.dumps(about) + "\n", "utf-8")
            return cls(path, {})
        first, *lines = path.read_text("utf-8").splitlines()
        if json.loads(first) != about:
            raise SystemExit(f"{path} has results of other operations ({first}); name another file")
        entries = map(json.loads, lines)
        return cls(path, {(entry["row"], entry["injected"]): entry["losses"] for entry in entries})

    def once(self, row: str, injected: str, inject: Callable[[], list[str]]) -> Injected:
        """Inject, unless that was done before."""
        if (row, injected) not in self.known:
            losses = self.known[row, injected] = inject()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    entry = {"row": row, "injected": injected, "losses": losses}
                    file.write(json.dumps(entry) + "\n")
        return injected, self.known[row, injected]


def dies(bench: Commands, results: Results, command: str, every: int, mode: str) -> Iterator[Injected]:
    """SIGKILL at each operation, with a torn write or without."""
    chosen: list[int] = list(range(1, bench.operations[command] + 1, every))
    if mode == "TEAR":
        log = bench.place / "log"
        bench.clear()
        bench.run(command, mode="LOG", log=log)
        counted = [said for kind, said, _ in power.operations(log) if kind == "N"]
        writes = [number for number, kind in enumerate(counted, 1) if kind == "W"]
        chosen = [number for number in chosen if number in writes]
    for number in chosen:

        def inject(number: int = number) -> list[str]:
            bench.clear()
            done = bench.run(command, mode=mode, operation=number)
            found = [] if done.code == -9 else [f"it did not die, but ended with {done.code}"]
            return found + bench.losses_after_any(command)

        yield results.once(mode, f"{command} {number}", inject)


def errors(bench: Commands, results: Results, command: str, every: int, code: int) -> Iterator[Injected]:
    """An error of the system from each operation on."""
    for number in range(1, bench.operations[command] + 1, every):

        def inject(number: int = number) -> list[str]:
            bench.clear()
            done = bench.run(command, mode="FAIL", operation=number, error=code)
            return [*not_one_sentence(done, os.strerror(code), bench.root), *bench.losses_after_any(command)]

        yield results.once(errno.errorcode[code], f"{command} {number}", inject)


def power_losses(bench: Commands, replays: int) -> Iterator[Injected]:
    """A loss of power at random operations of each command."""
    draw, log, place = random.Random(0), bench.place / "log", bench.place / "after"
    for command in COMMANDS:
        bench.clear()
        assert bench.run(command, "command_with_marks", mode="LOG", log=log).code == 0
        operations = power.operations(log)
        moments = sorted(draw.randrange(1, len(operations) + 1) for _ in range(replays // 2 - 20))
        disk, done = power.Disk(), 0
        for moment in [*moments, *[len(operations)] * 20]:
            for operation in operations[done:moment]:
                disk.do(*operation)
            done = max(done, moment)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            power.put(disk.after_loss(draw), str(bench.root), place)
            yield f"{command} {moment}", list(not_there(bench, command, disk.marks, place))


def damages(bench: Commands, flips: int) -> Iterator[Injected]:
    """Damage to every kind of artefact."""
    draw = random.Random(0)
    artefacts = list(_artefacts(bench))
    total = sum(path.stat().st_size for artefact, _ in artefacts for path in artefact.files)
    for artefact, others in artefacts:
        whole = artefact.read([])
        assert damage.same(artefact.read([]), whole)
        for path in artefact.files:
            size = path.stat().st_size
            share = max(40, round(flips * size / total)) if size else 0
            changes: list[tuple[str, Callable[[], None]]] = []
            changes += [("bit", damage.flipped(path, draw)) for _ in range(share)]
            changes += [("end", damage.cut(path, cut)) for cut in range(512, size, max(512, size // 200))]
            changes += [("empty", damage.cut(path, 0)), ("missing", damage.missing(path))]
            changes += [("pipe", damage.pipe(path))]
            changes += [
                ("swapped", damage.swapped(path, other)) for other in others if other.name == path.name
            ]
            for kind, change in changes:
                with damage.as_it_was(path):
                    found = artefact.after(change, whole)
                label = f"{artefact.kind}, {kind}: {found}"
                yield label, [f"{path.name} was silently used"] if found == "used" else []


def _artefacts(bench: Commands) -> Iterator[tuple[damage.Artefact, list[Path]]]:
    """All kinds, with files of another artefact of the same kind."""
    places = {}
    for command, seed in (("train", 0), ("other", 1), ("experiment", 0)):
        bench.clear()
        name = "experiment" if command == "experiment" else "train"
        words = ["--seed", str(seed)] if name == "train" else []
        done = bench.server.run(
            "injection:command",
            *(name, str(bench.place / "settings.yaml"), "--output", str(bench.root / "out"), *words),
            root=bench.root,
            environment={"TANDEM_CACHE": str(bench.place / "cache")},
        )
        assert done.code == 0, done.told
        places[command] = Path(shutil.copytree(bench.root / "out", bench.place / command))
    others = [path for path in places["other"].iterdir() if path.is_file()]
    yield damage.model_folder(places["train"]), others
    yield damage.baseline_folder(places["experiment"] / "models" / "LSTM-seed0"), others
    for artefact in damage.run_directory(places["experiment"]):
        yield artefact, []
    settings, cache = load_settings(str(bench.place / "settings.yaml")), bench.place / "cache"
    data = DataSettings(**settings.data.model_dump())
    splits = read_splits(data, cache, lambda _: None)
    prepare_corpus(data, TokenizerSettings(vocab_size=300), cache, splits=splits)
    for folder in sorted((cache / "corpora").iterdir()):
        yield damage.cached_corpus(folder, splits, "<|endoftext|>"), []
    for path in sorted((cache / "embeddings").glob("*.npy")):
        yield damage.cached_table(path), []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", default=["kill", "torn", "errors", "power", "damage"])
    parser.add_argument("--every", type=int, default=60 if SMALL else 1)
    parser.add_argument("--replays", type=int, default=60 if SMALL else 1000)
    parser.add_argument("--flips", type=int, default=100 if SMALL else 10_000)
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        bench = Commands(Path(place).resolve(), COMMANDS)
        print(f"operations: {bench.operations}", flush=True)
        results = Results.read(args.results, bench.operations)

        def of_each(injections: Callable[[str], Iterator[Injected]]) -> Iterator[Injected]:
            return chain.from_iterable(map(injections, args.commands))

        rows: dict[str, Callable[[], Iterator[Injected]]] = {
            "kill": lambda: of_each(lambda command: dies(bench, results, command, args.every, "KILL")),
            "torn": lambda: of_each(lambda command: dies(bench, results, command, args.every, "TEAR")),
            "errors": lambda: of_each(
                lambda command: chain.from_iterable(
                    errors(bench, results, command, args.every, code) for code in ERRORS
                )
            ),
            "power": lambda: power_losses(bench, args.replays),
            "damage": lambda: damages(bench, args.flips),
        }
        for row in args.rows:
            began, counts, losses = time.monotonic(), Counter[str](), 0
            for injected, lost in rows[row]():
                counts[injected if row == "damage" else injected.split()[0]] += 1
                losses += len(lost)
                for one in lost:
                    print(f"LOSS {row}, {injected}: {one}", flush=True)
                if (so_far := sum(counts.values())) % 20 == 0:
                    print(f"  {row}: {so_far:,} so far, {losses} losses", flush=True)
            seconds = f"{time.monotonic() - began:.0f}"
            table.append([row, f"{sum(counts.values()):,}", f"{losses:,}", seconds])
            for injected, count in sorted(counts.items()):
                print(f"  {row} {injected}: {count:,}", flush=True)
        print(f"states after which a command was given again: {len(bench.after):,}")
        bench.server.close()
    print_table("Faults", ["fault", "injections", "losses", "seconds"], table)


if __name__ == "__main__":
    run(main)
