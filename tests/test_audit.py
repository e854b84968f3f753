"""The audit names every planted defect, and raises no alarm where there is none."""

import json
import math
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import defects
import numpy as np
import pytest
import torch
from conftest import PREDICTIVE, merged, seal_again, sentences, slow_but, tiny, write_jsonl
from safetensors import safe_open
from warm import python

from tandem.audit import audit
from tandem.audit.reference import contexts_at
from tandem.audit.run import _settings_check
from tandem.errors import DataError, RunDirError
from tandem.experiment.runner import run_experiment
from tandem.model import TandemConfig, TandemForCausalLM, sequential_contexts
from tandem.objectives import original
from tandem.records import AuditRecord, DocumentScores, RunRecord, read_audit, read_records
from tandem.settings import Settings, load_settings, settings_fingerprint
from tandem.training.progress import Watcher
from tandem.training.snapshots import Snapshots


@dataclass(frozen=True)
class Planted:
    """A defect, what the audit must say of it, and the experiment it is planted into.

    named      checks that must fail, each with words that its figure must hold
    predictive the same under the recipe predictive, where it is said in other words
    remains    whether the mistake is in the program, and so is still there when the audit runs
    """

    plant: Callable[[pytest.MonkeyPatch], None]
    named: dict[str, str]
    configuration: tuple[int, int] = (1, 1)
    seeds: tuple[int, ...] = (0,)
    predictive: dict[str, str] | None = None
    remains: bool = False
    shuffle: bool = False


PLANTED = {
    "validation contexts all zero": Planted(
        defects.zero_validation_contexts,
        {"contexts": "all zero", "perplexity": "all zero give it"},
        (1, 2),
    ),
    "training contexts all zero": Planted(
        defects.zero_training_contexts, {"contexts": "train: they are all zero"}
    ),
    "contexts off by one": Planted(
        defects.late_validation_contexts,
        {"contexts": "those of the token before", "perplexity": "reads the previous context"},
    ),
    "contexts that look ahead": Planted(
        defects.early_training_contexts, {"contexts": "train: they are those of the token after"}
    ),
    "noise left on at evaluation": Planted(
        defects.noise_at_evaluation, {"contexts": "noise of standard deviation 0.1"}
    ),
    "noisy sweep as training contexts": Planted(
        defects.noisy_sweep_for_training, {"contexts": "train: they differ"}
    ),
    "stale context cache": Planted(
        defects.stale_contexts,
        {"contexts": "before phase 1 (stale)"},
        predictive={"contexts": "train: they differ"},  # the embedding is not that of before phase 1
    ),
    "no burn-in": Planted(defects.no_burn_in, {"contexts": "validation: they differ"}),
    "single layer trained on the previous context": Planted(
        defects.previous_context_for_a_single_layer, {"perplexity": "reads the previous context"}, (2, 1)
    ),
    "single layer that reads the previous context": Planted(
        defects.previous_context_for_a_single_layer,
        {"reads": "token layer 1 of 1 reads the previous context instead of the current context"},
        (2, 1),
        remains=True,
    ),
    "look-ahead in the model": Planted(defects.look_ahead, {"causality": "depend on it"}, remains=True),
    "frozen part that moves": Planted(
        defects.frozen_part_moves, {"frozen": "context_block.layers.0 (in phase 2)"}
    ),
    "head trained by accident": Planted(
        defects.head_trained_by_accident,
        {"frozen": "embedding", "parameters": "phase 2 is said to train"},
        predictive={"trained": "and trained embedding", "parameters": "phase 2 is said to train"},
    ),
    "part left out of the optimizer": Planted(
        defects.parameters_left_out,
        {"trained": "token_block.layers.0 did not change"},
        (1, 2),
    ),
    "phase 1 of another seed": Planted(
        defects.phase1_of_another_seed,
        {"phase1": "did not start from the weights of seed 1; the phase 1 of C1T1-seed0"},
        seeds=(0, 1),
    ),
    "wrong tokenizer at evaluation": Planted(
        defects.wrong_tokenizer_at_evaluation, {"tokens": "validation text: document 1 has other tokens"}
    ),
    "last partial batch dropped": Planted(
        defects.last_batch_dropped, {"counts": "validation scored", "perplexity": "last partial batch"}
    ),
    "PPL averaged over batches": Planted(
        defects.averaged_over_batches, {"perplexity": "averaging over batches of 256"}
    ),
    "mean of the PPL of batches": Planted(
        defects.mean_of_perplexities, {"perplexity": "averaging over batches of 256"}
    ),
    "current token scored": Planted(
        defects.scored_token_is_the_current_one, {"perplexity": "scoring the current token gives it"}
    ),
    "trained on shifted targets": Planted(
        defects.trained_on_shifted_targets, {"phase2_steps": "the loss of step 1 of epoch 1 was"}
    ),
    "seeds that are no replications": Planted(
        defects.phase2_always_from_seed_0,
        {"trained": "did not start from the weights of seed 1"},
        seeds=(1,),
        predictive={"phase1": "did not start from the weights of seed 1"},
    ),
    "another order of batches": Planted(
        defects.shuffle_ignored, {"phase2_steps": "step 1 of epoch 1 read other positions"}, shuffle=True
    ),
    "training reads the previous context": Planted(
        defects.training_reads_the_previous_context,
        {"phase2_steps": "the current contexts that step 1 of epoch 1 read are off"},
    ),
    "a third of the text": Planted(defects.a_third_of_the_text, {"training": "epoch 1 predicted"}),
    "phase 1 on a few tokens": Planted(
        defects.phase1_on_a_few_tokens,
        {"phase1": "it swept 600 tokens"},
        predictive={"phase1": "an epoch predicted 600 of"},
    ),
    "norm counted as trained": Planted(defects.norm_counted_as_trained, {"parameters": "is said to train"}),
    "other weights saved": Planted(
        defects.other_weights_saved, {"frozen": "token_block.layers.0 (after phase 2)", "perplexity": "NLL"}
    ),
}


