"""What a run's contexts were: enough of them, kept with the model, to recompute and to compare later."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FIRST, SPACED = 64, 192
"""Positions sampled of each split: so many at its start, and so many evenly spaced over all of it."""


@dataclass(frozen=True)
class ContextsSample:
    """A sample of the contexts that training and validation read, and the moments of all of them.

    train_at, validation_at          [N] int64, sampled positions
    train, validation                [N, C], the contexts there
    train_mean, validation_mean      [C], over all positions
    train_std, validation_std        [C]
    train_norm, validation_norm      [], mean length of a context
    train_zero, validation_zero      [], share of contexts that are zero in every element
    """

    train_at: Tensor
    train: Tensor
    train_mean: Tensor
    train_std: Tensor
    train_norm: Tensor
    train_zero: Tensor
    validation_at: Tensor
    validation: Tensor
    validation_mean: Tensor
    validation_std: Tensor
    validation_norm: Tensor
    validation_zero: Tensor

    @classmethod
    def of(cls, train: Tensor, validation: Tensor) -> "ContextsSample":
        """Of the contexts [T, C] of both splits."""
        values: dict[str, Tensor] = {}
        for split, contexts in (("train", train), ("validation", validation)):
            spaced = torch.linspace(0, len(contexts) - 1, SPACED, dtype=torch.float64).long()
            at = torch.cat((torch.arange(min(FIRST, len(contexts))), spaced)).unique().to(contexts.device)
            lengths = contexts.norm(dim=1)
            values |= {
                f"{split}_at": at,
                split: contexts[at],
                f"{split}_mean": contexts.mean(dim=0),
                f"{split}_std": contexts.std(dim=0, unbiased=False),
                f"{split}_norm": lengths.mean(),
                f"{split}_zero": (lengths == 0).float().mean(),
            }
        return cls(**{name: value.detach().cpu().clone() for name, value in values.items()})

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        save_file({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> "ContextsSample":
        """Read it back. Raises OSError, SafetensorError or TypeError if it is not there or damaged."""
        return cls(**load_file(path))
