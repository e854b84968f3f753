"""Which parts of the model a phase may change; all others are frozen, cost no gradient, and are watched."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tandem.fingerprint import Fingerprint
from tandem.model import TandemModel
from tandem.records import PartRecord

SAMPLED = 8
"""Weights of each part that are written down."""


class Trainable:
    """What a phase trains, and, once it has ended, what it did to every part of the model."""

    def __init__(self, model: nn.Module, named: dict[str, nn.Parameter]) -> None:
        self.named, self.parameters = named, list(named.values())
        self._model, self._reached = model, dict[str, bool]()
        self.parts: tuple[PartRecord, ...] = ()

    def reached(self) -> dict[str, bool]:
        """Of each part, whether the latest step's gradient reached all of it."""
        if self._reached and all(parameter.grad is None for parameter in self.parameters):
            return self._reached  # no step was made since the training was taken up
        return {
            name: all(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
            for name, part in model_parts(self._model)
        }

    def state_dict(self) -> dict[str, Any]:
        """The weights by name, and what the gradient reached."""
        weights = {name: parameter.detach() for name, parameter in self.named.items()}
        return {"weights": weights, "reached": self.reached()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the weights, in place."""
        self._reached = state["reached"]
        for name, parameter in self.named.items():
            parameter.copy_(state["weights"][name])


@contextmanager
def training_only(model: nn.Module, *chosen: nn.Module) -> Iterator[Trainable]:
    """Within the block only the parameters of the `chosen` parts require a gradient.

    On leaving it without an error, `parts` of what it gives tells what happened to each part of the model:
    its weights before and after, and whether a gradient reached it. Gradients are dropped then, and every
    parameter requires what it did before.
    """
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    names = {parameter: name.removeprefix("model.") for name, parameter in model.named_parameters()}
    trainable = Trainable(model, {names[p]: p for part in chosen for p in part.parameters()})
    for part in chosen:
        part.requires_grad_(True)
    before, start = part_fingerprints(model), part_samples(model)
    ours = set(trainable.parameters)
    try:
        yield trainable
        after, reached = part_fingerprints(model), trainable.reached()
        trainable._reached = reached  # a signal may have it saved after the block, too
        trainable.parts = tuple(
            PartRecord(
                part=name,
                trained=ours.issuperset(part.parameters()),
                before=before[name],
                after=after[name],
                start=start[name],
                gradient=reached[name],
            )
            for name, part in model_parts(model)
        )
    finally:
        for parameter, was in required.items():
            parameter.requires_grad_(was)
            parameter.grad = None


def model_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts that the records speak of: embedding, embed_norm, head, and each layer of either block."""
    for name, child in model.named_children():
        if isinstance(child, TandemModel):
            yield from model_parts(child)
            continue
        layers = getattr(child, "layers", None)
        if isinstance(layers, nn.ModuleList):
            yield from ((f"{name}.layers.{number}", layer) for number, layer in enumerate(layers))
        else:
            yield name, child


@torch.no_grad()
def part_fingerprints(model: nn.Module) -> dict[str, str]:
    """Fingerprint of the weights of every part."""
    prints = {}
    for name, part in model_parts(model):
        whole = Fingerprint("weights")
        for key, tensor in part.state_dict().items():
            whole.update(key)
            whole.update(tensor.float().cpu().numpy())
        prints[name] = whole.hexdigest()
    return prints


@torch.no_grad()
def part_samples(model: nn.Module) -> dict[str, tuple[float, ...]]:
    """Some weights of every part, evenly spaced over its largest tensor."""
    samples = {}
    for name, part in model_parts(model):
        largest = max(part.parameters(), key=torch.numel).flatten()
        indices = torch.linspace(0, len(largest) - 1, SAMPLED, dtype=torch.float64).long()
        samples[name] = tuple(float(value) for value in largest[indices.to(largest.device)])
    return samples