DROPPED = {"phase2": {"dropout": 0.3, "schedule": "linear"}}
CLIPPED = {"phase2": {"max_grad_norm": 0.05}}
WORSE = merged(PREDICTIVE, {"phase2": {"lr": 30.0, "max_epochs": 3, "patience": 1}})
LATER: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str, dict[str, Any]]] = {
    # the check that fails and words of its figure; settings, of recipe `predictive` where they name it
    "lr ignores the settings": (defects.lr_of_its_own, "phase2_steps", "learning rate of step 1", {}),
    "one weight of the start": (defects.one_weight_drawn_otherwise, "trained", "did not start from", {}),
    "no schedule": (defects.no_schedule, "phase1_steps", "learning rate of step 2 of epoch 1", PREDICTIVE),
    "no clipping": (defects.no_clipping, "phase2_steps", "gradient was not clipped", CLIPPED),
    "decay of everything": (
        defects.decay_of_everything,
        "phase2_steps",
        "otherwise than the settings say",
        {"phase2": {"weight_decay": 5.0}},
    ),
    "other betas": (defects.other_betas, "phase1_steps", "its betas were those of torch", PREDICTIVE),
    "moments forgotten": (defects.moments_forgotten, "phase2_steps", "otherwise than the settings say", {}),
    "gradients that add up": (defects.gradients_that_add_up, "phase2_steps", "the gradient of step 2", {}),
    "trained on validation too": (
        defects.trained_on_validation_too,
        "phase2_steps",
        "weights changed between the last step of epoch 1",
        {},
    ),
    "half of the epochs": (defects.half_of_the_epochs, "history", "1 epochs were made", {}),
    "endless patience": (
        defects.endless_patience,
        "history",
        "patience 1 was reached",
        WORSE,
    ),
    "no dropout": (defects.no_dropout, "phase2_steps", "the loss of step 1 of epoch 1", DROPPED),
    "the same dropout in every step": (
        defects.same_dropout_in_every_step,
        "phase2_steps",
        "the loss of step 2 of epoch 1",
        DROPPED,
    ),
    "the same negatives in every step": (
        defects.same_negatives_in_every_step,
        "phase1_steps",
        "the loss of step 2 of epoch 1",
        PREDICTIVE,
    ),
    "an uncorrected sample": (
        defects.uncorrected_sample,
        "phase1_steps",
        "the loss of step 1 of epoch 1",
        PREDICTIVE,
    ),
    "the same order in every epoch": (
        defects.same_order_in_every_epoch,
        "phase2_steps",
        "read other positions",
        {"phase2": {"shuffle": True}},
    ),
    "last step left out": (defects.last_step_left_out, "training", "epoch 1 predicted", {}),
    "another batch size": (defects.other_batch_size, "phase2_steps", "read other positions", {}),
    "last epoch counts": (
        defects.last_epoch_counts,
        "perplexity",
        "recomputed",
        WORSE,
    ),
    "the mean of half an epoch": (
        defects.mean_of_half_an_epoch,
        "phase2_steps",
        "the mean loss of epoch 1 is",
        {},
    ),
    "earlier epochs look worse": (
        defects.earlier_epochs_look_worse,
        "training",
        "validation NLL of epoch 1",
        {},
    ),
    "contexts not carried": (
        defects.contexts_not_carried,
        "phase1_steps",
        "the loss of step 2 of epoch 1",
        merged(PREDICTIVE, {"prediction": {"window": 16}}),
    ),
    "windows always cut alike": (
        defects.windows_always_cut_alike,
        "phase1_steps",
        "read other positions",
        PREDICTIVE,
    ),
    "documents always in one order": (
        defects.documents_in_one_order,
        "phase1_steps",
        "read other positions",
        PREDICTIVE,
    ),
    "tokens always whole": (defects.tokens_always_whole, "phase1_steps", "read other positions", PREDICTIVE),
    "tokens split without end": (
        defects.tokens_split_without_end,
        "history",
        "read a text of",
        PREDICTIVE,
    ),
    "other tokens split": (defects.other_tokens_split, "phase1_steps", "step 1 of epoch 1", PREDICTIVE),
    "shorter windows": (defects.shorter_windows, "phase1_steps", "read other positions", PREDICTIVE),
    "noise left out": (defects.noise_left_out, "phase1_steps", "the loss of iteration 2", {}),
    "centroid left out": (defects.centroid_left_out, "phase1_steps", "the loss of iteration", {}),
    "early convergence": (defects.early_convergence, "phase1_steps", "of the contexts converged", {}),
    "fewer iterations": (defects.fewer_iterations, "history", "stopped after 3 iterations", {}),
    "tokenizer of another text": (
        defects.tokenizer_of_another_text,
        "tokens",
        "is not the BPE of the training text",
        {},
    ),
    "embeddings of another text": (defects.embeddings_of_another_text, "frozen", "embedding", {}),
    "no separators": (defects.no_separators, "tokens", "has other tokens", {}),
    "characters counted as bytes": (
        defects.characters_counted_as_bytes,
        "perplexity",
        "bits per byte",
        {},
    ),
}
"""Defects of training after its first step, and of data."""
WHILE_AUDITED = {
    "documents lost": (defects.documents_lost, "documents of"),
    "documents cut short": (defects.documents_cut_short, "are in no file of"),
    "duplicates stay": (defects.duplicates_stay, "0 duplicates are said to be dropped, there are 1"),
}
"""Defects of the reader, which are still there when the audit runs."""


