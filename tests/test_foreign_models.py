"""Model folders that another program saved: promises hold whatever they say, and what is missing is said."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sentences, tiny, write_jsonl
from syntax import nodes
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import tandem
from tandem.audit import audit
from tandem.cli.main import run
from tandem.errors import RunDirError, SettingsError
from tandem.experiment.evaluate import Evaluation, evaluate_model
from tandem.experiment.generate import generate_text
from tandem.experiment.single_run import train_one
from tandem.model_folder.loading import load_model, unused_ids
from tandem.settings import Configuration
from tandem.training.progress import Watcher

ROOT = Path(tandem.__file__).parent


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `tandem train` leaves it."""
    place = tmp_path_factory.mktemp("foreign")
    settings = tiny(write_jsonl(place / "text.jsonl", sentences(60)))
    train_one(settings, Configuration(1, 1), 0, place / "model", Watcher())
    return place / "model"


@pytest.fixture
def held(tmp_path: Path) -> Path:
    path = tmp_path / "held.txt"
    path.write_text("\n\n".join(sentences(6, seed=9)), "utf-8")
    return path


def saved_again(model: Path, folder: Path, dtype: torch.dtype = torch.float32, rows: int = 0) -> Path:
    """As a program does that knows transformers alone; with so many rows, if it pads."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    if rows:
        loaded.resize_token_embeddings(rows)
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture
def plain(trained: Path, tmp_path: Path) -> Path:
    """Saved again in float32."""
    return saved_again(trained, tmp_path / "plain")


def scored(folder: Path, held: Path, **options: Any) -> Evaluation:
    return evaluate_model(folder, str(held), device="cpu", **options)


def test_every_loader_is_one_that_states_what_it_promises() -> None:
    """Whoever loads a model or tokenizer calls these, instead of a library that has defaults of its own."""
    loads = re.compile(r"\.from_pretrained$|^torch\.load$|Tokenizer\.from_\w+$")
    calls = {
        (str(path.relative_to(ROOT)), ast.unparse(node.func)): ast.unparse(node)
        for path in ROOT.rglob("*.py")
        for node in nodes(path)
        if isinstance(node, ast.Call) and loads.search(ast.unparse(node.func))
    }
    other = ("tokens/tokenizer.py", "AutoTokenizer.from_pretrained")
    assert calls.keys() == {
        ("model_folder/loading.py", "MODELS[config.model_type].from_pretrained"),
        ("tokens/tokenizer.py", "Tokenizer.from_str"),
        other,
    }
    assert "trust_remote_code=False" in calls[other]


# --- weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scored_in_float32_whatever_the_checkpoint(
    trained: Path, held: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = saved_again(trained, tmp_path / "again", dtype)
    assert json.loads((folder / "config.json").read_text("utf-8"))["dtype"] == str(dtype).partition(".")[2]
    model, _ = load_model(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    ours, theirs = scored(folder, held), scored(trained, held, txt_documents="file")
    assert ours.nll_nats == pytest.approx(theirs.nll_nats, rel=1e-6 if dtype is torch.float64 else 2e-2)
    if dtype is not torch.float64:
        assert ours.nll_nats != theirs.nll_nats
    assert generate_text(folder, "the", device="cpu", max_new_tokens=3, stream=False)["new_tokens"] == 3


def copied(trained: Path, folder: Path) -> None:
    """To be changed on purpose, so without the checksums of what Tandem wrote."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checksums.json"))


def test_an_audit_tells_rounded_and_padded_models_from_defects(trained: Path, tmp_path: Path) -> None:
    """Saved over the model, with its record and settings beside."""
    for number, (change, says) in enumerate(
        (
            ({"dtype": torch.bfloat16}, "weights were rounded to bfloat16"),
            ({"dtype": torch.float16}, "weights were rounded to float16"),
            ({"rows": 320}, "embedding has 320 rows, and 300 when it was trained"),
        )
    ):
        folder = tmp_path / str(number)
        copied(trained, folder)
        saved_again(trained, folder, **change)  # type: ignore[arg-type]
        found = audit(folder)
        assert found.status == "warn", list(found.failed())
        figures = [check.figure for one in found.runs for check in one.checks if check.status == "warn"]
        assert any(says in figure for figure in figures)
    copied(trained, tmp_path / "exact")
    saved_again(trained, tmp_path / "exact", torch.float64)
    assert audit(tmp_path / "exact").status == audit(trained).status


