"""The baselines: n-gram models against a naive one, LSTM and GPT-2 against plain forwards."""

import importlib.util
import logging
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_kneser_ney import NaiveKneserNey
from torch.nn import functional as F

from tandem.baselines import BASELINES, BaselineInputs, Fitted, awd_lstm, lstm, transformer
from tandem.baselines.awd_lstm import AwdLstmBaseline
from tandem.baselines.gpt2 import Gpt2Baseline
from tandem.baselines.kneser_ney import KneserNey, discounts
from tandem.baselines.lstm import LstmBaseline
from tandem.baselines.network import NetworkBaseline
from tandem.baselines.ngram import fit_kneser_ney, fit_unigram
from tandem.baselines.transformer import TransformerBaseline
from tandem.baselines.windows import window_starts
from tandem.contexts import Tokens
from tandem.errors import NonFiniteLossError, SettingsError
from tandem.group import PLAIN, Execution
from tandem.records import Epoch
from tandem.settings import (
    AwdLstmSettings,
    BaselineSettings,
    DataSettings,
    Gpt2Settings,
    LstmSettings,
    Phase2Settings,
    Settings,
    TransformerSettings,
)
from tandem.stopping import Stopped
from tandem.training import optimizer
from tandem.training.checkpoint import Checkpoint, Stopwatch
from tandem.training.optimizer import cosine_share
from tandem.training.progress import OnTick, Tick, silent

CPU = torch.device("cpu")
V = 23


def structured(tokens: int, seed: int, vocab_size: int = V) -> npt.NDArray[np.uint16]:
    """Each token follows from the one before it and a bit of the one before that, but for one in five."""
    draws = np.random.default_rng(seed)
    ids = [1, 2]
    while len(ids) < tokens:
        plain = (ids[-1] * 3 + ids[-2] % 2 + 1) % vocab_size
        ids.append(int(draws.integers(vocab_size)) if draws.random() < 1 / 5 else plain)
    return np.array(ids, np.uint16)


LSTM = LstmSettings(streams=4, window=16, lr=0.02, max_epochs=3)
LITTLE = {f"{name}_dropout": 0.05 for name in ("word", "input", "hidden", "output", "weight")}
AWD_LSTM = AwdLstmSettings(streams=4, window=16, lr=0.02, max_epochs=3, layers=1, **LITTLE)
TRANSFORMER = TransformerSettings(layers=1, heads=2, window=16, batch_windows=4, lr=0.02, max_epochs=3)
GPT2 = Gpt2Settings(layers=1, heads=2, window=16, batch_windows=4, lr=0.02, max_epochs=3)


def settings_of(embed_dim: int = 12, **changed: Any) -> Settings:
    """With what is changed of all networks, as far as they have it."""
    lstm, awd, gpt2, decoder = (
        own.model_copy(update={name: changed[name] for name in changed if name in type(own).model_fields})
        for own in (LSTM, AWD_LSTM, GPT2, TRANSFORMER)
    )
    budget = {name: changed[name] for name in ("seconds", "learning_rates") if name in changed}
    plain = Settings(data=DataSettings(train="a.txt"))
    return plain.model_copy(
        update={
            "model": plain.model.model_copy(update={"embed_dim": embed_dim}),
            "baselines": BaselineSettings(lstm=lstm, awd_lstm=awd, gpt2=gpt2, transformer=decoder, **budget),
            "phase2": Phase2Settings(chunk_positions=100),
        }
    )


def task(
    train: npt.NDArray[Any],
    validation: npt.NDArray[Any],
    vocab_size: int = V,
    seed: int = 0,
    max_parameters: int = 3000,
    execution: Execution = PLAIN,
    on_tick: OnTick = silent,
    **changed: Any,
) -> BaselineInputs:
    chosen = settings_of(**changed)
    return BaselineInputs(
        train, validation, vocab_size, chosen, max_parameters, seed, CPU, execution, on_tick
    )


TASK = task(structured(1500, 0), structured(301, 1))


NETWORKS = {"lstm": "LSTM", "awd-lstm": "AWD-LSTM", "gpt2": "GPT-2", "transformer": "Transformer"}


