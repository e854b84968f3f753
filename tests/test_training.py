"""Both phases: their losses and gradients, what they change and what they leave, and how they stop."""

import copy
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blocks import block_and_stream, train_phase1
from torch.nn import functional as F

from tandem import metrics
from tandem.audit import plain
from tandem.contexts import Contexts, Stream, compute_contexts
from tandem.cross_entropy import mean_nll, token_nll
from tandem.errors import NonFiniteLossError
from tandem.group import Execution
from tandem.metrics import convergence_rate, effective_rank, perplexity, score_stream
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.model.cells_tandem import CELLS
from tandem.objectives import original
from tandem.objectives.original import oacd_loss
from tandem.settings import ContextSettings, Phase1Settings, Phase2Settings
from tandem.tokens.store import TokenStream
from tandem.training import phase2
from tandem.training.checkpoint import Checkpoint
from tandem.training.initialization import generator_for, initialize_block
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import Tick


def model_and_stream(tokens: int = 900) -> tuple[TandemForCausalLM, Stream]:
    torch.manual_seed(0)
    config = TandemConfig(
        vocab_size=50, embed_dim=24, context_dim=16, context_layers=1, token_layers=2, weight_init_std=0.3
    )
    model = TandemForCausalLM(config).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(0.3)
    ids = (torch.arange(tokens) * 7 + torch.randint(3, (tokens,))) % 50
    return model, Stream.of(model, ids)


def split_of(model: TandemForCausalLM, stream: Stream) -> Split:
    return Split(stream, compute_contexts(model, stream, ContextSettings(method="loop"))[0])


def state(model: TandemForCausalLM) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.named_weights())


