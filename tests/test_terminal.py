"""What people see: in any encoding, as it was named, and quoted where it is a command to type."""

import io
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import sentences, tiny, write_jsonl
from report_records import make_grid, make_manifest, make_record, write_run_dir
from warm import python

from tandem.__main__ import main
from tandem.claims import worker_processes
from tandem.cli.main import run
from tandem.cli.terminal import Terminal
from tandem.errors import RunDirError
from tandem.records import read_audit
from tandem.settings import Settings, dump_settings, load_settings
from tandem.shown import command, json_for, one_line

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = "日本–é😀"
HOSTILE = "q[/a] [bold]b $x_1$ :tada: <b> | %s {x} 'c' `d` \"e\" back\\slash"
"""A name that is markup to rich, Markdown, HTML, mathtext, Python's formats, emoji codes and shells."""


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of an experiment; no model was trained."""
    folder = tmp_path_factory.mktemp("records")
    return write_run_dir(folder, [*make_grid([0, 1, 2]), make_record(3, 1, failure="x")], make_manifest())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained on characters that few encodings have, in a folder of a hostile name."""
    base = tmp_path_factory.mktemp("trained")
    text = write_jsonl(base / "text.jsonl", [f"{FOREIGN} {line} {FOREIGN}" for line in sentences(20)])
    settings = base / "tiny.yaml"
    settings.write_text(dump_settings(tiny(text, phase2={"batch_positions": 64})), "utf-8")
    folder = base / HOSTILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_CACHE", str(base / "cache"))
        assert run(["train", str(settings), "--output", str(folder)]) == 0
    return folder


class Terminals:
    """Runs commands on standard output and error of one encoding, strict as Python opens the first."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding

    def shows(self, text: str) -> str:
        """What is left of a text."""
        return text.encode(self.encoding, "replace").decode(self.encoding)

    def call(self, *args: str) -> tuple[int, str, str]:
        """Exit code, output and error of `tandem ARGS`."""
        raws = io.BytesIO(), io.BytesIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tandem", *args])
            for name, raw in zip(("stdout", "stderr"), raws, strict=True):
                stream = io.TextIOWrapper(raw, encoding=self.encoding, errors="strict")
                patch.setattr(sys, name, stream)
            with pytest.raises(SystemExit) as stop:
                main()
            sys.stdout.flush()
            sys.stderr.flush()
            out, err = (raw.getvalue().decode(self.encoding) for raw in raws)
        return int(stop.value.code or 0), out, err


@pytest.fixture(params=["cp932", "cp1252", "ascii", "latin-1", "utf-16-le", "utf-8"])
def terminal(request: pytest.FixtureRequest) -> Terminals:
    """Of one encoding after the other."""
    return Terminals(request.param)


def test_every_encoding_gets_reports_help_and_errors(terminal: Terminals, run_dir: Path) -> None:
    code, out, err = terminal.call("report", str(run_dir))
    assert (code, err) == (0, "")
    assert f" {terminal.shows('±')} " in out
    assert f" {terminal.shows('–')} " in out  # which cp932 lacks
    assert str(run_dir / "report.md") in out
    assert terminal.call("report", str(run_dir), "--lang", "ja")[0] == 0
    for args in (
        (),
        ("config",),
        ("--help",),
        *((name, "--help") for name in ("config", "generate", "audit")),
    ):
        code, out, err = terminal.call(*args)
        assert (code, err) == (0, ""), args
        assert "tandem" in out
    code, _, err = terminal.call("train", "demo", "--data.train", f"{FOREIGN}.txt", "--output", "m")
    assert code == 2
    assert err.splitlines()[-1].startswith("tandem: error: there is no file or directory ")
    assert terminal.shows(FOREIGN) in err
    code, _, err = terminal.call("evaluate", "none", "--data", "x", f"--{FOREIGN}")
    assert code == 2
    assert "Traceback" not in err


def test_json_is_whole_in_every_encoding(terminal: Terminals, tmp_path: Path) -> None:
    args = ("--description", FOREIGN, "--data.train", f"{FOREIGN}.txt", "--json")
    code, out, _ = terminal.call("config", "demo", *args)
    assert code == 0
    assert json.loads(out)["description"] == FOREIGN
    folder = write_run_dir(tmp_path / FOREIGN, [make_record(failure="x")], make_manifest())
    code, out, _ = terminal.call("report", str(folder), "--json")
    assert code == 0
    assert str(folder / "report.md") in json.loads(out)


def test_json_keeps_bytes_that_are_no_text() -> None:
    text = json.dumps({"a": "é\udcff😀\\"}, ensure_ascii=False)
    for encoding in ("utf-8", "ascii", "cp932"):
        assert json.loads(json_for(encoding, text).encode(encoding)) == {"a": "é\udcff😀\\"}


def test_settings_are_read_back_from_a_file_of_any_encoding(terminal: Terminals, tmp_path: Path) -> None:
    """As `tandem config > mine.yaml` writes it where the shell's encoding has all ASCII characters."""
    code, out, _ = terminal.call("config", "demo", "--description", FOREIGN, "--data.train", f"{FOREIGN}.txt")
    assert code == 0
    if not terminal.encoding.startswith("utf-16"):
        (tmp_path / "mine.yaml").write_bytes(out.encode(terminal.encoding))
        read = load_settings(str(tmp_path / "mine.yaml"))
        assert (read.description, read.data.train) == (FOREIGN, f"{FOREIGN}.txt")


