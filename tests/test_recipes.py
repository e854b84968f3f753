"""Recipes and variants: both in one experiment, each as it would be alone, and what is said of bad ones."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import PREDICTIVE, merged, sentences, tiny, write_jsonl

from tandem.audit import audit
from tandem.errors import SettingsError
from tandem.experiment import contexts
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.pipeline import (
    load_phase1_state,
    new_heads,
    phase1_state,
    train_contexts,
    train_tokens,
    untrained_contexts,
)
from tandem.experiment.prepared import new_model, prepare
from tandem.experiment.runner import run_experiment
from tandem.experiment.single_run import train_one
from tandem.metrics import score_stream
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.model_folder.loading import load_model
from tandem.objectives import OBJECTIVES
from tandem.objectives.predictive import PredictionRecord, nearest_head
from tandem.records import RunRecord, read_manifest
from tandem.settings import Configuration, Settings, chosen_variant
from tandem.training.initialization import start_from_head
from tandem.training.progress import Watcher

BOTH = {"original": {}, "predictive": PREDICTIVE}
Made = tuple[Settings, dict[str, RunRecord]]


def run(settings: Settings) -> dict[str, RunRecord]:
    records = run_experiment(settings, Watcher())[1]
    assert [record.failure for record in records] == [None] * len(records)
    return {record.run: record for record in records}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A finished experiment with both recipes, which tests leave as it is."""
    folder = tmp_path_factory.mktemp("both")
    text = write_jsonl(folder / "text.jsonl", sentences(20))
    settings = tiny(text, output=str(folder / "run"), seeds=(0,), variants=BOTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_CACHE", str(folder / "cache"))
        return settings, run(settings)


def test_both_recipes_in_one_experiment(both: Made) -> None:
    settings, records = both
    assert list(records) == [f"{v}-{c}-seed0" for v in BOTH for c in ("C1T1", "C2T1")]
    manifest = read_manifest(Path(settings.output))
    assert manifest is not None
    assert manifest.configurations == ("original-C1T1", "original-C2T1", "predictive-C1T1", "predictive-C2T1")
    one, other = records["predictive-C1T1-seed0"], records["original-C1T1-seed0"]
    assert (one.recipe, one.variant, other.recipe) == ("predictive", "predictive", "original")
    assert isinstance(one.phase1, PredictionRecord)
    assert one.parameters is not None
    assert other.parameters is not None
    assert one.parameters.head == 300
    assert one.parameters.trained_phase1 == one.parameters.total - one.parameters.token_block
    assert other.parameters.trained_phase1 == other.parameters.context_block
    assert one.contexts is not None
    assert one.contexts.train.method == "linear"
    assert audit(Path(settings.output)).status == "pass"


def test_a_variant_is_what_it_would_be_alone(both: Made, tmp_path: Path) -> None:
    settings, records = both
    text = Path(settings.data.train)
    alone = run(tiny(text, output=str(tmp_path / "original"), seeds=(0,)))
    predictive = run(tiny(text, **merged(PREDICTIVE, {"output": str(tmp_path / "p"), "seeds": (0,)})))
    for variant, single in (("original", alone), ("predictive", predictive)):
        for name, record in single.items():
            twin = records[f"{variant}-{name}"]
            assert twin.validation == record.validation
            assert twin.settings_fingerprint == record.settings_fingerprint


def test_only_a_changed_variant_is_made_again(both: Made, tmp_path: Path) -> None:
    settings, before = both
    output = str(shutil.copytree(settings.output, tmp_path / "run"))
    changed = merged(PREDICTIVE, {"prediction": {"dropout": 0.1}})
    variants = {"original": {}, "predictive": changed}
    after = run(settings.model_copy(update={"output": output, "variants": variants}))
    assert before["original-C1T1-seed0"] == after["original-C1T1-seed0"]
    again = after["predictive-C1T1-seed0"]
    assert again.settings_fingerprint != before["predictive-C1T1-seed0"].settings_fingerprint
    assert again.phase1_computed_here


def test_phase_2_starts_where_phase_1_predicted(text_file: Path) -> None:
    """With one token layer and no learning, phase 2 is the head of phase 1; deeper ones start near it."""
    settings = tiny(text_file, **merged(PREDICTIVE, {"phase2": {"max_epochs": 1, "lr": 1e-12}}))
    prepared = prepare(settings, lambda _: None)
    shared = train_contexts(prepared, 1, 0)
    assert isinstance(shared.phase1, PredictionRecord)
    same = train_tokens(prepared, shared, Configuration(1, 1), 0)
    assert [head.token_layers for head in shared.phase1.heads] == [1, 2]
    assert same.phase2.validation.nll_nats == pytest.approx(shared.phase1.head_for(1).nll_nats, abs=1e-6)
    two = train_tokens(prepared, shared, Configuration(1, 2), 0)
    assert two.phase2.validation.nll_nats == pytest.approx(shared.phase1.head_for(2).nll_nats, abs=1e-6)
    deeper = train_tokens(prepared, shared, Configuration(1, 3), 0)
    assert deeper.phase2.validation.nll_nats == pytest.approx(shared.phase1.head_for(3).nll_nats, abs=0.3)
    # The contexts, the embedding and its norm are frozen, and what phase 1 left.
    for name, tensor in phase1_state(shared.model, OBJECTIVES["predictive"]).items():
        assert torch.equal(tensor, deeper.model.named_weights()[name])


@pytest.mark.parametrize("projection", [False, True])
def test_layers_taken_over_read_the_same_context(projection: bool) -> None:
    assert [nearest_head((1, 2), depth) for depth in (1, 2, 3)] == [1, 2, 2]
    assert nearest_head((3, 2), 1) == 2

    def block(depth: int) -> torch.nn.Module:
        sizes = {"vocab_size": 9, "embed_dim": 6, "context_dim": 4}
        config = TandemConfig(**sizes, token_layers=depth, cell="gated", token_projection=projection)
        return TandemForCausalLM(config).token_block

    x = torch.randn(3, 6)
    # For each layer, which one of the head it is; none: it only normalises.
    for layers, head_depth in (
        ((0,), 1),
        ((1,), 2),
        ((None, 0), 1),
        ((0, 1), 2),
        ((0, None, 1), 2),
        ((0, 2), 3),
        ((0, 1, None, 2), 3),
    ):
        ours, head = block(len(layers)), block(head_depth)
        start_from_head(ours, head)
        for layer, source in zip(ours.layers, layers, strict=True):
            if source is None:
                context = None if layer.context_norm is None else torch.randn(3, 4)
                torch.testing.assert_close(layer(context, x), torch.nn.functional.layer_norm(x, (6,)))
            else:
                for name, tensor in head.layers[source].state_dict().items():
                    assert torch.equal(layer.state_dict()[name], tensor)


def test_a_predictive_model_scores_as_recorded(both: Made) -> None:
    """Saved, loaded, and through its own forward."""
    settings, records = both
    record = records["predictive-C2T1-seed0"]
    folder = Path(settings.output) / "models" / "predictive-C2T1-seed0"
    model, _ = load_model(folder)
    ids = torch.from_numpy(prepare(settings, lambda _: None).corpus.validation.ids.astype("int64"))
    loss = model(input_ids=ids[None], labels=ids[None]).loss.detach()
    assert record.validation is not None
    assert float(loss) == pytest.approx(record.validation.nll_nats, abs=1e-4)
    scored = evaluate_model(folder, settings.data.train)
    assert scored.perplexity > 1
    assert scored.phase1 == {}


@pytest.mark.parametrize(
    ("token_layers", "head", "keep"), [(1, 1, "disk"), (2, 2, "recompute"), (3, 2, "auto")]
)
def test_a_model_trained_alone_has_the_one_head_it_starts_from(
    text_file: Path, tmp_path: Path, token_layers: int, head: int, keep: str
) -> None:
    more = {"prediction": {"head_layers": (1, 2)}, "contexts": {"keep": keep}}
    settings = tiny(text_file, **merged(PREDICTIVE, more))
    record = train_one(settings, Configuration(1, token_layers), 0, tmp_path / "model", Watcher())
    assert isinstance(record.phase1, PredictionRecord)
    assert [one.token_layers for one in record.phase1.heads] == [head]
    assert record.contexts is not None
    kept = (record.contexts.train.storage, record.contexts.validation.storage)
    assert kept == (("memory", "memory") if keep == "auto" else (keep, "recompute"))
    assert audit(tmp_path / "model").status == "pass"


@pytest.mark.parametrize(("missing", "kept"), [(0, "disk"), (1, "recompute")])
def test_contexts_that_memory_has_no_room_for_go_to_disk_if_that_has(
    missing: int, kept: str, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(text_file, workers=2)
    prepared = prepare(settings, lambda _: None)
    size = 2 * len(prepared.corpus.train) * settings.model.context_dim
    free = 2 * settings.workers * size - missing  # each worker takes half of its part at most
    usage = os.statvfs_result((1, 1, 2 * free, 2 * free, free, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: usage)
    monkeypatch.setattr(contexts, "free_memory", lambda _device: 0)
    made = untrained_contexts(prepared, 1, 0).contexts
    assert (made.train.storage, made.validation.storage) == (kept, "recompute")


@pytest.mark.parametrize(("lr", "kept"), [(50.0, True), (0.001, False)])
def test_phase_2_is_never_worse_than_what_it_starts_from(
    text_file: Path, tmp_path: Path, lr: float, kept: bool
) -> None:
    more = {"phase2": {"lr": lr, "max_epochs": 2, "schedule": "constant"}, "prediction": {"max_epochs": 2}}
    record = train_one(
        tiny(text_file, **merged(PREDICTIVE, more)), Configuration(1, 1), 0, tmp_path / "model", Watcher()
    )
    assert record.validation is not None
    assert record.phase2 is not None
    assert isinstance(record.phase1, PredictionRecord)
    head = record.phase1.head_for(1).nll_nats
    start = record.phase2.history[0]
    assert (start.epoch, start.validation_nll_nats) == (0, pytest.approx(head, abs=1e-6))
    assert record.phase2.epochs == (1 if kept else 2)  # patience is 1
    assert (record.phase2.best_epoch == 0) is kept
    assert (record.validation.nll_nats < start.validation_nll_nats) is not kept
    found = audit(tmp_path / "model")
    assert found.status == "pass", found.failed()


def test_what_phase_1_left_is_all_that_a_new_model_needs(text_file: Path) -> None:
    settings = tiny(text_file, **PREDICTIVE)
    prepared = prepare(settings, lambda _: None)
    shared = train_contexts(prepared, 2, 0)
    model, heads = new_model(prepared, Configuration(2, 2), 0), new_heads(prepared, 2, 0)
    state = phase1_state(shared.model, OBJECTIVES["predictive"]) | shared.heads.state_dict()
    load_phase1_state(state, model, heads)
    assert isinstance(shared.phase1, PredictionRecord)
    for head, record in zip(heads.values(), shared.phase1.heads, strict=True):
        score = score_stream(model, shared.validation.stream, shared.validation.contexts, 512, head)
        assert score.nll_nats == record.nll_nats


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"recipe": "seed"}, "it must be 'original', 'predictive' or 'adapted'"),
        ({"variants": {"a": {"data": {"train": "x"}}}}, r"variants.a.data is not possible: .*recipe, emb"),
        ({"variants": {"a": {"model": {"cel": "gated"}}}}, r"variants.a: .*'model.cell'"),
        ({"variants": {"a-b": {}}}, "variants"),
        ({"recipe": "predictiv"}, "recipe = 'predictiv'"),
    ],
)
def test_impossible_variants_are_one_sentence(text_file: Path, more: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        tiny(text_file, **more)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"phase2": {"start": "phase1"}}, "recipe original has no token layers to start from"),
        (
            merged(PREDICTIVE, {"embeddings": {"trained": True}}),
            "recipe predictive trains the embedding in phase 1 in any case",
        ),
        (
            merged(PREDICTIVE, {"model": {"context_dim": 15}, "configurations": ((2, 1),)}),
            "context_dim = 15 cannot be shared evenly by 2 gated layers",
        ),
    ],
)
def test_settings_of_the_other_recipe_are_refused(
    text_file: Path, more: dict[str, object], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        prepare(tiny(text_file, **more), lambda _: None)


def test_a_variant_is_chosen_by_name(text_file: Path) -> None:
    settings = tiny(text_file, variants=BOTH)
    assert chosen_variant(settings, "predictive").recipe == "predictive"
    assert chosen_variant(settings, None).variants == {}
    with pytest.raises(
        SettingsError, match="no variant 'other' in these settings; there are: original, predictive"
    ):
        chosen_variant(settings, "other")
