"""Dropout with random numbers of its own, several times faster on CPUs than torch's.

There torch draws one Mersenne Twister number after the other, which took a third of phase 1's time (LOG.md).
NumPy's SFC64 gives 16 random bits an element in a fraction of that. Elsewhere it is torch's own dropout.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.model.modeling_tandem import Drop
from tandem.settings import Phase2Settings, PredictionSettings
from tandem.training.initialization import generator_for

LEVELS = 1 << 16
"""Steps of the probability on CPUs: it is rounded to 1/65,536."""


def dropout(probability: float, seed: int, *purpose: str | int, along: int | None = None) -> Drop | None:
    """A function that zeroes elements with this probability, and scales the others so that means stay.

    None where the probability is zero. With `along`, what is dropped is the same all along this dimension,
    such as time (Gal & Ghahramani 2016, arXiv:1512.05287). What it draws depends on seed and purpose; on a
    device other than a CPU, on torch's generator there (see `seeded`). Srivastava et al. 2014.
    """
    if probability == 0:
        return None
    draws = np.random.Generator(np.random.SFC64(generator_for(seed, *purpose).initial_seed()))
    dropped = round(probability * LEVELS)

    def drop(x: Tensor) -> Tensor:
        shape = [1 if dim == along else size for dim, size in enumerate(x.shape)]
        if x.device.type != "cpu":
            return x * F.dropout(x.new_ones(shape), probability)
        bits = torch.from_numpy(draws.integers(0, LEVELS, size=shape, dtype=np.uint16))
        kept = bits.to(torch.int32) >= dropped
        return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))

    return drop


def dropped(drop: Drop | None, x: Tensor) -> Tensor:
    """`x` after `drop`; as it is where that is None."""
    return x if drop is None else drop(x)


@dataclass(frozen=True)
class Dropouts:
    """What either training loop drops: of contexts, of token embeddings, and of what the softmax reads."""

    contexts: Drop | None = None
    embeds: Drop | None = None
    output: Drop | None = None

    @classmethod
    def of(
        cls,
        settings: PredictionSettings | Phase2Settings,
        seed: int,
        phase: str,
        *purpose: str | int,
        along: int | None = None,
    ) -> "Dropouts":
        """As the settings of a phase say; `along` is the dimension of time, where there is one.

        What the softmax reads has a draw of its own at every position all the same.
        """
        return cls(
            dropout(settings.dropout, seed, f"{phase} dropout", *purpose, along=along),
            dropout(settings.embed_dropout, seed, f"{phase} embed dropout", *purpose, along=along),
            dropout(settings.output_dropout, seed, f"{phase} output dropout", *purpose),
        )