def failed(found: AuditRecord) -> dict[str, str]:
    """Figures of the checks that failed."""
    return {check.name: check.figure for _, check in found.failed()}


ONE_RECIPE = {
    "validation contexts all zero": "original",
    "training contexts all zero": "predictive",
    "contexts off by one": "original",
    "contexts that look ahead": "predictive",
    "noise left on at evaluation": "original",
    "noisy sweep as training contexts": "predictive",
    "wrong tokenizer at evaluation": "original",
    "last partial batch dropped": "predictive",
    "PPL averaged over batches": "original",
    "mean of the PPL of batches": "predictive",
    "current token scored": "original",
    "another order of batches": "predictive",
    "training reads the previous context": "original",
    "a third of the text": "predictive",
    "other weights saved": "original",
}
"""Defects of code that both recipes run: the recipe that each is tried with. Others are tried with both."""


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        (name, recipe)
        for name in PLANTED
        for recipe in ("original", "predictive")
        if ONE_RECIPE.get(name, recipe) == recipe
    ],
)
def test_every_planted_defect_is_named(
    name: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = PLANTED[name]
    # Defects can reach the store of prepared tokens, so each test has one of its own.
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    settings = smallest(
        tmp_path,
        configurations=(planted.configuration,),
        seeds=planted.seeds,
        **merged(
            PREDICTIVE if recipe == "predictive" else {},
            {"phase2": {"chunk_positions": 256, "shuffle": planted.shuffle}},
        ),
    )
    with monkeypatch.context() as patch:
        planted.plant(patch)
        run_dir, records = run_experiment(settings, Watcher())
        assert [record.failure for record in records] == [None] * len(records)
        found = audit(run_dir) if planted.remains else None
    found = found or audit(run_dir)
    figures = failed(found)
    named = planted.predictive if recipe == "predictive" and planted.predictive else planted.named
    for check, words in named.items():
        assert check in figures, f"{check} did not fail; failed: {figures}"
        assert words in figures[check]


def smallest(folder: Path, **more: Any) -> Settings:
    """Of an experiment of one run that takes a moment, one document of which is there twice."""
    documents = [document[:200] for document in sentences(14)]
    return tiny(
        write_jsonl(folder / "text.jsonl", [*documents, documents[3]]),
        **merged(
            {
                "configurations": ((1, 1),),
                "seeds": (0,),
                "output": str(folder / "run"),
                "model": {"embed_dim": 12, "context_dim": 8},
                "contexts": {"segment_length": 32},
                "phase1": {"batch_positions": 250},
                "phase2": {"batch_positions": 128},
            },
            more,
        ),
    )


@pytest.mark.parametrize("name", LATER)
def test_a_defect_of_training_or_data_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, check, words, more = LATER[name]
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        plant(patch)
        run_dir, records = run_experiment(smallest(tmp_path, **more), Watcher())
        assert [record.failure for record in records] == [None]
    figures = failed(audit(run_dir))
    assert check in figures, f"{check} did not fail; failed: {figures}"
    assert words in figures[check]


@pytest.mark.parametrize("name", WHILE_AUDITED)
def test_a_defect_of_the_reader_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, words = WHILE_AUDITED[name]
    plant(monkeypatch)
    run_dir, _ = run_experiment(smallest(tmp_path), Watcher())
    assert words in failed(audit(run_dir))["text"]


def test_validation_text_inside_training_is_named(tmp_path: Path) -> None:
    documents = sentences(14)
    inside = write_jsonl(
        tmp_path / "train.jsonl", [*documents[3:], "Before. " + documents[2] + " And after."]
    )
    validation = write_jsonl(tmp_path / "valid.jsonl", documents[:3])
    settings = tiny(
        inside,
        configurations=((1, 1),),
        seeds=(0,),
        output=str(tmp_path / "run"),
        data={"validation": str(validation)},
    )
    run_dir, _ = run_experiment(settings, Watcher())
    assert "1 of 3 with 80% or more" in failed(audit(run_dir))["leakage"]


def test_duplicates_across_splits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = sentences(14)
    settings = tiny(
        write_jsonl(tmp_path / "train.jsonl", documents),
        configurations=((1, 1),),
        seeds=(0,),
        output=str(tmp_path / "run"),
        data={"validation": str(write_jsonl(tmp_path / "valid.jsonl", documents[:3]))},
    )
    defects.duplicates_across_splits(monkeypatch)
    run_dir, _ = run_experiment(settings, Watcher())
    assert "3 of 3 documents also in training" in failed(audit(run_dir))["leakage"]


def better_nll(record: dict[str, Any]) -> None:
    record["validation"]["nll_nats"] -= 0.1
    record["validation"]["perplexity"] = math.exp(record["validation"]["nll_nats"])


def other_documents(record: dict[str, Any]) -> None:
    tokens, nll = DocumentScores(**record["validation"]["documents"]).unpack()
    record["validation"]["documents"] = DocumentScores.pack(tokens, np.roll(nll, 1)).model_dump()


EDITED: dict[str, tuple[Callable[[dict[str, Any]], None], str, str]] = {
    "validation NLL": (better_nll, "perplexity", "recomputed"),
    "accuracy": (lambda r: r["validation"].update(accuracy=0.9), "perplexity", "accuracy 0.9000"),
    "bits per byte": (
        lambda r: r["validation"].update(bits_per_byte=1.0),
        "perplexity",
        "1.0000, recomputed",
    ),
    "documents": (other_documents, "perplexity", "documents have another NLL"),
    "effective rank": (
        lambda r: r["kind"] == "tandem" and r["contexts"].update(effective_rank_validation=0.99),
        "ranks",
        "ER of validation contexts 99.0%, recomputed",
    ),
    "iterations": (
        lambda r: r["kind"] == "tandem" and r["phase1"].update(iterations=2),
        "phase1",
        "not those its history ends with",
    ),
    "training PPL": (
        lambda r: r["kind"] == "tandem" and r["phase2"].update(train_perplexity=1.01),
        "training",
        "not exp of its NLL",
    ),
    "best epoch": (
        lambda r: r["kind"] == "tandem" and r["phase2"].update(best_epoch=7),
        "training",
        "best epoch 7 of 2",
    ),
    "configuration": (
        lambda r: r["kind"] == "tandem" and r.update(configuration="C2T1"),
        "counts",
        "is really C1T1-seed0",
    ),
    "settings": (lambda r: r.update(settings_fingerprint="0" * 16), "settings", "do not have"),
    "n-gram": (
        lambda r: r["kind"] == "bigram" and r["validation"].update(accuracy=0.99),
        "perplexity",
        "accuracy 0.9900",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with one configuration and a bigram; beside it, its text and its prepared tokens."""
    folder = tmp_path_factory.mktemp("made")
    settings = tiny(
        write_jsonl(folder / "text.jsonl", sentences(20)),
        configurations=((1, 1),),
        seeds=(0,),
        output=str(folder / "run"),
        baselines={"models": ("bigram",)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_CACHE", str(folder / "cache"))
        return run_experiment(settings, Watcher())[0]


@pytest.fixture
def finished(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be changed."""
    monkeypatch.setenv("TANDEM_CACHE", str(made.parent / "cache"))
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.mark.parametrize("what", EDITED)
def test_edited_records_are_named(what: str, finished: Path) -> None:
    change, check, words = EDITED[what]
    defects.edit_records(finished, change)
    assert words in failed(audit(finished))[check]


def test_settings_written_before_there_was_a_setting_are_no_finding(finished: Path) -> None:
    """Nor are those of their variants, which the audit works out itself."""
    record = read_records(finished)[0]
    settings = load_settings("demo")
    written = settings.model_dump(mode="json")
    runs = []
    for name in settings.variants:
        values = settings.with_variant(name).model_dump(mode="json")
        del values["prediction"]["sample_positions"]
        runs.append(
            record.model_copy(update={"variant": name, "settings_fingerprint": settings_fingerprint(values)})
        )
    del written["prediction"]["sample_positions"]
    assert len(runs) == 2
    assert _settings_check(written, runs).status == "pass"
    other = runs[0].model_copy(update={"settings_fingerprint": runs[1].settings_fingerprint})
    assert _settings_check(written, [other]).status == "fail"


def test_what_was_exchanged_in_a_model_folder_is_named(finished: Path) -> None:
    folder = finished / "models" / "C1T1-seed0"
    tokenizer = (folder / "tokenizer.json").read_text("utf-8")
    words = json.loads(tokenizer)
    vocabulary = words["model"]["vocab"]
    words["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(words), "utf-8")
    assert "its tokenizer.json is damaged" in failed(audit(finished))["model"]
    seal_again(finished)
    assert "its tokenizer is not the one" in failed(audit(finished))["model"]
    (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "boundary": "reset"}), "utf-8")
    seal_again(finished)
    assert "boundary is reset instead of carry" in failed(audit(finished))["model"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "contexts_sample.safetensors").write_bytes(b"nothing")
    seal_again(finished)
    assert "no sample of contexts" in failed(audit(finished))["contexts"]
    shutil.rmtree(folder)
    found = audit(finished)
    assert [c.status for run in found.runs for c in run.checks if c.name == "model"] == ["warn"]


def test_text_that_changed_since_is_no_finding(
    finished: Path, made: Path, request: pytest.FixtureRequest
) -> None:
    text = made.parent / "text.jsonl"
    before = text.read_bytes()
    request.addfinalizer(lambda: text.write_bytes(before))
    with text.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "one more document"}) + "\n")
    with pytest.raises(DataError, match="is no longer what C1T1-seed0 was trained"):
        audit(finished / "models" / "C1T1-seed0")


