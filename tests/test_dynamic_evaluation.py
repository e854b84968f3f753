"""A model that learns from the text it is scored on: each part is scored first, and nothing looks ahead."""

import copy

import numpy as np
import torch
from blocks import block_and_stream
from torch.nn import functional as F

from tandem.contexts import Contexts, Stream, compute_contexts
from tandem.dynamic_evaluation import BETAS, LR, PART_TOKENS, RETURN, score_and_learn
from tandem.metrics import score_stream
from tandem.model import TandemForCausalLM
from tandem.settings import ContextSettings


def model_and_stream() -> tuple[TandemForCausalLM, Stream]:
    return block_and_stream(tokens=900, cell="gated", token_layers=2, output_bias=True)


def contexts_of(model: TandemForCausalLM, stream: Stream) -> Contexts:
    return compute_contexts(model, stream, ContextSettings(), 1 << 30)[0]


def test_the_first_part_is_scored_as_it_is_and_the_model_stays() -> None:
    model, stream = model_and_stream()
    before = copy.deepcopy(model.state_dict())
    contexts = contexts_of(model, stream)
    plain, learned = score_stream(model, stream, contexts, 512), score_and_learn([model], stream, [contexts])
    np.testing.assert_allclose(learned.losses[:PART_TOKENS], plain.losses[:PART_TOKENS], rtol=1e-5)
    assert (learned.losses[PART_TOKENS:] != plain.losses[PART_TOKENS:]).any()
    assert len(learned.losses) == len(stream) - 1
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_looks_ahead() -> None:
    model, stream = model_and_stream()
    whole = score_and_learn([model], stream, [contexts_of(model, stream)]).losses
    place = 3 * PART_TOKENS + 5
    ids = stream.ids[torch.arange(len(stream))].clone()
    ids[place + 1 :] = (ids[place + 1 :] + 1) % model.config.vocab_size
    other = Stream.of(model, ids)
    changed = score_and_learn([model], other, [contexts_of(model, other)]).losses
    np.testing.assert_allclose(changed[:place], whole[:place], rtol=1e-5)
    assert abs(changed[place] - whole[place]) > 1e-3


def test_a_step_is_adam_without_momentum_and_a_share_of_the_way_back() -> None:
    model, stream = model_and_stream()
    contexts = contexts_of(model, stream)
    second = slice(PART_TOKENS, 2 * PART_TOKENS)
    found = score_and_learn([model], stream, [contexts]).losses[second]
    block, bias = copy.deepcopy(model.token_block), model.lm_head.bias.detach().clone().requires_grad_()

    def losses(part: slice) -> torch.Tensor:
        positions = torch.arange(part.start, part.stop)
        before, after = contexts.window(part.start, part.stop).before_and_after(positions, stream.resets)
        hidden = block(before, after, model.embed(stream.ids[positions]).detach())
        logits = F.linear(hidden, model.lm_head.weight.detach(), bias)
        return F.cross_entropy(logits, stream.ids[positions + 1], reduction="none")

    losses(slice(0, PART_TOKENS)).mean().backward()
    with torch.no_grad():
        for weight in (*block.parameters(), bias):
            assert weight.grad is not None
            # The first step of Adam: both moments are those of the one gradient.
            step = LR * weight.grad / (weight.grad.abs() + 1e-8)
            weight -= (1 - RETURN) * step
    assert BETAS[0] == 0
    np.testing.assert_allclose(found, losses(second).detach().numpy(), rtol=1e-4)


def test_text_that_repeats_itself_is_learned() -> None:
    model, stream = model_and_stream()
    ids = stream.ids[torch.arange(96)].repeat(12)
    again = Stream.of(model, ids)
    contexts = contexts_of(model, again)
    plain, learned = score_stream(model, again, contexts, 512), score_and_learn([model], again, [contexts])
    assert learned.losses[-96:].mean() < plain.losses[-96:].mean() - 0.1
