"""How a training is computed: by the processes that `torchrun` starts, or by this one alone; its precision.

What is global is computed on every process alike, or summed: losses, batches, gradients, convergence. Each
process computes a contiguous share of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, distributed

from tandem.errors import SettingsError
from tandem.launch import processes


@dataclass(frozen=True)
class Group:
    """Process number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that tells and saves."""
        return self.rank == 0

    def check_enough(self, count: int, setting: str) -> None:
        """Raises SettingsError where a step has fewer rows than there are processes."""
        if count < self.size:
            raise SettingsError(
                f"setting {setting}: a step has {count} of them, too few for "
                f"{self.size} processes; start fewer"
            )

    def share(self, count: int) -> slice:
        """This process's part of `count` things in order; shares differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def total(self, own: Tensor) -> Tensor:
        """The sum of every process's tensor, all of one shape."""
        if self.size > 1:
            own = own.clone()
            distributed.all_reduce(own)
        return own

    def agrees(self, own: bool, device: torch.device) -> bool:
        """Whether this holds on every process."""
        return float(self.total(torch.tensor(float(own), device=device))) == self.size

    def largest(self, own: Tensor) -> Tensor:
        """The largest of every process's number; not a number once any is not one."""
        return self.joined(own.reshape(1), self.size).amax()

    def joined(self, own: Tensor, count: int) -> Tensor:
        """Rows [count, …] in order, of which each process gives its share."""
        if self.size == 1:
            return own
        whole = own.new_empty(count, *own.shape[1:])
        whole[self.share(count)] = own
        self.complete(whole)
        return whole

    def complete(self, whole: Tensor) -> None:
        """Fill rows [count, …] in place, of which each process has filled its share."""
        # One process after another sends: shares may differ by a row, and gathering 360 MB of them took gloo
        # ten times as long, with a buffer for each (LOG.md).
        for rank in range(self.size):
            if len(part := whole[Group(rank, self.size).share(len(whole))]) > 0 and self.size > 1:
                distributed.broadcast(part, rank)


ALONE = Group()


@dataclass(frozen=True)
class Execution:
    """How a training is computed; its mathematics is the same for all.

    group       the processes that train together.
    bfloat16    whether matrices are multiplied in bf16 while training (sums, states and scores never are).
    """

    group: Group = ALONE
    bfloat16: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        """Around what computes a loss on `device`."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)


PLAIN = Execution()
"""By this process alone, in the model's own precision."""


@contextmanager
def process_group(device: torch.device) -> Iterator[Group]:
    """Within the block, the group that `torchrun` put this process into; alone if it did not start it."""
    if processes() == 1:
        yield ALONE
        return
    # This module's functions have the group as a default argument. If a library imports it while there is a
    # group, the group outlives `destroy_process_group`. Then gloo's threads run on while Python ends, and one
    # that drops a tensor aborts the process (LOG.md).
    import_module("torch.distributed.nn.functional")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    group = Group(distributed.get_rank(), distributed.get_world_size())
    try:
        yield group
        group.agrees(True, device)  # none leaves while another still reads what it sent
    finally:
        distributed.destroy_process_group()