def test_another_processor_is_no_defect(finished: Path) -> None:
    """Random draws differ there in their last digits, and so does everything that follows from them."""
    code = """
import pathlib, sys, tandem.audit, torch
print(torch.backends.cpu.get_cpu_capability(), tandem.audit.audit(pathlib.Path(sys.argv[1])).status)
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(
        [python(), "-c", code, str(finished)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["DEFAULT", "pass"], done.stderr


def test_what_cannot_be_audited_is_said(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(RunDirError, match="there is no folder"):
        audit(tmp_path / "nowhere")
    folder = finished / "models" / "C1T1-seed0"
    (folder / "settings.yaml").unlink()
    with pytest.raises(RunDirError, match=r"no readable record\.json and settings\.yaml"):
        audit(folder)
    (finished / "records.jsonl").write_text("", "utf-8")
    with pytest.raises(RunDirError, match="no finished run to audit"):
        audit(finished)


LONG = [" ".join(part) for part in zip(*[iter(sentences(90, seed=3))] * 3, strict=False)]
PHRASES = [
    "文脈を畳み込み、",
    "次の語を予測する。",
    "一つのベクトルに",
    "読んだものを",
    "記憶して、",
    "語と語のあいだで",
]
JAPANESE = [f"第{n}章。" + "".join(random.Random(n).choices(PHRASES, k=30)) for n in range(120)]
CLEAN: dict[str, tuple[list[str], dict[str, object]]] = {
    "C1T1": (sentences(20), {}),
    "C2T3": (sentences(20), {"configurations": ((2, 3),)}),
    "C3T2": (sentences(20), {"configurations": ((3, 2),)}),
    "C1T4": (sentences(20), {"configurations": ((1, 4),)}),
    "documents reset the context": (sentences(20), {"model": {"boundary": "reset"}}),
    "reset and two token layers": (
        sentences(20),
        {"model": {"boundary": "reset"}, "configurations": ((1, 2),)},
    ),
    "trained embeddings": (sentences(20), {"embeddings": {"trained": True}, "phase2": {"max_epochs": 3}}),
    "trained embeddings, two layers": (
        sentences(20),
        {"embeddings": {"trained": True}, "configurations": ((2, 2),)},
    ),
    "random embeddings": (sentences(20), {"embeddings": {"source": "random"}}),
    "shuffled small batches": (sentences(20), {"phase2": {"shuffle": True, "batch_positions": 64}}),
    "a text of several pieces": (
        sentences(600),
        {"phase2": {"shuffle": True, "batch_positions": 512, "max_epochs": 1}},
    ),
    "many epochs": (sentences(20), {"phase2": {"max_epochs": 12, "patience": 2, "lr": 0.02}}),
    "a text as separator": (sentences(20), {"data": {"separator": "\n\n"}}),
    "no separator": (sentences(20), {"data": {"separator": ""}}),
    "sequential loop": (sentences(40), {"contexts": {"method": "loop"}}),
    "a fixed burn-in": (sentences(20), {"contexts": {"burn_in": 200}}),
    "long documents": (LONG, {"data": {"validation_fraction": 0.2}}),
    "Japanese": (JAPANESE, {"tokenizer": {"vocab_size": 320}}),
    "a larger vocabulary": (sentences(200), {"tokenizer": {"vocab_size": 420}, "model": {"context_dim": 40}}),
    "one long validation document": (
        [*sentences(40), " ".join(sentences(8, seed=7))],
        {"data": {"validation_fraction": 0.3}},
    ),
    "part of phase 1's tokens": (sentences(20), {"phase1": {"tokens_per_step": 1500, "max_iterations": 20}}),
    "converged phase 1": (sentences(20), {"phase1": {"max_iterations": 60, "convergence_stop": 0.5}}),
    "without training of the contexts": (sentences(20), {"baselines": {"models": ("untrained", "bigram")}}),
}
QUICK = {
    *("C2T3", "documents reset the context", "trained embeddings", "a fixed burn-in"),
    *("part of phase 1's tokens", "without training of the contexts"),
}


@pytest.mark.parametrize("shape", slow_but(QUICK, CLEAN))
def test_no_false_alarm(shape: str, tmp_path: Path) -> None:
    documents, more = CLEAN[shape]
    settings = tiny(
        write_jsonl(tmp_path / "text.jsonl", documents),
        **{"configurations": ((1, 1),), "seeds": (0,), "output": str(tmp_path / "run"), **more},
    )
    run_dir, records = run_experiment(settings, Watcher())
    assert [record.failure for record in records] == [None] * len(records)
    found = audit(run_dir)
    alarms = {
        f"{run.run}: {check.name} {check.status}": check.figure
        for run in found.runs
        for check in run.checks
        if check.status in ("warn", "fail")
    }
    assert not alarms
    assert {check.name for run in found.runs for check in run.checks if check.status == "pass"} >= {
        *("tokens", "frozen", "trained", "phase1", "parameters", "reads", "causality", "forward"),
        *("contexts", "distribution", "counts", "perplexity", "training", "gap"),
    }


WORDS_OF = {
    "Arabic": "السياق يجمع الكلمات في متجه واحد ثم يتنبأ بالكلمة التالية من كل ما قرأ قبلها",
    "Hindi": "संदर्भ शब्दों को एक सदिश में समेटता है और फिर अगले शब्द का अनुमान लगाता है",
    "emoji": "🌳 🐦 🌊 🔥 👩‍🚀 🇯🇵 🧩 📚 🎈 👍🏽 🚲 🍎",
    "code": "def f(x): return x + 1 if not [y] else {}; assert a != b; import os, sys",
}


def drawn_words(text: str, count: int = 24, length: int = 40) -> list[str]:
    """Documents of these words, drawn at random."""
    words, draws = text.split(), random.Random(1)
    return [f"{number} " + " ".join(draws.choices(words, k=length)) for number in range(count)]


FURTHER = merged(
    PREDICTIVE,
    {
        "prediction": {"head_layers": (1, 2), "window": 16, "output_dropout": 0.2},
        "phase2": {
            **{"shuffle": True, "batch_positions": 100, "weight_decay": 0.1, "max_epochs": 4},
            **{"embed_dropout": 0.1, "output_dropout": 0.1, "max_grad_norm": 0.1},
        },
    },
)
STRANGE: dict[str, tuple[list[str], dict[str, Any]]] = {
    **{name: (drawn_words(text), {}) for name, text in WORDS_OF.items()},
    "tiny documents": (
        [f"{number} {'abcdefghij'[number % 10] * 3}" for number in range(120)],
        {"phase1": {"batch_positions": 200}},
    ),
    "four layers each": (sentences(14), {"configurations": ((4, 4),)}),
    "a high learning rate": (sentences(14), {"phase2": {"lr": 1.0}, "phase1": {"lr": 0.1}}),
    "a low learning rate": (sentences(14), {"phase2": {"lr": 1e-6}, "phase1": {"lr": 1e-6}}),
    "a linear schedule, clipped": (
        sentences(14),
        {"phase2": {"schedule": "linear", "max_grad_norm": 0.05, "weight_decay": 1.0}},
    ),
    "a gated cell": (sentences(14), {"model": {"cell": "gated"}, "phase2": {"output_dropout": 0.5}}),
    "in half precision": (sentences(14), {"precision": "bfloat16"}),
    "predictive, all that there is": (sentences(14), {**FURTHER, "configurations": ((2, 3),)}),
    "predictive, from other token layers": (
        sentences(14),
        merged(FURTHER, {"configurations": ((1, 1),), "phase2": {"start": "random", "negatives": None}}),
    ),
}
"""Correct runs of text, depths and settings that are rare."""


@pytest.mark.parametrize("shape", slow_but((), STRANGE))
def test_a_strange_run_is_no_alarm(shape: str, tmp_path: Path) -> None:
    documents, more = STRANGE[shape]
    settings = smallest(tmp_path, **more)
    write_jsonl(tmp_path / "text.jsonl", documents)
    run_dir, records = run_experiment(settings, Watcher())
    assert [record.failure for record in records] == [None]
    assert not alarms_of(run_dir)


def test_a_sweep_whose_contexts_were_not_kept_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(original, "KEPT_BYTES", 0)
    settings = smallest(tmp_path, phase1={"max_iterations": 6, "convergence_stop": 1.0})
    run_dir, _ = run_experiment(settings, Watcher())
    (check,) = (c for run in audit(run_dir).runs for c in run.checks if c.name == "phase1_steps")
    assert check.status == "skip"
    assert check.figure == "not checked: the contexts that iteration 6 read were too large to be kept"


def test_overfitting_and_validation_of_another_kind_are_no_failure(tmp_path: Path) -> None:
    """They may be worth a warning, and runs that were interrupted are not even that."""
    other = write_jsonl(tmp_path / "valid.jsonl", drawn_words(WORDS_OF["code"], 8))
    settings = smallest(
        tmp_path,
        seeds=(0, 1),
        data={"validation": str(other)},
        phase2={"max_epochs": 4, "patience": 4, "lr": 0.1, "batch_positions": 128},
    )

    class Interrupting(Watcher):
        def run_finished(self, record: RunRecord) -> None:
            raise KeyboardInterrupt(record.run)

    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings, Interrupting())
    run_dir, records = run_experiment(settings, Watcher())
    assert [record.failure for record in records] == [None, None]
    assert {name.split(": ")[1] for name in alarms_of(run_dir)} <= {"gap warn", "distribution warn"}


def alarms_of(run_dir: Path) -> dict[str, str]:
    """Figures of the checks that warn or fail."""
    return {
        f"{run.run}: {check.name} {check.status}": check.figure
        for run in audit(run_dir).runs
        for check in run.checks
        if check.status in ("warn", "fail")
    }


def test_a_model_folder_is_audited_alone(tmp_path: Path, text_file: Path) -> None:
    settings = tiny(text_file, configurations=((1, 2),), seeds=(0,), output=str(tmp_path / "run"))
    run_dir, _ = run_experiment(settings, Watcher())
    folder = run_dir / "models" / "C1T2-seed0"
    found = audit(folder)
    assert found.status == "pass"
    assert read_audit(folder) == found
    record = json.loads((folder / "record.json").read_text("utf-8"))
    record["validation"]["accuracy"] += 0.1
    (folder / "record.json").write_text(json.dumps(record), "utf-8")
    seal_again(folder)
    assert "accuracy" in failed(audit(folder))["perplexity"]


def test_few_steps_and_a_variant(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the last step fits the budget, all draws before it are passed over; a variant's model folder
    is audited alone, too."""
    monkeypatch.setattr(Snapshots.__init__, "__defaults__", (150_000,))
    settings = tiny(
        text_file,
        configurations=((1, 2),),
        seeds=(3,),
        output=str(tmp_path / "run"),
        **merged(PREDICTIVE, {"variants": {"wet": {"prediction": {"embed_dropout": 0.2}}}}),
    )
    run_dir, _ = run_experiment(settings, Watcher())
    labels = json.loads(
        safe_open(run_dir / "phase1" / "wet-C1-seed3-snapshots.safetensors", "pt").metadata()["steps"]
    )
    assert [*labels] == ["last"]
    assert not failed(audit(run_dir))
    assert audit(run_dir / "models" / "wet-C1T2-seed3").status == "pass"