def fit(kind: str, train: Any = TASK.train, validation: Any = TASK.validation, **changed: Any) -> Fitted:
    return BASELINES[kind].fit(task(train, validation, **changed))


# n-gram models


def histories_of(ids: list[int], order: int, vocab_size: int) -> list[tuple[int, ...]]:
    """Histories of every length below `order`: from the stream, half from it, and at random."""
    draws = np.random.default_rng(len(ids))
    found: list[tuple[int, ...]] = [()]
    for length in range(1, order):
        found += [tuple(ids[at : at + length]) for at in range(0, len(ids) - length + 1, 3)]
        found += [tuple(int(token) for token in draws.integers(vocab_size, size=length)) for _ in range(4)]
        found += [(int(draws.integers(vocab_size)), *ids[-length:][1:])]
    return found


def distributions(model: KneserNey, histories: list[tuple[int, ...]]) -> npt.NDArray[np.float64]:
    padded = np.zeros((len(histories), model.order - 1), np.int32)
    for row, history in zip(padded, histories, strict=True):
        row[len(row) - len(history) :] = history
    return model.probabilities(padded, np.array([len(history) for history in histories]))


def agrees_with_naive(ids: list[int], vocab_size: int, order: int) -> None:
    model = KneserNey.fit(np.array(ids, np.uint16), vocab_size, order)
    naive = NaiveKneserNey(ids, vocab_size, order)
    histories = histories_of(ids, order, vocab_size)
    ours = distributions(model, histories)
    assert np.abs(ours.sum(axis=1) - 1).max() < 1e-9
    assert ours.min() > 0
    expected = [[naive.probability(history, token) for token in range(vocab_size)] for history in histories]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 4), min_size=1, max_size=60), order=st.integers(2, 5))
def test_kneser_ney_equals_the_naive_one(ids: list[int], order: int) -> None:
    agrees_with_naive(ids, 6, order)


@pytest.mark.parametrize("order", [2, 3, 5])
def test_kneser_ney_equals_the_naive_one_with_three_discounts(order: int) -> None:
    ids = [int(token) for token in structured(500, 4, 9)]
    counts = np.unique([ids[:-1], ids[1:]], axis=1, return_counts=True)[1]
    assert len(set(discounts(counts))) == 4
    agrees_with_naive(ids, 11, order)


def test_kneser_ney_by_hand() -> None:
    # a b a c: continuation counts a 1, b 1, c 1 (a follows b, b and c follow a); every discount is 1/2.
    model = KneserNey.fit(np.array([0, 1, 0, 2]), 4, 2)
    p1 = np.array([0.5 / 3, 0.5 / 3, 0.5 / 3, 0]) + 0.5 / 4
    np.testing.assert_allclose(model.unigram, p1)
    after_a = np.array([0, 0.25, 0.25, 0]) + 0.5 * p1
    np.testing.assert_allclose(model.probabilities(np.array([[0], [3]])), [after_a, p1])
    assert model.ngrams == 3 + 3


def test_discounts_fall_back_where_counts_of_counts_give_none() -> None:
    def of(n1: int, n2: int, n3: int, n4: int) -> list[float]:
        return list(discounts(np.repeat([1, 2, 3, 4, 9], [n1, n2, n3, n4, 2])))

    y = 100 / 180
    assert of(100, 40, 20, 10) == pytest.approx([0, 1 - 0.8 * y, 2 - 1.5 * y, 3 - 2 * y])
    assert of(100, 40, 0, 10) == pytest.approx([0, y, y, y])
    assert of(0, 40, 20, 10) == of(100, 0, 20, 10) == [0, 0.5, 0.5, 0.5]
    assert of(100, 40, 200, 10) == pytest.approx([0, y, y, y])  # D2 would be negative


