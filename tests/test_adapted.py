"""`tandem adapt`: new token layers on the contexts of a trained model, for other text."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import PREDICTIVE, merged, sentences, tiny, write_jsonl
from safetensors.torch import load_file, save_file

from tandem.cli.main import run
from tandem.experiment.adapting import adapted_settings
from tandem.experiment.runner import run_experiment
from tandem.experiment.single_run import train_one
from tandem.model_folder.loading import load_model
from tandem.objectives.adapted import AdaptationRecord
from tandem.records import RunRecord
from tandem.settings import Configuration, DataSettings
from tandem.training.progress import Watcher

OTHER = ("what", "before", "reads", "model", "state", "norm", "and", "learns", "of", "small", "two")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the recipe predictive."""
    place = tmp_path_factory.mktemp("trained")
    settings = tiny(write_jsonl(place / "text.jsonl", sentences(20)), **PREDICTIVE)
    train_one(settings, Configuration(2, 1), 0, place / "model", Watcher())
    return place / "model"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Text of other words."""
    return write_jsonl(tmp_path / "other.jsonl", sentences(20, words=OTHER))


@pytest.fixture
def adapted(trained: Path, other: Path, tmp_path: Path) -> Path:
    """The model after `tandem adapt`."""
    folder = tmp_path / "adapted"
    assert run(["adapt", str(trained), "--data", str(other), "--output", str(folder)]) == 0
    return folder


def record_of(folder: Path) -> RunRecord:
    return RunRecord.model_validate_json((folder / "record.json").read_text("utf-8"))


def test_only_the_token_block_is_new_and_it_fits_the_text_better(trained: Path, adapted: Path) -> None:
    (before, tokenizer), (after, same) = load_model(trained), load_model(adapted)
    assert same.get_vocab() == tokenizer.get_vocab()
    ours, theirs = after.named_weights(), before.named_weights()
    changed = {name.split(".")[0] for name, weight in theirs.items() if not torch.equal(weight, ours[name])}
    assert changed == {"token_block", "lm_head"}
    record = record_of(adapted)
    assert isinstance(record.phase1, AdaptationRecord)
    assert record.phase1.model == str(trained.resolve())
    assert not any(part.trained for part in record.phase1.parts)
    assert record.parameters is not None
    assert record.parameters.trained_phase1 == 0
    assert record.validation is not None
    assert record.phase2 is not None
    start = record.phase2.history[0]
    assert start.epoch == 0
    assert record.validation.nll_nats < start.validation_nll_nats - 0.05
    frequencies = after.lm_head.bias.detach().exp()
    assert math.isclose(float(frequencies.sum()), 1, rel_tol=1e-4)
    assert bool((frequencies > 0.0999 * before.lm_head.bias.detach().exp()).all())  # a share of the old ones


def test_its_audit_passes_and_names_another_trained_model(
    trained: Path, adapted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", str(adapted)]) == 0
    weights = trained / "model.safetensors"
    whole = weights.read_bytes()
    try:
        tensors = load_file(weights)
        name = next(name for name in tensors if "context_block" in name and tensors[name].ndim > 1)
        tensors[name] += 0.1
        save_file(tensors, weights, {"format": "pt"})
        (trained / "checksums.json").rename(trained / "aside.json")
        capsys.readouterr()
        assert run(["audit", str(adapted)]) == 1
        assert "context_block" in capsys.readouterr().out
    finally:
        weights.write_bytes(whole)
        (trained / "aside.json").rename(trained / "checksums.json")


def test_the_same_command_stays_and_an_adapted_model_is_a_model(
    adapted: Path, trained: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["adapt", str(trained), "--data", str(other), "--output", str(adapted), "--json"]
    assert run(again) == 0
    said = capsys.readouterr()
    assert "is finished" in said.err
    assert json.loads(said.out)["recipe"] == "adapted"
    assert run(["evaluate", str(adapted), "--data", str(other), "--json"]) == 0
    assert run(["generate", str(adapted), "--prompt", "the", "--max-new-tokens", "3"]) == 0
    capsys.readouterr()
    both = ["score", str(trained), str(other), "--also", str(adapted)]
    assert run(both) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["adapted_bits_per_byte"] < row["bits_per_byte"] for row in rows)
    assert run([*both, str(adapted / ".")]) == 2
    assert "two folders of --also have one name" in capsys.readouterr().err
    third = str(tmp_path / "third")
    assert run(["adapt", str(adapted), "--data", str(other), "--output", third]) == 0


def test_an_experiment_compares_depths_on_the_same_contexts(
    trained: Path, other: Path, tmp_path: Path
) -> None:
    settings, _ = adapted_settings(trained, DataSettings(train=str(other), validation_fraction=0.2))
    own = {
        "configurations": ((2, 1), (2, 2)),
        "seeds": (0, 1),
        "output": str(tmp_path / "run"),
        "phase2": settings.phase2.model_copy(update={"max_epochs": 2}),
    }
    _, records = run_experiment(settings.model_copy(update=own), Watcher())
    assert [record.status for record in records] == ["finished"] * 4
    assert len({record.contexts.effective_rank_validation for record in records if record.contexts}) == 1
    assert run(["audit", str(tmp_path / "run")]) == 0
    assert run(["report", str(tmp_path / "run")]) == 0


def test_what_cannot_be_adapted_is_one_sentence(
    trained: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*args: object) -> str:
        assert run([str(arg) for arg in args]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith("tandem: error: ")
        return line

    assert "model folder" in said("adapt", other, "--data", other)
    assert "the text to adapt to" in said("adapt", trained)
    assert "needs a trained model" in said(
        "train", "predictive", "--recipe", "adapted", "--data.train", other
    )
    small = tmp_path / "small"
    assert run(["quantize", str(trained), "--output", str(small)]) == 0
    assert "holds 8-bit weights" in said("adapt", small, "--data", other)

    settings, configuration = adapted_settings(trained, DataSettings(train=str(other)))
    file = tmp_path / "other.yaml"
    for section, values, words in (
        ("model", {"embed_dim": 32}, "setting model.embed_dim = 32 is not possible: the model in"),
        ("tokenizer", {"source": "bpe", "vocab_size": 290}, "was trained with"),
    ):
        changed = merged(settings.model_dump(mode="json"), {section: values})
        file.write_text(json.dumps(changed), "utf-8")
        assert words in said("train", file, "--output", tmp_path / "none")
    assert configuration == Configuration(2, 1)
    file.write_text(json.dumps(settings.model_dump(mode="json")), "utf-8")
    assert "3 context layers are not possible" in said("train", file, "--context-layers", "3")
