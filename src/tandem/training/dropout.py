"""Dropout with random numbers of its own, several times faster on CPUs than torch's.

There torch draws one Mersenne Twister number after the other, which took a third of phase 1's time (LOG.md).
NumPy's SFC64 gives 16 random bits an element in a fraction of that. On other devices torch draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tandem.model.cell_tandem import Drop
from tandem.settings import Phase2Settings, PredictionSettings
from tandem.training.initialization import generator_for

LEVELS = 1 << 16
"""Steps of the probability on CPUs: it is rounded to 1/65,536."""


class Dropout:
    """Zeroes elements with this probability, and scales the others so that means stay (Srivastava 2014).

    With `along`, what is dropped is the same all along this dimension, such as time (Gal & Ghahramani 2016,
    arXiv:1512.05287). What it draws depends on seed and purpose, and on the kind of device.
    """

    def __init__(self, probability: float, seed: int, *purpose: str | int, along: int | None = None) -> None:
        self._probability, self._along = probability, along
        self._seed = generator_for(seed, *purpose).initial_seed()
        self._draws = np.random.Generator(np.random.SFC64(self._seed))
        self._on_device: torch.Generator | None = None
        self._device = "cpu"

    def step(self, count: int) -> Callable[[slice], Drop]:
        """What drops elements of rows of a step's `count`, drawn anew: as if all rows were there at once.

        So a step's parts may be computed after each other, or by several processes.
        """
        state = self._draws.bit_generator.state
        on_device = None if self._on_device is None else self._on_device.get_state()

        def of_rows(rows: slice) -> Drop:
            self._draws.bit_generator.state = state
            if self._on_device is not None:
                self._on_device.manual_seed(self._seed)
                if on_device is not None:
                    self._on_device.set_state(on_device)
            return lambda x: self._drop(x, rows, count)

        return of_rows

    def state_dict(self) -> dict[str, Any]:
        """Of the random numbers, on the CPU and on a device."""
        on_device = None if self._on_device is None else self._on_device.get_state()
        return {"draws": self._draws.bit_generator.state, "on_device": on_device, "device": self._device}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them."""
        self._draws.bit_generator.state = state["draws"]
        if state["on_device"] is not None:
            self._device = state["device"]
            self._on_device = torch.Generator(self._device)
            self._on_device.set_state(state["on_device"])

    def _drop(self, x: Tensor, rows: slice, count: int) -> Tensor:
        shape = [1 if dim == self._along else size for dim, size in enumerate((count, *x.shape[1:]))]
        if x.device.type != "cpu":
            if self._on_device is None:
                self._device = str(x.device)
                self._on_device = torch.Generator(self._device).manual_seed(self._seed)
            draws = torch.rand(shape, generator=self._on_device, device=x.device)[rows]
            return x * (draws >= self._probability).to(x.dtype).mul_(1 / (1 - self._probability))
        dropped = round(self._probability * LEVELS)
        bits = torch.from_numpy(self._draws.integers(0, LEVELS, size=shape, dtype=np.uint16)[rows])
        surviving = bits.to(torch.int32) >= dropped
        return x * surviving.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Masks:
    """What applies dropout to some rows of a step: to contexts, token embeddings, and the softmax's input."""

    contexts: Drop = _unchanged
    embeds: Drop = _unchanged
    output: Drop = _unchanged


StepMasks = Callable[[slice], Masks]
"""The masks of one step, for any of its rows."""


class DropoutMasks:
    """The dropout masks of one training, step after step, as the settings of its phase say.

    `along` is the dimension of time, where there is one. What the softmax reads has a draw of its own at
    every position all the same.
    """

    def __init__(
        self,
        settings: PredictionSettings | Phase2Settings,
        seed: int,
        phase: str,
        *purpose: str | int,
        along: int | None = None,
    ) -> None:
        probabilities = {
            "contexts": (settings.dropout, f"{phase} dropout", along),
            "embeds": (settings.embed_dropout, f"{phase} embed dropout", along),
            "output": (settings.output_dropout, f"{phase} output dropout", None),
        }
        self._dropouts = {
            name: Dropout(probability, seed, stream, *purpose, along=dim)
            for name, (probability, stream, dim) in probabilities.items()
            if probability > 0
        }

    def next_step(self, rows: int) -> StepMasks:
        """New masks for a step of so many rows.

        Each row's mask depends on the row alone, so micro-batches and processes may compute any of them.
        """
        steps = {name: dropout.step(rows) for name, dropout in self._dropouts.items()}
        return lambda part: Masks(**{name: of_rows(part) for name, of_rows in steps.items()})

    def state_dict(self) -> dict[str, Any]:
        """Of the random numbers of each."""
        return {name: dropout.state_dict() for name, dropout in self._dropouts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them."""
        for name, dropout in self._dropouts.items():
            dropout.load_state_dict(state[name])
