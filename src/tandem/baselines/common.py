"""What the LSTM and the GPT-2 share outside training: their size, their random numbers, their scoring."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from tandem.advice import advice
from tandem.contexts import Tokens
from tandem.cross_entropy import token_nll
from tandem.errors import SettingsError
from tandem.metrics import Score


def widest(total: Callable[[int], int], widths: range, max_parameters: int, title: str) -> int:
    """The largest of the ascending `widths` whose `total` of parameters is within max_parameters.

    Raises SettingsError if not even the smallest is.
    """
    for width in reversed(widths):
        if total(width) <= max_parameters:
            return width
    raise SettingsError(
        f"the {title} has {total(widths[0])} parameters even at width {widths[0]}, more than the "
        f"{max_parameters} it may have" + advice(("raise {}", "baselines.max_parameters"))
    )


@torch.no_grad()
def score_hidden(parts: Iterator[Tensor], head: Tensor, ids: Tensor | Tokens, chunk_positions: int) -> Score:
    """Score of ids [T], all but the first, from hidden [n, E] in `parts` that follow on each other.

    Row t of all parts together, [T - 1, E], predicts ids[t + 1] with head [V, E]. The softmax is exact;
    logits of `chunk_positions` positions are held at once.
    """
    losses, done, correct = np.empty(len(ids) - 1, np.float32), 0, 0
    for part in parts:
        for hidden in part.split(chunk_positions):
            targets = ids[done + 1 : done + 1 + len(hidden)]
            nll, best = token_nll(hidden, head, targets)
            losses[done : done + len(hidden)] = nll.float().cpu().numpy()
            correct += int((best == targets).sum())
            done += len(hidden)
    assert done == len(losses)
    return Score.of(losses, correct)
