"""A few optimizer steps of a training, kept whole, so that the audit can take them again by code of its own.

Of a step are kept: the trained weights, AdamW's two moments and a mean of weights before it, what it read,
its loss, the length of its gradient, its learning rate, and the weights after it. Of every epoch are kept:
fingerprints of the weights that its first step found and its last step left, so that nothing else can have
changed them; and the sums of its steps' losses and gradient norms, to which the history is held.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tandem.checksums import ABSENT, seal_tensors
from tandem.fingerprint import fingerprint
from tandem.training.gradients import TABLE_ROWS, used_rows

BUDGET_BYTES = 16 << 20
"""Of all snapshots of one training together; one that is four times as large is not taken at all."""
LABELS = ("last", "first", "best", "second", "early", "middle")
"""Steps that are kept, the most important first: the last one of all, the first one, the last one of the best
epoch, the second one, the last one of the first epoch, and one in the middle of the last epoch."""

Read = Callable[[], Mapping[str, Tensor]]
"""What a step read, by name; called for a step that is kept."""


class Snapshots:
    """The kept steps of one training, by label; which ones there are depends on the budget in bytes."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._steps: dict[str, tuple[dict[str, float], dict[str, Tensor]]] = {}
        self._named: Mapping[str, nn.Parameter] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._epoch_steps = self._steps_done = 0
        self._joins: list[dict[str, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._steps)

    def follow(
        self, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, epoch_steps: int
    ) -> None:
        """Keep steps of this optimizer over these parameters, in epochs of so many steps, and no others."""
        self._steps, self._joins, self._steps_done = {}, [], 0
        self._named, self._optimizer, self._epoch_steps = named, optimizer, epoch_steps

    @contextmanager
    def step(
        self,
        epoch: int,
        step: int,
        loss: float,
        gradient_norm: float,
        read: Read,
        seconds_s: float | None = None,
        ends: bool = False,
    ) -> Iterator[None]:
        """Around the optimizer's step number `step` of an epoch, both from 1; gradients are there already.

        seconds_s    of the training before it, where its learning rate depends on them.
        ends         whether the epoch ends with it before its time.
        """
        ends = ends or step == self._epoch_steps
        self._steps_done += 1
        if step == 1:
            sums = {"losses": 0.0, "gradient_norms": 0.0}
            self._joins.append({"epoch": epoch, "before": self._fingerprint(), **sums})
        self._joins[-1]["losses"] += loss
        self._joins[-1]["gradient_norms"] += gradient_norm
        self._joins[-1]["last_loss"] = loss
        numbers = {"epoch": epoch, "step": step, "loss": loss, "gradient_norm": gradient_norm}
        if seconds_s is not None:
            numbers["seconds_s"] = seconds_s
        with self._copied(self._labels(epoch, step, ends), numbers, read):
            yield
        self._joins[-1]["steps"] = step
        if ends:
            self._joins[-1]["after"] = self._fingerprint()

    @contextmanager
    def _copied(self, labels: list[str], numbers: dict[str, float], read: Read) -> Iterator[None]:
        if not labels or self._optimizer is None:
            yield
            return
        rows = self._rows()
        size = 4 * sum(self._part(name, p, rows).nbytes for name, p in self._named.items())
        labels = [label for label in labels if label in LABELS[: max(1, self._budget // max(1, size))]]
        if not labels or size > 4 * self._budget:
            yield
            return
        tensors = {f"rows/{name}": used for name, used in rows.items()}
        tensors |= {f"read/{name}": _copy(tensor) for name, tensor in read().items()}
        for name, parameter in self._named.items():
            tensors[f"before/{name}"] = _copy(self._part(name, parameter, rows))
            state = self._optimizer.state.get(parameter, {})  # nothing before the first step
            for moment in ("exp_avg", "exp_avg_sq", "ax"):
                if moment in state:
                    tensors[f"{moment}/{name}"] = _copy(self._part(name, state[moment], rows))
        numbers["lr"] = float(self._optimizer.param_groups[0]["lr"])
        numbers["steps_before"] = self._steps_done - 1
        yield
        for name, parameter in self._named.items():
            tensors[f"after/{name}"] = _copy(self._part(name, parameter, rows))
        self._steps |= dict.fromkeys(labels, (numbers, tensors))

    def best_epoch(self) -> None:
        """The epoch whose last step was just made is the best one so far."""
        if "last" in self._steps and self._budget_has("best"):
            self._steps["best"] = self._steps["last"]

    def save(self, path: Path) -> None:
        """Write them, one or more, as safetensors; their numbers stand in the file's metadata as JSON."""
        state = self.state_dict()
        about = {"steps": json.dumps(state["steps"]), "epochs": json.dumps(state["epochs"])}
        save_file(
            {
                f"{label}/{name}": tensor
                for label, of in state["tensors"].items()
                for name, tensor in of.items()
            },
            path,
            {**about, "checksum": ABSENT},
        )
        seal_tensors(path)

    @classmethod
    def load(cls, path: Path) -> "Snapshots":
        """Read them back; they are not added to. Raises OSError or SafetensorError."""
        loaded = cls()
        tensors: dict[str, dict[str, Tensor]] = {}
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118
                label, _, key = name.partition("/")
                tensors.setdefault(label, {})[key] = file.get_tensor(name)
        steps, epochs = json.loads(metadata["steps"]), json.loads(metadata["epochs"])
        loaded.load_state_dict({"steps": steps, "tensors": tensors, "epochs": epochs, "steps_done": 0})
        return loaded

    def state_dict(self) -> dict[str, Any]:
        """The numbers of each step, its tensors where no label before is of the same step, and the sums."""
        same: dict[int, str] = {}
        steps, tensors = {}, {}
        for label, (of_step, of_tensors) in self._steps.items():
            first = same.setdefault(id(of_tensors), label)
            steps[label] = {**of_step, "same_as": first}
            if first == label:
                tensors[label] = of_tensors
        return {"steps": steps, "tensors": tensors, "epochs": self._joins, "steps_done": self._steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them."""
        self._steps, self._joins, self._steps_done = {}, state["epochs"], state["steps_done"]
        for label, numbers in state["steps"].items():
            first = numbers.pop("same_as")
            of_step = numbers if first == label else self._steps[first][0]
            self._steps[label] = (of_step, state["tensors"][first])

    def _fingerprint(self) -> str:
        weights = (parameter.detach().float().cpu().numpy() for parameter in self._named.values())
        return fingerprint("weights", *weights)

    def _labels(self, epoch: int, step: int, ends: bool) -> list[str]:
        labels = []
        if self._steps_done <= 2:
            labels.append(("first", "second")[self._steps_done - 1])
        elif step == self._epoch_steps // 2:
            labels.append("middle")
        if ends:
            labels += ["last"] + (["early"] if epoch == 1 else [])
        return labels

    def _budget_has(self, label: str) -> bool:
        size = sum(tensor.nbytes for tensor in self._steps["last"][1].values())
        return label in LABELS[: max(1, self._budget // size)]

    def _rows(self) -> dict[str, Tensor]:
        """Rows that this step changes by its gradient, of tables too large to be kept whole."""
        whole = 4 * sum(parameter.nbytes for parameter in self._named.values())
        if len(LABELS) * whole <= self._budget:
            return {}
        return {
            name: used_rows(parameter.grad).nonzero()[:, 0].cpu()
            for name, parameter in self._named.items()
            if parameter.dim() == 2 and len(parameter) >= TABLE_ROWS and parameter.grad is not None
        }

    @staticmethod
    def _part(name: str, tensor: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        return tensor[rows[name].to(tensor.device)] if name in rows else tensor


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
