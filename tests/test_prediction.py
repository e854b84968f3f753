"""Phase 1 by prediction: its windows, its loss, what it trains, what it leaves to phase 2."""

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blocks import train_phase1
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tandem.contexts import Stream, compute_contexts
from tandem.cross_entropy import SampledSoftmax, training_loss
from tandem.errors import NonFiniteLossError
from tandem.metrics import score_stream
from tandem.model import TandemConfig, TandemForCausalLM, sequential_contexts
from tandem.objectives import predictive
from tandem.objectives.predictive import first_position, shuffled_documents, windows
from tandem.settings import ContextSettings, Phase2Settings, PredictionSettings
from tandem.training.dropout import Dropout, DropoutMasks, Masks
from tandem.training.initialization import generator_for
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import Tick

PLAIN = {
    "dropout": 0.0,
    "embed_dropout": 0.0,
    "output_dropout": 0.0,
    "decay_per_epoch": 0.0,
    "negatives": None,
}


def model_and_stream(cell: str = "gated", tokens: int = 1200) -> tuple[TandemForCausalLM, Stream]:
    """Text in which the next token follows from the last two."""
    torch.manual_seed(0)
    config = TandemConfig(
        vocab_size=50,
        embed_dim=24,
        context_dim=16,
        context_layers=2,
        cell=cell,
        output_bias=cell == "gated",
        weight_init_std=None,
    )
    model = TandemForCausalLM(config).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(0.2)
    ids = torch.randint(50, (tokens,))
    for t in range(2, tokens):
        ids[t] = (3 * ids[t - 1] + ids[t - 2] + (t * t) % 2) % 50
    return model, Stream.of(model, ids)


@given(
    count=st.integers(1, 300), streams=st.integers(1, 40), window=st.integers(1, 50), seed=st.integers(0, 9)
)
def test_windows_read_every_position_in_order(count: int, streams: int, window: int, seed: int) -> None:
    streams = min(streams, count)
    start = first_position(count, torch.Generator().manual_seed(seed))
    made = list(windows(count, streams, window, start))
    read = torch.cat(made, dim=1)
    assert set(read.flatten().tolist()) == set(range(count))
    assert read.numel() < count + streams
    assert all(part.shape[0] == streams and part.shape[1] <= window for part in made)
    assert torch.equal(read[:, 1:], (read[:, :-1] + 1) % count)  # each stream reads on where it stopped
    done = len(made) // 2
    rest = list(windows(count, streams, window, start, done))
    assert all(map(torch.equal, rest, made[done:]))
    assert len(rest) == len(made) - done


@given(lengths=st.lists(st.integers(0, 7), min_size=1, max_size=30).filter(any), seed=st.integers(0, 9))
def test_documents_in_a_new_order_are_the_same_documents(lengths: list[int], seed: int) -> None:
    ends = np.cumsum(lengths)
    starts, count = ends - lengths, max(1, int(ends[-1]) - 1)  # nothing follows on the last token
    of_text = shuffled_documents(starts, count, torch.Generator().manual_seed(seed))
    moved = of_text(torch.arange(count)).tolist()
    assert sorted(moved) == list(range(count))
    documents = [list(range(start, min(end, count))) for start, end in zip(starts, ends, strict=True)]
    of_position = {position: document for document in documents for position in document}
    while moved:  # whole, one after the other
        document = of_position[moved[0]]
        assert moved[: len(document)] == document
        moved = moved[len(document) :]


def test_documents_stand_in_a_new_order_in_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stream = model_and_stream()
    stream = replace(stream, document_starts=np.arange(0, 1200, 40))
    orders = []
    real = predictive.shuffled_documents

    def watched(*arguments: Any) -> Any:
        orders.append(of_text := real(*arguments))
        return of_text

    monkeypatch.setattr(predictive, "shuffled_documents", watched)
    train_phase1(model, stream, PredictionSettings(max_epochs=3, streams=4, **PLAIN))
    read = [tuple(order(torch.arange(1199)).tolist()) for order in orders]
    assert len(set(read)) == 3


def test_a_sample_of_everything_is_the_whole_softmax() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(20, 6, requires_grad=True)
    head, bias = torch.randn(30, 6, requires_grad=True), torch.randn(30, requires_grad=True)
    targets, inputs = torch.randint(30, (20,)), (hidden, head, bias)
    loss = SampledSoftmax(torch.ones(30), 20, 30, torch.Generator()).of_step(targets)
    sampled = loss(hidden, head, bias, slice(0, 20))
    plain = F.cross_entropy(F.linear(hidden, head, bias), targets)
    torch.testing.assert_close(sampled, plain)
    torch.testing.assert_close(torch.autograd.grad(sampled, inputs), torch.autograd.grad(plain, inputs))


