"""Next-token cross entropy over the whole vocabulary, without ever holding all logits.

Shape letters: n positions, V vocabulary, E embed_dim.

torch's own chunked `linear_cross_entropy` chooses very small chunks on large vocabularies and accumulates
bf16 in bf16; here the chunk is explicit and the reduction is in (at least) fp32.
"""

from typing import Any

import torch
from torch import Tensor


def token_nll(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL in nats, [n], and arg-max token, [n], of hidden [n, E] against head [V, E] and targets [n]."""
    logits = _logits(hidden, head)
    best = logits.argmax(dim=-1)
    picked = logits.gather(-1, targets[:, None])[:, 0]
    return logits.logsumexp(dim=-1) - picked, best


def mean_nll(hidden: Tensor, head: Tensor, targets: Tensor, chunk_positions: int) -> Tensor:
    """Mean NLL in nats, a scalar with gradient for `hidden`, and for `head` if that requires one.

    hidden [n, E], head [V, E], targets [n]; logits of `chunk_positions` positions are held at once. The
    gradient is computed with the loss, since the logits are gone afterwards.
    """
    return _MeanNll.apply(hidden, head, targets, chunk_positions)


def _logits(hidden: Tensor, head: Tensor, out: Tensor | None = None) -> Tensor:
    """hidden · headᵀ, [n, V], in at least fp32; `out` is memory for the product."""
    logits = torch.mm(hidden, head.t(), out=out)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class _MeanNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, chunk: int) -> Tensor:
        need_hidden, need_head = ctx.needs_input_grad[:2]
        count = len(hidden)
        hidden_grad = torch.empty_like(hidden) if need_hidden else None
        head_grad = torch.zeros_like(head) if need_head else None
        # One buffer for all chunks: large tensors come fresh from the system, page by page, each time.
        buffer = hidden.new_empty(min(chunk, count), len(head))
        parts = []
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            logits = _logits(hidden[part], head, out=buffer[: part.stop - part.start])
            rows = torch.arange(len(logits), device=logits.device)
            # In place from here on: logits become exp(logits - max), then the gradient of the mean NLL.
            shift = logits.amax(dim=-1, keepdim=True)
            picked = logits[rows, targets[part]] - shift[:, 0]
            total = logits.sub_(shift).exp_().sum(dim=-1)
            parts.append((total.log() - picked).sum())
            if need_hidden or need_head:
                logits.mul_((1.0 / (total * count))[:, None])
                logits[rows, targets[part]] -= 1.0 / count
                gradient = logits.to(head.dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = gradient @ head
                if head_grad is not None:
                    head_grad.addmm_(gradient.t(), hidden[part])
        ctx.gradients = (hidden_grad, head_grad)
        return torch.stack(parts).sum() / count

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, head_grad = (
            None if gradient is None else gradient * upstream[0] for gradient in ctx.gradients
        )
        return hidden_grad, head_grad, None, None
