"""What a folder is, is told before anything is read from it or written into it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import sentences, tiny, write_jsonl

from tandem.cli.main import run
from tandem.errors import DataError, RunDirError
from tandem.folders import check_reading, look
from tandem.settings import dump_settings
from tandem.text.listing import find_files
from tandem.text.reading import Reading
from tandem.tokens.prepare import default_cache_dir


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of folder in it: two by Tandem, and others."""
    folder = tmp_path_factory.mktemp("work")
    text = write_jsonl(folder / "text.jsonl", sentences(60))
    settings = tiny(text, configurations=((1, 1),), seeds=(0,), phase2={"max_epochs": 1})
    (folder / "tiny.yaml").write_text(dump_settings(settings), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_CACHE", str(folder / "cache"))
        assert run(["experiment", str(folder / "tiny.yaml"), "--output", str(folder / "run")]) == 0
        assert run(["train", str(folder / "tiny.yaml"), "--output", str(folder / "model")]) == 0
    (folder / "gpt2").mkdir()
    (folder / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}', "utf-8")
    (folder / "mine").mkdir()
    (folder / "mine" / "settings.yaml").write_text("name: mine\n", "utf-8")
    (folder / "mine" / "report.md").write_text("mine\n", "utf-8")
    (folder / "notes").mkdir()
    (folder / "notes" / "notes.md").write_text("notes\n", "utf-8")
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    write_jsonl(folder / "texts" / "a.jsonl", sentences(60))
    shutil.copytree(folder / "run", folder / "begun")
    (folder / "begun" / "records.jsonl").write_text("", "utf-8")
    shutil.rmtree(folder / "begun" / "models")
    return folder


def tree(folder: Path) -> dict[str, int]:
    """Every path below, with the time when it was last changed."""
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], work: Path, *args: str) -> str:
    """The one sentence that a command refuses with; it has changed nothing."""
    before = tree(work)
    capsys.readouterr()
    assert run(args) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("tandem: error: ")] == told[-1:]
    assert len(told) == 1, "it was said after some work"
    assert tree(work) == before
    return told[0].removeprefix("tandem: error: ").replace(f"{work}/", "")


WRITING = {
    ("experiment", "model"): "model is a model folder, which is no place for a run directory",
    ("experiment", "model/sub"): "model/sub lies in model, a model folder, which is no place for a run dir",
    ("experiment", "run/sub"): "run/sub lies in run, the run directory of an experiment, which is no place",
    ("experiment", "gpt2"): "gpt2 is a folder with a model of type 'gpt2', not a Tandem model, which is no",
    ("experiment", "cache"): "cache is a cache of prepared text, which is no place for a run directory",
    ("experiment", "text.jsonl"): "text.jsonl is a file, which is no place for a run directory",
    ("experiment", "mine"): "mine holds a report.md that is not Tandem's, and a run directory has one",
    ("train", "run"): "run is the run directory of an experiment, which is no place for a model folder",
    ("train", "begun"): "begun is the run directory of an experiment",
    ("train", "run/models/C1T1-seed0"): "run/models/C1T1-seed0 lies in run, the run directory",
    ("train", "run/models/new"): "run/models/new lies in run, the run directory of an experiment",
    ("train", "gpt2"): "gpt2 is a folder with a model of type 'gpt2', not a Tandem model",
    ("train", "mine"): "mine holds a settings.yaml that is not Tandem's, and a model folder has one",
    ("train", "text.jsonl"): "text.jsonl is a file, which is no place for a model folder",
    ("experiment", "cache/corpora"): "cache/corpora lies in cache, a cache of prepared text",
    ("train", "cache/embeddings/new"): "cache/embeddings/new lies in cache, a cache of prepared text",
}  # fmt: skip


@pytest.mark.parametrize(("command", "output"), WRITING)
@pytest.mark.parametrize("way", [(), ("--dry-run",)])
def test_what_would_mix_is_refused_before_the_work(
    work: Path, capsys: pytest.CaptureFixture[str], command: str, output: str, way: tuple[str, ...]
) -> None:
    told = refused(capsys, work, command, str(work / "tiny.yaml"), "--output", str(work / output), *way)
    assert told.startswith(WRITING[command, output])
    assert told.endswith("; give another --output")


def test_a_folder_of_runs_and_models_is_none_itself(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, work, "train", str(work / "tiny.yaml"), "--output", str(work))
    assert "holds begun, model, run, so it is no place for a model folder itself" in told


@pytest.mark.parametrize("command", ["experiment", "train"])
def test_a_refusal_leaves_no_folder(tmp_path: Path, command: str) -> None:
    """Whatever is refused after the place was looked at: text that is missing, or too small."""
    (tmp_path / "small.txt").write_text("a b c", "utf-8")
    for text in ("missing.txt", "small.txt"):
        source = ("--data.train", str(tmp_path / text))
        assert run([command, "predictive", *source, "--output", str(tmp_path / "deep" / "made")]) == 2
        assert not (tmp_path / "deep").exists()


def test_the_folder_of_the_text_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, source, output in (
        ("experiment", "texts", "texts"),
        ("train", "texts", "texts/"),
        ("experiment", "texts", "texts/run"),
        ("experiment", "texts/*.jsonl", "texts"),
        ("train", "texts/a.jsonl", "texts"),
    ):
        text = ("--data.train", str(work / source))
        told = refused(capsys, work, command, str(work / "tiny.yaml"), *text, "--output", str(work / output))
        assert told.startswith(f"{output.rstrip('/')} holds the text {source}, with which a ")


