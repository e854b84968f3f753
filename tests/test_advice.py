"""Advice of the command at hand: whatever a message names is an option of the command that says it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PREDICTIVE, merged, sentences, tiny, write_jsonl
from syntax import nodes
from warm import python

import tandem
from tandem.advice import advice, in_command, named, written_settings
from tandem.cli.arguments import ARGUMENTS, NAMED_OTHERWISE, option_names
from tandem.cli.line import PLACES
from tandem.cli.main import COMMANDS, run
from tandem.settings import dump_settings, known_keys

ROOT = Path(tandem.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
OF_SYSTEM = {"--help", "--version", "--json"}


def accepted(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Options that the command's own help names, switches and short-hands included."""
    assert run([command, "--help"]) == 0
    return set(OPTION.findall(capsys.readouterr().out))


def calls() -> list[tuple[str, str]]:
    """Every setting that advice names anywhere, with the file and line."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in nodes(path):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id not in ("advice", "named"):
                continue
            inner = (
                part for way in node.args for part in (way.elts[1:] if isinstance(way, ast.Tuple) else ())
            )
            for part in node.args[:1] if node.func.id == "named" else inner:
                text = part.values[0] if isinstance(part, ast.JoinedStr) else part
                if isinstance(text, ast.Constant):
                    found.append((text.value.split(" ")[0], f"{path.relative_to(ROOT)}:{node.lineno}"))
    return found


def strings(path: Path) -> list[tuple[str, int]]:
    """Texts in a module that are no docstrings."""
    notes = {id(node.value) for node in nodes(path) if isinstance(node, ast.Expr)}
    return [
        (node.value, node.lineno)
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in notes
    ]


def test_every_setting_in_advice_is_one() -> None:
    found = calls()
    assert len(found) > 25
    known = {*known_keys(), *(name for command in COMMANDS for name in option_names(command))}
    assert not [(name, where) for name, where in found if name not in known]


def test_no_message_writes_an_option_out() -> None:
    """Outside the command line, which knows at which command it is; a whole command in a message does."""
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] in ("cli", "advice.py"):
            continue
        parts = ((part, line) for text, line in strings(path) for part in text.splitlines())
        for text, line in parts:
            whole = re.search(r"tandem (\w+)", text)
            command = "train" if path.name == "findings.py" else whole[1] if whole else ""
            there = {*option_names(command).values(), *OF_SYSTEM, "--baselines"} if command else set()
            assert set(OPTION.findall(text)) <= there, f"{path.relative_to(ROOT)}:{line}: {text!r}"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_is_told_to_use_it_takes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = accepted(command, capsys)
    settings = {name for name, _ in calls()}
    with in_command(option_names(command)):
        for name in sorted(settings):
            for value in ("", " false", " some value"):
                said = advice(("use {}", name + value))
                assert set(OPTION.findall(said)) <= there or value == " false", (name, said)
                assert said == "" or said.startswith("; use --")
    assert {option for key, option in option_names(command).items() if key not in NAMED_OTHERWISE} <= {
        *there,
        *(option for option in option_names(command).values() if option.removeprefix("--") == "model"),
        *(option for option in option_names(command).values() if option in ("--path", "--run-dir")),
    }


def test_every_command_has_its_arguments() -> None:
    assert set(ARGUMENTS) == set(PLACES) == set(COMMANDS)


def test_the_words_of_each_place() -> None:
    ways = ("make room", ("use {}", "contexts.method loop"), ("lower {}", "phase2.lr", "model.embed_dim"))
    assert advice(*ways) == "; make room, use contexts.method = loop, or lower phase2.lr or model.embed_dim"
    with in_command(option_names("train")):
        assert advice(*ways).endswith("use --contexts.method loop, or lower --phase2.lr or --model.embed-dim")
        assert named("device cuda:1") == "--device cuda:1"
        assert advice(("use {}", "save_models false")) == ""  # one training keeps its model
        assert advice(("give {}", "data.train a b.txt")) == "; give --data.train 'a b.txt'"
        with written_settings():
            assert advice(*ways) == "; make room"
    with in_command(option_names("experiment")):
        assert advice(("use {}", "save_models false")) == "; use --no-save-models"
        assert advice(("use {}", "phase2.shuffle false")) == "; use --phase2.no-shuffle"
    with in_command(option_names("evaluate")):
        assert advice(*ways) == "; make room"
        assert advice(("with {}", "data.separator")) == "; with --separator"
        with written_settings(Path("m/settings.yaml"), ("contexts",)):
            assert advice(*ways) == "; make room, or use contexts.method: loop in m/settings.yaml"
    assert advice(("use {}", "contexts.method loop")) == "; use contexts.method = loop"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose scan is out of tolerance when it is scored."""
    folder = tmp_path_factory.mktemp("advice")
    text = write_jsonl(folder / "text.jsonl", sentences(60))
    file = folder / "tiny.yaml"
    settings = tiny(text, **merged(PREDICTIVE, {"output": str(folder / "model")}))
    file.write_text(dump_settings(settings), "utf-8")
    assert run(["train", str(file)]) == 0
    kept = folder / "model" / "settings.yaml"
    kept.write_text(kept.read_text("utf-8").replace("tolerance: ", "tolerance: 1.0e-30  # "), "utf-8")
    return folder