def test_models_that_were_not_kept_are_said_to_be_skipped(tmp_path: Path, text_file: Path) -> None:
    settings = tiny(
        text_file, configurations=((1, 1),), seeds=(0,), output=str(tmp_path / "run"), save_models=False
    )
    run_dir, _ = run_experiment(settings, Watcher())
    found = audit(run_dir)
    assert found.status == "pass"
    assert [c.status for c in found.runs[-1].checks if c.name == "model"] == ["skip"]
    defects.edit_records(run_dir, better_nll)
    assert "its documents have the mean NLL" in failed(audit(run_dir))["consistency"]
    assert {run.run for run in found.runs} == {None, *(record.run for record in read_records(run_dir))}


@pytest.mark.parametrize("at", [range(700), [0], [699, 5, 5, 0], [*range(300, 360), 690]])
def test_contexts_are_the_loops_wherever_they_are_asked_for(at: list[int]) -> None:
    torch.manual_seed(0)
    model = TandemForCausalLM(TandemConfig(vocab_size=20, embed_dim=8, context_dim=6, cell="gated"))
    ids = torch.randint(20, (700,))
    _, current = sequential_contexts(model.context_block, model.embed(ids)[None])
    expected = torch.cat((torch.zeros(1, 6), current[0]))
    places = torch.tensor(list(at))
    previous, after = contexts_at(model, ids, places, 600)
    torch.testing.assert_close(previous, expected[places], rtol=0, atol=1e-5)
    torch.testing.assert_close(after, expected[places + 1], rtol=0, atol=1e-5)
