"""Recorded sources are found from any folder; where they are no longer what they were, that is said first."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from conftest import merged, seal_again, sentences, tiny, write_jsonl
from safetensors.torch import save_file
from tokenizers import Tokenizer

from tandem.audit import audit
from tandem.claims import liveness_lock
from tandem.cli.main import run
from tandem.errors import DataError
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.executors import Worker
from tandem.experiment.runner import run_experiment
from tandem.experiment.single_run import train_one
from tandem.records import read_records
from tandem.settings import Configuration, Settings, load_settings
from tandem.text.places import counted_from
from tandem.text.recorded import folder_of, local_path
from tandem.text.splits import split_documents
from tandem.tokens.tokenizer import train_bpe
from tandem.training.progress import Watcher

RELATIVE: dict[str, object] = {
    "data": {"train": "texts", "validation": "held.jsonl", "allow_overlap": ("held.jsonl",)},
    "tokenizer": {"source": "own/tokenizer.json"},
    "embeddings": {"source": "own/table.safetensors"},
    "configurations": ((1, 1),),
    "seeds": (0,),
    "output": "run",
}
"""Every source by a relative path."""


def project(folder: Path) -> None:
    """Text, tokenizer and embedding that `RELATIVE` names."""
    (folder / "texts").mkdir(parents=True)
    write_jsonl(folder / "texts" / "a.jsonl", sentences(40))
    write_jsonl(folder / "held.jsonl", sentences(8, seed=5))
    tokenizer = train_bpe(sentences(40), 300)
    (folder / "own").mkdir()
    tokenizer.save(str(folder / "own" / "tokenizer.json"))
    table = torch.randn(300, 24, generator=torch.Generator().manual_seed(1))
    save_file({"embedding.weight": table}, folder / "own" / "table.safetensors")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished experiment in `run` and a model in `model`, all by relative paths."""
    folder = tmp_path_factory.mktemp("made") / "project"
    project(folder)
    settings = tiny(Path("texts"), **RELATIVE)
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_CACHE", str(folder.parent / "cache"))
        run_experiment(settings, Watcher())
        train_one(settings, Configuration(1, 1), 0, Path("model"), Watcher())
    return folder


