"""Weights of 8 bits at inference: a quarter of the memory, and products of whole numbers on a CPU.

A row of a weight matrix is stored as whole numbers from -127 to 127 and one scale: weight = scale · number.
Products round what they read as well, to 7 bits by one scale a call, and add up in whole numbers of 32 bits.
Contexts are the exception: their products read float32, as a recurrence would carry every error on, and a
scan must agree with the loop. All states stay in float32.

Shape letters: V vocabulary, E embed_dim, n and m any numbers.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST_PRODUCTS = 1 << 19
"""Multiplications of one call below which float32 is faster: 8 bits have fixed costs (LOG.md)."""


class Int8Rows(nn.Module):
    """A matrix [n, m] of 8-bit rows with a scale each; base of what reads it."""

    def __init__(self, weight: Tensor) -> None:
        """Round weight [n, m] to the nearest numbers."""
        super().__init__()
        weight = weight.detach()
        scale = weight.abs().amax(dim=1) / 127
        numbers = weight / torch.where(scale > 0, scale, 1.0)[:, None]
        # The scale is the parameter, since much code takes the precision of a block from its first one.
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.rows: Tensor
        self.register_buffer("rows", numbers.round().to(torch.int8))
        self._float: Tensor | None = None
        self._packed: Any = None

    @property
    def weight(self) -> Tensor:
        """The matrix [n, m] that the rows stand for, in the precision of the scales."""
        if self._float is None:
            self._float = self.rows.to(self.scale.dtype) * self.scale[:, None]
        return self._float

    def product(self, x: Tensor, bias: Tensor | None, exact: bool = False) -> Tensor:
        """x [..., m] → x · weightᵀ + bias, [..., n]; always with the same bias. `exact`: x is not rounded."""
        whole = not exact and x.dtype is torch.float32 and x.device.type == "cpu"
        if whole and x.numel() * len(self.rows) >= FEWEST_PRODUCTS and multiplies_int8():
            if self._packed is None:
                self._packed = _pack(self.rows, self.scale, bias)
            # The last argument: 7 bits, since sums of two products overflow 16 bits on CPUs without VNNI.
            return torch.ops.quantized.linear_dynamic(x, self._packed, True)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def _apply(self, fn: Any, recurse: bool = True) -> "Int8Rows":
        self._float = self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_float": None, "_packed": None}  # of which copies make their own


class Int8Embedding(Int8Rows):
    """An embedding of 8-bit rows [V, E]."""

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] → their rows [..., E]."""
        return self.rows[ids].to(self.scale.dtype) * self.scale[ids][..., None]


class Int8Linear(Int8Rows):
    """x · weightᵀ + bias."""

    def __init__(self, linear: nn.Linear, exact: bool = False) -> None:
        """From a layer in float; `exact`: what it reads is not rounded."""
        super().__init__(linear.weight)
        self.bias = _constant(linear.bias)
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        """x [..., m] → [..., n]."""
        return self.product(x, self.bias, self.exact)


class Int8Head(nn.Module):
    """Logits by the rows of an embedding, which are stored once."""

    def __init__(self, embedding: Int8Embedding, bias: Tensor | None) -> None:
        super().__init__()
        self._embedding = (embedding,)  # a tuple hides it: it is saved as the model's embedding
        self.bias = _constant(bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., E] → logits [..., V]."""
        return self._embedding[0].product(hidden, self.bias)


def stored_numbers(block: nn.Module) -> int:
    """Parameters of a block, of which 8-bit rows count as the matrix that they stand for."""
    rows = [module for module in block.modules() if isinstance(module, Int8Rows)]
    own = sum(parameter.numel() for parameter in block.parameters())
    return own + sum(module.rows.numel() - module.scale.numel() for module in rows)


def int8_linears(block: nn.Module, exact: bool = False) -> None:
    """Put an Int8Linear in the place of every linear layer of a block."""
    for module in list(block.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child, exact))


@cache
def multiplies_int8() -> bool:
    """Whether the torch in use has products of 8-bit numbers for this CPU."""
    try:
        packed = _pack(torch.tensor([[127, -127]], dtype=torch.int8), torch.tensor([0.5]), None)
        result = torch.ops.quantized.linear_dynamic(torch.tensor([[1.0, 0.0]]), packed, True)
    except (RuntimeError, AttributeError, NotImplementedError):  # where there are none
        return False
    return abs(float(result) - 63.5) < 1


def _constant(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)


def _pack(rows: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    """The matrix as the product reads it: a copy, in an order of its own."""
    with warnings.catch_warnings():
        # torch says that its quantised tensors will go; the packed ones are made of them alone so far.
        warnings.simplefilter("ignore", UserWarning)
        zero_points = torch.zeros(len(rows), dtype=torch.long)
        quantized = torch._make_per_channel_quantized_tensor(rows, scale.double(), zero_points, 0)
        return torch.ops.quantized.linear_prepack(quantized, bias)


__all__ = ["Int8Embedding", "Int8Head", "Int8Linear", "int8_linears", "multiplies_int8", "stored_numbers"]
