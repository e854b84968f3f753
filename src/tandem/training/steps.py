"""One optimizer step: computed in one go, in parts where memory is short, or by several processes.

The loss of a step is the mean over the rows of its batch. Its gradient is the same however the rows are
shared out (up to rounding): parts are weighted by their rows, and added up.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tandem.training.execution import Execution

PartLoss = Callable[[slice], Tensor]
"""Rows of a step's batch → the mean loss over them, a scalar with gradients."""


class _Call(nn.Module):
    """What is trained, as a module whose forward computes a loss: what DistributedDataParallel wraps."""

    def __init__(self, learners: Sequence[nn.Module]) -> None:
        super().__init__()
        self.learners = nn.ModuleList(learners)

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()


class Steps:
    """Steps of one training.

    parts    in how many parts this process computes its share of a batch; doubled when memory runs out
    """

    def __init__(
        self,
        learners: Sequence[nn.Module],
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler | None,
        max_grad_norm: float,
        execution: Execution,
        parts: int = 1,
    ) -> None:
        self.parts = parts
        self.group = execution.group
        self._execution = execution
        self._parameters = list(parameters)
        self._device = self._parameters[0].device
        self._optimizer, self._schedule, self._max_grad_norm = optimizer, schedule, max_grad_norm
        self._call: nn.Module = _Call(learners)
        if self.group.size > 1:
            self._call = DistributedDataParallel(self._call)

    @property
    def figures(self) -> dict[str, float]:
        """For whoever watches: in how many parts steps are computed, if in more than one."""
        return {"micro-batches": self.parts} if self.parts > 1 else {}

    def take(
        self, rows: int, loss_of: PartLoss, not_finite: Callable[[float], NoReturn]
    ) -> tuple[float, float]:
        """One step on a batch of `rows` rows; returns its loss, and its gradient's norm before clipping.

        Calls `not_finite` with the loss, and takes no step, where the loss or the gradient is not finite.
        """
        loss = self._backward(rows, loss_of)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        value = float(self.group.total(loss))
        if not (value < math.inf and torch.isfinite(norm)):
            not_finite(value)
        self._optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
        return value, float(norm)

    def _backward(self, rows: int, loss_of: PartLoss) -> Tensor:
        """Gradients of the whole batch, and this process's part of its loss."""
        share = self.group.share(rows)
        while True:
            self._optimizer.zero_grad()
            try:
                return self._in_parts(rows, share, loss_of)
            except (RuntimeError, MemoryError) as error:
                # One process of several cannot start its step again, since the others wait for its gradient.
                if not is_out_of_memory(error) or self.group.size > 1 or 2 * self.parts > rows:
                    raise
            # Out of the `except` block, as the error holds on to the tensors that were there.
            self.parts *= 2
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()

    def _in_parts(self, rows: int, share: slice, loss_of: PartLoss) -> Tensor:
        count = share.stop - share.start
        edges = [share.start + count * part // self.parts for part in range(self.parts + 1)]
        total: Any = 0.0
        for first, last in pairwise(edges):
            # A share without rows still takes part in the exchange, with a gradient of zero.
            part = slice(first, last) if last > first else slice(0, 1)
            # Processes exchange gradients with the last part, and take the mean of theirs.
            waits = self.group.size > 1 and last < share.stop
            with self._call.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self._execution.autocast(self._device):
                    loss = self._call(lambda part=part: loss_of(part)) * ((last - first) / rows)
                (loss * self.group.size).backward()
            total = total + loss.detach()
        return total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The allocators for CPUs and for MPS raise a plain RuntimeError.
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "out of memory" in str(error)
    )