def test_unrelated_files_stay(work: Path, tmp_path: Path) -> None:
    for command in ("experiment", "train"):
        folder = Path(shutil.copytree(work / "notes", tmp_path / command))
        assert run([command, str(work / "tiny.yaml"), "--output", str(folder)]) == 0
        assert (folder / "notes.md").read_text("utf-8") == "notes\n"
        assert run([command, str(work / "tiny.yaml"), "--output", str(folder)]) == 0  # and again


READING = {
    ("evaluate", "run"): "it is the run directory of an experiment; give one of its models: run/models/C1T1",
    ("generate", "run"): "run is not a model folder: it is the run directory of an experiment; give one of",
    ("generate", "begun"): "which keeps no models; train one with `tandem train`",
    ("evaluate", "run/models"): "give one of those in it: run/models/C1T1-seed0",
    ("evaluate", "gpt2"): "it is a folder with a model of type 'gpt2', not a Tandem model; give one that",
    ("evaluate", "text.jsonl"): "it is a file; give one that `tandem train` made",
    ("evaluate", "none"): "there is no model folder none; give one that `tandem train` made",
    ("report", "model"): "model is not a run directory: it is a model folder; give one that `tandem exper",
    ("report", "run/models/C1T1-seed0"): "it is a model folder; give run, in which it lies",
    ("report", "begun"): "holds no records yet",
    ("report", "notes"): "it is a folder that holds neither records nor a model of its own",
    ("audit", "."): "give one of those in it: begun, model, run",
    ("audit", "begun"): "has no finished run to audit",
    ("audit", "run/figures"): "; give run, in which it lies",
    ("audit", "text.jsonl"): "is neither a run directory nor a model folder: it is a file",
    ("audit", "empty"): "it is an empty folder",
    ("audit", "cache"): "it is a cache of prepared text",
    ("experiment", "model"): "is a model folder, and no settings file; its settings are in model/se",
    ("train", "run"): "run is the run directory of an experiment, and no settings file",
}  # fmt: skip


@pytest.mark.parametrize(("command", "folder"), READING)
def test_a_folder_of_another_kind_is_named(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, folder: str
) -> None:
    monkeypatch.chdir(work)
    more = {"evaluate": ("--data", "text.jsonl"), "generate": ("--prompt", "the")}.get(command, ())
    assert READING[command, folder] in refused(capsys, work, command, folder, *more)


def test_a_run_directory_is_no_text_and_no_tokenizer(work: Path) -> None:
    with pytest.raises(DataError, match="is the run directory of an experiment, and no text"):
        find_files(str(work / "run"), Reading("run"))
    with pytest.raises(DataError, match="is a cache of prepared text, and no text"):
        find_files(str(work / "cache"), Reading("cache"))


def test_a_damaged_folder_is_still_of_its_kind(work: Path, tmp_path: Path) -> None:
    run_dir, model = (Path(shutil.copytree(work / name, tmp_path / name)) for name in ("run", "model"))
    (run_dir / "manifest.json").write_text("{", "utf-8")
    assert look(run_dir).kind == "run directory"
    (run_dir / "records.jsonl").write_text("{", "utf-8")
    assert look(run_dir).kind == "run directory"
    (model / "config.json").write_text("{", "utf-8")
    assert look(model).kind == "model folder"
    (model / "config.json").unlink()  # saving was stopped: it comes last
    assert look(model).kind == "model folder"
    assert run(["train", str(work / "tiny.yaml"), "--output", str(model)]) == 0
    assert json.loads((model / "config.json").read_text("utf-8"))["model_type"] == "tandem"


def test_files_of_others_make_no_run_directory(tmp_path: Path) -> None:
    """Web pages have a manifest.json, and texts may be called records.jsonl."""
    (tmp_path / "manifest.json").write_text('{"name": "page"}', "utf-8")
    assert look(tmp_path).kind == "other"
    (tmp_path / "manifest.json").unlink()
    write_jsonl(tmp_path / "records.jsonl", sentences(3))
    assert look(tmp_path).kind == "other"
    (tmp_path / "config.json").write_text('{"theme": "dark"}', "utf-8")
    assert look(tmp_path).kind == "other"
    with pytest.raises(RunDirError, match="it is a folder that holds neither records nor a model"):
        check_reading(tmp_path, "run directory")
    assert len(find_files(str(tmp_path), Reading("texts"))) == 1


def test_the_cache_of_this_session_is_one(work: Path) -> None:
    assert look(work / "cache").kind == "cache"
    assert look(default_cache_dir() / "none").kind == "absent"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
@pytest.mark.parametrize("hostile", ["pipe", "deep", "long"])
def test_a_hostile_config_is_neither_waited_for_nor_read_whole(tmp_path: Path, hostile: str) -> None:
    config = tmp_path / "config.json"
    if hostile == "pipe":
        os.mkfifo(config)
    else:
        config.write_text("[" * 200_000 if hostile == "deep" else '{"a": "' + "x" * (3 << 20) + '"}', "utf-8")
    assert look(tmp_path).kind == "other"
