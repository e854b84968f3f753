"""The gradient of one optimizer step: in micro-batches where memory is short, summed over processes.

The loss of a step is the mean over the rows of its batch. Its gradient does not depend on how the rows are
divided, up to rounding: each micro-batch is weighted by its rows, and gradients add up.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, distributed, nn

from tandem.errors import is_out_of_memory
from tandem.group import Execution, Group

TABLE_ROWS = 2048
"""Rows from which on a matrix counts as an embedding, of which a step may use few rows."""


class GradientAccumulator:
    """Computes the gradient of a batch, whatever the memory and the number of processes.

    micro_batches    parts in which this process computes its share of a batch; doubled when memory runs out
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], execution: Execution, micro_batches: int = 1
    ) -> None:
        """Processes go on from the weights of the first one."""
        self.micro_batches = micro_batches
        self._parameters, self._execution, self._group = list(parameters), execution, execution.group
        if self._group.size > 1:
            for parameter in self._parameters:
                distributed.broadcast(parameter.detach(), 0)

    def state_dict(self) -> dict[str, int]:
        """The number of micro-batches, on which rounding depends."""
        return {"micro_batches": self.micro_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set it."""
        self.micro_batches = state["micro_batches"]

    @property
    def metrics(self) -> dict[str, float]:
        """The number of micro-batches, for progress, where there is more than one."""
        return {"micro-batches": self.micro_batches} if self.micro_batches > 1 else {}

    def backward(self, forward: Callable[[slice], Tensor], rows: int) -> float:
        """Leave in the parameters the gradient of the mean loss over a batch; returns that loss.

        `forward` takes rows of the batch, as a slice of 0..`rows`, and gives the mean loss over them, a
        scalar with gradients. Each process calls it for its own share. Where memory runs out, the share is
        computed again in twice as many micro-batches; what a row too many needs is raised.
        """
        share = self._group.share(rows)
        while (loss := self._share_backward(forward, share, rows)) is None:
            self.micro_batches *= 2
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
        sum_gradients(self._parameters, self._group)
        return float(self._group.total(loss))

    def _share_backward(self, forward: Callable[[slice], Tensor], share: slice, rows: int) -> Tensor | None:
        """The share's part of the mean loss; none where memory ran out and smaller micro-batches may do."""
        for parameter in self._parameters:
            parameter.grad = None
        device, count = self._parameters[0].device, share.stop - share.start
        parts = max(1, min(self.micro_batches, count))
        edges = [share.start + count * part // parts for part in range(parts + 1)]
        total = torch.zeros((), device=device)
        try:
            for first, last in pairwise(edges):
                # A process without rows takes part in the sum all the same, with a gradient of zero.
                micro_batch = slice(first, last) if last > first else slice(0, 1)
                with self._execution.autocast(device):
                    loss = forward(micro_batch) * ((last - first) / rows)
                loss.backward()
                total = total + loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) and 2 * self.micro_batches <= count):
                raise
            return None
        return total


def sum_gradients(parameters: Sequence[nn.Parameter], group: Group) -> None:
    """Sum the gradients of all processes, in place.

    A step with a sampled softmax uses few rows of the embedding; the gradient of all others is zero. On CPUs
    the processes first agree on the rows that any of them uses, one byte a row, and exchange only those.
    """
    if group.size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    rows = _used_in_any(gradients)
    sent = [gradient[rows[i]] if i in rows else gradient for i, gradient in enumerate(gradients)]
    packed = torch.cat([part.flatten() for part in sent])
    distributed.all_reduce(packed)
    sums = packed.split([part.numel() for part in sent])
    for i, (gradient, part, total) in enumerate(zip(gradients, sent, sums, strict=True)):
        if i in rows:
            gradient.index_copy_(0, rows[i], total.view_as(part))
        else:
            gradient.copy_(total.view_as(gradient))


def _used_in_any(gradients: Sequence[Tensor]) -> dict[int, Tensor]:
    """Rows that any process uses, by the index of the gradient; none where the processes use most rows."""
    tables = {
        i: gradient
        for i, gradient in enumerate(gradients)
        if gradient.dim() == 2 and len(gradient) >= TABLE_ROWS and gradient.device.type == "cpu"
    }
    if not tables:
        return {}
    used = torch.cat([used_rows(table) for table in tables.values()])
    distributed.all_reduce(used, distributed.ReduceOp.MAX)
    rows = [part.nonzero()[:, 0] for part in used.split([len(table) for table in tables.values()])]
    return dict(zip(tables, rows, strict=True)) if 2 * sum(map(len, rows)) <= len(used) else {}


def used_rows(table: Tensor) -> Tensor:
    """Whether a row of a matrix is anything but zeros, uint8 [rows]; a row with NaN is."""
    return ((table.amax(1) == 0) & (table.amin(1) == 0)).logical_not_().to(torch.uint8)