def changed(before: dict[str, torch.Tensor], model: TandemForCausalLM) -> set[str]:
    after = model.named_weights()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("head_trained", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_chunked_cross_entropy_equals_the_plain_one(chunk: int, head_trained: bool, biased: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    head = torch.randn(30, 6, dtype=torch.float64, requires_grad=head_trained)
    bias = torch.randn(30, dtype=torch.float64, requires_grad=True) if biased else None
    targets = torch.randint(30, (20,))
    plain = F.cross_entropy(F.linear(hidden, head, bias), targets)
    wanted = [tensor for tensor in (hidden, head, bias) if tensor is not None and tensor.requires_grad]
    expected = torch.autograd.grad(3 * plain, wanted)
    ours = mean_nll(hidden, head, targets, chunk, bias)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(3 * ours, wanted), expected)
    losses, best = token_nll(hidden.detach(), head.detach(), targets, bias)
    torch.testing.assert_close(losses.mean(), plain)
    assert torch.equal(best, F.linear(hidden, head, bias).argmax(-1))


def test_chunked_cross_entropy_survives_extreme_logits() -> None:
    hidden = torch.tensor([[300.0, 0.0]], requires_grad=True)
    head = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    loss = mean_nll(hidden, head, torch.tensor([1]), 4)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(600.0)
    assert torch.isfinite(hidden.grad).all()


def test_oacd_rewards_spread_around_the_origin() -> None:
    spread = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(oacd_loss(spread)) == pytest.approx(-math.sqrt(2) / 2)
    away = spread + torch.tensor([3.0, 0.0])
    assert float(oacd_loss(away)) == pytest.approx(-math.sqrt(2) / 2 + 0.1 * 9)


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.eye(4, dtype=torch.float64)) == pytest.approx(1.0, abs=1e-8)
    assert effective_rank(torch.ones(9, 4, dtype=torch.float64)) == pytest.approx(0.25, abs=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        effective_rank(torch.full((3, 2), math.nan))


def test_convergence_rate_counts_positions() -> None:
    before = torch.zeros(4, 2)
    after = torch.tensor([[0.0, 0.0], [0.1, 0.1], [0.2, 0.2], [1.0, 1.0]])
    assert convergence_rate(before, after, 0.03) == 0.5


def test_phase_1_changes_the_context_block_only() -> None:
    model, stream = model_and_stream()
    before = state(model)
    ticks: list[Tick] = []
    settings = Phase1Settings(max_iterations=5, batch_positions=400)
    result = train_phase1(model, stream, settings, seed=0, on_tick=ticks.append)
    assert changed(before, model) == {"context_block"}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert (result.iterations, result.stopped) == (5, "max_iterations")  # a spent budget is not convergence
    assert [entry.iteration for entry in result.history] == [2, 3, 4, 5]  # the random start was the first
    assert [tick.done for tick in ticks] == [2, 3, 4, 5]


@pytest.mark.parametrize("boundary", ["carry", "reset"])
@pytest.mark.parametrize("cell", list(CELLS))
def test_a_large_batch_of_phase_1_multiplies_each_distinct_token_once(
    cell: str, boundary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Phase1Settings(max_iterations=5, batch_positions=400)
    results = []
    for most in (original.MANY_NUMBERS, 0):
        monkeypatch.setattr(original, "MANY_NUMBERS", most)
        model, stream = block_and_stream(boundary, tokens=900, cell=cell)
        results.append((train_phase1(model, stream, settings).history, state(model)))
    (history, weights), (other_history, other_weights) = results
    for entry, other in zip(history, other_history, strict=True):
        assert other.loss == pytest.approx(entry.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(entry.grad_norm, rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cell", list(CELLS))
def test_a_large_batch_of_phase_1_in_bf16(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Phase1Settings(max_iterations=5, batch_positions=400)
    results = []
    for most in (original.MANY_NUMBERS, 0):
        monkeypatch.setattr(original, "MANY_NUMBERS", most)
        model, stream = block_and_stream("carry", tokens=900, cell=cell)
        results.append(train_phase1(model, stream, settings, execution=Execution(bfloat16=True)).history)
    for entry, other in zip(*results, strict=True):
        assert other.loss == pytest.approx(entry.loss, rel=0.02)


def test_phase_1_lowers_its_loss_and_settles() -> None:
    model, stream = model_and_stream()
    result = train_phase1(model, stream, Phase1Settings(batch_positions=900), seed=0)
    assert result.history[-1].loss < result.history[1].loss - 0.01
    assert result.history[-1].convergence_rate > result.history[1].convergence_rate


def test_phase_1_stops_when_enough_positions_have_converged() -> None:
    model, stream = model_and_stream()
    settings = Phase1Settings(batch_positions=900, convergence_mse=0.5, convergence_stop=0.2)
    result = train_phase1(model, stream, settings, seed=0)
    rates = [entry.convergence_rate for entry in result.history]
    assert result.stopped == "converged"
    assert rates[-1] == result.convergence_rate >= 0.2
    assert max(rates[:-1]) < 0.2


def test_one_step_of_phase_1_is_one_step_of_adam_on_the_averaged_gradient() -> None:
    """Against the loss written out plainly: all batches in one graph."""
    model, stream = model_and_stream(tokens=100)
    settings = Phase1Settings(max_iterations=2, batch_positions=30, noise_std=0.0)
    plain = copy.deepcopy(model)
    train_phase1(model, stream, settings, seed=0)

    start = torch.randn((100, 16), generator=generator_for(0, "phase1 start", 1)) * settings.start_std
    new = plain.context_block(start.roll(1, 0), plain.embed(stream.ids[:]).detach())
    loss = torch.stack([oacd_loss(part) for part in new.split(30)]).mean()
    optimizer = torch.optim.Adam(plain.context_block.parameters(), lr=settings.lr)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.context_block.parameters(), settings.max_grad_norm)
    optimizer.step()
    for ours, theirs in zip(model.context_block.parameters(), plain.context_block.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("train_embedding", [False, True])
def test_phase_2_changes_just_what_is_counted_as_trained(train_embedding: bool) -> None:
    model, stream = model_and_stream()
    train, validation = split_of(model, stream), split_of(model, stream.first(200))
    before = state(model)

    def refresh() -> tuple[Split, Split]:
        return split_of(model, stream), split_of(model, stream.first(200))

    train_token_block(
        model,
        train,
        validation,
        Phase2Settings(max_epochs=2, batch_positions=128, lr=0.01),
        seed=0,
        refresh=refresh if train_embedding else None,
    )
    expected = {"token_block"} | ({"embedding", "lm_head"} if train_embedding else set())
    assert changed(before, model) == expected
    assert model.lm_head.weight is model.embedding.weight


def test_phase_2_learns_and_keeps_its_best_epoch() -> None:
    model, stream = model_and_stream()
    train, validation = split_of(model, stream), split_of(model, stream.first(300))
    untrained = score_stream(model, stream, train.contexts, 64)
    settings = Phase2Settings(max_epochs=12, batch_positions=64, lr=0.05, patience=2, shuffle=True)
    result = train_token_block(model, train, validation, settings, seed=0)
    best = min(result.training.history, key=lambda epoch: epoch.validation_nll_nats)
    assert result.training.best_epoch == best.epoch
    again = score_stream(model, validation.stream, validation.contexts, 64)
    assert again.nll_nats == pytest.approx(best.validation_nll_nats, abs=1e-6)
    assert again.perplexity < untrained.perplexity / 2


@pytest.mark.parametrize(
    ("batch", "block", "piece", "shuffle"),
    [
        (64, 32, 192, True),
        (20, 20, 200, True),
        (12, 24, 192, True),
        (250, 25, 250, True),
        (64, 32, 192, False),
    ],
)
def test_phase_2_reads_blocks_of_all_the_text_whether_contexts_are_held_or_not(
    batch: int, block: int, piece: int, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (phase2, metrics):
        monkeypatch.setattr(module, "PIECE_TOKENS", 200)
    monkeypatch.setattr(phase2, "BLOCK_TOKENS", 32)
    monkeypatch.setattr(plain, "PIECE", 200)
    monkeypatch.setattr(plain, "BLOCK", 32)
    assert phase2.block_tokens(batch) == block
    settings = Phase2Settings(max_epochs=2, batch_positions=batch, lr=0.01, shuffle=shuffle)
    results = []
    for keep in ("memory", "recompute"):
        model, stream = model_and_stream()
        contexts, _ = compute_contexts(model, stream, ContextSettings(segment_length=64, keep=keep))
        assert contexts.in_memory == (keep == "memory")
        split = Split(stream, contexts)
        read: list[torch.Tensor] = []
        real = phase2._batches

        def seen(*args: Any, _real: Any = real, _read: Any = read) -> Iterator[phase2.Batch]:
            for made in _real(*args):
                _read.append(made.positions)
                yield made

        with monkeypatch.context() as patch:
            patch.setattr(phase2, "_batches", seen)
            result = train_token_block(model, split, split, settings, seed=0)
        results.append((result.validation.nll_nats, read, state(model)))
    (nll, read_held, weights), (other_nll, read_again, other_weights) = results
    assert torch.equal(torch.cat(read_held), torch.cat(read_again))
    assert nll == pytest.approx(other_nll, abs=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other_weights[name], rtol=0, atol=1e-4)
    as_audited = [positions for _, positions in plain.batches(settings, 0, 899, 2)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read_held, as_audited, strict=True))
    sizes = [len(at) for at in read_held]
    assert sizes == 2 * [*[batch] * (899 // batch), 899 % batch]  # only the last one is short
    first, second = torch.cat(read_held).split(899)
    for epoch in (first, second):
        assert torch.equal(epoch.sort().values, torch.arange(899))
        for at in epoch[: 899 // piece * piece].split(
            piece
        ):  # whole blocks, read to their end before the next
            assert (torch.bincount(at // block)[(at // block).unique()] == block).all()
        scattered = [int(at.max() - at.min()) for at in epoch.split(piece)]
        assert (max(scattered) > 2 * piece) == shuffle
    assert torch.equal(first, torch.arange(899)) == (not shuffle)
    assert torch.equal(first, second) == (not shuffle)


@pytest.mark.parametrize(
    "batch", [1, 2, 301, 1024, 2047, 2048, 2049, 4096, 5000, 5003, 10_000, 65_536, 131_072]
)
def test_blocks_make_up_whole_batches(batch: int) -> None:
    block = phase2.block_tokens(batch)
    assert block % batch == 0 or batch % block == 0
    assert block == batch or 128 <= block <= 512


def test_phase_2_stops_when_its_patience_is_spent() -> None:
    model, stream = model_and_stream()
    train = split_of(model, stream)
    other = Split(
        Stream.of(model, stream.ids[:].flip(0)), train.contexts
    )  # learning the train text worsens it
    settings = Phase2Settings(max_epochs=40, batch_positions=64, lr=0.05, patience=2)
    result = train_token_block(model, train, other, settings, seed=0)
    training = result.training
    assert training.stopped == "patience"
    assert len(training.history) == training.best_epoch + 2 < 40


def test_one_epoch_of_phase_2_scores_every_position_once() -> None:
    """With a learning rate of nearly nothing, the epoch's mean NLL is the stream's: no batch is lost."""
    model, stream = model_and_stream(tokens=501)
    train = split_of(model, stream)
    for shuffle in (False, True):
        settings = Phase2Settings(max_epochs=1, batch_positions=64, lr=1e-12, shuffle=shuffle)
        result = train_token_block(model, train, train, settings, seed=0)
        assert result.training.train_nll_nats == pytest.approx(result.validation.nll_nats, abs=1e-5)
        assert result.validation.tokens == 500


def test_scores_do_not_depend_on_the_chunk() -> None:
    model, stream = model_and_stream(tokens=333)
    contexts = split_of(model, stream).contexts
    scores = [score_stream(model, stream, contexts, chunk) for chunk in (7, 100, 4096)]
    assert scores[0].nll_nats == pytest.approx(scores[2].nll_nats, abs=1e-6)
    assert {score.tokens for score in scores} == {332}
    manual = model(stream.ids[None], labels=stream.ids[None]).loss
    assert scores[0].nll_nats == pytest.approx(float(manual.detach()), abs=1e-5)
    text = TokenStream(stream.ids[:].numpy(), np.zeros(1, np.int64), np.full(1, 1000), 1000)
    assert scores[0].bits_per_byte(text) == pytest.approx(
        float(manual.detach()) * 332 / math.log(2) / 1000, rel=1e-5
    )


def test_a_non_finite_loss_is_refused_with_the_last_good_values() -> None:
    model, stream = model_and_stream()
    train = split_of(model, stream)

    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.context_block.layers[0].linear.weight[0, 0] = math.nan
    before = state(broken)
    with pytest.raises(
        NonFiniteLossError, match=r"phase 1 was stopped at iteration 2: .*no iteration before"
    ):
        train_phase1(broken, stream, Phase1Settings(batch_positions=300), seed=0)
    kept = broken.named_weights()
    assert all(torch.equal(before[name].nan_to_num(7), kept[name].nan_to_num(7)) for name in before)

    poisoned = Split(train.stream, Contexts.of(torch.full_like(train.contexts.whole(), math.nan)))
    settings = Phase2Settings(max_epochs=3, batch_positions=300)
    with pytest.raises(NonFiniteLossError, match=r"phase 2 was stopped at epoch 1, step 1"):
        train_token_block(model, poisoned, train, settings, seed=0)
    later = iter([(train, train), (train, poisoned)])
    with pytest.raises(
        NonFiniteLossError, match=r"epoch 2, validation: .*last good values: epoch 1, training"
    ):
        train_token_block(model, train, train, settings, seed=0, refresh=lambda: next(later))


def test_a_message_names_the_documents_that_a_step_read() -> None:
    model, stream = model_and_stream(tokens=500)
    starts = np.arange(0, 500, 25)
    stream = replace(stream, document_starts=starts)
    assert stream.read_at(torch.tensor([24])) == ", which read document 1"
    assert stream.read_at(torch.tensor([[30, 24], [499, 31]])) == ", which read documents 1, 2 and 20"
    assert stream.read_at(torch.arange(500)) == (", which read documents 1, 2, 3, 4, 5, 6, 7, 8 and 12 more")
    contexts = split_of(model, stream).contexts.whole()
    contexts[120:140] = math.nan  # of documents 5 and 6
    poisoned, settings = (
        Split(stream, Contexts.of(contexts)),
        Phase2Settings(batch_positions=20, shuffle=False),
    )
    with pytest.raises(
        NonFiniteLossError, match=r"phase 2 .* epoch 1, step 7, which read documents 5 and 6: "
    ):
        train_token_block(model, poisoned, poisoned, settings, seed=0)
    with torch.no_grad():
        model.embedding.weight[int(stream.ids[260])] = math.inf
    with pytest.raises(NonFiniteLossError, match=r"phase 1 .* iteration 2, which read documents .*11.*: "):
        train_phase1(model, stream, Phase1Settings(batch_positions=500), seed=0)


def test_a_loss_far_above_the_others_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stream = model_and_stream(tokens=500)
    split, told = split_of(model, replace(stream, document_starts=np.arange(0, 500, 25))), list[str]()
    real, calls = phase2._forward, itertools.count(1)

    def forward(*given: Any) -> torch.Tensor:
        loss: torch.Tensor = real(*given)
        return loss * 1000 if next(calls) in (7, 9) else loss

    monkeypatch.setattr(phase2, "_forward", forward)
    settings = Phase2Settings(max_epochs=1, batch_positions=20, shuffle=False)
    train_token_block(model, split, split, settings, seed=0, checkpoint=Checkpoint(tell=told.append))
    (said,) = told
    assert re.match(
        r"the loss of phase 2 is .* in epoch 1, step 7, which read documents 5 and 6, and the mean", said
    )


def test_random_streams_differ_by_seed_and_by_purpose() -> None:
    """torch's CPU generator keeps 32 bits of its seed: what differs in the others must still count."""
    draws = {
        (seed, purpose): torch.randn(4, generator=generator_for(seed, purpose)).tolist()
        for seed in (0, 1, 2, 1 << 30, 1 << 32, (1 << 32) + 1)
        for purpose in ("a", "b")
    }
    assert len({tuple(values) for values in draws.values()}) == len(draws)


def test_initial_weights_follow_the_specification() -> None:
    torch.manual_seed(0)
    model = TandemForCausalLM(TandemConfig(vocab_size=20, embed_dim=200, context_dim=100)).eval()
    initialize_block(model.context_block, model, generator_for(0, "context_block", 1))
    layer = model.context_block.layers[0]
    assert float(layer.linear.weight.detach().std()) == pytest.approx(0.1, rel=0.02)
    assert float(layer.linear.bias.detach().std()) == pytest.approx(0.01, rel=0.3)
    assert torch.equal(layer.norm.weight, torch.ones(100))


def test_perplexity_overflows_to_infinity() -> None:
    assert perplexity(math.log(50.0)) == pytest.approx(50.0)
    assert perplexity(1e6) == math.inf
