"""How processes on CPUs exchange gradients: the mean of all, but none of the rows that are zero in all.

A step with a sampled softmax reads and draws some tokens of the vocabulary; in the gradient of the embedding
every other row is zero. Which rows are not is exchanged first, a byte a row, and then only those.
"""

import torch
from torch import Tensor, distributed
from torch.distributed import GradBucket, ProcessGroup, ReduceOp  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future

TABLE_ROWS = 2048
"""A matrix with so many rows or more is taken for an embedding, of which a step may use few."""


def exchange_used_rows(group: ProcessGroup, bucket: GradBucket) -> Future[Tensor]:
    """For DistributedDataParallel.register_comm_hook: the mean over all processes, in the bucket's buffer."""
    tables: list[Tensor] = []
    rest: list[Tensor] = []
    for gradient in bucket.gradients():
        (tables if gradient.dim() == 2 and len(gradient) >= TABLE_ROWS else rest).append(gradient)
    if not tables:
        return allreduce_hook(group, bucket)
    used = torch.cat([used_rows(table) for table in tables])
    distributed.all_reduce(used, ReduceOp.MAX, group)
    rows = [part.nonzero()[:, 0] for part in used.split([len(table) for table in tables])]
    if 2 * sum(map(len, rows)) > len(used):
        return allreduce_hook(group, bucket)
    sent = [*rest, *(table[at] for table, at in zip(tables, rows, strict=True))]
    packed = torch.cat([part.flatten() for part in sent]).div_(group.size())
    if len(packed) > 0:
        distributed.all_reduce(packed, group=group)
    means = packed.split([part.numel() for part in sent])
    for gradient, mean in zip(rest, means, strict=False):
        gradient.copy_(mean.view_as(gradient))
    for table, at, mean in zip(tables, rows, means[len(rest) :], strict=True):
        table.index_copy_(0, at, mean.view(-1, table.shape[1]))
    done: Future[Tensor] = Future()
    done.set_result(bucket.buffer())
    return done


def used_rows(table: Tensor) -> Tensor:
    """Whether a row is anything but zeros, uint8 [rows]; one that is not a number is."""
    return ((table.amax(1) == 0) & (table.amin(1) == 0)).logical_not_().to(torch.uint8)
