"""Dynamic evaluation: a model that goes on learning from the text on which it is scored.

The text is read in parts. Each part is scored, exactly, before anything is learned from it. Then one step
lowers its loss (Krause et al. 2018, "Dynamic evaluation of neural sequence models", arXiv:1709.07432). Here
the TokenBlock and the output bias learn. ContextBlock and embedding stay, so that all contexts come from one
scan.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.contexts import Contexts, Stream
from tandem.metrics import Score, hidden_parts
from tandem.model import TandemForCausalLM, average
from tandem.stopping import stop_between_parts

PART_TOKENS = 32
"""Tokens that are scored by the same weights; one step follows on them."""
LR = 0.0006
BETAS = (0.0, 0.999)
"""Of Adam, without momentum: the last part tells most about the next one."""
RETURN = 0.001
"""After each step the weights go back to those of the model by this share of the way."""


def score_and_learn(
    members: Sequence[TandemForCausalLM], stream: Stream, contexts: Sequence[Contexts]
) -> Score:
    """Score every token of the stream but the first, by weights that have learned from the parts before it.

    Several members count by the average of their probabilities, each with its own contexts. Their weights
    stay as they are. Raises ValueError for 8-bit weights, which cannot learn.
    """
    if any(member.config.int8 for member in members):
        raise ValueError("8-bit weights cannot learn")
    blocks = [deepcopy(member.token_block) for member in members]
    biases = [deepcopy(member.lm_head.bias) for member in members]
    heads = [member.lm_head.weight.detach() for member in members]
    learned = [weight for block in blocks for weight in block.parameters()]
    learned += [bias for bias in biases if bias is not None]
    before_text = [weight.detach().clone() for weight in learned]
    for weight in learned:
        weight.requires_grad_()
    optimizer = torch.optim.Adam(learned, lr=LR, betas=BETAS)
    hidden = [
        hidden_parts(member, stream, own, PART_TOKENS, block)
        for member, own, block in zip(members, contexts, blocks, strict=True)
    ]
    losses, correct, done = list[Tensor](), 0, 0
    for parts in zip(*hidden, strict=True):
        stop_between_parts()
        done += len(parts[0])
        targets = stream.ids[done - len(parts[0]) + 1 : done + 1]
        logits = average([F.linear(*one) for one in zip(parts, heads, biases, strict=True)]).float()
        nll = F.cross_entropy(logits, targets, reduction="none")
        losses.append(nll.detach().double().cpu())
        correct += int((logits.argmax(dim=-1) == targets).sum())
        optimizer.zero_grad()
        nll.mean().backward()
        optimizer.step()
        with torch.no_grad():
            for weight, before in zip(learned, before_text, strict=True):
                weight.lerp_(before, RETURN)
    return Score.of(torch.cat(losses).numpy(), correct)
