"""The command line: mistakes are named in one sentence, valid lines are taken; and standard input."""

import io
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import PREDICTIVE, sentences, tiny, write_jsonl
from warm import python

from tandem.baselines import BASELINES
from tandem.cli.arguments import (
    AuditArguments,
    CompletionArguments,
    ConfigArguments,
    DoctorArguments,
    EvaluateArguments,
    ExperimentArguments,
    GenerateArguments,
    ReportArguments,
    TrainArguments,
    hidden_settings,
    parse,
    parse_with_preset,
)
from tandem.cli.main import run
from tandem.cli.options import options_of
from tandem.settings import dump_settings
from tandem.text.files import text_lines

KINDS: dict[str, type[Any]] = {
    "train": TrainArguments,
    "experiment": ExperimentArguments,
    "config": ConfigArguments,
    "evaluate": EvaluateArguments,
    "generate": GenerateArguments,
    "audit": AuditArguments,
    "report": ReportArguments,
    "doctor": DoctorArguments,
    "completion": CompletionArguments,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, settings, a model folder and a run directory (by the files they have)."""
    base = tmp_path_factory.mktemp("line")
    for name, content in {
        "g/a.txt": "some words\n",
        "my.txt": "some words\n",
        "my text.txt": "some words\n",
        "large.txt": "{\n" * (1 << 22),  # YAML would read it for minutes
        "mine.yaml": "seeds: [0]\n",
        "settings.txt": "seeds: [0]\n",
        "m/config.json": '{"model_type": "tandem"}',
        "m/settings.yaml": "seeds: [0]\n",
        "runs/records.jsonl": '{"settings_fingerprint": ""}\n',
        "runs/models/C1T1-seed0/config.json": '{"model_type": "tandem"}',
    }.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(content, "utf-8")
    return base


@pytest.fixture
def folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: that one."""
    monkeypatch.chdir(place)
    return place


MISTAKES = {
    # No command.
    "experimnet demo": "no command 'experimnet'; did you mean 'experiment'? (commands: experiment, train, ",
    "my.txt": "no command 'my.txt'; a command comes before all files and options (commands: ",
    "m generate --prompt x": "a command comes before all files and options",
    "--data.train my.txt": "no command '--data.train'; a command comes before all files and options",
    # An option of another name.
    "train --phase2.lrr 1": "no option --phase2.lrr; did you mean --phase2.lr? (`tandem train --help` lists",
    "config --phase2.lrr 1 --phase1.lrx 2 --nothing": "no option --phase2.lrr; did you mean --phase2.lr?",
    "evaluate m --data my.txt --seperator x": "did you mean --separator?",
    "train --help-me": "did you mean --help?",
    "train --seeds 0": "did you mean --seed?",
    "train --data_train my.txt": "no option --data_train; did you mean --data.train?",
    "train --data my.txt": "did you mean --data.train?",
    "evaluate m --text my.txt": "did you mean --data?",
    "generate m --input my.txt": "did you mean --prompt-file?",
    "train --out x": "did you mean --output?",
    "train --gpu cuda": "did you mean --device?",
    "train --batch-size 3": "did you mean one of --phase1.batch-positions, --phase2.batch-positions?",
    "train --learning-rate 1": "one of --baselines.awd-lstm.lr, --baselines.gpt2.lr, --baselines.lstm.lr, ",
    "train --lr 0.01": "--baselines.transformer.lr, --phase1.lr, --phase2.lr, --prediction.lr?",
    "train --epochs 3": "--phase2.max-epochs, --prediction.max-epochs",
    "generate m --max-length 3": "did you mean --max-new-tokens?",
    "generate m -p x": "did you mean one of --prompt, --prompt-file?",
    "train --configurations 2 1": "did you mean one of --context-layers, --token-layers?",
    "train --workers 2": "no option --workers; `tandem experiment` has it (",
    "audit runs --nonsense": "no option --nonsense (`tandem audit --help` lists all)",
    "report runs --language ja": "did you mean --lang?",
    # Hyphens.
    "train -data.train my.txt": "-data.train does not begin with two hyphens, as options do: --data.train",
    "train –data.train my.txt": "–data.train does not begin with two hyphens, as options do: --data.train",
    "train —data.train=my.txt": "—data.train does not begin with two hyphens, as options do: --data.train",
    "train --output x –seed 3": "–seed does not begin with two hyphens, as options do: --seed",
    "experiment --seeds 0 –workers 3": "–workers does not begin with two hyphens, as options do: --workers",
    "train –nonsense 3": "no option –nonsense",
    "train demo data.train my.txt": "options begin with two hyphens, as in --data.train",
    "train demo data.train=my.txt": "data.train=my.txt belongs to no option: options begin with two hyphen",
    # No value.
    "evaluate m --data": "--data has no value",
    "train --output --seed 1": "--output has no value",
    "generate m --prompt -x": "--prompt has no value (one that begins with a hyphen is written --option=-va",
    "train --data.train=": "--data.train is empty; give it a value, or leave it out",
    "experiment --seeds": "setting seeds is empty; give at least one value",
    # A value of another kind.
    "experiment --phase2.lr fast": "setting phase2.lr = 'fast' is not possible: it must be a number",
    "experiment --phase2.lr 0,01": "setting phase2.lr = '0,01' is not possible: it must be a number",
    "experiment --data.max-train-bytes 1e6": "data.max_train_bytes = '1e6' is not possible: it must be a",
    "experiment --data.split-seed −3": "data.split_seed = '−3' is not possible: it must be a whole number",
    "experiment --seeds 0 demo": "setting seeds.1 = 'demo' is not possible: it must be a whole number",
    "generate m --prompt x --top-k few --seed y": "--top-k 'few' is not possible: it must be a whole number",
    "generate m --prompt x --seed x": "--seed 'x' is not possible: it must be a whole number",
    "experiment --precision low": "'low' is not possible: it must be 'auto', 'float32' or 'bfloat16'",
    "experiment --baselines.models lstm,gpt2": "'lstm,gpt2' is not possible: it must be 'kneser-ney', ",
    "report runs --lang fr": "--lang 'fr' is not possible: it must be 'en' or 'ja'",
    "experiment --seeds [0,1]": "--seeds takes numbers with blanks between, not [0,1]; give --seeds 0 1",
    "experiment --seeds 0,1": "--seeds takes numbers with blanks between, not 0,1; give --seeds 0 1",
    "experiment --configurations C2T1": "blanks between, not C2T1; give --configurations 2 1",
    "experiment --configurations [[2,1],[1,1]]": "give --configurations 2 1 1 1",
    "experiment --configurations 2": "configurations.0 = [2] is not possible: values are missing",
    "experiment --threads null": "--threads null is not possible; the value for nothing is written None",
    "experiment --data.validation none": "--data.validation none is not possible; the value for nothing",
    r"config --data.separator '\n'": r"line end but a backslash and a letter; give --data.separator $'\n'",
    "experiment --phase2.shuffle true": "true belongs to no option: --phase2.shuffle is a switch and takes",
    "experiment --phase2.shuffle=False": "and takes no value (--phase2.shuffle or --phase2.no-shuffle)",
    "train --json false": "false belongs to no option: --json is a switch and takes no value",
    # A word of no option.
    "train --data.train g/a.txt my.txt": "my.txt belongs to no option: --data.train takes one value, so put",
    "generate m --prompt Once upon a time": "upon belongs to no option: --prompt takes one value, so put ",
    "generate m --prompt “Once upon”": "upon” belongs to no option: --prompt takes one value, so put several",
    "generate m --temperature 0 Once upon": "a prompt stands after --prompt, in quotes",
    "generate m Once upon": "besides options, a model folder; a prompt stands after --prompt, in quotes",
    "evaluate m my.txt": "my.txt belongs to no option: `tandem evaluate` takes one word besides options, ",
    "evaluate m -": "- belongs to no option: `tandem evaluate` takes one word besides options, a model",
    "audit m runs": "runs belongs to no option: `tandem audit` takes one word besides options, a run",
    "experiment mine.yaml --device cpu my.txt": "in quotes; a text stands after --data.train",
    "experiment mine.yaml my.txt": "a preset or settings file; a text stands after --data.train",
    "experiment demo original": "original belongs to no option: `tandem experiment` takes one word besides",
    "train --device cpu mine.yaml": "mine.yaml belongs to no option: `tandem train` takes one word besides",
    # Twice, or missing.
    "experiment --seeds 0 --seeds 1": "--seeds is given twice; give all its values to one",
    "generate m --prompt x --prompt-file my.txt": "--prompt and --prompt-file each give the text to continue",
    "generate m": "`tandem generate` needs --prompt or --prompt-file, the text to continue (`-`: standard",
    "evaluate m": "`tandem evaluate` needs --data, the text to score",
    "evaluate --data my.txt": "`tandem evaluate` needs a model folder",
    "generate --prompt x": "`tandem generate` needs a model folder",
    "audit": "`tandem audit` needs a run directory or model folder",
    "report --lang ja": "`tandem report` needs a run directory",
    "completion": "`tandem completion` needs a shell (bash, zsh or fish)",
    "completion csh": "shell 'csh' is not possible: it must be 'bash', 'zsh' or 'fish'",
    "doctor m": "m belongs to no option: `tandem doctor` takes options alone",
    # Not what the command takes.
    "train orignal": "no preset or settings file 'orignal'; did you mean 'original'? (presets: demo, ",
    "train none.yaml": "no settings file none.yaml; `tandem config` lists the presets",
    "train my.txt": "my.txt is no preset or settings file; if it is your text, give --data.train my.txt",
    "train none.txt": "if it is your text, give --data.train none.txt",
    "train large.txt": "if it is your text, give --data.train large.txt",
    "config g": "g is no preset or settings file; if it is your text, give --data.train g",
    "experiment 'g/*.txt'": "if it is your text, give --data.train 'g/*.txt'",
    "train python-docs": "if it is your text, give --data.train python-docs",
    "train hf:imdb": "if it is your text, give --data.train hf:imdb",
    "experiment m": "m is a model folder, and no settings file; its settings are in m/settings.yaml",
    "train runs": "runs is the run directory of an experiment, and no settings file",
}  # fmt: skip
"""A line, and words of the sentence that answers it. `test_folders.py` has the folders of another kind."""


def parsed(args: list[str]) -> object:
    command, rest = args[0], args[1:]
    kind = KINDS[command]
    if command in {"train", "experiment", "config"}:
        return parse_with_preset(command, kind, rest, "demo")
    return parse(command, kind, rest)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert run(shlex.split(line)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("tandem: error: ")
    assert len(said.err.splitlines()) == 1
    assert MISTAKES[line] in said.err
    assert said.out == ""


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
    "generate m --prompt –dash",
    "generate m --prompt none",
    "generate m --prompt '“Hello”'",
    "generate --prompt=-x m --temperature 0",
    "generate --prompt x m",
    "generate m --prompt ''",
    "evaluate --data my.txt m --mix",
    "evaluate m --data - --separator ''",
]  # fmt: skip


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("line", TAKEN)
def test_what_can_be_understood_is_taken(line: str) -> None:
    parsed(shlex.split(line))


VALUES = {
    "experiment --phase2.lr=0.1 --phase2.lr 2e-1": {"phase2.lr": 0.2},
    "train demo --phase2.shuffle --phase2.no-shuffle": {"phase2.shuffle": False},
    "experiment --data.split-seed -3 --seeds=1 2 --device cpu": {"data.split_seed": -3, "seeds": (1, 2)},
    "experiment --configurations 2 1 1_0 1": {"configurations": ((2, 1), (10, 1))},
    "config dialogue --threads None --data.separator '' --name 7": {"data.separator": "", "name": "7"},
    "config --contexts.burn-in auto --contexts.burn_in 8": {"contexts.burn_in": 8},
    "experiment mine.yaml --baselines": {"seeds": (0,), "baselines.models": tuple(BASELINES)},
    "config --baselines.untrained 1 1 --data.allow-overlap a b": {"baselines.untrained": ((1, 1),)},
}
"""A line, and settings that it gives."""


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("line", VALUES)
def test_options_give_settings(line: str) -> None:
    args = shlex.split(line)
    settings, _ = parse_with_preset(args[0], KINDS[args[0]], args[1:], "demo")
    assert {key: settings.section(key) for key in VALUES[line]} == VALUES[line]


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
    return subprocess.run([python(), "-m", "tandem", *args], input=text, capture_output=True)


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