def test_generated_text_streams_in_every_encoding(terminal: Terminals, model: Path) -> None:
    args = ("generate", str(model), "--prompt", FOREIGN, "--max-new-tokens", "60", "--seed", "1")
    code, whole, err = terminal.call(*args, "--json")
    assert code == 0, err
    assert json.loads(whole)["prompt"] == FOREIGN
    code, out, err = terminal.call(*args)
    assert code == 0, err
    assert out.rstrip("\n") == terminal.shows(FOREIGN + json.loads(whole)["text"]).rstrip("\n")


def speak(file: str) -> None:
    """What a helper process does: print what the encoding lacks; the file tells that it came to the end."""
    print(FOREIGN, flush=True)
    Path(file).touch()


def test_other_processes_print_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    said = tmp_path / "said"
    with worker_processes(1, speak, str(said)):
        for _ in range(600):
            if said.exists():
                break
            time.sleep(0.1)
    assert said.exists()


def tandem(*args: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, with these environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "tandem", *args], env={**os.environ, **more}, capture_output=True
    )


def test_a_terminal_of_another_encoding(run_dir: Path) -> None:
    done = tandem("report", str(run_dir), PYTHONIOENCODING="cp932")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b" ? " in done.stdout
    done = tandem(
        *("train", "demo", "--data.train", f"{FOREIGN}.txt"),
        LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0",
    )  # fmt: skip
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"PYTHONUTF8=1" in done.stderr


def test_closed_output_is_no_fault() -> None:
    for args, closed in (("config demo", "1>&-"), ("config nope", "1>&- 2>&-")):
        line = f"{shlex.quote(python())} -m tandem {args} {closed}"
        done = subprocess.run(["sh", "-c", line], capture_output=True)
        assert done.returncode == (2 if "nope" in args else 0), (line, done.stderr)
        assert b"Traceback" not in done.stderr


def test_bootstrap_prints_in_any_encoding() -> None:
    code = f"import bootstrap; bootstrap.say({FOREIGN!r}); bootstrap.fail({FOREIGN!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (2, b"bootstrap: " + b"?" * len(FOREIGN))
    assert done.stderr.startswith(b"bootstrap: error: ?")


# Names as they were typed