@pytest.fixture
def kept(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which says of itself that it was made where it lies; the working folder is another."""
    folder = Path(shutil.copytree(made, tmp_path / "project"))
    for path in (folder / "run" / "records.jsonl", *folder.rglob("record.json")):
        path.write_text(path.read_text("utf-8").replace(str(made), str(folder)), "utf-8")
    seal_again(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("TANDEM_CACHE", str(made.parent / "cache"))
    return folder


def test_the_settings_of_a_model_name_the_same_files_from_anywhere(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(Path("held.jsonl"), sentences(2, seed=77))
    args = ["config", str(kept / "model" / "settings.yaml"), "--embeddings.source", "random", "--json"]
    assert run(args) == 0
    settings = json.loads(capsys.readouterr().out)
    held = str(kept / "held.jsonl")
    assert settings["data"]["train"] == str(kept / "texts")
    assert (settings["data"]["validation"], settings["data"]["allow_overlap"]) == (held, [held])
    assert settings["tokenizer"]["source"] == str(kept / "own" / "tokenizer.json")
    assert settings["embeddings"]["source"] == "random"  # of this command
    monkeypatch.chdir(kept)
    assert run(args) == 0
    assert json.loads(capsys.readouterr().out)["data"]["train"] == "texts"
    shutil.rmtree("texts")
    monkeypatch.chdir(kept.parent)
    assert run(["train", *args[1:4], "--output", "other"]) == 2
    assert f"no file or directory {kept / 'texts'}" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["run", "model", "run/models/C1T1-seed0"])
def test_a_recorded_source_is_found_from_anywhere(kept: Path, what: str) -> None:
    assert audit(kept / what).status != "fail"


def test_other_files_of_the_same_names_are_not_taken_for_them(kept: Path) -> None:
    write_jsonl(Path("held.jsonl"), sentences(2, seed=77))
    Path("texts").mkdir()
    write_jsonl(Path("texts/a.jsonl"), sentences(3, seed=78))
    assert audit(kept / "model").status != "fail"
    assert evaluate_model(kept / "model", "held.jsonl", mix=True).documents == 2  # this one is of the command
    shutil.rmtree(kept / "texts")
    (kept / "held.jsonl").unlink()
    with pytest.raises(DataError, match=r"text of texts and held.jsonl \(in .*project\) is no longer"):
        audit(kept / "model")


def test_mixing_counts_the_text_of_the_training(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = str(kept / "held.jsonl")
    assert run(["evaluate", str(kept / "model"), "--data", held, "--mix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mixture"]["perplexity"] > 1
    write_jsonl(kept / "texts" / "a.jsonl", ["one"])  # too little even to be cut into tokens
    assert run(["evaluate", str(kept / "model"), "--data", held, "--mix"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"held.jsonl (in {kept}) is no longer what C1T1-seed0 was trained" in told


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("texts/a.jsonl", "the text of texts and held.jsonl"),
        ("held.jsonl", "the text of texts and held.jsonl"),
        ("own/tokenizer.json", "the tokenizer of own/tokenizer.json"),
        ("own/table.safetensors", "the embedding of own/table.safetensors"),
    ],
)
@pytest.mark.parametrize("how", ["changed", "gone", "smaller"])
def test_what_is_no_longer_as_it_was_is_said_before_any_other_check(
    kept: Path, file: str, what: str, how: str
) -> None:
    path = kept / file
    if how == "gone":
        path.unlink()
    elif path.suffix == ".jsonl":
        write_jsonl(path, sentences(20, seed=9) if how == "changed" else ["one"])
    elif path.suffix == ".json":
        train_bpe(sentences(50, seed=3), 301 if how == "changed" else 290).save(str(path))
    else:
        size = (300, 24) if how == "changed" else (200, 8)
        save_file({"embedding.weight": torch.zeros(size)}, path)
    for folder in ("run", "model"):
        with pytest.raises(DataError) as raised:
            audit(kept / folder)
        assert f"{what} (in {kept}) is no longer what C1T1-seed0 was trained" in str(raised.value)
        assert "batch_positions" not in str(raised.value)


def test_a_project_that_was_moved_still_works(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = kept.rename(tmp_path / "moved")
    for place in (moved, moved / "texts", tmp_path):
        monkeypatch.chdir(place)
        assert audit(moved / "run").status != "fail"
        assert audit(moved / "model").status != "fail"
    alone = (moved / "run").rename(tmp_path / "run alone")  # without the text
    monkeypatch.chdir(moved)
    assert audit(alone).status != "fail"


def test_a_report_needs_no_text(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(kept / "texts")
    assert run(["report", str(kept / "run")]) == 0
    assert "report.html" in capsys.readouterr().out


def test_names_and_fingerprints_do_not_depend_on_the_place(kept: Path, made: Path) -> None:
    for folder in (kept, made):
        assert load_settings(str(folder / "model" / "settings.yaml")).data.train == "texts"
    (record,) = read_records(kept / "run")
    assert record.folder == str(kept)
    assert record.data.train_source == "texts"
    assert record.settings_fingerprint == tiny(Path("texts"), **RELATIVE).fingerprint()


def test_a_variants_own_embedding_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    project(folder)
    more = {"variants": {"own": {"embeddings": {"source": "own/table.safetensors"}}, "drawn": {}}}
    values = merged(RELATIVE, {**more, "embeddings": {"source": "random"}})
    monkeypatch.chdir(folder)
    run_experiment(tiny(Path("texts"), **values), Watcher())
    monkeypatch.chdir(tmp_path)
    assert audit(folder / "run").status != "fail"
    save_file({"embedding.weight": torch.zeros(300, 24)}, folder / "own" / "table.safetensors")
    with pytest.raises(DataError, match=r"embedding of own/table\.safetensors .* what own-C1T1-seed0"):
        audit(folder / "run")


def work(settings: Settings, run_dir: Path) -> None:
    """What a worker finds from another working folder."""
    (run_dir / "found").write_text(str(len(split_documents(settings.data).train)), "utf-8")


def test_a_worker_reads_the_commands_text_and_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path / "project")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    monkeypatch.chdir(tmp_path)
    settings = tiny(Path("texts"), **RELATIVE)
    with liveness_lock(run_dir) as command:
        Worker(settings, run_dir, tmp_path / "project", command, work)()
    assert (run_dir / "found").read_text("utf-8") == "40"
    assert Path.cwd() == tmp_path


FORMS = ["texts", "texts/", "./texts", "link", "texts/*.jsonl", "t[e]xts/*"]


@pytest.mark.parametrize("source", FORMS)
def test_every_form_of_path_counts_from_the_folder(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pro[1]ject*"  # whose name is no pattern
    project(folder)
    (folder / "link").symlink_to("texts")
    monkeypatch.chdir(tmp_path)
    assert local_path(source) is None
    assert folder_of(str(folder), [source, "bpe", "python-docs", "gpt2"], tmp_path) == folder
    with counted_from(folder):
        assert local_path(source) is not None
        data = tiny(Path(source)).data.model_copy(update={"train": source})
        assert len(split_documents(data).train) > 30


def test_a_data_set_in_a_folder_counts_from_there_too(tmp_path: Path) -> None:
    project(tmp_path / "project")
    data = tiny(Path("x")).data.model_copy(update={"train": "hf:texts:train[:30]"})
    with counted_from(tmp_path / "project"):
        assert local_path(data.train) == tmp_path / "project" / "texts"
        assert len(split_documents(data).train) > 20


def test_a_home_is_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    project(tmp_path)
    with counted_from(tmp_path / "elsewhere"):
        assert local_path("~/texts") == tmp_path / "texts"
        assert local_path("hf:~/texts:train") == tmp_path / "texts"


def test_a_tokenizer_that_was_copied_is_the_same(kept: Path) -> None:
    path = kept / "own" / "tokenizer.json"
    path.write_text(Tokenizer.from_file(str(path)).to_str(pretty=True), "utf-8")
    assert audit(kept / "model").status != "fail"
