"""bootstrap.py: starts without any package, and installs pinned versions of all that is declared."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_it_says_what_it_does_and_needs_no_package() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(ROOT / "bootstrap.py"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "bootstrap.py experiment" in done.stdout
    assert "bootstrap.py test" in done.stdout


def test_it_parses_under_old_pythons() -> None:
    """Otherwise it could not say which Python it needs."""
    ast.parse((ROOT / "bootstrap.py").read_text("utf-8"), feature_version=(3, 7))


def test_it_refuses_an_old_python_in_one_sentence() -> None:
    code = "import sys; sys.version_info = (3, 10, 1); import bootstrap; bootstrap.main(['test'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("bootstrap: error: Tandem needs Python 3.11 or newer")


@pytest.mark.parametrize("kind", ["dependencies", "hub", "slurm", "ray", "dev"])
def test_every_dependency_is_pinned(kind: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project[kind] if kind == "dependencies" else project["optional-dependencies"][kind]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - {"tandem-lm"} <= pinned
    assert not [line for line in lines if "==" not in line]