@pytest.mark.parametrize("order", [2, 4])
def test_kneser_ney_scores_every_token_given_all_before_it(
    order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.baselines.kneser_ney.BATCH_BYTES", 8 * V * 7)  # several batches
    score = KneserNey.fit(TASK.train, V, order).score(TASK.validation)
    naive = NaiveKneserNey(TASK.train.tolist(), V, order)
    ids = TASK.validation.tolist()
    rows = np.array([[naive.probability(tuple(ids[:t]), token) for token in range(V)] for t in range(1, 301)])
    np.testing.assert_allclose(score.losses, -np.log(rows[np.arange(300), ids[1:]]), rtol=1e-6)
    assert score.accuracy == np.mean(rows.argmax(axis=1) == ids[1:])


def test_ngram_models_in_their_order() -> None:
    fitted = {
        "kneser-ney": fit_kneser_ney(TASK, 3),
        "bigram": fit_kneser_ney(TASK, 2),
        "unigram": fit_unigram(TASK),
    }
    losses = [model.score.nll_nats for model in fitted.values()]
    assert losses == sorted(losses)
    assert losses[0] < losses[2] - 0.5
    kept = [model.other_parameters for model in fitted.values()]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] == V
    assert all(
        (f.embedding_parameters, f.training, f.score.tokens) == (0, None, 300) for f in fitted.values()
    )
    counts = np.bincount(TASK.train, minlength=V)
    expected = -np.log((counts[TASK.validation[1:]] + 1) / (1500 + V))
    np.testing.assert_allclose(fitted["unigram"].score.losses, expected, rtol=1e-6)


def test_ngram_models_of_the_shortest_streams() -> None:
    for tokens in (1, 2, 3):
        few = task(np.arange(tokens), np.array([0, 1, 4]), 5)
        for model in (fit_kneser_ney(few, 5), fit_kneser_ney(few, 2), fit_unigram(few)):
            assert math.isfinite(model.score.nll_nats)
    with pytest.raises(ValueError, match="at least 2"):
        fit_kneser_ney(TASK, 1)


# models trained by gradient steps


@pytest.fixture(scope="module")
def fitted() -> dict[str, Fitted]:
    return {kind: fit(kind) for kind in NETWORKS}


@pytest.mark.parametrize("kind", NETWORKS)
def test_learns_structure_and_keeps_the_best_epoch(kind: str, fitted: dict[str, Fitted]) -> None:
    result = fitted[kind]
    assert result.training is not None
    assert result.score.nll_nats < fit_unigram(TASK).score.nll_nats - 0.1
    history = result.training.history
    best = min(history, key=lambda epoch: epoch.validation_nll_nats)
    assert [epoch.epoch for epoch in history] == [1, 2, 3]
    assert result.training.best_epoch == best.epoch
    assert result.score.nll_nats == best.validation_nll_nats
    assert result.training.train_nll_nats == best.train_nll_nats
    assert result.training.stopped == "max_epochs"
    assert len(result.score.losses) == 300


@pytest.mark.parametrize("kind", NETWORKS)
def test_depends_on_the_seed_alone(kind: str, fitted: dict[str, Fitted]) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = fit(kind)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(again.score.losses, fitted[kind].score.losses)
    assert not np.array_equal(fit(kind, seed=1, max_epochs=1).score.losses, again.score.losses)


@pytest.mark.parametrize("budget", [1600, 3000, 12_345])
@pytest.mark.parametrize("layers", [1, 2])
def test_as_wide_as_the_parameters_allow(budget: int, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[torch.nn.Module] = []

    def stop(_self: object, model: torch.nn.Module, *_: object) -> None:
        built.append(model)
        raise InterruptedError

    monkeypatch.setattr(NetworkBaseline, "_train", stop)
    for kind in NETWORKS:
        with pytest.raises(InterruptedError):
            fit(kind, max_parameters=budget, layers=layers)
    chosen = settings_of(layers=layers)
    ours: Any = built[0]
    theirs: Any = built[2]
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in built]
    width = ours["lstm"].hidden_size
    assert counts[0] == LstmBaseline().parameter_count(chosen, V, width) <= budget
    assert LstmBaseline().parameter_count(chosen, V, width + 1) > budget
    assert counts[2] == Gpt2Baseline().parameter_count(chosen, V, theirs.config.n_embd) <= budget
    assert Gpt2Baseline().parameter_count(chosen, V, theirs.config.n_embd + 2) > budget
    for baseline, place, step in ((AwdLstmBaseline(), 1, 1), (TransformerBaseline(), 3, 4)):
        width = baseline.embedding(built[place]).shape[1]
        assert counts[place] == baseline.parameter_count(chosen, V, width) <= budget
        assert baseline.parameter_count(chosen, V, width + step) > budget


