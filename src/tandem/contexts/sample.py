"""What a run's contexts were: enough of them, kept with the model, to recompute and to compare later."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tandem.contexts.context_store import Contexts

FIRST, SPACED = 64, 192
"""Positions sampled of each split: so many at its start, and so many evenly spaced over all of it."""


@dataclass(frozen=True)
class ContextsSample:
    """A sample of the contexts that training and validation read, and the moments of all of them.

    train_at, validation_at          [N] int64, sampled positions.
    train, validation                [N, C], the contexts there.
    train_mean, validation_mean      [C], over all positions.
    train_std, validation_std        [C].
    train_norm, validation_norm      [], mean length of a context.
    train_zero, validation_zero      [], share of contexts that are zero in every element.
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
    def of(cls, train: Contexts, validation: Contexts) -> "ContextsSample":
        """Of the contexts of both splits, each read once."""
        values: dict[str, Tensor] = {}
        for split, contexts in (("train", train), ("validation", validation)):
            spaced = torch.linspace(0, len(contexts) - 1, SPACED, dtype=torch.float64).long()
            positions = torch.cat((torch.arange(min(FIRST, len(contexts))), spaced)).unique()
            total = squares = lengths = zeros = torch.zeros((), dtype=torch.float64)
            picked = torch.empty(0)
            for first, piece in contexts.pieces():
                if first == 0:  # all of it at once, as in Contexts.at
                    picked = torch.empty(len(positions), piece.shape[1])
                inside = (positions >= first) & (positions < first + len(piece))
                picked[inside] = piece[positions[inside].to(piece.device) - first].cpu()
                for part in piece.cpu().split(8192):  # their double precision takes memory
                    length = part.norm(dim=1)
                    total = total + part.sum(dim=0, dtype=torch.float64)
                    squares = squares + part.double().square().sum(dim=0)
                    lengths = lengths + length.sum(dtype=torch.float64)
                    zeros = zeros + (length == 0).sum()
            mean = total / len(contexts)
            values |= {
                f"{split}_at": positions,
                split: picked,
                f"{split}_mean": mean.float(),
                f"{split}_std": (squares / len(contexts) - mean.square()).clamp(min=0).sqrt().float(),
                f"{split}_norm": (lengths / len(contexts)).float(),
                f"{split}_zero": (zeros / len(contexts)).float(),
            }
        return cls(**{name: value.detach().cpu().clone() for name, value in values.items()})

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        save_file({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> "ContextsSample":
        """Read it back. Raises OSError, SafetensorError or TypeError if it is not there or damaged."""
        return cls(**load_file(path))