def test_a_sampled_softmax_estimates_the_whole_one() -> None:
    """The mean of the sampled denominator over many draws is the full denominator."""
    draws = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 100, (400,), generator=draws)
    head = torch.randn(400, 4, generator=draws)
    hidden = torch.randn(1, 4, generator=draws)
    share = (counts + 0.5) / (counts + 0.5).sum()
    softmax = SampledSoftmax(counts, 60, 80, draws)
    full = float((hidden @ head.t()).logsumexp(-1))
    sampled = []
    for _ in range(400):
        targets = torch.multinomial(share, 60, replacement=True, generator=draws)
        loss = softmax.of_step(targets)(hidden.expand(60, -1), head, None, slice(0, 60))
        # The loss is the log of the denominator less the mean corrected logit of the targets.
        picked = (hidden @ head[targets].t() - softmax._log_chance[targets]).mean()
        sampled.append(math.exp(float(loss + picked)))
    error = torch.tensor(sampled).std() / math.sqrt(len(sampled))
    assert abs(sum(sampled) / len(sampled) - math.exp(full)) < 4 * float(error)
    assert float(error) < 0.05 * math.exp(full)


def test_samples_have_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(0)
    softmax = SampledSoftmax(torch.ones(4000), 200, 300, draws)
    sizes, real = set(), F.cross_entropy

    def watched(logits: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        sizes.add(logits.shape[1])
        return real(logits, *rest, **more)

    monkeypatch.setattr(F, "cross_entropy", watched)
    for _ in range(20):
        targets = torch.randint(4000, (200,), generator=draws)
        softmax.of_step(targets)(torch.randn(200, 6), torch.randn(4000, 6), None, slice(0, 200))
    assert sizes <= {384, 512}


@pytest.mark.parametrize(("count", "size"), [(5000, 1667), (3400, 1134), (1667, 1667), (1, 1)])
def test_a_large_step_has_several_samples_whatever_part_of_it_is_asked_for(count: int, size: int) -> None:
    """At most 1,667 positions share one, with negatives of its own."""
    torch.manual_seed(0)
    vocab_size, negatives = 3000, 40
    counts = torch.rand(vocab_size) * 100
    hidden, head, bias = torch.randn(count, 4), torch.randn(vocab_size, 4), torch.randn(vocab_size)
    targets = torch.randint(vocab_size // 2, (count,))
    loss = SampledSoftmax(counts, 1667, negatives, torch.Generator().manual_seed(1)).of_step(targets)

    draws = torch.Generator().manual_seed(1)
    share = (counts.double() + 0.5) / (counts.double() + 0.5).sum()
    chance = 1 - (1 - share) ** 1667 * (1 - negatives / vocab_size)
    nll = []
    for first in range(0, count, size):
        own = slice(first, min(first + size, count))
        drawn = torch.randperm(vocab_size, generator=draws)[:negatives]
        sampled = torch.full((vocab_size,), -math.inf)
        sampled[torch.cat((targets[own], drawn)).unique()] = 0
        logits = hidden[own] @ head.t() + bias - chance.log().float() + sampled
        nll.append(F.cross_entropy(logits, targets[own], reduction="none"))
    expected = torch.cat(nll)

    for first, last in (
        (0, 5000),
        (0, 1),
        (1133, 1135),
        (1666, 1668),
        (1667, 3334),
        (100, 4000),
        (4999, 5000),
    ):
        first, last = min(first, count - 1), min(last, count)
        ours = loss(hidden[first:last], head, bias, slice(first, last))
        torch.testing.assert_close(ours, expected[first:last].mean())


def test_a_small_vocabulary_is_not_sampled() -> None:
    def owner(vocab_size: int) -> object:
        settings = PredictionSettings(negatives=64)
        return getattr(
            training_loss(torch.ones(vocab_size), 32, settings, torch.Generator(), 16), "__self__", None
        )

    assert owner(100) is None
    assert isinstance(owner(1000), SampledSoftmax)


@pytest.mark.parametrize("phase", [PredictionSettings, Phase2Settings])
def test_sample_positions_says_how_many_share_a_sample(
    phase: type[PredictionSettings | Phase2Settings],
) -> None:
    """At most 6 of 9 are 5 and 4; the target of either is not in the other's sample."""
    settings = phase(negatives=1, sample_positions=6)
    targets = torch.tensor([7, 7, 7, 7, 7, 8, 8, 8, 8])
    loss = training_loss(torch.ones(1000), 9, settings, torch.Generator(), 16)(targets)
    head = torch.zeros(1000, 2, requires_grad=True)
    for positions, own, other in ((slice(0, 5), 7, 8), (slice(5, 9), 8, 7)):
        hidden = torch.ones(positions.stop - positions.start, 2)
        (gradient,) = torch.autograd.grad(loss(hidden, head, None, positions), head)
        assert gradient[own].any()
        assert not gradient[other].any()


@pytest.mark.parametrize("cell", ["gated", "residual"])
def test_it_trains_what_it_leaves_and_the_layer_it_throws_away(cell: str) -> None:
    model, stream = model_and_stream(cell)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = train_phase1(model, stream, PredictionSettings(max_epochs=1, streams=8), 0)
    unchanged = [name for name, tensor in model.state_dict().items() if torch.equal(before[name], tensor)]
    assert not unchanged
    assert all(part.trained and part.gradient and part.before != part.after for part in result.parts)
    assert {part.part.split(".")[0] for part in result.parts} == {
        *("embedding", "embed_norm", "context_block", "lm_head", "head1")
    }
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_learns_what_the_text_says() -> None:
    model, stream = model_and_stream()
    ticks: list[Tick] = []
    settings = PredictionSettings(max_epochs=30, streams=8, lr=0.02, **PLAIN)
    result = train_phase1(model, stream, settings, 0, on_tick=ticks.append)
    assert [epoch.epoch for epoch in result.history] == list(range(1, 31))
    assert result.history[-1].train_nll_nats < 0.6 * result.history[0].train_nll_nats
    assert ticks[-1].done == pytest.approx(30)
    contexts, _ = compute_contexts(model, stream, ContextSettings(method="loop"))
    assert score_stream(model, stream, contexts, 512).nll_nats < 0.6 * math.log(50)


def test_the_first_step_is_the_plain_loss_of_its_first_windows() -> None:
    model, stream = model_and_stream()
    settings = PredictionSettings(max_epochs=1, streams=4, window=2000, **PLAIN)
    draws = generator_for(3, "prediction", 2)
    (at,) = windows(len(stream) - 1, 4, 2000, first_position(len(stream) - 1, draws))
    with torch.no_grad():
        embeds = model.embed(stream.ids[at])
        previous, current = sequential_contexts(model.context_block, embeds)
        logits = model.lm_head(model.token_block(previous, current, embeds))
        expected = F.cross_entropy(logits.flatten(0, 1), stream.ids[at + 1].flatten())
    result = train_phase1(model, stream, settings, 3)
    assert result.history[0].train_nll_nats == pytest.approx(float(expected), abs=1e-5)
    (epoch,) = result.history
    assert (epoch.positions, epoch.position_sum) == (at.numel(), int(at.sum()))


def test_contexts_are_carried_from_window_to_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without learning, the contexts that the windows see are those of whole streams."""
    model, stream = model_and_stream()
    seen: list[torch.Tensor] = []
    real = model.context_block.unroll

    def watched(*args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        previous, current = real(*args, **kwargs)
        seen.append(current.detach())
        return previous, current

    monkeypatch.setattr(model.context_block, "unroll", watched)
    settings = PredictionSettings(max_epochs=1, streams=4, window=7, lr=1e-12, **PLAIN)
    train_phase1(model, stream, settings, 0)
    start = first_position(len(stream) - 1, generator_for(0, "prediction", 2))
    at = torch.cat(list(windows(len(stream) - 1, 4, 7, start)), dim=1)
    with torch.no_grad():
        _, whole = sequential_contexts(model.context_block, model.embed(stream.ids[at]))
    torch.testing.assert_close(torch.cat(seen, dim=1), whole, rtol=0, atol=1e-5)


def test_it_depends_on_the_seed_and_on_nothing_drawn_before() -> None:
    results = []
    for seed in (0, 0, 1):
        model, stream = model_and_stream()
        torch.manual_seed(len(results))
        train_phase1(
            model,
            stream,
            PredictionSettings(max_epochs=1, streams=8, negatives=16),
            seed,
        )
        results.append(model.context_block.layers[0].linear.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_several_heads_share_contexts_and_the_loss_is_their_mean() -> None:
    model, stream = model_and_stream()
    torch.manual_seed(5)
    config = TandemConfig(**{**model.config.to_dict(), "token_layers": 3})
    heads = [model.token_block, TandemForCausalLM(config).token_block]
    settings = PredictionSettings(max_epochs=1, streams=4, window=2000, **PLAIN)
    single = [
        train_phase1(copy.deepcopy(model), stream, settings, 0, [copy.deepcopy(head)]) for head in heads
    ]
    both = train_phase1(model, stream, settings, 0, heads)
    assert both.history[0].train_nll_nats == pytest.approx(
        sum(result.history[0].train_nll_nats for result in single) / 2, abs=1e-5
    )
    assert sum(part.part.startswith("head3.layers.") for part in both.parts) == 3
    assert all(part.gradient for part in both.parts)


def test_a_step_that_is_not_finite_is_refused() -> None:
    model, stream = model_and_stream()
    with torch.no_grad():
        model.context_block.layers[0].linear.bias[0] = math.nan
    before = model.embedding.weight.clone()
    with pytest.raises(NonFiniteLossError, match=r"in epoch 1, step 1:.*lower embeddings.norm or model.w"):
        train_phase1(model, stream, PredictionSettings(streams=8), 0)
    assert torch.equal(model.embedding.weight, before)
    model, stream = model_and_stream()
    settings = PredictionSettings(streams=8, lr=1e38)
    with pytest.raises(NonFiniteLossError, match=r"step \d+:.*try a lower prediction.lr$") as stopped:
        train_phase1(model, stream, settings, 0)
    assert str(pickle.loads(pickle.dumps(stopped.value))) == str(stopped.value)  # as it comes from a worker


def test_phase_2_drops_out_in_training_only() -> None:
    model, stream = model_and_stream()
    split = Split(stream, compute_contexts(model, stream, ContextSettings(method="loop"))[0])
    for more in ({}, {"dropout": 0.5, "embed_dropout": 0.3, "negatives": 4, "weight_decay": 0.1}):
        settings = Phase2Settings(max_epochs=1, batch_positions=200, lr=1e-9, schedule="linear", **more)
        result = train_token_block(model, split, split, settings, 0)
        # With weights that hardly move, the validation loss is that of the whole model, without dropout.
        plain = score_stream(model, stream, split.contexts, 512).nll_nats
        assert result.validation.nll_nats == pytest.approx(plain, abs=1e-6)


def test_the_learning_rate_rises_and_falls_and_the_decay_is_that_of_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    decays = set()
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        decays.add(tuple(group["weight_decay"] for group in self.param_groups))
        return real(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    model, stream = model_and_stream()
    settings = PredictionSettings(max_epochs=4, streams=8, window=4, lr=0.5e-3, decay_per_epoch=0.3)
    train_phase1(model, stream, settings, 0)
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak == pytest.approx(0.1 * len(rates), abs=2)
    assert rates[-1] < 0.02 * max(rates)
    ((matrices, others),) = decays
    assert matrices * settings.lr * len(rates) / settings.max_epochs == pytest.approx(0.3)
    assert others == 0


def dropped(drop: Dropout, x: torch.Tensor) -> torch.Tensor:
    """`x` as a whole step."""
    return drop.step(len(x))(slice(None))(x)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    drop, again, other = (Dropout(0.3, seed, "test") for seed in (0, 0, 1))
    x = torch.ones(400, 500, requires_grad=True)
    out = dropped(drop, x)
    zeros = float((out == 0).float().mean())
    assert zeros == pytest.approx(0.3, abs=0.005)  # 200,000 draws: one standard error is 0.001
    assert float(out.detach().mean()) == pytest.approx(1.0, abs=0.008)
    assert torch.equal(dropped(again, x), out)
    assert not torch.equal(dropped(other, x), out)
    assert not torch.equal(dropped(drop, x), out)  # a new draw each time
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, out)


def test_dropout_along_time_drops_the_same_elements_of_a_whole_window() -> None:
    drop = Dropout(0.3, 0, "test", along=1)
    out = dropped(drop, torch.ones(200, 7, 100))
    assert torch.equal(out, out[:, :1].expand(-1, 7, -1))
    assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.02)  # 20,000 draws: 0.003
    assert float(out.mean()) == pytest.approx(1.0, abs=0.03)


def test_parts_of_a_step_are_dropped_as_the_whole_is() -> None:
    """So that a step may be computed in parts, in any order, and by several processes."""
    settings = Phase2Settings(dropout=0.5, embed_dropout=0.0, output_dropout=0.3)
    whole, parted = (DropoutMasks(settings, 0, "test", along=1) for _ in range(2))
    for _ in range(2):  # a second step draws on
        x, y = torch.ones(10, 3, 20), torch.ones(10, 20)

        def drawn(masks: Masks, rows: slice, x: torch.Tensor = x, y: torch.Tensor = y) -> list[torch.Tensor]:
            assert torch.equal(masks.embeds(x), x)  # a probability of zero drops nothing
            return [masks.contexts(x[rows]), masks.contexts(x[rows]), masks.output(y[rows])]

        together = drawn(whole.next_step(10)(slice(0, 10)), slice(0, 10))
        masks_of_rows = parted.next_step(10)
        parts = [slice(7, 10), slice(0, 7)]
        late, early = (drawn(masks_of_rows(rows), rows) for rows in parts)
        for expected, first, second in zip(together, early, late, strict=True):
            assert torch.equal(expected, torch.cat((first, second)))
    assert not torch.equal(together[0], together[1])