def test_no_projection_where_the_widths_agree() -> None:
    chosen = settings_of(layers=2, dropout=0.1)
    model = LstmBaseline().build(chosen, V, 12)
    assert sum(p.numel() for p in model.parameters()) == LstmBaseline().parameter_count(chosen, V, 12)


@pytest.mark.parametrize("kind", NETWORKS)
def test_parameters_are_reported(kind: str, fitted: dict[str, Fitted]) -> None:
    result = fitted[kind]
    assert result.embedding_parameters % V == 0
    assert 2000 < result.embedding_parameters + result.other_parameters <= 3000


def test_too_few_parameters_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"LSTM has 360 parameters even at width 1,.*baselines\.max_par"):
        fit("lstm", max_parameters=359)
    with pytest.raises(SettingsError, match=r"GPT-2 has .* at width 2, .*baselines\.max_parameters"):
        fit("gpt2", max_parameters=100)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_lstm_scores_like_one_forward(chunk: int) -> None:
    torch.manual_seed(0)
    ours = LstmBaseline()
    model = ours.build(settings_of(layers=2, dropout=0.5), V, 9).eval()
    with torch.no_grad():
        ours.embedding(model).mul_(10)  # predictions that differ
    ids = Tokens(TASK.validation, CPU)[:]
    logits = lstm.read_tokens(model, ids[:-1, None])[0][:, 0] @ ours.embedding(model).t()
    check_score(ours.score(model, ids, chunk), logits, ids)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_awd_lstm_scores_like_torchs_own(chunk: int) -> None:
    torch.manual_seed(0)
    ours = AwdLstmBaseline()
    model: Any = ours.build(settings_of(layers=3), V, 9).eval()
    with torch.no_grad():
        ours.embedding(model).mul_(10)
        ids = Tokens(TASK.validation, CPU)[:]
        hidden = model["lstm"](model["embedding"](ids[:-1, None]))[0][:, 0]
    check_score(ours.score(model, ids, chunk), hidden @ ours.embedding(model).t(), ids)


def test_awd_lstm_drops_whole_words_and_the_same_elements_all_along() -> None:
    torch.manual_seed(0)
    model: Any = AwdLstmBaseline().build(settings_of(layers=1), V, 8)
    ids = torch.arange(V).repeat(2)[:, None].expand(-1, 3)

    def output(**dropouts: float) -> torch.Tensor:
        none = {f"{name}_dropout": 0.0 for name in ("word", "input", "hidden", "output", "weight")}
        own = AwdLstmSettings(**{**none, **dropouts})
        return awd_lstm.read_tokens(model, ids, None, own)[1].detach()

    plain = awd_lstm.read_tokens(model, ids)[1].detach()
    assert torch.equal(output(), plain)
    dropped = output(output_dropout=0.5)
    kept = dropped != 0
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert 0 < int(kept[0].sum()) < kept[0].numel()
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])
    for name in ("word", "input", "weight"):
        assert not torch.equal(output(**{f"{name}_dropout": 0.5}), plain)
    assert torch.equal(output(hidden_dropout=0.5), plain)  # there is no second layer


def test_awd_lstm_drops_a_word_wherever_it_stands() -> None:
    torch.manual_seed(0)
    model: Any = AwdLstmBaseline().build(settings_of(layers=1), V, 8)
    read: list[torch.Tensor] = []
    plain = torch.lstm

    def lstm_of(hidden: torch.Tensor, *rest: Any) -> Any:
        read.append(hidden.detach())
        return plain(hidden, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "lstm", lstm_of)
        own = AwdLstmSettings(layers=1, word_dropout=0.5, input_dropout=0.0)
        awd_lstm.read_tokens(model, torch.arange(V).repeat(3)[:, None], None, own)
    dropped = (read[0] == 0).all(-1)[:, 0].view(3, V)
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert 0 < int(dropped[0].sum()) < V