def test_evaluate_tells_where_its_settings_are(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["evaluate", str(model / "model"), "--data", str(model / "text.jsonl")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"contexts.method: loop in {model / 'model' / 'settings.yaml'}" in told
    assert "--contexts" not in told


def test_evaluate_names_its_own_options(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(model / "model")
    assert run(["evaluate", folder, "--data", str(model / "text.jsonl"), "--device", "cuda:7"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "with --device" in told
    assert set(OPTION.findall(told)) <= {"--device", "--data"}


LIMITED = """
import resource, sys
from tandem.cli.main import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(run(sys.argv[2:]))
"""


def limited(size: int, *args: str) -> "subprocess.CompletedProcess[str]":
    """A command that can write no file larger than `size` bytes, as where the disk is full."""
    return subprocess.run(
        [python(), "-c", LIMITED, str(size), *args], capture_output=True, text=True, check=False
    )


def one_sentence(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    told = done.stderr.rstrip().splitlines()
    assert [line for line in told if line.startswith("tandem: error: ")] == told[-1:]
    return told[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run_dir = tmp_path / "model", tmp_path / "run"
    large: dict[str, object] = {"model": {"embed_dim": 200}, "configurations": ((1, 1),), "seeds": (0,)}
    settings = tmp_path / "tiny.yaml"
    settings.write_text(dump_settings(tiny(text_file, embeddings={"source": "random"}, **large)), "utf-8")
    train = ("train", str(settings), "--output", str(folder))
    told = one_sentence(limited(100_000, *train))  # less than the embedding
    assert f"cannot save the model in {folder} (File too large); make room and train again, or give" in told
    assert "--no-save-models" not in told
    assert sorted(path.name for path in folder.parent.iterdir() if path.name.startswith(".")) == []
    assert run(train) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    one_sentence(limited(100_000, *train, "--force-new"))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before

    experiment = ("experiment", str(settings), "--output", str(run_dir))
    assert run((*experiment, "--baselines.models", "unigram")) == 0
    records = (run_dir / "records.jsonl").read_bytes()
    report = (run_dir / "report.html").read_bytes()
    told = one_sentence(limited(100_000, *experiment, "--seeds", "0", "1"))
    assert f"in {run_dir} (File too large); everything recorded before is kept; make room" in told
    assert (run_dir / "records.jsonl").read_bytes() == records
    told = one_sentence(limited(20_000, "report", str(run_dir)))
    assert "cannot write the report into" in told
    assert "--" not in told
    assert (run_dir / "report.html").read_bytes() == report
    capsys.readouterr()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_place_for_one_file_that_cannot_be_had(model: Path) -> None:
    kept = model / "model"
    (kept / "audit.json").mkdir()
    told = one_sentence(limited(1 << 40, "audit", str(kept)))
    assert "cannot write" in told
    assert "Is a directory" in told
    assert "--" not in told
    assert not list(kept.glob(".*.partial"))
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [python(), "-m", "tandem", "config", "demo"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert one_sentence(done) == "tandem: error: the output: No space left on device; make room there"
