"""Figures of phase 1 and of the contexts that the report shows, by their definitions: effective rank of both
splits, how long a context remembers a token, and what phase 1's own token layers reach."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tandem.audit.subject import INEXACT, Subject
from tandem.contexts import Tokens
from tandem.model import TandemForCausalLM, TokenBlock, sequential_contexts
from tandem.records import Check

RANK = 0.01
"""Points by which an effective rank may differ, a share of the dimensions."""
RANKED = 512
"""On fewer contexts a rank says little, and depends on the last digits."""
NLL, ACCURACY = 1e-3, 2e-3
"""Nats, and a share of tokens, by which what token layers of phase 1 reach may differ."""
PLACES, BEFORE, AFTER = 32, 256, 512
"""Of the memory curve: places in the validation text, and tokens read before and after each."""
MEMORY = 0.02
"""A share by which a point of the memory curve may differ, beside a tenth of it."""


def measure_checks(subject: Subject) -> Iterator[Check]:
    """`ranks`, `memory` and `heads` of one run of a Tandem model; a quick audit makes none."""
    moved = subject.prepared.settings.embeddings.trained
    for name, looked_at, measure in (
        ("ranks", "effective rank of the contexts of both splits, by singular values", _ranks),
        ("memory", "contexts with and without one changed token, read plainly", _memory),
        ("heads", "validation NLL and accuracy through phase 1's token layers", _heads),
    ):
        reasons = {
            INEXACT: not subject.exact,
            "phase 2 moved the embedding, and those contexts are gone": moved,
            "a quick audit leaves it out": subject.quick,
        }
        if why := next(filter(reasons.get, reasons), None):
            yield Check(name=name, looked_at=looked_at, figure=f"not checked: {why}", status="skip")
        else:
            wrong, said = measure(subject)
            if wrong or said:
                passed = "skip" if said.startswith("not checked") else "pass"
                figure, status = "; ".join(wrong) or said, "fail" if wrong else passed
                values = {"name": name, "looked_at": looked_at, "figure": figure, "status": status}
                yield Check.model_validate(values)


Found = tuple[list[str], str]
"""What is wrong, and what to say if nothing is; nothing at all where there was nothing to measure."""


def _ranks(subject: Subject) -> Found:
    said, wrong, shown = subject.record.contexts, [], []
    assert said is not None
    for split, recorded in (
        ("train", said.effective_rank_train),
        ("validation", said.effective_rank_validation),
    ):
        positions = subject.rank_positions(split)
        if len(positions) < RANKED:
            continue
        rank = effective_rank(subject.contexts_at(split, positions)[1].cpu())
        shown.append(f"{split} {rank:.1%}")
        if not abs(rank - recorded) <= RANK:
            wrong.append(f"ER of {split} contexts {recorded:.1%}, recomputed {rank:.1%}")
    return wrong, ", ".join(shown) or f"not checked: a rank of fewer than {RANKED} contexts says little"


def effective_rank(contexts: Tensor) -> float:
    """exp of the entropy of the singular values of contexts [n, C], made to add up to 1, as a share of C.

    Their squares are the eigenvalues of the contexts' [C, C] products.
    """
    values = torch.linalg.eigvalsh(contexts.double().T @ contexts.double()).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=1e-300)
    entropy = -sum(share * math.log(share + 1e-10) for share in shares.tolist())
    return math.exp(entropy) / contexts.shape[1] if bool(contexts.any()) else 0.0


def _memory(subject: Subject) -> Found:
    said = subject.record.contexts
    assert said is not None
    if not said.memory:
        return [], ""
    curve, wrong = memory_curve(subject.model, subject.ids("validation"), subject.dtype), []
    for point in said.memory:
        right = curve[point.distance]
        if not abs(point.change - right) <= MEMORY + 0.1 * right:
            wrong.append(f"{point.change:.1%} of a token left after {point.distance}, recomputed {right:.1%}")
    return wrong, f"{curve[1]:.1%} of a token left after one more, {curve[AFTER]:.2%} after {AFTER}"


@torch.no_grad()
def memory_curve(model: TandemForCausalLM, ids: Tokens, dtype: torch.dtype) -> dict[int, float]:
    """By distance in tokens, the share of a changed token that is left in the context.

    At PLACES places the token is replaced by the one half the text further. The root mean square change is
    divided by that of the contexts of neighbouring places. Contexts are computed in `dtype`.
    """
    places = torch.linspace(BEFORE, len(ids) - AFTER - 1, PLACES, dtype=torch.float64).long()
    windows = ids[(places[:, None] + torch.arange(-BEFORE, AFTER + 1)).to(ids.device)]
    changed = windows.clone()
    changed[:, BEFORE] = ids[((places + len(ids) // 2) % len(ids)).to(ids.device)]
    block, both = copy.deepcopy(model.context_block).to("cpu", dtype), torch.cat((windows, changed))
    resets, embeds = model.reset_mask(both), model.embed(both).to("cpu", dtype)
    contexts = sequential_contexts(block, embeds, None, None if resets is None else resets.cpu())[1]
    plain, other = contexts[:, BEFORE:].chunk(2)
    apart = (plain - plain.roll(1, 0)).square().mean((0, 2)).sqrt().clamp(min=1e-30)
    shares = (other - plain).square().mean((0, 2)).sqrt() / apart
    return dict(enumerate(shares.tolist()))


def _heads(subject: Subject) -> Found:
    """Of those whose weights the last step of phase 1 left whole."""
    record: Any = subject.record.phase1  # of the objective's own kind
    recorded = {head.token_layers: head for head in getattr(record, "heads", ())}
    steps = subject.phase1_steps
    if not recorded:
        return [], ""
    if not steps:
        return [], "not checked: no step of phase 1 was kept, and so none of their weights"
    left, wrong, shown = steps[-1].of("after"), [], []
    for name, head in subject.heads.items():
        own = {
            key.removeprefix(f"{name}."): value for key, value in left.items() if key.startswith(f"{name}.")
        }
        assert isinstance(head, TokenBlock)
        said = recorded.get(len(head.layers))
        if said is None or not own:
            continue
        head = copy.deepcopy(head)
        head.load_state_dict(own)
        losses, right = subject.losses_of(head)
        nll, accuracy = float(losses.mean(dtype="float64")), float(right.mean())
        shown.append(f"{name} NLL {nll:.4f}")
        if not abs(nll - said.nll_nats) <= NLL:
            wrong.append(f"NLL through {name} {said.nll_nats:.4f}, recomputed {nll:.4f}")
        if not abs(accuracy - said.accuracy) <= ACCURACY + 2 / len(right):
            wrong.append(f"accuracy through {name} {said.accuracy:.4f}, recomputed {accuracy:.4f}")
    lacking = len(recorded) - len(shown)
    if lacking and not wrong:
        return [], f"not checked: the last step of phase 1 does not hold the weights of {lacking} of them"
    return wrong, ", ".join(shown)
