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
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tandem.errors import is_out_of_memory
from tandem.training.execution import Execution
from tandem.training.optimizer import clip_gradients

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
        self._tried = self.group.size == 1
        self._call: nn.Module = _Call(learners)
        if self.group.size > 1:
            call = DistributedDataParallel(self._call, gradient_as_bucket_view=True)
            if self._device.type == "cpu":  # on GPUs it was not tried, where asking which rows costs a wait
                from tandem.training.exchange import exchange_used_rows  # not every torch has what it needs

                call.register_comm_hook(distributed.group.WORLD, exchange_used_rows)
            self._call = call

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
        norm = clip_gradients(self._parameters, self._max_grad_norm)
        value = float(self.group.total(loss))
        if not (value < math.inf and torch.isfinite(norm)):
            not_finite(value)
        self._optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
        return value, float(norm)

    def _backward(self, rows: int, loss_of: PartLoss) -> Tensor:
        """Gradients of the whole batch, and this process's part of its loss."""
        if not self._tried:
            self._try(rows, loss_of)
        while True:
            made = self._unless_out_of_memory(rows, loss_of)
            if made is not None:
                return made
            self._halve()

    def _try(self, rows: int, loss_of: PartLoss) -> None:
        """Several processes agree, before the first step, on parts that fit, or the smallest there are.

        None of them can start a step again, since the others would wait for its gradient. What the optimizer
        is going to keep beside the parameters (AdamW: two moments) takes its room meanwhile.
        """
        self._tried = True
        moments = [torch.empty_like(parameter) for parameter in self._parameters for _ in range(2)]
        while self._divisible(rows):
            fits = self._unless_out_of_memory(rows, loss_of, exchanges=False) is not None
            if self.group.agrees(fits, self._device):
                break
            self._halve()
        del moments

    def _divisible(self, rows: int) -> bool:
        """Whether each process has rows enough for twice the parts."""
        return 2 * self.parts <= rows // self.group.size

    def _halve(self) -> None:
        self.parts *= 2
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    def _unless_out_of_memory(self, rows: int, loss_of: PartLoss, exchanges: bool = True) -> Tensor | None:
        """Gradients, and the loss; nothing where memory ran out and smaller parts may do."""
        self._optimizer.zero_grad()
        try:
            return self._in_parts(rows, loss_of, exchanges)
        except (RuntimeError, MemoryError) as error:
            alone = self.group.size == 1 or not exchanges
            if not (is_out_of_memory(error) and alone and self._divisible(rows)):
                raise
        # Out of the `except` block, as the error holds on to the tensors that were there.
        return None

    def _in_parts(self, rows: int, loss_of: PartLoss, exchanges: bool) -> Tensor:
        share = self.group.share(rows)
        count = share.stop - share.start
        edges = [share.start + count * part // self.parts for part in range(self.parts + 1)]
        total: Any = 0.0
        for number, (first, last) in enumerate(pairwise(edges), start=1):
            # A share without rows still takes part in the exchange, with a gradient of zero.
            part = slice(first, last) if last > first else slice(0, 1)
            # Processes exchange gradients with the last part, and take the mean of theirs.
            waits = self.group.size > 1 and not (exchanges and number == self.parts)
            with self._call.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self._execution.autocast(self._device):
                    loss = self._call(lambda part=part: loss_of(part)) * ((last - first) / rows)
                (loss * self.group.size).backward()
            total = total + loss.detach()
        return total
