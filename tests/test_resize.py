"""A vocabulary that grows: new tokens start rare, and what the model knew of the old ones stays."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tandem import TandemConfig, TandemForCausalLM

VOCAB = 60
Resize = Callable[[TandemForCausalLM], object]


@torch.no_grad()
def model_of(output_bias: bool = True, tied: bool = True, cell: str = "gated") -> TandemForCausalLM:
    """A model whose bias is what training leaves: log frequencies, from 2 to 11 below zero."""
    torch.manual_seed(1)
    config = TandemConfig(
        vocab_size=VOCAB,
        embed_dim=12,
        context_dim=8,
        cell=cell,
        output_bias=output_bias,
        tie_word_embeddings=tied,
    )
    model = TandemForCausalLM(config).eval()
    for weight in dict.fromkeys((model.embedding.weight, model.lm_head.weight)):
        weight.mul_(0.2)
    if output_bias:
        model.lm_head.bias.copy_(torch.linspace(-2.0, -11.0, VOCAB))
    return model


@torch.no_grad()
def shares(model: TandemForCausalLM) -> tuple[float, float]:
    """The most that all new tokens together get anywhere, and the loss on the old ones."""
    ids = torch.randint(VOCAB - 10, (4, 25), generator=torch.Generator().manual_seed(2))
    out = model(ids, labels=ids)
    return float(out.logits.softmax(-1)[..., VOCAB:].sum(-1).max()), float(out.loss)


def set_by_hand(model: TandemForCausalLM) -> None:
    """The rows are the caller's; the bias is made when they are tied."""
    rows = model.embedding.weight.detach()
    model.set_input_embeddings(nn.Embedding.from_pretrained(torch.cat((rows, rows.mean(0)[None]))))
    model.tie_weights()


GROWTH: dict[str, tuple[Resize, int]] = {
    "one": (lambda model: model.resize_token_embeddings(VOCAB + 1), 1),
    "many": (lambda model: model.resize_token_embeddings(20 * VOCAB), 19 * VOCAB),
    "padded": (lambda model: model.resize_token_embeddings(pad_to_multiple_of=64), 4),
    "one and padded": (lambda model: model.resize_token_embeddings(VOCAB + 5, pad_to_multiple_of=64), 68),
    "drawn": (lambda model: model.resize_token_embeddings(VOCAB + 9, mean_resizing=False), 9),
    "twice": (lambda model: [model.resize_token_embeddings(VOCAB + more) for more in (1, 3)], 3),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("growth", GROWTH)
def test_new_tokens_are_rare_and_old_ones_as_before(growth: str, tied: bool) -> None:
    resize, added = GROWTH[growth]
    model = model_of(tied=tied)
    _, before = shares(model)
    resize(model)
    share, after = shares(model)
    assert share < 1e-3
    assert abs(after - before) < 1e-3
    assert model.config.vocab_size == model.lm_head.out_features == VOCAB + added
    assert len(model.lm_head.bias) == len(model.embedding.weight) == VOCAB + added
    assert (model.lm_head.weight is model.embedding.weight) == tied


def test_a_bias_also_grows_with_an_embedding_that_was_set() -> None:
    model = model_of()
    set_by_hand(model)
    assert len(model.lm_head.bias) == VOCAB + 1
    assert shares(model)[0] < 1e-3


@pytest.mark.parametrize("drawn", [False, True], ids=["mean", "drawn"])
def test_without_a_bias_a_new_token_gets_no_more_than_its_part(drawn: bool) -> None:
    model = model_of(output_bias=False)
    _, before = shares(model)
    model.resize_token_embeddings(VOCAB + 1, mean_resizing=not drawn)
    share, after = shares(model)
    assert share < (6 if drawn else 1) / VOCAB
    assert after - before < 2 / VOCAB


def test_new_rows_are_like_the_old_ones() -> None:
    drawn, mean = model_of(), model_of()
    drawn.resize_token_embeddings(3 * VOCAB, mean_resizing=False)
    mean.resize_token_embeddings(3 * VOCAB)
    rows = drawn.embedding.weight.detach()
    assert float(rows[VOCAB:].std()) == pytest.approx(float(rows[:VOCAB].std()), rel=0.1)
    rows = mean.embedding.weight.detach()
    torch.testing.assert_close(rows[VOCAB:].mean(0), rows[:VOCAB].mean(0), rtol=0, atol=1e-3)


def test_fewer_entries_are_the_first_ones_and_none_given_changes_nothing() -> None:
    model = model_of()
    rows, bias = model.embedding.weight.detach().clone(), model.lm_head.bias.detach().clone()
    assert model.resize_token_embeddings() is model.embedding
    assert torch.equal(model.embedding.weight, rows)
    assert torch.equal(model.lm_head.bias, bias)
    model.resize_token_embeddings(VOCAB - 7)
    assert torch.equal(model.embedding.weight, rows[:-7])
    assert torch.equal(model.lm_head.bias, bias[:-7])
    model.resize_token_embeddings(VOCAB)  # and what comes back is new
    assert float(model.lm_head.bias.detach()[-7:].exp().sum()) == pytest.approx(float(bias[:-7].min().exp()))


def test_a_resized_model_is_saved_loaded_and_trained_on_its_new_token(tmp_path: Path) -> None:
    model = model_of()
    model.resize_token_embeddings(VOCAB + 1)
    model.save_pretrained(tmp_path)
    loaded = TandemForCausalLM.from_pretrained(tmp_path)
    ids = torch.full((2, 6), VOCAB)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.embedding.weight
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = loaded(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_what_a_file_does_not_hold_starts_alike_for_all_tokens(tmp_path: Path) -> None:
    """A bias that a file lacks, and a configuration with more entries than the file: no token stands out."""
    model_of(output_bias=False).save_pretrained(tmp_path)
    lacking = TandemForCausalLM.from_pretrained(tmp_path, output_bias=True)
    assert float(lacking.lm_head.bias.detach().abs().max()) < 0.1
    model_of().save_pretrained(tmp_path)
    larger = TandemForCausalLM.from_pretrained(tmp_path, vocab_size=VOCAB + 9, ignore_mismatched_sizes=True)
    assert len(larger.lm_head.bias) == len(larger.embedding.weight) == VOCAB + 9
    assert float(larger.lm_head.bias.detach().abs().max()) < 0.1
    fresh = TandemForCausalLM(TandemConfig(vocab_size=40, embed_dim=8, context_dim=8, output_bias=True))
    assert float(fresh.lm_head.bias.detach().abs().max()) < 0.1