@pytest.mark.parametrize(("length", "window"), [(1, 5), (5, 5), (6, 5), (1000, 32), (50, 1), (999, 7)])
def test_awd_lstm_windows_vary_and_fill_the_stream(length: int, window: int) -> None:
    counts, lengths = set(), []
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        bounds = awd_lstm.window_bounds(length, window, draws)
        assert (bounds[0], bounds[-1]) == (0, length)
        parts = [end - start for start, end in pairwise(bounds)]
        assert min(parts) > 0
        counts.add(len(parts))
        lengths += parts
    assert counts == {math.ceil(length / window)}
    if length == 1000:
        assert np.mean(lengths) == pytest.approx(window, rel=0.05)
        assert min(lengths) < 0.7 * window < 0.9 * window < np.median(lengths)


def epochs(*losses: float) -> list[Epoch]:
    return [
        Epoch(epoch=n, train_nll_nats=0.0, validation_nll_nats=nll, validation_accuracy=0.0, seconds_s=0.0)
        for n, nll in enumerate(losses, start=1)
    ]


def test_awd_lstm_averages_once_validation_no_longer_improves() -> None:
    own = AwdLstmBaseline()
    chosen = settings_of(average_after=2)
    improving = epochs(5, 4, 3, 2, 1)
    assert [own.averaged_epochs(chosen, improving[:n]) for n in range(6)] == [0] * 6
    # The fourth is worse than the second, which is two epochs before it; the third counts not yet.
    found = [own.averaged_epochs(chosen, epochs(5, 4, 3.5, 4.5, 3, 2)[:n]) for n in range(7)]
    assert found == [0, 0, 0, 0, 1, 2, 3]


def test_weights_are_averaged_over_the_steps_that_count() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    steps, seen = optimizer.adamw([weight], 0.0, 0.1), list[torch.Tensor]()
    for count in range(-2, 5):
        weight.grad = torch.tensor([1.0, -2.0, 0.5 * count])
        steps.step()
        average = optimizer.WeightAverage(steps, 1 if count > 0 else 0)
        average.after_step(count)
        seen += [weight.detach().clone()] if count > 0 else []
    last = weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(weight.detach(), torch.stack(seen).mean(0))
    assert torch.equal(weight.detach(), last)


@pytest.mark.parametrize("kind", ["gpt2", "transformer"])
@pytest.mark.parametrize(("window", "tokens"), [(16, 301), (16, 17), (16, 18), (16, 5), (7, 100), (2, 20)])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_transformers_score_like_a_window_for_each_token(
    kind: str, window: int, tokens: int, chunk: int
) -> None:
    torch.manual_seed(0)
    ours: Any = BASELINES[kind]
    model: Any = ours.build(settings_of(layers=2, window=window), V, 8).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(50 if len(parameter) in (V, window) else 1)
            if not parameter.any():  # what ends a part of the transformer
                parameter.normal_(std=0.3)
    ids = Tokens(TASK.validation[:tokens], CPU)[:]
    stride, rows = window // 2, []
    for t in range(tokens - 1):
        # The first window, of those sliding by `stride`, that reads token t.
        start = 0 if t < window else math.ceil((t - window + 1) / stride) * stride
        assert start == 0 or t - start + 1 >= window / 2
        with torch.no_grad():
            rows.append(ours.read_windows(model, ids[None, start : t + 1])[0, -1])
    check_score(ours.score(model, ids, chunk), torch.stack(rows) @ ours.embedding(model).t(), ids)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    draws = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 6, generator=draws)
    cos, sin = transformer.rotary_waves(40, 6)
    queries, keys = (transformer.rotated(part.expand(40, 6), cos, sin) for part in (query, key))
    products = queries @ keys.t()
    for distance in (0, 1, 17):
        same = products.diagonal(-distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-5, rtol=0)
    assert products[0, 0] == pytest.approx(float(query @ key), abs=1e-5)
    assert abs(float(products[1, 0] - products[0, 0])) > 1e-3


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_a_network_is_given_seconds(kind: str) -> None:
    ticks: list[Tick] = []
    result = fit(kind, on_tick=ticks.append, seconds=0.7)
    assert (training := result.training) is not None
    assert training.stopped == "seconds"
    assert training.seconds_s >= 0.7
    steps = BASELINES[kind].epoch_size(settings_of(), len(TASK.train))[0]  # type: ignore[attr-defined]
    assert training.steps is not None
    assert (training.epochs - 1) * steps < training.steps <= training.epochs * steps
    assert {tick.unit for tick in ticks} == {"second"}
    assert all(epoch.seconds_s < 0.7 for epoch in training.history[:-1])
    done = [tick.done for tick in ticks]
    assert done == sorted(done)
    assert max(done) <= 0.7