def test_names_are_shown_as_typed_by_every_command(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (model / "model.safetensors").is_file()
    held = write_jsonl(tmp_path / f"{HOSTILE}.jsonl".replace("/", "∕"), sentences(3, seed=9))
    assert run(["evaluate", str(model), "--data", str(held)]) == 0
    assert f"{held}: 3 documents" in capsys.readouterr().out
    missing = model.parent / f"{HOSTILE} missing"
    for args in (
        ("generate", str(missing), "--prompt", "x"),
        ("audit", str(missing)),
        ("report", str(missing)),
        ("evaluate", str(model), "--data", str(missing)),
        ("config", str(missing)),
        ("train", "demo", "--data.train", str(missing)),
    ):
        assert run(args) == 2
        assert str(missing) in capsys.readouterr().err, args


def test_training_shows_names_as_typed_and_commands_to_type(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "q[").mkdir()
    text = write_jsonl(tmp_path / "q[" / "a] $x$ :smile:.jsonl", sentences(20))
    settings, folder = tmp_path / "tiny.yaml", tmp_path / "m" / "[v1] 'run' :tada:"
    settings.write_text(dump_settings(tiny(text)), "utf-8")
    assert run(["train", str(settings), "--output", str(folder)]) == 0
    said = capsys.readouterr()
    assert f"reading {text}" in said.err
    assert f"in {folder}" in said.err
    assert f"model          {folder}" in said.out
    advised = said.out.split("try: ")[1].strip()
    assert shlex.split(advised)[:3] == ["tandem", "generate", str(folder)]
    assert run([*shlex.split(advised)[1:], "--max-new-tokens", "2"]) == 0
    (folder / "audit.json").write_text("{", "utf-8")
    with pytest.raises(RunDirError) as refused:
        read_audit(folder)
    assert shlex.split(str(refused.value).split("`")[1]) == ["tandem", "audit", str(folder)]


def test_advice_for_overlapping_text_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_jsonl(tmp_path / "a [b] 'c'.jsonl", sentences(20))
    settings = tmp_path / "tiny.yaml"
    settings.write_text(dump_settings(tiny(text)), "utf-8")
    args = [
        "train",
        str(settings),
        "--data.validation",
        str(text),
        "--output",
        str(tmp_path / "m"),
        "--dry-run",
    ]
    assert run(args) == 2
    advised = shlex.split(capsys.readouterr().err.split("permit it with ")[1])
    assert advised == ["--data.allow-overlap", str(text)]
    assert run([*args, *advised]) == 0


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with space",
        "it's",
        'a "b"',
        "$HOME",
        "a\\b",
        "tab\there",
        "line\nbreak",
        "é\udcff",
        "`x`",
        "-x",
    ],
)
def test_a_shell_reads_what_was_named(name: str) -> None:
    typed = command("printf", "%s", Path(name) if name == "-x" else name)
    assert "\n" not in typed
    done = subprocess.run(["bash", "-c", typed], capture_output=True, check=True)
    assert os.fsdecode(done.stdout) == ("./-x" if name == "-x" else name)


def test_windows_shells_read_what_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("train", "C:\\a b\\", 'a "b"', "it's", "C:\\a", "", "a;b", "\n\n")
    monkeypatch.setattr("os.name", "nt")
    typed = command(*words)
    monkeypatch.undo()
    assert typed == r'''train "C:\a b\\" "a \"b\"" "it's" "C:\a" "" "a;b" "`n`n"'''


def test_a_console_shows_text_as_it_is() -> None:
    said = io.StringIO()
    console = Terminal(file=said)
    console.say(("[red]x[/]", "bold"), f" {HOSTILE} \x1b[31m a\nb")
    console.print(HOSTILE)
    console.table(["[bold]head[/]", "n"], [[HOSTILE, "[/]"], [("[b]", "red"), ":smile:"]])
    lines = said.getvalue().splitlines()
    assert lines[0] == f"[red]x[/] {HOSTILE} \\x1b[31m a\\nb"
    assert lines[1] == HOSTILE
    assert lines[2].startswith("[bold]head[/]")
    assert lines[3].startswith(HOSTILE)
    assert lines[4].startswith("[b]")
    assert ":smile:" in lines[4]


def test_progress_shows_names_as_they_are(tmp_path: Path) -> None:
    """The bars of a terminal, which have a switch of their own for markup."""
    from tandem.cli.progress import ProgressView
    from tandem.training.progress import Tick

    said = io.StringIO()
    console = Terminal(file=said)
    view = ProgressView(console)
    view.planned(tmp_path / "[/x]", ["run"], 0)
    view.run_started("[/a] :tada:")
    view.tick(Tick("[bold]phase", 1, 2, "[b]step", {"[/loss]": 1.0}))
    console.print(view._bars)
    told = said.getvalue()
    assert "[/a] :tada:, [bold]phase" in told
    assert "[b]step  [/loss] 1" in told
    assert str(tmp_path / "[/x]") in told


def test_one_line_escapes_what_would_leave_the_line() -> None:
    assert one_line("a\nb\r\x1b[0m\udcff\u2028 é") == "a\\nb\\r\\x1b[0m\\xff\\u2028 é"


def test_errors_stay_on_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "no\nsuch\x1b[31m", "--prompt", "x"]) == 2
    assert "there is no model folder no\\nsuch\\x1b[31m" in capsys.readouterr().err


def test_dumped_settings_hold_any_name(tmp_path: Path) -> None:
    for escaped in (False, True):
        settings = Settings(description=HOSTILE, data={"train": f"{HOSTILE}\n{FOREIGN}"})
        text = dump_settings(settings, escaped)
        (tmp_path / "a.yaml").write_text(text, "ascii" if escaped else "utf-8")
        assert load_settings(str(tmp_path / "a.yaml")) == settings
        assert yaml.safe_load(text)["description"] == HOSTILE
