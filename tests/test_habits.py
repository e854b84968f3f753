"""What people expect of every program: help at once, completion, no colours on request, a sound package."""

import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tandem.cli import main
from tandem.cli.completion import script
from tandem.cli.main import run
from tandem.cli.summary import print_checkup
from tandem.cli.terminal import OUT, Terminal
from tandem.cli.usage import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_imports_no_library(word: str) -> None:
    code = (
        "import sys, tandem.__main__\n"
        f"sys.argv = ['tandem', {word!r}]\n"
        "try: tandem.__main__.main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'pydantic', 'rich', 'tyro', 'yaml', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: tandem" if word == "--help" else "tandem 0.")
    assert done.stderr == ""


TAB = {
    ("tandem", "ev"): {"evaluate"},
    ("tandem", ""): set(COMMANDS),
    ("tandem", "train", "--phase2.b"): {"--phase2.batch-positions"},
    ("tandem", "train", "orig"): {"original"},
    ("tandem", "train", "orig", "orig"): set(),
    ("tandem", "train", "--workers"): set(),
    ("tandem", "experiment", "--workers"): {"--workers"},
    ("tandem", "report", "run", "--l"): {"--lang"},
    ("tandem", "generate", "mod"): set(),  # left to the shell, which completes names of files
    ("tandem", "completion", ""): {"bash", "zsh", "fish"},
}
"""Words of a line, and what the last may become."""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes() -> None:
    lines = [script("bash")]
    for words in TAB:
        lines.append(f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _tandem")
        lines.append('echo "${COMPREPLY[*]}"')
    done = subprocess.run(["bash"], input="\n".join(lines), capture_output=True, text=True, check=True)
    found = [set(line.split()) for line in done.stdout.splitlines()]
    assert dict(zip(TAB, found, strict=True)) == TAB
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_is_told_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"\b{command}\b", told) for command in COMMANDS)
    assert "phase2.batch-positions" in told
    if there := shutil.which(shell):
        assert subprocess.run([there, "-n"], input=told, text=True, check=False).returncode == 0


def test_every_command_has_its_line() -> None:
    assert list(main.COMMANDS) == list(COMMANDS)


def test_a_doctor_says_what_there_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tandem.experiment import doctor

    lines = [
        "numpy>=1",
        "no_such.package>=4.0 ; extra == 'hub'",
        'Numpy; extra == "hub"',
        'x; extra == "dev"',
    ]
    monkeypatch.setattr(doctor, "PRODUCTS", 1)
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: lines)
    assert run(["doctor", "--json"]) == 0
    found = doctor.Checkup.model_validate_json(capsys.readouterr().out)
    assert found.missing == {"hub": ["no_such.package"]}
    assert 0 < found.free_bytes <= (found.environment.device_memory_bytes or 0)
    assert found.bfloat16_speedup > 0
    print_checkup(OUT, found)
    said = capsys.readouterr().out
    assert found.environment.torch in said
    assert "extra hub      no_such.package not installed: pip install 'tandem-lm[hub]'" in said


def test_no_colour_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for wanted in (True, False):
        monkeypatch.setenv("NO_COLOR", "" if wanted else "1")
        screen = Screen()
        Terminal(file=screen).say(("failed", "red"))
        assert ("\x1b" in screen.getvalue()) == wanted
        assert run(["report", "--help"]) == 0
        assert ("\x1b" in capsys.readouterr().out) == wanted


def test_a_source_distribution_holds_what_the_tests_need(tmp_path: Path) -> None:
    """Everything of the project; and as the page of an index, a README whose links lead somewhere."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "models")
    shutil.copytree(ROOT, tmp_path / "tandem", ignore=left_out)
    wanted = {path.relative_to(tmp_path / "tandem") for path in tmp_path.rglob("*") if path.is_file()}
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "tandem", capture_output=True, check=True)
    (packed,) = tmp_path.glob("tandem/dist/*")
    with tarfile.open(packed) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
        about = archive.extractfile(f"{packed.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert about is not None
        page = about.read().decode()
    assert wanted - names == set()
    assert "Description-Content-Type: text/markdown" in page
    assert "\n# Tandem\n" in page
    assert not re.search(r"\]\((?!https?:)", page)
