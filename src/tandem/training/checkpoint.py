"""A training that was stopped goes on where it was, to the same weights bit for bit.

A training names its parts, each with `state_dict` and `load_state_dict` as torch's optimizers have them.
After a step, all of them are written to one file if it is time: tensors as safetensors, the rest as JSON in
its metadata. The file is removed once what the training gives is saved.
"""

import json
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tandem.checksums import ABSENT, check_tensors, seal_tensors
from tandem.errors import DamageError, storage_reason
from tandem.folders import atomic_write, new_folder
from tandem.group import ALONE, Group
from tandem.records import Record
from tandem.stopping import Stopped, look_after_steps, stop_requested

RecordType = TypeVar("RecordType", bound=Record)

CPU = torch.device("cpu")
SCHEMA = 1
"""Of what trainings write; a checkpoint of another one is not continued."""
MOST_SHARE = 0.02
"""Of a training's time, that writing checkpoints may take."""


class Stateful(Protocol):
    """A part of a training: what it gives, it takes back (torch.distributed.checkpoint.stateful.Stateful)."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass
class Checkpoint:
    """Of one training.

    path         where it is written; none: nowhere, and nothing is taken up.
    identity     all that the training depends on, by name, as JSON gives it back.
    every_s      seconds between two of them, or more where writing would take over MOST_SHARE of the time; 0:
                 after every step, whatever that takes.
    tell         is told that it is continued, or damaged, or (once) that it cannot be written.
    """

    path: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    every_s: float = 60.0
    tell: Callable[[str], None] = lambda _: None
    _parts: dict[str, Stateful] = field(default_factory=dict)
    _group: Group = ALONE
    _device: torch.device = CPU
    _next: float = 0.0
    _warned: bool = False

    def resume(self, group: Group = ALONE, device: torch.device = CPU, **parts: Stateful) -> bool:
        """Follow a training of these parts, and set them to what was written; whether anything was.

        The processes of `group` read the same file, and the first one writes it. They agree on `device`.
        """
        self._parts, self._group, self._device = parts, group, device
        self._next = time.monotonic() + self.every_s
        if self.path is not None:
            look_after_steps(partial(self._write, last=True) if group.size == 1 else None)
        read = self._read()
        if not group.agrees(read is not None, device) or read is None:
            if self.path is not None and self.path.exists() and group.leads:
                why = "damaged" if self.found() in (None, self.identity) else "of other settings or text"
                self.tell(f"the checkpoint {self.path} is {why}, so this training begins anew")
            return False
        for name, part in parts.items():
            part.load_state_dict(read[name])
        if group.leads and self.path is not None:
            self.tell(f"continuing where {self.path.stem} was stopped")
        return True

    def after_step(self) -> None:
        """Write all parts if it is time; where a signal asked to stop, write them and raise Stopped."""
        if self.path is None:
            return
        number = stop_requested()
        due = number is not None or time.monotonic() >= self._next
        if self._group.size > 1:  # all together, once any of them is to
            asked = torch.tensor([float(due), float(number is not None)], device=self._device)
            anywhere = self._group.total(asked)
            due = bool(anywhere[0])
            number = number or (signal.SIGTERM if anywhere[1] else None)
        if due:
            self._write(last=number is not None)
        if number is not None:
            raise Stopped(number)

    def remove(self) -> None:
        """Where there is one; an empty folder around it, too."""
        if self.path is not None and self._group.leads:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):
                self.path.parent.rmdir()

    def found(self) -> dict[str, Any] | None:
        """The identity of the training whose checkpoint lies there; none where none does that can be read."""
        if self.path is None:
            return None
        with suppress(OSError, SafetensorError, KeyError, ValueError), safe_open(self.path, "pt") as file:
            identity: dict[str, Any] = json.loads(file.metadata()["identity"])
            return identity
        return None

    def _read(self) -> dict[str, Any] | None:
        return None if self.path is None or self.found() != self.identity else read_tree(self.path)

    def _write(self, last: bool = False) -> None:
        """Write all parts. A disk that refuses them is told once, and where this is the `last` time."""
        assert self.path is not None
        began = time.monotonic()
        tree = {name: part.state_dict() for name, part in self._parts.items()}
        try:
            if self._group.leads:
                new_folder(self.path.parent)
                write_tree(self.path, tree, {"identity": json.dumps(self.identity)})
        except (OSError, DamageError) as error:
            if last or not self._warned:
                end = "what came after the one before it is lost" if last else "training goes on"
                self.tell(f"cannot write the checkpoint {self.path} ({storage_reason(error)}); {end}")
                self._warned = True
        now = time.monotonic()
        self._next = now + (max(self.every_s, (now - began) / MOST_SHARE) if self.every_s else 0.0)


@dataclass
class Cursor:
    """Where a training by epochs is, and its sums over the epoch so far.

    steps      that are done in the epoch.
    drawn      from which the order of the epoch follows.
    carried    tensors [count, …] on `device` that go from step to step beside the weights; a process of
               `group` has those of its share.
    """

    epoch: int = 1
    steps: int = 0
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    seen: int = 0
    position_sum: int = 0
    drawn: Any = None
    carried: dict[str, Tensor] = field(default_factory=dict)
    group: Group = ALONE
    device: torch.device = CPU

    def begin(self, draw: Callable[[], Any]) -> Any:
        """Of an epoch: what its order follows from, drawn now or when the epoch was begun."""
        if self.drawn is None:
            self.drawn = draw()
        return self.drawn

    def add(self, loss: float, count: int, gradient_norm: float = 0.0, positions: int = 0) -> None:
        """Count a step: the sum of its losses, over so many, and the sum of its positions."""
        self.steps += 1
        self.loss_sum += loss
        self.norm_sum += gradient_norm
        self.seen += count
        self.position_sum += positions

    @property
    def mean_loss(self) -> float:
        """Over the epoch so far."""
        return self.loss_sum / self.seen

    def end_epoch(self) -> None:
        """The next one begins, with sums of zero."""
        self.epoch, self.steps, self.seen, self.position_sum = self.epoch + 1, 0, 0, 0
        self.loss_sum = self.norm_sum = 0.0
        self.drawn, self.carried = None, {}

    def state_dict(self) -> dict[str, Any]:
        for tensor in self.carried.values():
            self.group.complete(tensor)
        return {name: value for name, value in vars(self).items() if name not in ("group", "device")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.carried = {name: tensor.to(self.device) for name, tensor in self.carried.items()}


class History(list[RecordType]):
    """The records of what is behind a training, in order."""

    def __init__(self, kind: type[RecordType]) -> None:
        super().__init__()
        self._kind = kind

    def state_dict(self) -> dict[str, Any]:
        return {"records": [record.model_dump() for record in self]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self[:] = [self._kind.model_validate(record) for record in state["records"]]


class Stopwatch:
    """Seconds of a training, with those before it was stopped."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds_s(self) -> float:
        """Since it was made, without the time in between."""
        return time.perf_counter() - self._began

    def state_dict(self) -> dict[str, Any]:
        return {"seconds_s": self.seconds_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._began = time.perf_counter() - state["seconds_s"]


@dataclass
class Draws:
    """The state of random numbers: of a generator of torch, or of its global one for a device."""

    source: torch.Generator | torch.device

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.source, torch.device):
            return {"state": _global(self.source).get_rng_state()}
        return {"state": self.source.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.source, torch.device):
            _global(self.source).set_rng_state(state["state"])
        else:
            self.source.set_state(state["state"])


