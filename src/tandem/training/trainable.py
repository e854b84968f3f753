"""Which parts of the model a phase may change; all others are frozen and cost no gradient."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def training_only(model: nn.Module, *parts: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Within the block only the parameters of `parts` require a gradient; they are what it gives.

    On leaving, gradients are dropped and every parameter requires what it did before.
    """
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(False)
    chosen = [parameter for part in parts for parameter in part.parameters()]
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield chosen
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None
