"""The parts of a model that records speak of: their weights, fingerprints and sizes, by plain definitions."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tandem.fingerprint import Fingerprint
from tandem.model import TandemModel

SAMPLED = 8
"""Weights of each part that a record holds, evenly spaced over its largest tensor."""


def parts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of the model and of its base model by name; of one with `layers`, each layer."""
    for name, child in model.named_children():
        if isinstance(child, TandemModel):
            yield from parts_of(child)
            continue
        layers = getattr(child, "layers", None)
        if isinstance(layers, nn.ModuleList):
            yield from ((f"{name}.layers.{number}", layer) for number, layer in enumerate(layers))
        else:
            yield name, child


def part_prints(model: nn.Module) -> dict[str, str]:
    """Fingerprint of the weights of every part, float32, tensor by tensor with its name."""
    prints = {}
    for name, part in parts_of(model):
        whole = Fingerprint("weights")
        for key, tensor in part.state_dict().items():
            whole.update(key)
            whole.update(tensor.detach().float().cpu().numpy())
        prints[name] = whole.hexdigest()
    return prints


@dataclass(frozen=True)
class Start:
    """A part before a phase: its fingerprint, and some of its weights, as records have them."""

    fingerprint: str
    weights: tuple[float, ...]


def part_starts(model: nn.Module) -> dict[str, Start]:
    """Of every part."""
    found, prints = {}, part_prints(model)
    for name, part in parts_of(model):
        largest = max(part.parameters(), key=torch.numel).detach().flatten().cpu()
        places = torch.linspace(0, len(largest) - 1, SAMPLED, dtype=torch.float64).long()
        found[name] = Start(prints[name], tuple(largest[places].tolist()))
    return found
