"""The audit of baselines: planted defects are named, unusual runs raise no alarm."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import sentences, slow_but, tiny, write_jsonl
from naive_kneser_ney import NaiveKneserNey
from torch import Tensor
from torch.nn import functional

from tandem.audit import audit, network_steps
from tandem.audit.baselines import baseline_checks, unchecked
from tandem.audit.ngrams import score_kneser_ney
from tandem.baselines import (
    BASELINES,
    BaselineInputs,
    Fitted,
    awd_lstm,
    kneser_ney,
    lstm,
    ngram,
    rates,
    transformer,
)
from tandem.baselines.awd_lstm import AwdLstmBaseline
from tandem.baselines.gpt2 import Gpt2Baseline
from tandem.baselines.kneser_ney import KneserNey
from tandem.baselines.lstm import LstmBaseline
from tandem.errors import RunDirError
from tandem.experiment import baseline, one_run, runner
from tandem.experiment.artefacts import save_baseline
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.grid import plan
from tandem.experiment.prepared import TrainingInputs, prepare
from tandem.experiment.run_dir import disk_needed
from tandem.group import Execution
from tandem.metrics import Score
from tandem.records import Check
from tandem.training import optimizer
from tandem.training.monitor import TrainingMonitor
from tandem.training.progress import Watcher, silent
from tandem.training.snapshots import Snapshots

Patch = pytest.MonkeyPatch
NETWORKS = ("lstm", "awd-lstm", "gpt2", "transformer")
KINDS = (*NETWORKS, "kneser-ney", "bigram", "unigram")
NETWORK = {"max_epochs": 2, "max_grad_norm": 0.3, "weight_decay": 0.05}
BASELINE = {
    "models": KINDS,
    "max_parameters": 9000,
    "lstm": {**NETWORK, "streams": 8, "lr": 0.02, "dropout": 0.5},
    "awd_lstm": {**NETWORK, "layers": 2, "streams": 8, "lr": 0.02, "average_after": 1, "max_epochs": 3},
    "gpt2": {**NETWORK, "layers": 1, "lr": 0.02, "window": 16, "batch_windows": 16},
    "transformer": {**NETWORK, "layers": 2, "lr": 0.02, "window": 16, "batch_windows": 16},
}


def prepared(folder: Path, documents: list[str], **baselines: Any) -> TrainingInputs:
    own = {
        name: {**BASELINE[name], **baselines.pop(name, {})}
        for name in ("lstm", "awd_lstm", "gpt2", "transformer")
    }
    text = write_jsonl(folder / "text.jsonl", documents)
    settings = tiny(text, configurations=((1, 1),), seeds=(1,), baselines={**BASELINE, **own, **baselines})
    return prepare(settings, lambda _: None)


@pytest.fixture(scope="module")
def tiny_inputs(tmp_path_factory: pytest.TempPathFactory) -> TrainingInputs:
    folder = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_CACHE", str(folder / "cache"))
        return prepared(folder, sentences(20))


def checks_of(
    inputs: TrainingInputs, kind: str, folder: Path, snapshots: Snapshots | None = None
) -> list[Check]:
    """A baseline is trained, kept and audited."""
    snapshots = Snapshots() if snapshots is None else snapshots
    spec = next(spec for spec in plan(inputs.settings) if spec.kind == kind)
    results, weights = baseline.run_baseline(inputs, kind, spec.seed, silent, snapshots)
    record = one_run.new_record(inputs, spec, status="finished", **results)
    if weights is not None:
        save_baseline(folder / spec.name, weights, snapshots, record)
    found = baseline_checks(inputs.settings, inputs.corpus, inputs.device, record, folder / spec.name)
    return list(found)


def changed_inputs(patch: Patch, kind: str, change: Callable[[BaselineInputs], BaselineInputs]) -> None:
    ours = type(BASELINES[kind])
    fit = ours.fit
    patch.setattr(ours, "fit", lambda self, inputs: fit(self, change(inputs)))


def changed_fitted(patch: Patch, kind: str, change: Callable[[Fitted], Fitted]) -> None:
    ours = type(BASELINES[kind])
    fit = ours.fit
    patch.setattr(ours, "fit", lambda self, inputs: change(fit(self, inputs)))


def changed_model(patch: Patch, kind: str, change: Callable[[Any], None]) -> None:
    ours = type(BASELINES[kind])
    build = ours.build  # type: ignore[attr-defined]

    def changed(self: Any, *sizes: Any) -> Any:
        model = build(self, *sizes)
        with torch.no_grad():
            change(model)
        return model

    patch.setattr(ours, "build", changed)


def validation_is_trained_on(inputs: BaselineInputs) -> BaselineInputs:
    return replace(inputs, train=np.concatenate((inputs.train, inputs.validation)))


def other_epochs(inputs: BaselineInputs) -> BaselineInputs:
    base = inputs.settings.baselines
    own = base.model_copy(update={"lstm": base.lstm.model_copy(update={"max_epochs": 1})})
    return replace(inputs, settings=inputs.settings.model_copy(update={"baselines": own}))


def read(
    change: Callable[[Tensor, Any], tuple[Tensor, Any]], training: bool = False
) -> Callable[[Patch], None]:
    """The LSTM reads other tokens or another state."""
    real = lstm.read_tokens

    def changed(model: Any, ids: Tensor, state: Any = None) -> Any:
        return real(model, *(change(ids, state) if model.training or not training else (ids, state)))

    return lambda patch: patch.setattr(lstm, "read_tokens", changed)


def half_of_the_steps(patch: Patch) -> None:
    real = LstmBaseline.losses
    patch.setattr(LstmBaseline, "losses", lambda *inputs: islice(real(*inputs), 6))


def other_adamw(change: Callable[..., Any]) -> Callable[[Patch], None]:
    real = optimizer.adamw
    return lambda patch: patch.setattr(optimizer, "adamw", lambda *given: change(real, *given))


def own_rate(patch: Patch) -> None:
    real = optimizer.set_rate
    patch.setattr(optimizer, "set_rate", lambda steps, _: real(steps, 0.001))


def one_decay(_real: Any, parameters: Any, decay: float, lr: float) -> Any:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)


def clipped(times: float) -> Callable[[Patch], None]:
    real = optimizer.clip_gradients
    return lambda patch: patch.setattr(optimizer, "clip_gradients", lambda p, norm: real(p, times * norm))


def dropout_when_scoring(patch: Patch) -> None:
    def stays(model: Any) -> None:
        model.eval = MethodType(lambda self: self.train(), model)

    changed_model(patch, "lstm", stays)


def later_targets(patch: Patch) -> None:
    real = lstm.side_by_side

    def changed(ids: Any, streams: int) -> Any:
        inputs, targets, valid = real(ids, streams)
        return inputs, torch.cat((targets[1:], targets[-1:])), valid

    patch.setattr(lstm, "side_by_side", changed)


def every_other_step(patch: Patch) -> None:
    real, calls = torch.optim.AdamW.step, [0]

    def step(self: Any, *given: Any) -> Any:
        calls[0] += 1
        return real(self, *given) if calls[0] % 2 else None

    patch.setattr(torch.optim.AdamW, "step", step)


def changed_between_epochs(patch: Patch) -> None:
    real = LstmBaseline.losses

    def losses(self: Any, model: Any, *given: Any) -> Any:
        with torch.no_grad():
            if hasattr(model, "second"):
                model["embedding"].weight.mul_(0.99)
        model.second = True
        return real(self, model, *given)

    patch.setattr(LstmBaseline, "losses", losses)


def last_epoch(patch: Patch) -> None:
    """Its weights are saved under the score of the best one, the first."""

    def end(self: TrainingMonitor, *epoch: Any) -> bool:
        first = self.best_epoch, self.best_score
        better = real(self, *epoch)
        if len(self.history) > 1:
            self.best_epoch, self.best_score = first
        return better and len(self.history) == 1

    real = TrainingMonitor.end_epoch
    patch.setattr(TrainingMonitor, "end_epoch", end)
    patch.setattr(TrainingMonitor, "restore_best", lambda self: self.best_score)


def without_mask(patch: Patch) -> None:
    def open_mask(model: Any) -> None:
        real = model.forward

        def forward(input_ids: Tensor) -> Any:
            size = input_ids.shape[1]
            return real(input_ids=input_ids, attention_mask=torch.zeros(len(input_ids), 1, size, size))

        model.forward = forward

    changed_model(patch, "gpt2", open_mask)


def in_order(patch: Patch) -> None:
    patch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))


def scored_without_overlap(patch: Patch) -> None:
    def parts(_self: Any, model: Any, ids: Any, _chunk: int) -> Iterator[Tensor]:
        for start in range(0, len(ids) - 1, 16):
            yield model(input_ids=ids[start : min(start + 16, len(ids) - 1)][None]).last_hidden_state[0]

    patch.setattr(Gpt2Baseline, "hidden_parts", parts)


def raw_counts(patch: Patch) -> None:
    """Lower orders count occurrences."""
    real = np.unique

    def all_of(values: Any, **wanted: bool) -> Any:
        found = real(values, **wanted)
        if set(wanted) == {"return_index", "return_inverse"}:
            return found[0], np.arange(len(values)), found[2]
        return found

    def fit(cls: Any, *inputs: Any) -> Any:
        with pytest.MonkeyPatch.context() as within:
            within.setattr(np, "unique", all_of)
            return counted(cls, *inputs)

    counted = KneserNey.fit.__func__  # type: ignore[attr-defined]
    patch.setattr(KneserNey, "fit", classmethod(fit))


def half_a_count(patch: Patch) -> None:
    def fit(inputs: BaselineInputs) -> Fitted:
        counts = np.bincount(inputs.train, minlength=inputs.vocab_size) + 0.5
        targets = inputs.validation[1:]
        score = Score.of(-np.log(counts[targets] / counts.sum()), int((targets == counts.argmax()).sum()))
        return Fitted(score, 0, int((counts > 1).sum()), None, 0.0, lambda _: score)

    patch.setattr(ngram, "fit_unigram", fit)


def of_order(order: int) -> Callable[[Patch], None]:
    real = ngram.fit_kneser_ney
    return lambda patch: patch.setattr(ngram, "fit_kneser_ney", lambda inputs, _: real(inputs, order))


def other_discounts(patch: Patch) -> None:
    real = kneser_ney.discounts
    patch.setattr(kneser_ney, "discounts", lambda counts: 0.8 * real(counts))


def frozen_embedding(model: Any) -> None:
    model["embedding"].weight.requires_grad_(False)


def no_dropout(model: Any) -> None:
    model["dropout"].p = 0.0


def wrong_score(**fields: Any) -> Callable[[Fitted], Fitted]:
    return lambda fitted: replace(fitted, score=replace(fitted.score, **fields))


def noise(fitted: Fitted) -> Fitted:
    assert fitted.weights is not None
    return replace(fitted, weights={name: weight + 0.02 for name, weight in fitted.weights.items()})


def even_windows(length: int, window: int, _: Any) -> list[int]:
    return [*range(0, length, window), length]


def changed_steps(**fields: Any) -> Callable[[Patch], None]:
    real = AwdLstmBaseline.losses
    return lambda patch: patch.setattr(
        AwdLstmBaseline, "losses", lambda *given: (step._replace(**fields) for step in real(*given))
    )


def without_weight_drop(inputs: BaselineInputs) -> BaselineInputs:
    base = inputs.settings.baselines
    own = base.awd_lstm.model_copy(update={"weight_dropout": 0.0})
    changed = base.model_copy(update={"awd_lstm": own})
    return replace(inputs, settings=inputs.settings.model_copy(update={"baselines": changed}))


def sees_all(query: Tensor, key: Tensor, value: Tensor, **_: bool) -> Tensor:
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


DEFECTS: dict[str, tuple[str, Callable[[Patch], None], str, str]] = {
    "the LSTM reads the future": (
        "lstm",
        read(lambda ids, state: (ids.roll(-1, 0), state)),
        "perplexity",
        "tokens that come later, read as well, give it",
    ),
    "half of an epoch's tokens": ("lstm", half_of_the_steps, "training", "epoch 1 predicted 1"),
    "half of an epoch's text": (
        "lstm",
        half_of_the_steps,
        "steps",
        "training did not come to step 10 of epoch 2",
    ),
    "one epoch": (
        "lstm",
        lambda patch: changed_inputs(patch, "lstm", other_epochs),
        "steps",
        "training did not come to step 10 of epoch 2, as the settings say",
    ),
    "a learning rate of its own": (
        "lstm",
        own_rate,
        "steps",
        "the learning rate of step 1 of epoch 1 was 0.001, the settings say 0.02",
    ),
    "a constant learning rate": (
        "lstm",
        lambda patch: patch.setattr(optimizer, "cosine_share", lambda *_: 1.0),
        "steps",
        "the learning rate of step 2 of epoch 1 was 0.02, the settings say 0.01988",
    ),
    "dropout when scoring": ("lstm", dropout_when_scoring, "perplexity", "dropout, left on, gives it"),
    "every other step skipped": ("gpt2", every_other_step, "steps", "moved in step"),
    "weights that change between epochs": (
        "lstm",
        changed_between_epochs,
        "steps",
        "weights changed between the last step of epoch 1 and the first one of epoch 2",
    ),
    "no clipping": ("lstm", clipped(1e9), "steps", "of epoch 1, 0.412 long, was not clipped"),
    "clipping to five times the norm": (
        "gpt2",
        clipped(2),
        "steps",
        "was clipped to 0.6, the settings say 0.3",
    ),
    "biases decay": ("lstm", other_adamw(one_decay), "steps", "vectors decayed in step 1 of epoch 1, too"),
    "nothing decays": (
        "gpt2",
        other_adamw(lambda real, parameters, _, lr: real(parameters, 0.0, lr)),
        "steps",
        "matrices did not decay in step 1 of epoch 1",
    ),
    "other betas": (
        "gpt2",
        other_adamw(lambda real, *given: real(*given, betas=(0.9, 0.95))),
        "steps",
        "AdamW's moments before step 2 of epoch 1",
    ),
    "a state that is not carried": (
        "lstm",
        read(lambda ids, _: (ids, None), training=True),
        "steps",
        "the loss of step 2 of epoch 1 was",
    ),
    "a state of another stream": (
        "lstm",
        read(lambda ids, s: (ids, s and tuple(part.roll(1, 1) for part in s)), training=True),
        "steps",
        ": the state was that of another stream",
    ),
    "targets of the token after": (
        "lstm",
        later_targets,
        "steps",
        "learned other targets than the tokens that follow",
    ),
    "the last epoch's weights": ("lstm", last_epoch, "perplexity", "the kept weights have that of epoch 2"),
    "validation text in training": (
        "gpt2",
        lambda patch: changed_inputs(patch, "gpt2", validation_is_trained_on),
        "steps",
        "step 1 of epoch 1 read other tokens than the settings and the seed say",
    ),
    "no causal mask": ("gpt2", without_mask, "perplexity", "tokens that come later, read as well, give it"),
    "windows in order": ("gpt2", in_order, "steps", "step 1 of epoch 1 read other tokens than the settings"),
    "another seed": (
        "gpt2",
        lambda patch: changed_inputs(patch, "gpt2", lambda inputs: replace(inputs, seed=0)),
        "start",
        "wte.weight was not as the seed draws it",
    ),
    "windows that do not overlap": ("gpt2", scored_without_overlap, "perplexity", "no known mistake"),
    "larger first weights": (
        "lstm",
        lambda patch: changed_model(patch, "lstm", lambda model: model["embedding"].weight.mul_(2)),
        "start",
        "embedding.weight was not as the seed draws it",
    ),
    "no dropout": (
        "lstm",
        lambda patch: changed_model(patch, "lstm", no_dropout),
        "steps",
        "it was without dropout",
    ),
    "a part that stays": (
        "lstm",
        lambda patch: changed_model(patch, "lstm", frozen_embedding),
        "steps",
        "the gradient of step 1 of epoch 1 was",
    ),
    "other weights are kept": (
        "gpt2",
        lambda patch: changed_fitted(patch, "gpt2", noise),
        "steps",
        "the saved weights are not those after step",
    ),
    "parameters miscounted": (
        "gpt2",
        lambda patch: changed_fitted(
            patch, "gpt2", lambda fitted: replace(fitted, other_parameters=fitted.other_parameters - 1)
        ),
        "parameters",
        "(counted ",
    ),
    "accuracy": (
        "lstm",
        lambda patch: changed_fitted(patch, "lstm", wrong_score(accuracy=0.9)),
        "perplexity",
        "accuracy 0.9000",
    ),
    "windows of one length": (
        "awd-lstm",
        lambda patch: patch.setattr(awd_lstm, "window_bounds", even_windows),
        "steps",
        "step 1 of epoch 1 read other tokens than the settings",
    ),
    "a learning rate that ignores the window": (
        "awd-lstm",
        changed_steps(rate=1.0),
        "steps",
        "the learning rate of step 1 of epoch 1 was",
    ),
    "no activation regularisation": (
        "awd-lstm",
        changed_steps(penalty=None),
        "steps",
        "the gradient of step 1 of epoch 1 was",
    ),
    "no weight drop": (
        "awd-lstm",
        lambda patch: changed_inputs(patch, "awd-lstm", without_weight_drop),
        "steps",
        "the loss of step 1 of epoch 1 was",
    ),
    "a transformer without a causal mask": (
        "transformer",
        lambda patch: patch.setattr(functional, "scaled_dot_product_attention", sees_all),
        "perplexity",
        "tokens that come later, read as well, give it",
    ),
    "no positions": (
        "transformer",
        lambda patch: patch.setattr(transformer, "rotated", lambda values, *_: values),
        "perplexity",
        "no known mistake",
    ),
    "other discounts": ("kneser-ney", other_discounts, "perplexity", "NLL"),
    "no continuation counts": ("kneser-ney", raw_counts, "perplexity", "NLL"),
    "order 4": ("kneser-ney", of_order(4), "perplexity", "NLL"),
    "n-grams of order 4": ("kneser-ney", of_order(4), "parameters", "n-grams, "),
    "a bigram of order 3": ("bigram", of_order(3), "perplexity", "documents have another NLL"),
    "n-grams of the validation text": (
        "kneser-ney",
        lambda patch: changed_inputs(patch, "kneser-ney", validation_is_trained_on),
        "perplexity",
        "NLL",
    ),
    "half a count added": ("unigram", half_a_count, "perplexity", "NLL"),
    "accuracy of an n-gram": (
        "bigram",
        lambda patch: changed_fitted(patch, "bigram", wrong_score(accuracy=0.5)),
        "perplexity",
        "accuracy 0.5000",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_of_baselines_are_named(
    defect: str, tiny_inputs: TrainingInputs, tmp_path: Path, monkeypatch: Patch
) -> None:
    kind, plant, check, words = DEFECTS[defect]
    with monkeypatch.context() as patch:
        plant(patch)
        spec = next(spec for spec in plan(tiny_inputs.settings) if spec.kind == kind)
        snapshots = Snapshots()
        results, weights = baseline.run_baseline(tiny_inputs, kind, spec.seed, silent, snapshots)
    record = one_run.new_record(tiny_inputs, spec, status="finished", **results)
    if weights is not None:
        save_baseline(tmp_path / spec.name, weights, snapshots, record)
    found = baseline_checks(
        tiny_inputs.settings, tiny_inputs.corpus, tiny_inputs.device, record, tmp_path / spec.name
    )
    figures = {check.name: check.figure for check in found if check.status == "fail"}
    assert words in figures.get(check, ""), figures


PHRASES = ["文脈を畳み込み、", "次の語を予測する。", "一つのベクトルに", "読んだものを", "記憶して、"]
JAPANESE = [f"第{n}章。" + "".join(random.Random(n).choices(PHRASES, k=30)) for n in range(40)]
NO_DROPOUT = {f"{name}_dropout": 0.0 for name in ("word", "input", "hidden", "output", "weight")}
AVERAGED = {**NO_DROPOUT, "lr": 0.3, "max_grad_norm": 9.0, "max_epochs": 5, "average_after": 1}
UNUSUAL: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "three layers": ("lstm", sentences(12), {"lstm": {"layers": 3, "max_epochs": 1}}),
    "no dropout, no decay": ("lstm", sentences(12), {"lstm": {"dropout": 0.0, "weight_decay": 0.0}}),
    "a window of two tokens": ("gpt2", sentences(8), {"gpt2": {"window": 2, "batch_windows": 99}}),
    "an odd window": ("gpt2", sentences(12), {"gpt2": {"window": 7, "layers": 2}}),
    "one epoch of one step": ("lstm", sentences(12), {"lstm": {"window": 9999, "max_epochs": 1}}),
    "epochs of one step": ("lstm", sentences(12), {"lstm": {"window": 9999, "max_epochs": 3}}),
    "one stream": ("lstm", sentences(12), {"lstm": {"streams": 1, "window": 200}}),
    "width of the embedding": ("lstm", sentences(12), {"max_parameters": 300 * 24 + 4 * 24 * 50}),
    "a window longer than the text": (
        "gpt2",
        sentences(7),
        {"gpt2": {"window": 3000, "max_epochs": 1}, "max_parameters": 60_000},
    ),
    "an AWD-LSTM of one layer": ("awd-lstm", sentences(12), {"awd_lstm": {"layers": 1, "average_after": 9}}),
    "windows of one token": ("awd-lstm", sentences(7), {"awd_lstm": {"window": 1, "max_epochs": 1}}),
    "one window": ("awd-lstm", sentences(7), {"awd_lstm": {"window": 9999}}),
    "weights that are averaged": ("awd-lstm", JAPANESE, {"awd_lstm": AVERAGED}),
    "seconds": ("lstm", sentences(12), {"seconds": 1.5}),
    "seconds of less than an epoch": ("gpt2", sentences(12), {"seconds": 0.02}),
    "the best of two rates": ("transformer", sentences(12), {"learning_rates": (1e-5, 0.01)}),
    "heads of two elements": ("transformer", sentences(12), {"transformer": {"heads": 8, "layers": 1}}),
    "a short text, transformer": ("transformer", sentences(7), {"transformer": {"window": 3000}}),
    "a large learning rate": ("gpt2", sentences(12), {"gpt2": {"lr": 0.3, "max_grad_norm": 50.0}}),
    "a small learning rate": ("lstm", sentences(12), {"lstm": {"lr": 1e-6}}),
    "Japanese, LSTM": ("lstm", JAPANESE, {}),
    "Japanese, GPT-2": ("gpt2", JAPANESE, {}),
    "Japanese, n-grams": ("kneser-ney", JAPANESE, {}),
    "order 2": ("kneser-ney", sentences(12), {"order": 2}),
    "order 7": ("kneser-ney", sentences(12), {"order": 7}),
    "a unigram": ("unigram", JAPANESE, {}),
}


def test_an_average_that_counts_a_step_too_much_is_named(tmp_path: Path, monkeypatch: Patch) -> None:
    real = optimizer.WeightAverage.after_step
    inputs = prepared(tmp_path, JAPANESE, awd_lstm=AVERAGED)
    right = {check.name: check.status for check in checks_of(inputs, "awd-lstm", tmp_path)}
    assert set(right.values()) == {"pass"}
    monkeypatch.setattr(
        optimizer.WeightAverage,
        "after_step",
        lambda self, count: real(self, count if count == 1 else count + 1),
    )
    wrong = {
        check.name: check.figure
        for check in checks_of(inputs, "awd-lstm", tmp_path)
        if check.status == "fail"
    }
    assert wrong.keys() == {"steps"}
    assert "the best one on the average of" in wrong["steps"]


BUDGETS: dict[str, tuple[dict[str, Any], Any, str, Any]] = {
    "a rate that does not fall": ({"seconds": 1.0}, optimizer, "timed_share", lambda *_: 1.0),
    "the worst of two rates": (
        {"learning_rates": (1e-6, 0.02)},
        rates.RateSearch,
        "lr",
        property(lambda self: self.rates[0 if len(self.trials) == 2 else len(self.trials)]),
    ),
}


@pytest.mark.parametrize("defect", BUDGETS)
def test_another_learning_rate_than_that_of_the_budget_is_named(
    defect: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    budget, place, name, wrong = BUDGETS[defect]
    inputs = prepared(tmp_path, sentences(12), **budget)
    monkeypatch.setattr(place, name, wrong)
    found = {
        check.name: check.figure for check in checks_of(inputs, "lstm", tmp_path) if check.status == "fail"
    }
    assert "the learning rate of step" in found["steps"]


@pytest.mark.parametrize("shape", slow_but((), UNUSUAL))
def test_no_false_alarm_of_baselines(shape: str, tmp_path: Path) -> None:
    kind, documents, more = UNUSUAL[shape]
    found = checks_of(prepared(tmp_path, documents, **more), kind, tmp_path)
    assert {check.status for check in found} == {"pass"}, [c for c in found if c.status != "pass"]


def test_bf16_and_steps_too_large_to_be_kept(
    tiny_inputs: TrainingInputs, tmp_path: Path, monkeypatch: Patch
) -> None:
    half = replace(tiny_inputs, execution=Execution(bfloat16=True))
    for kind in NETWORKS:
        assert [check for check in checks_of(half, kind, tmp_path) if check.status != "pass"] == []
    monkeypatch.setattr(network_steps, "BUDGET_BYTES", 150_000)
    status = {c.name: c.status for c in checks_of(tiny_inputs, "lstm", tmp_path, Snapshots(150_000))}
    assert (status["start"], status["steps"]) == ("skip", "pass")
    monkeypatch.setattr(network_steps, "BUDGET_BYTES", 9000)
    found = {c.name: c for c in checks_of(tiny_inputs, "lstm", tmp_path, Snapshots(9000))}
    assert found["steps"].figure == "not checked: its steps were too large to be kept"
    assert found["perplexity"].status == "pass"


def test_plain_kneser_ney_equals_the_naive_one() -> None:
    draws = random.Random(0)
    for _ in range(40):
        size, order = draws.randrange(2, 7), draws.randrange(2, 7)
        train, text = ([draws.randrange(size) for _ in range(draws.randrange(2, 70))] for _ in range(2))
        naive = NaiveKneserNey(train, size, order)
        p = np.array(
            [[naive.probability(tuple(text[:t]), w) for w in range(size)] for t in range(1, len(text))]
        )
        found = score_kneser_ney(np.array(train, np.uint16), np.array(text, np.uint16), size, order)
        chosen = p[np.arange(len(p)), text[1:]]
        np.testing.assert_allclose(found.losses, -np.log(chosen), rtol=1e-9)
        best = p.max(1) * (1 - 1e-9)
        alone = (p >= best[:, None]).sum(1) == 1
        assert found.correct[0] <= int((alone & (chosen >= best)).sum())
        assert found.correct[1] == int((chosen >= best).sum())
        assert found.ngrams == sum(len(counts) for counts in naive.counts.values())


def test_what_is_kept_of_a_baseline(tmp_path: Path) -> None:
    """A run directory has its weights; no command takes them for a Tandem model."""
    text = write_jsonl(tmp_path / "text.jsonl", sentences(20))
    settings = tiny(
        text,
        configurations=((1, 1),),
        seeds=(0,),
        output=str(tmp_path / "run"),
        phase1={"max_iterations": 2},
        phase2={"max_epochs": 1},
        baselines={**BASELINE, "models": ("lstm", "unigram")},
    )
    run_dir, _ = runner.run_experiment(settings, Watcher())
    folder = run_dir / "models" / "LSTM-seed0"
    names = {path.name for path in folder.iterdir()}
    assert names == {"checksums.json", "model.safetensors", "record.json", "snapshots.safetensors"}
    assert not (run_dir / "models" / "unigram").exists()
    found = {run.run: {check.name: check for check in run.checks} for run in audit(run_dir).runs}
    assert {check.status for check in found["LSTM-seed0"].values()} == {"pass"}
    assert found["unigram"]["perplexity"].status == "pass"
    for use in (lambda: evaluate_model(folder, str(text)), lambda: audit(folder)):
        with pytest.raises(RunDirError, match=r"it is the weights of a baseline.*(give .*run|tandem train)"):
            use()
    inputs = prepare(settings, lambda _: None)
    specs = plan(settings)
    without = [spec for spec in specs if spec.kind != "lstm"]
    kept = sum(path.stat().st_size for path in folder.iterdir())
    assert kept <= disk_needed({None: inputs}, specs) - disk_needed({None: inputs}, without) <= 2 * kept
    (folder / "model.safetensors").write_bytes(b"nothing")
    failed = {check.name: check.figure for _, check in audit(run_dir).failed()}
    assert failed.keys() == {"model"}
    assert "what is kept of it cannot be used" in failed["model"]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    last = {check.name: check for check in audit(run_dir).runs[-1].checks}
    assert last["model"] == unchecked(
        "model", "the kept weights", "no model is kept, so its figures were not recomputed"
    )
