"""How a training is computed: by which processes, and in which precision."""

from dataclasses import dataclass

import torch

from tandem.group import ALONE, Group


@dataclass(frozen=True)
class Execution:
    """How steps are computed; their mathematics is the same for all.

    bfloat16    whether matrices are multiplied in bf16 while training (sums, states and scores never are)
    """

    group: Group = ALONE
    bfloat16: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        """Around what computes a loss on `device`."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)


PLAIN = Execution()
"""By this process alone, in the model's own precision."""