# --- tokenizers and generation ----------------------------------------------------------------------


def test_habits_of_a_saved_tokenizer_change_no_figure(trained: Path, held: Path, tmp_path: Path) -> None:
    """Truncation, padding, templates, tidying and a length that it asks for."""
    folder = tmp_path / "habits"
    copied(trained, folder)
    model = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model.enable_truncation(4)
    model.enable_padding(length=8)
    model.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    habits = {"model_max_length": 4, "clean_up_tokenization_spaces": True, "padding_side": "left"}
    path.write_text(json.dumps({**config, **habits, "add_bos_token": True}), "utf-8")
    assert scored(folder, held).nll_nats == scored(trained, held).nll_nats
    _, tokenizer = load_model(folder)
    assert tokenizer.padding_side == "right"
    assert tokenizer.decode(tokenizer.encode("it 's a block , it is .")) == "it 's a block , it is ."
    prompt = "the context block folds what came before"
    ours, theirs = (
        generate_text(one, prompt, device="cpu", max_new_tokens=5, stream=False) for one in (folder, trained)
    )
    assert ours == theirs
    assert audit(folder).status == audit(trained).status


def test_generation_follows_its_arguments_alone(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "generation"
    copied(trained, folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "num_beams": 3, "repetition_penalty": 5.0, "min_new_tokens": 50}),
        "utf-8",
    )
    ours, theirs = (
        generate_text(one, "the", device="cpu", temperature=0, max_new_tokens=9, stream=False)
        for one in (folder, trained)
    )
    assert ours == theirs


