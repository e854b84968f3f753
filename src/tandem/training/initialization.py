"""Initial weights and random streams that depend on the seed and on their purpose, and on nothing else."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import nn

from tandem.model import TandemForCausalLM
from tandem.model.token_block_tandem import TokenBlock, TokenLayer

START_SIZES = ("embeddings.norm", "model.weight_init_std")
"""What to lower where the very first step is not finite, as no weight had moved yet."""


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose of one run, such as (seed, "phase1 noise", context_layers).

    Two purposes never share random numbers; the order in which runs are made does not matter. Seed and
    purpose are hashed together, since torch's CPU generator uses the low 32 bits of its seed only.
    """
    name = "/".join(str(part) for part in (seed, *purpose))
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def initialize_block(block: nn.Module, model: TandemForCausalLM, generator: torch.Generator) -> None:
    """Initialise one block as SPEC section 1 says: weights N(0, 0.1), biases N(0, 0.01), LayerNorms 1 and 0.

    The standard deviations are the configuration's; a cell may start in its own way.
    Drawn on the CPU, so that every device starts alike.
    """
    config = model.config
    for module in block.modules():
        if isinstance(module, nn.Linear):
            std = config.weight_init_std
            sizes = {
                "weight": module.in_features**-0.5 if std is None else std,
                "bias": config.bias_init_std,
            }
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * sizes[name])
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
    if block is model.context_block:
        for module in block.modules():
            model.context_block.initialize(module)


@torch.no_grad()
def start_from_head(block: TokenBlock, head: TokenBlock) -> None:
    """Let a new TokenBlock start as the token layers that phase 1 predicted through.

    Layers that read the same context are taken over: the last one, the first one where both have two or more,
    and those in between in order. What remains starts with a last matrix (and its bias) of zero, so that it
    only normalises its input.
    """
    ours, theirs = list(block.layers), list(head.layers)
    pairs = [(ours.pop(), theirs.pop())]
    if ours and theirs:
        pairs.append((ours.pop(0), theirs.pop(0)))
    pairs += zip(ours, theirs, strict=False)
    for layer, source in pairs:
        layer.load_state_dict(source.state_dict())
    for layer in ours[len(theirs) :]:
        assert isinstance(layer, TokenLayer)
        for parameter in (layer.projection or layer.linear).parameters():
            parameter.zero_()


@contextlib.contextmanager
def seeded(device: torch.device, seed: int, *purpose: str | int) -> Iterator[None]:
    """What is drawn in here depends on seed and purpose alone, and changes nobody else's draws."""
    devices = []  # whose generators are put back besides the CPU's; torch cannot do so for MPS
    if device.type == "cuda":
        devices = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator_for(seed, *purpose).initial_seed())
        yield