def _global(device: torch.device) -> Any:
    return torch.random if device.type == "cpu" else getattr(torch, device.type)


def write_tree(path: Path, tree: Any, metadata: Mapping[str, str]) -> None:
    """Write mappings and lists of tensors, NumPy arrays, numbers and strings, atomically, with a checksum.

    What was there stays until the new file is on disk.
    """
    tensors: dict[str, Tensor] = {}
    packed = json.dumps(_pack(tree, tensors))
    with atomic_write(path) as draft:
        save_file(tensors, draft, {"schema": str(SCHEMA), "tree": packed, "checksum": ABSENT, **metadata})
        seal_tensors(draft)
        check_tensors(draft)


def read_tree(path: Path) -> Any:
    """What `write_tree` wrote; none where there is nothing, or it is damaged. Tuples come back as lists."""
    try:
        check_tensors(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata["checksum"] == ABSENT or metadata["schema"] != str(SCHEMA):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _unpack(json.loads(metadata["tree"]), tensors)
    except (OSError, SafetensorError, KeyError, ValueError, DamageError):
        return None


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """As JSON has it: a mapping as its pairs, since its keys may be numbers; tensors go to `tensors`."""
    if isinstance(value, Tensor | np.ndarray):
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        tensor = tensor.detach().cpu().contiguous()
        # The library takes no two that share memory.
        if any(tensor.data_ptr() == other.data_ptr() for other in tensors.values()):
            tensor = tensor.clone()
        tensors[name := str(len(tensors))] = tensor
        return {"tensor": name, "numpy": isinstance(value, np.ndarray)}
    if isinstance(value, Mapping):
        return {"pairs": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, tensors) for item in value]
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "pairs" in value:
        return {key: _unpack(item, tensors) for key, item in value["pairs"]}
    tensor = tensors[value["tensor"]]
    return tensor.numpy() if value["numpy"] else tensor
