"""Damage to files that Tandem saved, and what reading them makes of it: named, harmless or silently used."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from tandem.audit.steps import read_steps
from tandem.errors import TandemError
from tandem.experiment.artefacts import load_head, load_phase1, load_sample, model_damage, model_record
from tandem.model_folder.loading import load_model, settings_for
from tandem.objectives import OBJECTIVES
from tandem.records import read_audit, read_experiment, read_manifest, read_records
from tandem.tokens.embeddings import _cached
from tandem.tokens.prepare import _read_corpus
from tandem.tokens.store import CacheFault, read_shard

Found = Literal["named", "harmless", "used"]
Read = Callable[[list[str]], Any]
"""Reads an artefact, appends warnings, and returns all it read, to be compared."""


class Named(Exception):
    """A reader said that something is damaged, or made it again."""


@dataclass(frozen=True)
class Artefact:
    """Something that Tandem saved: a kind, its files, and how it is read."""

    kind: str
    files: tuple[Path, ...]
    read: Read

    def after(self, change: Callable[[], None], whole: Any) -> Found:
        """What reading says after a change of files; `whole`: what it says without."""
        change()
        warnings: list[str] = []
        try:
            found = self.read(warnings)
        except (TandemError, CacheFault, Named, ValueError):
            return "named"
        return "named" if warnings else "harmless" if same(found, whole) else "used"


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[n], other[n]) for n in one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@contextmanager
def as_it_was(*files: Path) -> Iterator[None]:
    """After the block these files are as they were before."""
    before = {path: path.read_bytes() for path in files}
    try:
        yield
    finally:
        for path, content in before.items():
            if path.exists() and not path.is_file():
                path.unlink()
            path.write_bytes(content)


def flipped(path: Path, draw: random.Random) -> Callable[[], None]:
    """One bit of a file is another one."""

    def change() -> None:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    return change


def cut(path: Path, size: int) -> Callable[[], None]:
    """A file ends after so many bytes."""
    return lambda: path.write_bytes(path.read_bytes()[:size]) and None


def missing(path: Path) -> Callable[[], None]:
    """A file is gone."""
    return path.unlink


def pipe(path: Path) -> Callable[[], None]:
    """A named pipe, which nobody writes to, is in place of a file."""

    def change() -> None:
        path.unlink()
        os.mkfifo(path)

    return change


def swapped(path: Path, other: Path) -> Callable[[], None]:
    """Another file of its kind is in place of a file."""
    return lambda: shutil.copyfile(other, path) and None


def model_folder(folder: Path) -> Artefact:
    """As `evaluate` and the audit read it."""

    def read(warnings: list[str]) -> Any:
        model, tokenizer = load_model(folder)
        settings, _ = settings_for(folder, tokenizer, warnings.append)
        record = model_record(folder)
        sample, head = load_sample(folder), load_head(folder)
        if record is None:
            raise Named
        steps = [
            step.tensors | {"numbers": repr((step.epoch, step.step, step.loss, step.lr))}
            for name in ("snapshots.safetensors", "phase1_snapshots.safetensors")
            for step in read_steps(folder / name)
        ]
        return (
            dict(model.state_dict()),
            model.config.to_dict(),
            tokenizer.backend_tokenizer.to_str(),
            settings.model_dump(),
            record.model_dump(),
            None if sample is None else vars(sample),
            head,
            steps,
        )

    files = tuple(path for path in sorted(folder.iterdir()) if path.name != "README.md" and path.is_file())
    return Artefact("model folder", files, read)


def baseline_folder(folder: Path) -> Artefact:
    """As an experiment that is continued, and the audit, look at it."""

    def read(_: list[str]) -> Any:
        if damage := model_damage(folder):
            raise Named(damage)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "checksums.json"}

    return Artefact("baseline folder", tuple(sorted(folder.iterdir())), read)


def run_directory(run_dir: Path) -> list[Artefact]:
    """Its own files."""

    def phase1(path: Path) -> Artefact:
        with safe_open(path, "pt") as file:
            inputs = file.metadata()["fingerprint"]

        def read(_: list[str]) -> Any:
            saved = load_phase1(path, inputs, OBJECTIVES["original"])
            if saved is None:
                raise Named
            return saved[0], saved[1].model_dump()

        return Artefact("phase 1", (path,), read)

    def steps(path: Path) -> Artefact:
        def read(_: list[str]) -> Any:
            return [
                step.tensors | {"numbers": repr((step.epoch, step.step, step.loss))}
                for step in read_steps(path)
            ]

        return Artefact("snapshots", (path,), read)

    count = len(read_records(run_dir))

    def records(warnings: list[str]) -> Any:
        found = [record.model_dump() for record in read_records(run_dir, warnings.append)]
        if not found:
            read_experiment(run_dir)
        if len(found) < count:  # those runs are made again, and the audit says that they are not there
            raise Named
        return found

    found = [
        Artefact("records.jsonl", (run_dir / "records.jsonl",), records),
        Artefact("manifest.json", (run_dir / "manifest.json",), lambda _: _dumped(read_manifest(run_dir))),
        Artefact("audit.json", (run_dir / "audit.json",), lambda _: _dumped(read_audit(run_dir))),
    ]
    for path in sorted((run_dir / "phase1").glob("*.safetensors")):
        found.append(steps(path) if path.stem.endswith("snapshots") else phase1(path))
    return found


def _dumped(record: Any) -> Any:
    if record is None:  # it is made again
        raise Named
    return record.model_dump()


def cached_corpus(folder: Path, splits: Any, eos: str | None) -> Artefact:
    """Tokens that were prepared."""

    def read(_: list[str]) -> Any:
        corpus = _read_corpus(folder, eos, splits)
        return corpus.record(), corpus.train.ids.tolist(), corpus.tokenizer.backend_tokenizer.to_str()

    return Artefact("prepared corpus", tuple(sorted(folder.iterdir())), read)


def cached_table(path: Path) -> Artefact:
    """A table of embeddings."""

    def computed() -> Any:
        raise Named

    def read(_: list[str]) -> Any:
        return _cached(path.parent.parent, path.name.partition("-")[0], computed).tobytes()

    return Artefact("table of embeddings", (path,), read)


def shard(path: Path, chain: str) -> Artefact:
    """The tokens of a shard."""

    def read(_: list[str]) -> Any:
        return read_shard(path, chain).record()

    return Artefact("shard of tokens", (path,), read)
