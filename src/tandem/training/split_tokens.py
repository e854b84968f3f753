"""A text whose tokens are split at random into those that a BPE joined them from, anew in every epoch.

So a model meets rare tokens and their parts in many ways, and learns a small text by heart less easily. It is
BPE-dropout (Provilkov et al. 2020, arXiv:1910.13267) on tokens instead of text. The splits follow from a
seed, which those of the tokenizer's library do not.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tandem.contexts import Stream
from tandem.contexts.stream import COUNTED_TOKENS, Tokens


def split_tokens(
    stream: Stream, pieces: npt.NDArray[np.int32], chance: float, draws: torch.Generator
) -> Stream:
    """The stream with tokens split with this chance, and their pieces again with the same.

    pieces    [V, 2] the two that each token was joined from, negative where it was not.
    """
    table, starts = torch.from_numpy(pieces).long(), stream.document_starts
    text: npt.NDArray[np.integer[Any]] = np.empty(0, np.uint16 if len(pieces) <= 1 << 16 else np.int32)
    new_starts, length = [], 0
    for first, last in pairwise([*range(0, len(stream), COUNTED_TOKENS), len(stream)]):
        ids, places = _split(stream.ids[first:last].cpu(), table, chance, draws)
        if starts is not None:
            here = starts[(starts >= first) & (starts < last)] - first
            new_starts.append(length + places[here].numpy())
        if length + len(ids) > len(text):  # in place, as a second copy of a large text would not fit
            text.resize((length + len(ids)) * len(stream) // last * 21 // 20, refcheck=False)
        text[length : length + len(ids)] = ids.numpy()
        length += len(ids)
    text.resize(length, refcheck=False)
    return Stream(
        Tokens(text, stream.ids.device),
        stream.reset_token,
        None if starts is None else np.concatenate(new_starts),
    )


def _split(ids: Tensor, pieces: Tensor, chance: float, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens [n] with some of them split, [m], and where in that each of the n begins."""
    places, new = torch.arange(len(ids)), torch.ones(len(ids), dtype=torch.bool)
    while new.any():  # what was not split once stays whole
        split = new & (torch.rand(len(ids), generator=draws) < chance) & (pieces[ids, 0] >= 0)
        counts = 1 + split.long()
        begins = counts.cumsum(0) - counts
        longer = ids.repeat_interleave(counts)
        left = begins[split]
        longer[left], longer[left + 1] = pieces[ids[split]].unbind(1)
        new = torch.zeros(len(longer), dtype=torch.bool)
        new[left] = new[left + 1] = True
        ids, places = longer, begins[places]
    return ids, places