def test_the_end_of_text_token_is_the_one_that_the_model_names(
    trained: Path, held: Path, tmp_path: Path
) -> None:
    """Where only tokenizer.json was copied, and its token has no customary name."""
    folder = tmp_path / "named"
    copied(trained, folder)
    (folder / "tokenizer_config.json").unlink()
    text = (folder / "tokenizer.json").read_text("utf-8")
    (folder / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<stop>"), "utf-8")
    _, tokenizer = load_model(folder)
    assert tokenizer.eos_token == "<stop>"
    assert scored(folder, held).nll_nats == scored(trained, held).nll_nats


# --- folders without settings -----------------------------------------------------------------------


def test_a_folder_without_settings_evaluates_and_says_what_was_assumed(
    plain: Path, held: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (plain / "settings.yaml").exists()
    call = ["evaluate", str(plain), "--data", str(held), "--device", "cpu"]
    assert run(call) == 0
    shown = capsys.readouterr()
    said = " ".join(shown.err.split())
    assert "has no settings.yaml" in said
    assert "a .txt file is one document, <|endoftext|> begins each document" in said
    assert "convergence" not in shown.out
    assert run([*call, "--json"]) == 0
    shown = capsys.readouterr()
    assert "has no settings.yaml" in shown.err
    result = json.loads(shown.out)
    assert (result["documents"], result["phase1"]) == (1, {})


def test_it_scores_as_the_model_does_that_it_came_from(trained: Path, plain: Path, held: Path) -> None:
    assert scored(plain, held).nll_nats == pytest.approx(scored(trained, held).nll_nats, rel=1e-6)
    lines = held.with_suffix(".jsonl")
    write_jsonl(lines, sentences(6, seed=9))
    assert scored(plain, lines).documents == 6
    assert scored(plain, held, txt_documents="blank-line").documents == 6
    assert "convergence_rate" in scored(trained, held).phase1


def test_generate_works_there_and_says_so(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["generate", str(plain), "--prompt", "", "--max-new-tokens", "3", "--device", "cpu"]
    assert run(call) == 0
    assert "has no settings.yaml" in capsys.readouterr().err


def test_without_an_end_of_text_token_a_blank_line_separates(plain: Path, held: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        values = json.loads((plain / name).read_text("utf-8"))
        values = {key: value for key, value in values.items() if "eos" not in key and "bos" not in key}
        (plain / name).write_text(json.dumps(values), "utf-8")
    text = (plain / "tokenizer.json").read_text("utf-8")
    (plain / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<odd>"), "utf-8")
    said: list[str] = []
    result = scored(plain, held, txt_documents="blank-line", on_warning=said.append)
    assert "a blank line stands between documents" in said[0]
    assert result.text_bytes == held.stat().st_size


def test_mix_says_what_is_missing(plain: Path, held: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(plain), "--data", str(held), "--device", "cpu", "--mix"]) == 2
    assert "--mix counts n-grams of the training text, which settings.yaml names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "empty or not whole"),
        ("name: tiny\nrecipe: predictive\n", "no section 'data'"),
        ("data: [", "is not valid YAML"),
        ("data: {}\ncontexts: {}\nphase2: {}\nfuture: 3\n", "there is no setting 'future'"),
        ("data: {}\ncontexts: {}\nphase2: {momentum: 0.9}\n", "there is no setting 'phase2.momentum'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_not_replaced(
    plain: Path, held: Path, content: str, says: str
) -> None:
    (plain / "settings.yaml").write_text(content, "utf-8")
    for use in (lambda: scored(plain, held), lambda: generate_text(plain, "the", device="cpu")):
        with pytest.raises(SettingsError, match=re.escape(says)) as caught:
            use()
        assert "put back the one that `tandem train` wrote, with a Tandem no older" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_folders_that_lack_something_else(trained: Path, plain: Path, held: Path) -> None:
    with pytest.raises(
        RunDirError, match=r"no readable record\.json and settings\.yaml.* `tandem train` wrote"
    ):
        audit(plain)
    shutil.copy(trained / "settings.yaml", plain)
    assert scored(plain, held).mixture is None
    said: list[str] = []
    assert scored(plain, held, mix=True, on_warning=said.append).mixture is not None
    assert "has no readable record.json, so it is not known whether" in said[0]
    for path in plain.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(RunDirError, match="holds a model without its tokenizer; save that there too"):
        scored(plain, held)
    (plain / "model.safetensors").unlink()
    shutil.copy(trained / "tokenizer.json", plain)
    with pytest.raises(RunDirError, match="cannot be read"):
        generate_text(plain, "the", device="cpu")


# --- padded vocabularies ----------------------------------------------------------------------------


def test_a_padded_embedding_is_read_and_its_padding_never_said(
    trained: Path, held: Path, tmp_path: Path
) -> None:
    folder = saved_again(trained, tmp_path / "padded", rows=1024)
    shutil.copy(trained / "settings.yaml", folder)
    model, tokenizer = load_model(folder)
    assert (model.config.vocab_size, len(tokenizer)) == (1024, 300)
    with torch.no_grad():  # rows that nothing else would keep from being sampled
        model.embedding.weight[300:] = 10 * model.embedding.weight[:300].mean(0)
    model.save_pretrained(folder)
    result = scored(folder, held, mix=True)
    own = scored(trained, held, mix=True)
    assert own.nll_nats < result.nll_nats < 50  # of the whole softmax
    assert result.mixture is not None
    assert result.mixture.nll_nats <= result.nll_nats
    assert unused_ids(model, tokenizer) == list(range(300, 1024))
    for temperature in (0.0, 100.0):  # at 100 all rows are about as likely, and 7 of 10 are padding
        made = generate_text(
            folder, "the", device="cpu", temperature=temperature, max_new_tokens=60, stream=False
        )
        assert len(made["text"]) > 0.7 * made["new_tokens"] > 10  # padding would add no text


def test_fewer_rows_than_entries_stay_an_error(trained: Path, tmp_path: Path) -> None:
    folder = saved_again(trained, tmp_path / "short")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(RunDirError, match="tokenizer has 301 entries and its embedding 300 rows"):
        load_model(folder)
