"""What the audit computes with: the recurrence and the loss again, plainly, sharing no code with training.

Shape letters: T tokens, S blocks of consecutive tokens, n positions, C context_dim.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.contexts import Tokens
from tandem.model import ContextBlock, TandemForCausalLM, TokenBlock

BLOCKS = (1, 16, 64, 256, 1024, 4096)
"""Tokens of a block, to choose from; a block as long as its warm-up is one more choice."""
STEP_FLOP = 5_000_000
"""Fixed cost of one step on a CPU, as floating-point operations; from a trial by hand."""
POSITIONS = 512
"""Positions whose logits are held at once."""
READ = 8192
"""Positions whose embeddings are held at once."""


@dataclass(frozen=True)
class Block:
    """Consecutive tokens, their contexts, and the one before.

    ids         [n + 1] int64: n tokens that are read, each of which predicts the one after it.
    previous    [n, C] contexts before each token.
    current     [n, C] contexts after it.
    """

    ids: Tensor | Tokens
    previous: Tensor
    current: Tensor

    def __len__(self) -> int:
        return len(self.current)


@dataclass(frozen=True)
class Joined:
    """The texts of both splits as one stream, so that one loop reads them side by side."""

    train: Tokens
    validation: Tokens

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.train.device

    def __len__(self) -> int:
        return len(self.train) + len(self.validation)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Ids at positions [n], int64."""
        count = len(self.train)
        of_train = self.train[positions.clamp(max=count - 1)]
        of_validation = self.validation[(positions - count).clamp(min=0)]
        return torch.where(positions < count, of_train, of_validation)


@torch.no_grad()
def contexts_at(
    model: TandemForCausalLM,
    ids: Tensor | Tokens | Joined,
    positions: Tensor,
    warm_up: int,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Contexts before and after the tokens at positions [n] of a stream [T], both [n, C], by the plain loop.

    They are read in blocks, each from `warm_up` tokens before it and a zero context, or from the
    start of their text where that is nearer; computed in `dtype`.
    """
    wanted, back = positions.to(ids.device).unique(return_inverse=True)
    warm_up = min(warm_up, int(wanted.max()))

    row_flop = 2 * sum(parameter.numel() for parameter in model.context_block.parameters())

    def work(length: int) -> int:
        blocks = len((wanted // length).unique_consecutive())
        return (warm_up + length) * (STEP_FLOP + row_flop * blocks)

    length = min((*BLOCKS, max(1, warm_up)), key=work)
    starts = (wanted // length).unique_consecutive() * length
    size = (len(wanted), model.config.context_dim)
    previous, current = (torch.zeros(size, dtype=model.dtype, device=ids.device) for _ in range(2))
    for positions, before, after in _read(model, ids, starts, length, warm_up, dtype):
        place = torch.searchsorted(wanted, positions).clamp(max=len(wanted) - 1)
        asked = wanted[place] == positions
        previous[place[asked]], current[place[asked]] = before[asked], after[asked]
    return previous[back], current[back]


def _read(
    model: TandemForCausalLM,
    ids: Tensor | Tokens | Joined,
    starts: Tensor,
    length: int,
    warm_up: int,
    dtype: torch.dtype,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some steps at a time of blocks that start at `starts` [S], after their warm-up: positions [n], and the
    contexts before and after the tokens there, [n, C]. Past the end of the stream its last token is repeated.
    """
    block = copy.deepcopy(model.context_block).to(dtype)
    context = torch.zeros(len(starts), block.context_dim, dtype=dtype, device=ids.device)
    many = max(1, READ // len(starts))
    for first in range(-warm_up, length, many):
        steps = torch.arange(first, min(first + many, length), device=ids.device)
        positions = starts + steps[:, None]
        tokens = ids[positions.clamp(0, len(ids) - 1).flatten()].view(positions.shape)
        fresh = positions <= 0
        if isinstance(ids, Joined):
            fresh = fresh | (positions == len(ids.train))
        if model.config.boundary == "reset":
            fresh = fresh | (tokens == model.config.bos_token_id)
        # Row by row this is what a step alone would embed; a call for each step would take longer than it.
        embeds, some_fresh = model.embed(tokens).to(dtype), fresh.any(1).tolist()
        before, after = [], []
        if first == -warm_up:
            step = _step_of(block, context, embeds[0])
        for number, any_fresh in enumerate(some_fresh):
            if any_fresh:
                context = context.masked_fill(fresh[number][:, None], 0.0)
            before.append(context)
            context = step(context, embeds[number])
            after.append(context)
        scored = max(0, -first)  # the first step that is no warm-up
        if scored < len(before):
            old, new = (torch.cat(part[scored:]).to(model.dtype) for part in (before, after))
            yield positions[scored:].flatten(), old, new


def _step_of(block: ContextBlock, context: Tensor, embeds: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """One step: the block's own for loops where it gives, bit for bit, what the definition gives here."""
    step, after = block.loop_step(), block(context, embeds)  # from zero a step would say less
    return step if torch.equal(step(after, embeds), block(after, embeds)) else block


@torch.no_grad()
def block_losses(
    model: TandemForCausalLM,
    block: Block,
    previous: Tensor | None = None,
    current: Tensor | None = None,
    ahead: int = 1,
    token_block: TokenBlock | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Loss in nats of each prediction in a block, and whether no other token is likelier, both [n].

    `previous` and `current` [n, C] replace the block's own contexts; `ahead` says which token is scored (1:
    the next one; where there is none, the last): both are there to explain figures that do not recompute.
    `token_block`, if given, stands in for the model's own.
    """
    token_block = model.token_block if token_block is None else token_block
    previous = block.previous if previous is None else previous
    current = block.current if current is None else current
    losses, right = [], []
    for start in range(0, len(block), POSITIONS):
        positions = torch.arange(start, min(start + POSITIONS, len(block)), device=block.ids.device)
        hidden = token_block(previous[positions], current[positions], model.embed(block.ids[positions]))
        logits = model.lm_head(hidden).float()
        targets = block.ids[(positions + ahead).clamp(max=len(block.ids) - 1)]
        losses.append(F.cross_entropy(logits, targets, reduction="none").cpu())
        right.append((logits.amax(-1) == logits.gather(1, targets[:, None])[:, 0]).cpu())
    return torch.cat(losses).numpy(), torch.cat(right).numpy()
