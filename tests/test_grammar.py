"""Mistakes on the command line: each is named, with a command that the parser takes; and standard input."""

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PREDICTIVE, sentences, tiny, write_jsonl

from tandem.cli.arguments import (
    AuditArguments,
    ConfigArguments,
    EvaluateArguments,
    ExperimentArguments,
    GenerateArguments,
    ReportArguments,
    TrainArguments,
    hidden_settings,
    parse,
    parse_with_preset,
)
from tandem.cli.line import options_of
from tandem.cli.main import run
from tandem.settings import dump_settings
from tandem.text.files import text_lines

KINDS = {
    "train": TrainArguments,
    "experiment": ExperimentArguments,
    "config": ConfigArguments,
    "evaluate": EvaluateArguments,
    "generate": GenerateArguments,
    "audit": AuditArguments,
    "report": ReportArguments,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with texts, settings, a model folder and a run directory (by the files they have)."""
    for name in (
        "g/a.txt",
        "g/b.txt",
        "my-text/x.txt",
        "my.txt",
        "my text.txt",
        "other.txt",
        "two/a.txt",
        "long/a1.txt",
        "long/a2.txt",
        "long/b.txt",
        "mixed/a.txt",
        "mixed/notes.md",
        "two/notes.md",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("some words\n", "utf-8")
    for name in ("two/b.txt", "two/c.txt", "two/d.jsonl", "text.jsonl", "g2/a.txt.gz", "g2/b.txt.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"text": "some words"}\n', "utf-8")
    (tmp_path / "mine.yaml").write_text("seeds: [0]\n", "utf-8")
    (tmp_path / "settings.txt").write_text("seeds: [0]\n", "utf-8")
    (tmp_path / "m" / "tiny").mkdir(parents=True)
    (tmp_path / "m" / "tiny" / "config.json").write_text('{"model_type": "tandem"}', "utf-8")
    (tmp_path / "m" / "tiny" / "settings.yaml").write_text("seeds: [0]\n", "utf-8")
    (tmp_path / "runs" / "one" / "models" / "C1T1-seed0").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "records.jsonl").write_text('{"settings_fingerprint": ""}\n', "utf-8")
    (tmp_path / "runs" / "one" / "models" / "C1T1-seed0" / "config.json").write_text(
        '{"model_type": "tandem"}', "utf-8"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISTAKES = {
    # The shell made several words of a pattern without quotes, or of a text.
    "train --data.train g/a.txt g/b.txt": ("made them of a pattern", "train --data.train 'g/*.txt'"),
    "train g/a.txt g/b.txt --seed 1": ("made them of a pattern", "train --seed 1 --data.train 'g/*.txt'"),
    "train --data.train g2/a.txt.gz g2/b.txt.gz": ("made them", "train --data.train 'g2/*.txt.gz'"),
    "train --data.train two/a.txt two/b.txt": ("2 files; put them into one folder", None),
    "train --data.train two/a.txt two/notes.md": ("put them into one folder", None),
    "train g2/a.txt.gz g2/b.txt.gz": ("made them", "train --data.train 'g2/*.txt.gz'"),
    "train --data.train long/a1.txt long/a2.txt": ("made them", "train --data.train 'long/a*.txt'"),
    "train mixed/a.txt mixed/notes.md": ("made them", "train --data.train 'mixed/*'"),
    "train two/a.txt two/b.txt two/c.txt two/d.jsonl two/notes.md": ("5 files", "train --data.train 'two/*'"),
    "train --data.train my.txt g/a.txt": ("put them into one folder", None),
    "evaluate m/tiny --data g/a.txt g/b.txt --mix": ("2 files", "evaluate m/tiny --data 'g/*.txt' --mix"),
    "experiment --data.validation g/a.txt g/b.txt": ("2 files", "experiment --data.validation 'g/*.txt'"),
    "train --data.train my text.txt": ("takes one value", "train --data.train 'my text.txt'"),
    "train --output my dir": ("takes one value", "train --output 'my dir'"),
    "generate m/tiny --prompt Once upon a time --seed 1": (
        "takes one value",
        "generate m/tiny --prompt 'Once upon a time' --seed 1",
    ),
    "generate --prompt Once upon m/tiny": ("takes one value", "generate --prompt 'Once upon' m/tiny"),
    # A word where another kind of word is expected.
    "train my.txt": ("is a text file", "train --data.train my.txt"),
    "train my-text/": ("is a folder of text", "train --data.train my-text/"),
    "train 'g/*.txt'": ("is a pattern of text files", "train --data.train 'g/*.txt'"),
    "train python-docs": ("is a text source", "train --data.train python-docs"),
    "train hf:imdb": ("is a text source", "train --data.train hf:imdb"),
    "train none.txt": ("there is no file none.txt", "train --data.train none.txt"),
    "config my.txt": ("is a text file", "config --data.train my.txt"),
    "experiment text.jsonl": ("is a text file", "experiment --data.train text.jsonl"),
    "experiment mine.yaml my.txt": ("is a text file", "experiment mine.yaml --data.train my.txt"),
    "experiment m/tiny": ("is a model folder", "experiment m/tiny/settings.yaml"),
    "train runs/one": ("the run directory of an experiment", "report runs/one"),
    "train C2T1": ("name of a configuration", "train --context-layers 2 --token-layers 1"),
    "experiment demo C2T1": ("name of a configuration", "experiment demo --configurations 2 1"),
    "experiment --device cpu mine.yaml": ("comes first", "experiment mine.yaml --device cpu"),
    "experiment --seeds 0 1 demo": ("comes first", "experiment demo --seeds 0 1"),
    "train --dry-run predictive": ("comes first", "train predictive --dry-run"),
    "experiment demo seed": ("no place for a second one", None),
    "evaluate m/tiny other.txt": ("is a text file", "evaluate m/tiny --data other.txt"),
    "evaluate other.txt": ("is a text file", "evaluate MODEL --data other.txt"),
    "evaluate --data other.txt": ("needs a model folder", "evaluate MODEL --data other.txt"),
    "evaluate other.txt --data m/tiny": ("takes a model folder", "evaluate m/tiny --data other.txt"),
    "evaluate runs/one --data my.txt": (
        "the run directory",
        "evaluate runs/one/models/C1T1-seed0 --data my.txt",
    ),
    "evaluate m/tiny": ("--data is missing", "evaluate m/tiny --data FILE"),
    "evaluate m/tiny --data": ("--data has no value", None),
    "evaluate m/tiny -": ("a text source", "evaluate m/tiny --data -"),
    "generate m/tiny 'Once upon'": ("stands after --prompt", "generate m/tiny --prompt 'Once upon'"),
    "generate m/tiny Once upon": ("stands after --prompt", "generate m/tiny --prompt 'Once upon'"),
    "generate m/tiny other.txt": ("stands after --prompt-file", "generate m/tiny --prompt-file other.txt"),
    "generate 'Once upon'": ("stands after --prompt", "generate MODEL --prompt 'Once upon'"),
    "generate --prompt x": ("needs a model folder", "generate MODEL --prompt x"),
    "generate m/tiny": ("--prompt is missing", "generate m/tiny --prompt TEXT"),
    "generate m/tiny --prompt x --prompt-file my.txt": ("keep one of the two", None),
    "report m/tiny": ("is a model folder", "audit m/tiny"),
    "audit": ("needs a run directory or model folder", "audit RUN_DIR"),
    "audit m/tiny m/tiny": ("no place for a second one", None),
    # No command.
    "m/tiny": ("a command comes first", "generate m/tiny --prompt TEXT"),
    "my.txt": ("a command comes first", "train --data.train my.txt"),
    "runs/one": ("a command comes first", "report runs/one"),
    "mine.yaml --seeds 0": ("a command comes first", "experiment mine.yaml --seeds 0"),
    "m/tiny generate --prompt x": ("the command comes first", "generate m/tiny --prompt x"),
    "--data.train my.txt": ("a command comes before all options", None),
    # Options as they are written elsewhere.
    "train --help-me": ("did you mean --help", "train --help"),
    "train data.train=my.txt": ("begin with two hyphens", "train --data.train my.txt"),
    "train data.train my.txt": ("begin with two hyphens", "train --data.train my.txt"),
    "train --data.train=": ("--data.train is empty", None),
    "train -data.train my.txt": ("begins with one hyphen", "train --data.train my.txt"),
    "train –data.train my.txt": ("begins with a dash", "train --data.train my.txt"),
    "train —data.train=my.txt –seed 3": ("begins with a dash", "train --data.train my.txt --seed 3"),
    "train --data_train my.txt": ("did you mean --data.train", "train --data.train my.txt"),
    "train --data my.txt": ("did you mean --data.train", "train --data.train my.txt"),
    "train --lr 0.01": ("one of --baselines.gpt2.lr, --baselines.lstm.lr, --phase1.lr, --phase2.lr, ", None),
    "train --epochs 3": ("--phase2.max-epochs, --prediction.max-epochs", None),
    "train --workers 2": ("`tandem experiment` has it", None),
    "train --configurations 2 1": ("one is trained", "train --context-layers 2 --token-layers 1"),
    "train --seeds 0": ("did you mean --seed", "train --seed 0"),
    "generate m/tiny -p x": ("one of --prompt, --prompt-file", None),
    "generate m/tiny --prompt -x": ("--option=-value", "generate m/tiny --prompt=-x"),
    "generate m/tiny --prompt “Once upon”": ("word processor", "generate m/tiny --prompt 'Once upon'"),
    "generate m/tiny „Once upon“": ("word processor", "generate m/tiny --prompt 'Once upon'"),
    "train --data.train “my.txt”": ("word processor", "train --data.train my.txt"),
    # Values as they are written elsewhere.
    "experiment --seeds [0,1,2]": ("one by one", "experiment --seeds 0 1 2"),
    "experiment --seeds 0,1,2": ("one by one", "experiment --seeds 0 1 2"),
    "experiment --seeds '[0, 1]'": ("one by one", "experiment --seeds 0 1"),
    "experiment --configurations C2T1": ("two numbers", "experiment --configurations 2 1"),
    "experiment --configurations C2T1,c1t1": ("two numbers", "experiment --configurations 2 1 1 1"),
    "experiment --configurations [[2,1],[1,1]]": ("one by one", "experiment --configurations 2 1 1 1"),
    "experiment --baselines.models lstm,gpt2": ("one by one", "experiment --baselines.models lstm gpt2"),
    "experiment --phase2.shuffle true": ("is a switch", "experiment --phase2.shuffle"),
    "experiment --phase2.shuffle=False": ("is a switch", "experiment --phase2.no-shuffle"),
    "train --dry-run yes": ("is a switch", "train --dry-run"),
    "train --json false": ("is a switch", "train"),
    "experiment --data.validation none --threads null": (
        "written None, not none",
        "experiment --data.validation None --threads None",
    ),
    "experiment --data.max-train-bytes 1e6": ("whole number", "experiment --data.max-train-bytes 1000000"),
    "experiment --data.max-train-bytes 2MB": ("whole number", "experiment --data.max-train-bytes 2000000"),
    "experiment --data.max-train-bytes 1,000": ("whole number", "experiment --data.max-train-bytes 1000"),
    "experiment --phase2.lr 0,01": ("a point", "experiment --phase2.lr 0.01"),
    "experiment --data.split-seed −3": ("whole number", "experiment --data.split-seed -3"),
    "experiment --seeds 0 --seeds 1": ("give all values to one", "experiment --seeds 0 1"),
    # Several at once.
    "train my.txt -threads 1 --seed [3]": (
        "-threads begins with one hyphen",
        "train --threads 1 --seed 3 --data.train my.txt",
    ),
}  # fmt: skip


def parsed(args: list[str]) -> object:
    command, rest = args[0], args[1:]
    kind = KINDS[command]
    if command in {"train", "experiment", "config"}:
        return parse_with_preset(command, kind, rest, "demo")
    return parse(command, kind, rest)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named_with_the_right_command(capsys: pytest.CaptureFixture[str], line: str) -> None:
    says, right = MISTAKES[line]
    assert run(shlex.split(line)) == 2
    err = capsys.readouterr().err
    assert err.startswith("tandem: error: ")
    assert len(err.splitlines()) == 1
    assert says in err
    given = err.rstrip("\n").partition("; give: tandem ")[2].partition(" or: ")[0]
    assert given == (right or "")
    if right is not None and "--help" not in right:
        parsed(shlex.split(right))  # the command's own parser takes what is advised


TAKEN = [
    "experiment settings.txt",
    "experiment mine.yaml --seeds 0 1",
    "experiment --threads None --data.validation None",
    "experiment --phase2.lr 1e-3 --phase2.batch-positions 10_000",
    "experiment --phase2.lr=0.1 --phase2.lr 0.2",  # the last counts, so that adding one changes a command
    "train --phase2.shuffle --phase2.no-shuffle",
    "experiment --data.split-seed -3 --description '“Quoted” – with a dash'",
    "experiment --data.separator '' --data.allow-overlap my.txt other.txt",
    "train --model.no-token-projection --data.train=my.txt",
    "train --context_layers 2",
    "train --data.train 'my text.txt'",
    "generate m/tiny --prompt –dash",
    "generate m/tiny --prompt none",
    "generate m/tiny --prompt '“Hello”'",
    "generate --prompt=-x m/tiny --temperature 0",
    "generate --prompt x m/tiny",
    "generate m/tiny --prompt ''",
    "evaluate --data my.txt m/tiny --mix",
    "evaluate m/tiny --data - --separator ''",
]  # fmt: skip


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("line", TAKEN)
def test_what_can_be_understood_is_taken(line: str) -> None:
    parsed(shlex.split(line))


@pytest.mark.parametrize("command", KINDS)
def test_the_options_are_those_of_the_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """The table of options comes from the types of the fields, as the parser's own does."""
    with pytest.raises(SystemExit):
        parsed([command, "--help"])
    heads = [line for line in capsys.readouterr().out.splitlines() if re.match(r"[│ ] +--?[a-z]", line)]
    shown = {name for head in heads for name in re.findall(r"(?<=[ ,])--?[a-z][\w.-]*", head)}
    assert set(options_of(KINDS[command], hidden_settings(KINDS[command]))) == shown


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "line", ["train my.txt -h", "experiment --nonsense --help", "generate -h x", "help train"]
)
def test_help_is_given_after_anything(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert run(shlex.split(line)) == 0
    assert "usage: tandem" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained model."""
    place = tmp_path_factory.mktemp("grammar")
    text = write_jsonl(place / "text.jsonl", sentences(60))
    (place / "tiny.yaml").write_text(dump_settings(tiny(text, **PREDICTIVE)), "utf-8")
    assert run(["train", str(place / "tiny.yaml"), "--output", str(place / "model")]) == 0
    return place / "model"


def piped(text: bytes, *args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "tandem", *args], input=text, capture_output=True)


def test_the_prompt_comes_from_standard_input_or_a_file(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generated(*args: str) -> dict[str, object]:
        assert run(["generate", str(model), *args, "--max-new-tokens", "5", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    typed = generated("--prompt", "the context\nand")
    file = tmp_path / "prompt"
    for content in (b"the context\nand", b"\xef\xbb\xbfthe context\r\nand\r\n"):
        file.write_bytes(content)
        assert generated("--prompt-file", str(file)) == typed
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
        assert generated("--prompt", "-") == typed
    file.write_bytes(b"caf\xe9")
    assert run(["generate", str(model), "--prompt-file", str(file)]) == 2
    assert "line 1 is not UTF-8" in capsys.readouterr().err
    assert run(["generate", str(model), "--prompt-file", str(tmp_path / "none")]) == 2
    assert "check the path" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)
    assert run(["generate", str(model), "--prompt", "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err


def test_a_long_prompt_comes_through_a_pipe(model: Path) -> None:
    """A real pipe; no shell takes 150 kB as one argument."""
    text = ("the context folds the token and reads it " * 5000)[:150_000].encode()
    done = piped(text, "generate", str(model), "--prompt", "-", "--max-new-tokens", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == text.decode()


def test_a_text_to_score_comes_from_standard_input(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"the context folds the token\n\nand reads it\n"
    (tmp_path / "text.txt").write_bytes(text)
    for more in ((), ("--txt-documents", "blank-line")):
        results = []
        for source in ("-", str(tmp_path / "text.txt")):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), "utf-8"))
            assert run(["evaluate", str(model), "--data", source, "--json", *more]) == 0
            results.append({**json.loads(capsys.readouterr().out), "data": None})
        assert results[0] == results[1]
        assert results[0]["documents"] == 1 + len(more) // 2


@pytest.mark.parametrize("setting", ["data.train", "data.validation"])
def test_training_text_must_be_a_file(capsys: pytest.CaptureFixture[str], setting: str) -> None:
    assert run(["train", f"--{setting}", "-"]) == 2
    assert (
        f"setting {setting} = '-' is not possible: standard input can be read once only"
        in capsys.readouterr().err
    )


def test_lines_of_a_missing_file_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="check the path"):
        list(text_lines(str(tmp_path / "none")))
