"""How far back a context remembers: one token is changed, and the contexts after it are watched."""

import torch
from torch import Tensor

from tandem.contexts.job import precise_block
from tandem.contexts.stream import Stream, apply_resets
from tandem.group import ALONE, Group
from tandem.model import TandemForCausalLM
from tandem.records import MemoryPoint

PLACES, WARM_UP = 32, 256
"""Tokens changed, spread over the stream, and tokens read before each."""
DISTANCES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@torch.no_grad()
def measure_memory(model: TandemForCausalLM, stream: Stream, group: Group = ALONE) -> tuple[MemoryPoint, ...]:
    """The share of one token's trace that is left in the context so many tokens later.

    At PLACES places one token is replaced by the one that stands half the stream further. The change of the
    contexts after it is divided by the difference of contexts of different places, in double precision if the
    device has it. Empty if the stream is too short to tell. The processes of the `group` share the places.
    """
    last = len(stream) - DISTANCES[-1] - 1
    if last < WARM_UP + PLACES:
        return ()
    places = torch.linspace(WARM_UP, last, PLACES, dtype=torch.float64).long()[group.share(PLACES)]
    places = places.to(stream.ids.device)
    block = precise_block(model)
    read_token = block.loop_step()
    dtype = next(block.parameters()).dtype

    def read(contexts: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
        return read_token(apply_resets(contexts, stream.resets, positions), model.embed(ids).to(dtype))

    contexts = torch.zeros(len(places), block.context_dim, dtype=dtype, device=stream.ids.device)
    for step in range(-WARM_UP, 0):
        contexts = read(contexts, places + step, stream.ids[places + step])
    other = stream.ids[(places + len(stream) // 2) % len(stream)]
    pair, seen = contexts.repeat(2, 1), []  # as it is, and changed
    for distance in range(DISTANCES[-1] + 1):
        positions = (places + distance).repeat(2)
        ids = torch.cat((stream.ids[places], other)) if distance == 0 else stream.ids[positions]
        pair = read(pair, positions, ids)
        if distance in DISTANCES:
            seen.append(pair)
    contexts, changed = torch.stack(seen, dim=1).chunk(2)  # of this process's places, [n, distances, C]
    contexts, changed = group.joined(contexts, PLACES), group.joined(changed, PLACES)
    # Two different places are the yardstick: what all contexts share says nothing of a token.
    apart = _rms(contexts - contexts.roll(1, 0))
    shares = (_rms(changed - contexts) / apart.clamp(min=1e-30)).tolist()
    return tuple(
        MemoryPoint(distance=distance, change=share)
        for distance, share in zip(DISTANCES, shares, strict=True)
    )


def _rms(differences: Tensor) -> Tensor:
    """Of [n, distances, C], for each distance."""
    return differences.square().mean(dim=(0, 2)).sqrt()
