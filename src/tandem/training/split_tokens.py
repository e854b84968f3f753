"""A text whose tokens are split at random into those that a BPE joined them from, anew in every epoch.

So a model meets rare tokens and their parts in many ways, and learns a small text by heart less easily. It is
BPE-dropout (Provilkov et al. 2020, arXiv:1910.13267) on tokens instead of text. The splits follow from a
seed, which those of the tokenizer's library do not.
"""

import numpy as np
import numpy.typing as npt
import torch

from tandem.contexts import Stream
from tandem.contexts.stream import Tokens


def split_tokens(
    stream: Stream, pieces: npt.NDArray[np.int32], chance: float, draws: torch.Generator
) -> Stream:
    """The stream with tokens split with this chance, and their pieces again with the same.

    pieces    [V, 2] the two that each token was joined from, negative where it was not.
    """
    table, ids = torch.from_numpy(pieces).long(), stream.ids[torch.arange(len(stream))].cpu()
    starts = None if stream.document_starts is None else torch.from_numpy(stream.document_starts)
    new = torch.ones(len(ids), dtype=torch.bool)
    while new.any():  # what was not split once stays whole
        split = new & (torch.rand(len(ids), generator=draws) < chance) & (table[ids, 0] >= 0)
        counts = 1 + split.long()
        begins = counts.cumsum(0) - counts
        longer, left = ids.repeat_interleave(counts), begins[split]
        longer[left], longer[left + 1] = table[ids[split]].unbind(1)
        new = torch.zeros(len(longer), dtype=torch.bool)
        new[left] = new[left + 1] = True
        ids, starts = longer, None if starts is None else begins[starts]
    return Stream(
        Tokens(ids, stream.ids.device), stream.reset_token, None if starts is None else starts.numpy()
    )
