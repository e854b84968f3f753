"""Dropout with random numbers of its own, several times faster on CPUs than torch's.

There torch draws one Mersenne Twister number after the other, which took a third of phase 1's time (LOG.md).
NumPy's SFC64 gives 16 random bits an element in a fraction of that. On other devices torch draws.
"""

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
    """Zeroes elements with this probability, and scales the others so that means stay.

    With `along`, what is dropped is the same all along this dimension, such as time (Gal & Ghahramani 2016,
    arXiv:1512.05287). What it draws depends on seed and purpose, and on the kind of device. Srivastava et al.
    2014.
    """

    def __init__(self, probability: float, seed: int, *purpose: str | int, along: int | None = None) -> None:
        self._probability, self._along = probability, along
        self._seed = generator_for(seed, *purpose).initial_seed()
        self._draws = np.random.Generator(np.random.SFC64(self._seed))
        self._on_device: torch.Generator | None = None
        self._start: Any = self._state()

    def __call__(self, x: Tensor) -> Tensor:
        """`x` with elements dropped, drawn anew in every call."""
        return self._drop(x, slice(None), len(x))

    def begin_step(self) -> None:
        """From here on a step draws."""
        self._start = self._state()

    def rows(self, rows: slice, count: int) -> Drop:
        """As this, for `rows` of a step's `count`: each is dropped as if all were there at once.

        A step's parts may therefore be computed after each other, or by several processes.
        """
        self._rewind()
        return lambda x: self._drop(x, rows, count)

    def _drop(self, x: Tensor, rows: slice, count: int) -> Tensor:
        shape = [1 if dim == self._along else size for dim, size in enumerate((count, *x.shape[1:]))]
        if x.device.type != "cpu":
            draws = torch.rand(shape, generator=self._generator(x.device), device=x.device)[rows]
            return x * (draws >= self._probability).to(x.dtype).mul_(1 / (1 - self._probability))
        dropped = round(self._probability * LEVELS)
        bits = torch.from_numpy(self._draws.integers(0, LEVELS, size=shape, dtype=np.uint16)[rows])
        kept = bits.to(torch.int32) >= dropped
        return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))

    def _generator(self, device: torch.device) -> torch.Generator:
        if self._on_device is None:
            self._on_device = torch.Generator(device).manual_seed(self._seed)
        return self._on_device

    def _state(self) -> Any:
        return self._draws.bit_generator.state, self._on_device and self._on_device.get_state()

    def _rewind(self) -> None:
        self._draws.bit_generator.state, on_device = self._start
        if self._on_device is not None:
            if on_device is None:
                self._on_device.manual_seed(self._seed)
            else:
                self._on_device.set_state(on_device)


def dropped(drop: Drop | None, x: Tensor) -> Tensor:
    """`x` after `drop`; as it is where that is None."""
    return x if drop is None else drop(x)


@dataclass(frozen=True)
class Drops:
    """What either training loop drops: of contexts, of token embeddings, and of what the softmax reads."""

    contexts: Drop | None = None
    embeds: Drop | None = None
    output: Drop | None = None


class Dropouts:
    """The dropouts of one training, as the settings of a phase say; none where a probability is zero.

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
            what: Dropout(probability, seed, name, *purpose, along=dim)
            for what, (probability, name, dim) in probabilities.items()
            if probability > 0
        }

    def begin_step(self) -> None:
        """From here on a step draws."""
        for one in self._dropouts.values():
            one.begin_step()

    def rows(self, rows: slice, count: int) -> Drops:
        """What is dropped of these of a step's `count` rows."""
        return Drops(**{what: one.rows(rows, count) for what, one in self._dropouts.items()})
