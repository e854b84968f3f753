"""The command line as people meet it: help, presets, every command on small text, and bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import seal_again, sentences, tiny, write_jsonl
from warm import python

from tandem.claims import try_lock
from tandem.cli.arguments import ExperimentArguments, parse_with_preset
from tandem.cli.main import run
from tandem.records import read_records
from tandem.settings import dump_settings, known_keys, load_settings, preset_names
from tandem.tokens.prepare import default_cache_dir


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = run(args)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def preset(text_file: Path, tmp_path: Path) -> str:
    """A settings file of a tiny experiment."""
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_settings(tiny(text_file, output=str(tmp_path / "run"))), "utf-8")
    return str(path)


def test_help_names_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("experiment", "train", "evaluate", "generate", "report", "config"))
    code, out, _ = call(capsys, "experiment", "--help")
    assert code == 0
    for key in known_keys():
        assert f"--{key.replace('_', '-')}" in out or key in {
            "save_models",
            "phase2.shuffle",
            "embeddings.trained",
            "variants",
        }
    assert "(default: python-docs)" in " ".join(out.replace("│", " ").split())
    assert call(capsys, "--version")[1].startswith("tandem 0.")


def test_every_preset_loads_and_prints_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert preset_names() == ["demo", "dialogue", "original", "predictive"]
    for name in preset_names():
        code, out, _ = call(capsys, "config", name)
        assert code == 0
        assert yaml.safe_load(out) == load_settings(name).model_dump(mode="json")
    assert "demo" in call(capsys, "config")[1]
    code, out, _ = call(
        capsys, "config", "demo", "--phase2.lr", "0.5", "--configurations", "1", "1", "3", "2", "--json"
    )
    assert json.loads(out)["phase2"]["lr"] == 0.5
    assert json.loads(out)["configurations"] == [[1, 1], [3, 2]]


def test_the_seed_preset_is_the_seed() -> None:
    seed = load_settings("original")
    assert seed.data.train.endswith("ultrachat_200k:train_sft[:2000]")
    assert seed.data.validation.endswith("ultrachat_200k:train_sft[50000:50020]")
    assert (seed.data.separator, seed.data.validation_separator) == ("", "\n\n")
    assert (seed.tokenizer.source, seed.embeddings.source, seed.embeddings.trained) == ("gpt2", "gpt2", False)
    assert (seed.model.embed_dim, seed.model.context_dim, seed.model.boundary) == (768, 500, "carry")
    one, two = seed.phase1, seed.phase2
    assert (one.max_iterations, one.batch_positions, one.tokens_per_step) == (60, 5000, None)
    assert (one.lr, one.max_grad_norm, one.start_std, one.noise_std) == (0.002, 2.0, 0.01, 0.1)
    assert (one.centroid_weight, one.convergence_mse, one.convergence_stop) == (0.1, 0.03, 0.9)
    assert (two.lr, two.max_grad_norm, two.batch_positions, two.max_epochs) == (0.001, 1.0, 4096, 20)
    assert (two.patience, two.shuffle) == (1, False)


def test_presets_run_on_small_text(
    capsys: pytest.CaptureFixture[str], text_file: Path, tmp_path: Path
) -> None:
    """Every shipped preset, with only its text, its sizes and its grid made small."""
    small = [
        *("--data.train", str(text_file), "--data.validation", "None", "--seeds", "0", "--device", "cpu"),
        *("--configurations", "2", "2", "--contexts.check-tokens", "256"),
        *("--data.validation-fraction", "0.15", "--tokenizer.source", "bpe", "--tokenizer.vocab-size", "300"),
        *("--embeddings.source", "random", "--model.embed-dim", "24", "--model.context-dim", "16"),
        *(
            "--model.weight-init-std",
            "0.3",
            "--phase1.batch-positions",
            "500",
            "--phase1.max-iterations",
            "4",
        ),
        *("--contexts.segment-length", "64", "--prediction.max-epochs", "1", "--prediction.streams", "8"),
        *("--phase2.batch-positions", "256", "--phase2.max-epochs", "1", "--baselines.models", "bigram"),
    ]
    for name in preset_names():
        output = tmp_path / name
        values = load_settings(name).model_dump(mode="json")
        for variant in values["variants"].values():  # what a variant sets, no option changes
            variant["model"] = {**variant.get("model", {}), "context_dim": 16, "weight_init_std": 0.3}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values), "utf-8")
        code, out, err = call(capsys, "experiment", str(file), *small, "--output", str(output))
        assert code == 0, err
        assert "C2T2" in out
        assert (output / "report.html").is_file()
        ways = max(1, len(load_settings(name).variants))
        assert len((output / "records.jsonl").read_text("utf-8").splitlines()) == ways + 1
        assert "audit: " in out


def alone_and_with(
    capsys: pytest.CaptureFixture[str], model: str, held: str, option: str, part: str
) -> dict[str, Any]:
    """What `evaluate` says of a model, and what it says in `part` with an option; all else is the same."""
    alone, both = (
        json.loads(call(capsys, "evaluate", model, "--data", held, "--json", *more)[1])
        for more in ((), (option,))
    )
    found = both.pop(part)
    assert {**both, part: None} == alone
    assert found["perplexity"] < alone["perplexity"]
    assert found["bits_per_byte"] / alone["bits_per_byte"] == pytest.approx(
        found["nll_nats"] / alone["nll_nats"]
    )
    return found


def test_mixing_is_reported_apart(
    capsys: pytest.CaptureFixture[str], preset: str, text_file: Path, tmp_path: Path
) -> None:
    model, held = str(tmp_path / "model"), str(write_jsonl(tmp_path / "held.jsonl", sentences(5, seed=9)))
    assert call(capsys, "train", preset, "--output", model)[0] == 0
    # counts know these sentences after one pass
    mixture = alone_and_with(capsys, model, held, "--mix", "mixture")
    assert sum(mixture["weights"].values()) == pytest.approx(1)
    code, out, _ = call(capsys, "evaluate", model, "--data", held, "--mix")
    assert code == 0
    assert f"mixed          perplexity {mixture['perplexity']:.2f}" in out
    write_jsonl(text_file, sentences(60, seed=10))
    code, _, err = call(capsys, "evaluate", model, "--data", held, "--mix")
    assert code == 2
    assert "is no longer what C1T1-seed0 was trained" in err
    text_file.unlink()
    code, _, err = call(capsys, "evaluate", model, "--data", held, "--mix")
    assert code == 2
    assert str(text_file) in err
    assert call(capsys, "evaluate", model, "--data", held)[0] == 0  # needs no training text


def test_learning_on_is_reported_apart(
    capsys: pytest.CaptureFixture[str], preset: str, tmp_path: Path
) -> None:
    model, held = str(tmp_path / "model"), str(write_jsonl(tmp_path / "held.jsonl", sentences(40, seed=9)))
    assert call(capsys, "train", preset, "--output", model)[0] == 0
    adapted = alone_and_with(capsys, model, held, "--adapt", "adapted")
    code, out, _ = call(capsys, "evaluate", model, "--data", held, "--adapt")
    assert code == 0
    assert f"learning on    perplexity {adapted['perplexity']:.2f}" in out
    code, _, err = call(capsys, "evaluate", model, "--data", held, "--adapt", "--int8")
    assert code == 2
    assert f"--adapt changes weights, and those of {model} are of 8 bits here" in err


def test_another_model_is_not_written_over(
    capsys: pytest.CaptureFixture[str], preset: str, text_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    assert call(capsys, "train", preset, "--output", str(model))[0] == 0
    assert "trust_remote_code=True" in (model / "README.md").read_text("utf-8")
    (model / "README.md").write_text("mine\n", "utf-8")
    before = {path: path.read_bytes() for path in model.iterdir()}
    modes = {path.stat().st_mode for path in model.iterdir()}
    assert len(modes) == 1  # whoever may read the settings may read the weights
    for says, *other in (
        ("a C1T1-seed0 of other settings", "--phase2.lr", "0.02"),
        ("C1T1-seed0, another run than C1T1-seed1", "--seed", "1"),
        ("C1T1-seed0, another run than C1T2-seed0", "--token-layers", "2"),
        ("a C1T1-seed0 that was trained in float32", "--precision", "bfloat16"),
    ):
        for way in ((), ("--dry-run",)):
            code, _, err = call(capsys, "train", preset, "--output", str(model), *other, *way)
            assert code == 2
            assert f"{model} holds {says}, which would be lost" in err
        assert {path: path.read_bytes() for path in model.iterdir()} == before
    assert call(capsys, "train", preset, "--output", str(model))[0] == 0  # the same one may be made again
    assert (model / "README.md").read_text("utf-8") == "mine\n"
    write_jsonl(text_file, sentences(61))
    assert "C1T1-seed0 of other text or tokens" in call(capsys, "train", preset, "--output", str(model))[2]
    (model / "record.json").unlink()
    assert "a model whose record cannot be read" in call(capsys, "train", preset, "--output", str(model))[2]


def test_two_trainings_do_not_make_a_model_in_one_folder(
    capsys: pytest.CaptureFixture[str], preset: str, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    with try_lock(model, "training"):  # as the other training does
        code, _, err = call(capsys, "train", preset, "--output", str(model))
    assert code == 2
    assert f"another training is making a model in {model} just now; give another --output" in err
    assert call(capsys, "train", preset, "--output", str(model))[0] == 0
    assert "claims" not in {path.name for path in model.iterdir()}


def test_an_experiment_keeps_its_precision(
    capsys: pytest.CaptureFixture[str], preset: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = ("--configurations", "1", "1", "--seeds")
    assert call(capsys, "experiment", preset, "--precision", "bfloat16", *small, "0")[0] == 0
    before = {name: (run / name).read_bytes() for name in ("records.jsonl", "manifest.json")}
    code, _, err = call(capsys, "experiment", preset, "--precision", "float32", *small, "0", "1")
    assert code == 2
    assert f"{run} holds an experiment that trains in bfloat16, which cannot be mixed with float32" in err
    assert {name: (run / name).read_bytes() for name in before} == before
    # `auto` would be float32 on a CPU, and goes on as it was begun.
    code, _, err = call(capsys, "experiment", preset, *small, "0", "1")
    assert code == 0, err
    assert "training in bfloat16, as this experiment was begun" in err
    assert {record.environment.precision for record in read_records(run)} == {"bfloat16"}
    for model in ("C1T1-seed0", "C1T1-seed1"):  # its card waited for the other one
        assert "mean of 2 seeds, 95% interval" in (run / "models" / model / "README.md").read_text("utf-8")
    # Before manifests said so, the records did.
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    (run / "manifest.json").write_text(json.dumps({**manifest, "precision": None}), "utf-8")
    assert call(capsys, "experiment", preset, "--precision", "float32", *small, "0", "1")[0] == 2


def test_commands_from_training_to_text(
    capsys: pytest.CaptureFixture[str], preset: str, tmp_path: Path
) -> None:
    model, held = str(tmp_path / "model"), write_jsonl(tmp_path / "held.jsonl", sentences(5, seed=9))
    code, out, err = call(capsys, "train", preset, "--token-layers", "2", "--output", model)
    assert code == 0, err
    assert "C1T2" in out
    assert "bits per byte" in out
    assert "phase 2" in err
    assert not {"\x1b", "\r"} & set(err)  # a log in a file is plain lines
    kept = load_settings(str(tmp_path / "model" / "settings.yaml"))
    assert (kept.configurations, kept.seeds) == (((1, 2),), (0,))
    code, out, _ = call(capsys, "evaluate", model, "--data", str(held), "--json")
    assert code == 0
    assert json.loads(out)["documents"] == 5
    assert json.loads(out)["perplexity"] < 300  # the vocabulary: better than a guess
    assert json.loads(out)["mixture"] is None

    code, text, _ = call(capsys, "generate", model, "--prompt", "the context", "--max-new-tokens", "20")
    assert code == 0
    assert text.startswith("the context")
    code, out, _ = call(
        capsys, "generate", model, "--prompt", "the context", "--max-new-tokens", "20", "--json"
    )
    result = json.loads(out)
    assert (result["prompt"] + result["text"]).strip() == text.strip()
    assert result["new_tokens"] <= 20
    with pytest.MonkeyPatch.context() as patch:  # a prompt that is longer than what is read at once
        patch.setattr("tandem.model.state_tandem.READ_AT_ONCE", 1)
        call_again = ("--prompt", "the context", "--max-new-tokens", "20", "--json")
        assert json.loads(call(capsys, "generate", model, *call_again)[1]) == result
    others = [
        call(capsys, "generate", model, "--prompt", "the", "--json", "--seed", seed, *more)[1]
        for seed, more in (("1", ()), ("2", ()), ("1", ("--top-k", "1")), ("2", ("--temperature", "0")))
    ]
    assert others[0] != others[1]
    assert others[2] == others[3]  # the likeliest token, whatever the seed


def test_an_experiment_and_its_report(
    capsys: pytest.CaptureFixture[str], preset: str, tmp_path: Path
) -> None:
    code, out, err = call(capsys, "experiment", preset)
    assert code == 0, err
    assert "C2T1" in out
    assert "report.html" in out
    before = (tmp_path / "run" / "report.md").read_bytes()
    (tmp_path / "run" / "report.md").unlink()
    assert call(capsys, "report", str(tmp_path / "run"))[0] == 0
    assert (tmp_path / "run" / "report.md").read_bytes() == before
    code, out, _ = call(capsys, "audit", str(tmp_path / "run"), "--quick")
    assert code == 0
    assert re.search(r"C1T1-seed1\W+model\W+not checked", out)
    assert not re.search(r"C1T1-seed0\W+model", out)
    code, out, _ = call(capsys, "report", str(tmp_path / "run"), "--lang", "ja", "--json")
    assert any(path.endswith("report.ja.html") for path in json.loads(out))
    code, out, _ = call(capsys, "experiment", preset, "--json")
    assert [json.loads(line)["run"] for line in out.splitlines()][:2] == ["C1T1-seed0", "C2T1-seed0"]


def test_the_audit_of_a_run_and_of_a_model(
    capsys: pytest.CaptureFixture[str], preset: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, out, err = call(capsys, "experiment", preset, "--seeds", "0")
    assert code == 0, err
    assert (run / "audit.json").is_file()
    code, out, _ = call(capsys, "audit", str(run / "models" / "C1T1-seed0"), "--json")
    assert code == 0
    assert {run["run"] for run in json.loads(out)["runs"]} == {None, "C1T1-seed0"}
    for name in ("snapshots.safetensors", "checksums.json"):
        (run / "models" / "C1T1-seed0" / name).unlink()
    code, out, _ = call(capsys, "audit", str(run / "models" / "C1T1-seed0"))
    assert code == 0
    assert "1 not checked" in out
    assert call(capsys, "audit", str(run / "models" / "C1T1-seed0"), "--strict")[0] == 1
    lines = (run / "records.jsonl").read_text("utf-8").splitlines()
    record = json.loads(lines[0])
    record["validation"]["accuracy"] = 0.99
    (run / "records.jsonl").write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n", "utf-8")
    seal_again(run)
    code, out, _ = call(capsys, "audit", str(run))
    assert code == 1
    assert f"not to be trusted: perplexity ({record['run']})" in out
    assert call(capsys, "report", str(run))[0] == 0
    top = (run / "report.md").read_text("utf-8").split("## ")[1]
    assert record["run"] in top
    assert "Not checked, in all or in some runs: phase2_steps" in top
    code, _, _ = call(capsys, "experiment", preset, "--seeds", "0")
    assert code == 1


def test_all_baselines_by_one_flag() -> None:
    settings, _ = parse_with_preset("experiment", ExperimentArguments, ["dialogue", "--baselines"], "demo")
    networks = {"lstm", "awd-lstm", "gpt2", "transformer"}
    assert {*settings.baselines.models} == {"kneser-ney", *networks, "untrained", "bigram", "unigram"}
    some = ["dialogue", "--baselines.models", "lstm", "--baselines.lstm.lr", "0.5"]
    settings, _ = parse_with_preset("experiment", ExperimentArguments, some, "demo")
    assert (settings.baselines.models, settings.baselines.lstm.lr) == (("lstm",), 0.5)
    settings, _ = parse_with_preset("experiment", ExperimentArguments, ["dialogue"], "demo")
    assert settings.baselines.models == ()


BAD = {
    "unknown command": (["experimnet"], "did you mean 'experiment'"),
    "unknown preset": (["experiment", "orignal"], "did you mean 'original'"),
    "former preset": (["experiment", "seed"], "(presets: demo, dialogue, original, predictive)"),
    "missing settings file": (["experiment", "none.yaml"], "there is no settings file none.yaml"),
    "unknown option": (["experiment", "--phase2.lrr", "1"], "did you mean --phase2.lr"),
    "unknown option of evaluate": (["evaluate", "m", "--data=x", "--seperator=y"], "mean --separator"),
    "preset last": (["experiment", "--device", "cpu", "{tiny}"], "comes first"),
    "name with a path": (["experiment", "--name", "a/../b"], "setting name"),
    "sampling seed": (["generate", "{here}", "--prompt", "x", "--temperature", "1e-300"], "--temperature"),
    "prompt of bytes": (["generate", "{here}", "--prompt", "\udcff"], "argument '\\udcff' is not"),
    "negative sampling seed": (["generate", "{here}", "--prompt", "x", "--seed", "-3"], "--seed -3 is not"),
    "file name of bytes": (["train", "{tiny}", "--data.train", "\udce9.txt"], "argument '\\udce9.txt'"),
    "separator of bytes": (["train", "{tiny}", "--data.separator", "\udcff"], "argument '\\udcff' is"),
    "scored name of bytes": (["evaluate", "{here}", "--data", "\udcff.txt"], "argument '\\udcff.txt'"),
    "nobody's home": (["train", "{tiny}", "--data.train", "~nobody-here/x.txt"], "give the whole path"),
    "endless vocabulary": (["train", "{tiny}", "--tokenizer.vocab-size", "9" * 23], "tokenizer.vocab_size"),
    "endless chunks": (["train", "{tiny}", "--phase2.chunk-positions", "9" * 23], "phase2.chunk_positions"),
    "no gzip": (["train", "{tiny}", "--data.train", "{no_gzip}"], "is no gzip file, or not"),
    "broken line": (["train", "{tiny}", "--data.train", "{broken}"], "JSON (Invalid control character)"),
    "unknown key": (["experiment", "{bad_key}"], "'phase2.epoch'; did you mean 'phase2.max_epochs'"),
    "not YAML": (["experiment", "{not_yaml}"], "line 3 is not valid YAML"),
    "no layers": (["experiment", "--configurations", "0", "1"], "configurations"),
    "negative rate": (["experiment", "--phase2.lr", "-1"], "setting phase2.lr = -1.0 is not possible"),
    "not a number": (["experiment", "--phase2.lr", "fast"], "setting phase2.lr = 'fast' is not"),
    "text as a number": (["experiment", "{words}"], "phase2.lr = 'fast' is not possible: it must be"),
    "no section": (["experiment", "{no_section}"], "setting data = 'text.txt' is not possible: it must be a"),
    "number as a name": (["experiment", "{numbered}"], "data.1 = 1 is not possible: a name must be a text"),
    "output of bytes": (["train", "{tiny}", "--output", "\udcff"], "argument '\\udcff' is not possible: it"),
    "option with hyphens": (["experiment", "{hyphens}"], "it must be NAME or NAME=VALUE, without hyphens"),
    "variant 2x": (["experiment", "{variant}"], "begins with a letter"),
    "one mistake": (["experiment", "{half_seed}"], "seeds.0 = 1.5 is not possible: it must be a whole"),
    "given twice": (["experiment", "{twice}"], "line 3 is not valid YAML (it gives 'lr' a second time)"),
    "hyphen": (["generate", "{here}", "--prompt", "-x"], "begins with a hyphen is written --option=-value"),
    "half a pair": (["experiment", "{half}"], "configurations.0 = [1] is not possible: values are missing"),
    "either of two": (["experiment", "{either}"], "it must be a whole number or 'auto'"),
    "repeated seeds": (["experiment", "--seeds", "1", "1"], "seeds repeat"),
    "missing file": (["train", "{tiny}", "--data.train", "{here}/none.txt"], "none.txt"),
    "empty file": (["train", "{tiny}", "--data.train", "{empty}"], "empty.txt"),
    "not UTF-8": (["train", "{tiny}", "--data.train", "{latin}"], "latin.txt"),
    "wrong field": (["train", "{tiny}", "--data.train", "{fields}"], "fields.jsonl, line 2"),
    "overlap": (["train", "{tiny}", "--data.validation", "{text}"], "--data.allow-overlap"),
    "large vocabulary": (["train", "{tiny}", "--tokenizer.vocab-size", "9000"], "--tokenizer.vocab-size"),
    "large batch": (["train", "{tiny}", "--phase2.batch-positions", "999999"], "phase2.batch_positions"),
    "unwritable output": (["train", "{tiny}", "--output", "{text}/model"], "cannot write to"),
    "unreachable hub": (["train", "{tiny}", "--data.train", "hf:no/such"], "no/such"),
    "workers of one training": (["train", "{tiny}", "--workers", "2"], "there is no option --workers"),
    "no seed": (["experiment", "{tiny}", "--seeds"], "setting seeds is empty; give at least one value"),
    "nothing to audit": (["audit", "{here}"], "neither a run directory"),
    "unknown baseline": (["experiment", "{tiny}", "--baselines.models", "rnn"], "rnn"),
    "too few parameters": (
        ["config", "{tiny}", "--baselines.max-parameters", "0"],
        "baselines.max_parameters = 0 is not possible",
    ),
    "no model": (["generate", "{here}", "--prompt", "x"], "is not a model folder"),
    "no records": (["report", "{here}"], "records"),
    "no such language": (["report", "{here}", "--lang", "fr"], "--lang 'fr' is not possible: it must"),
    "half a token": (["generate", "{here}", "--prompt", "x", "--top-k", "1.5"], "--top-k '1.5' is not"),
    "no prompt": (["generate", "{here}"], "--prompt"),
    "non-finite loss": (["train", "{tiny}", "--phase2.lr", "1e30"], "phase 2 was stopped at epoch 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_sentence(
    capsys: pytest.CaptureFixture[str], text_file: Path, tmp_path: Path, case: str
) -> None:
    files = {
        "empty": ("empty.txt", b""),
        "latin": ("latin.txt", "caf\xe9 and more".encode("latin-1")),
        "no_gzip": ("plain.txt.gz", b"plain text"),
        "broken": ("broken.jsonl", b'{"text": "a\tb"}\n'),
        "fields": ("fields.jsonl", b'{"text": "a b"}\n{"body": "c"}\n'),
        "words": ("words.yaml", b"phase2:\n  lr: fast\n"),
        "no_section": ("no_section.yaml", b"data: text.txt\n"),
        "numbered": ("numbered.yaml", b"data: {1: 2}\n"),
        "hyphens": ("hyphens.yaml", b"slurm: {parameters: [--gres=gpu:1]}\n"),
        "variant": ("variant.yaml", b"variants: {2x: {}}\n"),
        "half_seed": ("half_seed.yaml", b"seeds: [1.5]\n"),
        "twice": ("twice.yaml", b"phase2:\n  lr: 0.1\n  lr: 0.2\n"),
        "half": ("half.yaml", b"configurations: [[1]]\n"),
        "either": ("either.yaml", b"contexts: {burn_in: soon}\n"),
        "bad_key": ("bad_key.yaml", b"phase2:\n  epoch: 3\n"),
        "not_yaml": ("not_yaml.yaml", b"phase2:\n  lr: [1\nx: }\n"),
        "tiny": ("tiny.yaml", dump_settings(tiny(text_file, output=str(tmp_path / "out"))).encode()),
    }
    places = {"here": str(tmp_path), "text": str(text_file)}
    for key, (name, content) in files.items():
        (tmp_path / name).write_bytes(content)
        places[key] = str(tmp_path / name)
    args, says = BAD[case]
    code, _, err = call(capsys, *(arg.format(**places) for arg in args))
    message = [line for line in err.splitlines() if line.startswith("tandem: error: ")]
    assert code == 2
    assert len(message) == 1
    assert says in message[0]
    assert "Traceback" not in err
    assert "more)" not in message[0]  # each has one mistake
    assert err.rstrip().endswith(message[0])  # it is the last thing said, and all on one line


def test_too_little_disk_is_said_before_training(
    capsys: pytest.CaptureFixture[str], preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = os.statvfs_result((4096, 4096, 1000, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: usage)  # the system's own answer: nothing is free
    code, _, err = call(capsys, "experiment", preset, "--output", str(tmp_path / "new" / "folder"))
    assert code == 2
    assert "runs need about" in err
    assert "make room" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["experiment", "train"])
def test_too_little_disk_for_contexts_is_said_before_training(
    command: str,
    capsys: pytest.CaptureFixture[str],
    preset: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real, little = os.statvfs, os.statvfs_result((1, 1, 20_000, 0, 20_000, 0, 0, 0, 0, 255))
    cache = default_cache_dir()
    monkeypatch.setattr(os, "statvfs", lambda path: little if path == cache else real(path))
    output = str(tmp_path / "new" / "folder")
    code, _, err = call(capsys, command, preset, "--contexts.keep", "disk", "--output", output)
    assert code == 2
    assert f"contexts cannot be kept in {cache} (0 MB are free): they take" in err
    assert "use --contexts.keep recompute" in err
    assert "phase 1" not in err
    assert not (tmp_path / "new").exists()


def test_a_failed_run_makes_the_command_fail(capsys: pytest.CaptureFixture[str], preset: str) -> None:
    code, out, err = call(capsys, "experiment", preset, "--phase2.lr", "1e30")
    assert code == 2
    assert "4 of 4 runs failed" in err
    assert "last" in err or "no epoch before" in err
    assert "report" in out


SHORT_OF_MEMORY = """
import resource, sys
import tandem.experiment.runner, torch._dynamo, tandem.cli.progress, tandem.cli.summary
from tandem.cli.main import run

settings, command, folder = sys.argv[1:]
small = run(["train", settings, "--output", folder + "-small"])  # what the libraries need once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
large = ["--model.embed-dim", "1000000", "--embeddings.source", "random"]
sys.exit(small or run([command, settings, *large, "--output", folder]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("command", ["train", "experiment"])
def test_running_out_of_memory_is_one_sentence(preset: str, tmp_path: Path, command: str) -> None:
    """Real memory: the embedding of the second model takes more than the process may still have."""
    done = subprocess.run(
        [python(), "-c", SHORT_OF_MEMORY, preset, command, str(tmp_path / "made")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "memory ran out (" in done.stderr
    assert "lower --prediction.streams" in done.stderr
    assert "Traceback" not in done.stderr