def test_a_stopped_training_goes_on_with_the_seconds_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = task(TASK.train, TASK.validation, seconds=1000.0)
    after_step, done = Checkpoint.after_step, [0]

    def stopped(checkpoint: Checkpoint) -> None:
        after_step(checkpoint)
        done[0] += 1
        if done[0] == 3:
            raise Stopped(15)

    def fit_again() -> Fitted:
        checkpoint = Checkpoint(tmp_path / "one.safetensors", every_s=0.0)
        return BASELINES["lstm"].fit(replace(inputs, checkpoint=checkpoint))

    monkeypatch.setattr(Checkpoint, "after_step", stopped)
    with pytest.raises(Stopped):
        fit_again()
    monkeypatch.setattr(
        Stopwatch, "seconds_s", property(lambda _: 1500.0)
    )  # as if the first part took as long
    training = fit_again().training
    assert training is not None
    assert training.steps == 4  # one more, with which the epoch ends
    assert training.stopped == "seconds"


def test_seconds_that_are_over_at_once_give_two_steps_at_most() -> None:
    training = fit("lstm", seconds=1e-6).training
    assert training is not None
    assert training.steps in (1, 2)
    assert [epoch.epoch for epoch in training.history] == [1]


def test_timed_rates_are_those_of_steps() -> None:
    for warm_up in (0.0, 0.1):
        for step in range(0, 1000, 7):
            by_step = cosine_share(step, 1001, round(1000 * warm_up))
            assert optimizer.timed_share(step / 1000, warm_up) == pytest.approx(by_step, abs=0.011)
    assert optimizer.timed_share(1.2, 0.1) == pytest.approx(0.1)


def test_the_best_of_several_learning_rates_is_taken() -> None:
    rates = (1e-4, 0.02, 1e30)
    found = fit("lstm", learning_rates=rates)
    plain = fit("lstm", lr=0.02)
    assert found.training is not None
    assert plain.training is not None
    assert found.training.lr == 0.02
    assert plain.training.lr is None
    assert [trial.lr for trial in found.training.search] == list(rates)
    assert found.training.search[1].validation_nll_nats == found.score.nll_nats == plain.score.nll_nats
    assert found.training.search[2].validation_nll_nats == math.inf
    assert np.array_equal(found.score.losses, plain.score.losses)
    with pytest.raises(NonFiniteLossError, match=r"baselines\.learning_rates"):
        fit("lstm", learning_rates=(1e30,))


def check_score(score: Any, logits: torch.Tensor, ids: torch.Tensor) -> None:
    expected = F.cross_entropy(logits, ids[1:], reduction="none").detach().numpy()
    np.testing.assert_allclose(score.losses, expected, rtol=1e-3, atol=1e-4)
    assert score.tokens == len(ids) - 1
    assert score.accuracy == pytest.approx(float((logits.argmax(-1) == ids[1:]).float().mean()))


@pytest.mark.parametrize("tokens", [2, 3, 17, 100, 101])
@pytest.mark.parametrize("streams", [1, 4, 50])
def test_lstm_streams_hold_every_token_once(tokens: int, streams: int) -> None:
    inputs, targets, valid = lstm.side_by_side(torch.arange(tokens), streams)
    assert inputs.shape[1] <= streams
    assert inputs.t()[valid.t()].tolist() == list(range(tokens - 1))
    assert torch.equal(targets[valid], inputs[valid] + 1)


@pytest.mark.parametrize("tokens", [2, 5, 16, 17, 18, 100])
def test_gpt2_windows_cover_the_stream(tokens: int) -> None:
    window, numbers = 16, set()
    for offset in range(window):
        starts = window_starts(tokens, window, offset)
        numbers.add(len(starts))
        seen = starts[:, None] + torch.arange(min(window, tokens - 1))
        assert set(seen.flatten().tolist()) == set(range(tokens - 1))
        assert seen.numel() <= tokens - 1 + 2 * window
    assert len(numbers) == 1


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("tokens", [2, 40])
def test_streams_shorter_than_a_window(kind: str, tokens: int) -> None:
    result = fit(kind, TASK.train[:tokens], TASK.validation[:2], max_epochs=1)
    assert result.score.tokens == 1
    assert math.isfinite(result.score.nll_nats)


@pytest.mark.parametrize("kind", NETWORKS)
def test_non_finite_steps_are_refused(kind: str) -> None:
    with pytest.raises(NonFiniteLossError, match=rf"not finite .*{BASELINES[kind].section}.lr"):
        fit(kind, lr=1e30)


@pytest.mark.parametrize("kind", NETWORKS)
def test_bf16_trains_almost_as_float32_does(kind: str) -> None:
    plain, half = fit(kind), fit(kind, execution=Execution(bfloat16=True))
    assert plain.training is not None
    assert half.training is not None
    assert half.training.train_nll_nats != plain.training.train_nll_nats
    assert half.training.train_nll_nats == pytest.approx(plain.training.train_nll_nats, abs=0.02)
    assert half.score.nll_nats == pytest.approx(plain.score.nll_nats, abs=0.02)


def test_learning_rate_rises_and_falls_to_a_tenth() -> None:
    shares = [cosine_share(step, 100, 10) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 11)
    assert shares[10] == max(shares) == pytest.approx(1)
    assert shares[99] == min(shares[10:]) == pytest.approx(0.1)
    assert cosine_share(0, 1, 0) == 1


@pytest.mark.parametrize("kind", NETWORKS)
def test_tells_its_progress_quietly(
    kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    ticks: list[Tick] = []
    with caplog.at_level(logging.WARNING):
        fit(kind, TASK.train[:300], TASK.validation[:50], on_tick=ticks.append)
    done = [tick.done for tick in ticks]
    assert done == sorted(done)
    assert {1, 2, 3} <= set(done)
    assert done[-1] == ticks[-1].limit == 3
    assert {tick.phase for tick in ticks} == {NETWORKS[kind]}
    assert set(ticks[-1].figures) == {"train PPL", "val PPL", "val acc"}
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_the_bench_gives_kenlm_the_same_probabilities(tmp_path: Path) -> None:
    """The ARPA file read as its format says: the longest n-gram there is, and what was backed off from."""
    bench = Path(__file__).parents[1] / "bench" / "speed" / "kenlm_queries.py"
    spec = importlib.util.spec_from_file_location("kenlm_queries", bench)
    assert spec is not None
    assert spec.loader is not None
    queries = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(queries)
    rng = np.random.default_rng(0)
    train, held = (rng.zipf(1.3, size).clip(max=12) - 1 for size in (400, 150))
    for order in (2, 4):
        model = KneserNey.fit(train, 12, order)
        queries.write_arpa(model, tmp_path / "model.arpa")
        grams: dict[tuple[str, ...], tuple[float, float]] = {}
        for line in (tmp_path / "model.arpa").read_text("ascii").splitlines():
            if line.count("\t"):
                log10, words, *backoff = line.split("\t")
                grams[tuple(words.split())] = float(log10), float(backoff[0]) if backoff else 0.0

        def log10_of(history: tuple[str, ...], word: str, grams: Any = grams) -> float:
            if (*history, word) in grams:
                return grams[*history, word][0]
            return grams.get(history, (0.0, 0.0))[1] + log10_of(history[1:], word)

        words = [str(token) for token in held]
        total = sum(
            log10_of(tuple(words[max(0, at - order + 1) : at]), word) for at, word in enumerate(words) if at
        )
        nll = -total * math.log(10) / (len(words) - 1)
        assert nll == pytest.approx(model.score(held).nll_nats, rel=1e-5)
