"""The house: data flows one way, and a module imports only from rooms above its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tandem

ROOT = Path(tandem.__file__).parent
# From top to bottom. `records` and `settings` are schemas that every room may read.
ROOMS = (
    ("errors", "fingerprint", "launch"),
    ("claims", "group"),
    ("settings", "records"),
    ("text",),
    ("tokens",),
    ("model",),
    ("registration",),
    ("contexts",),
    ("cross_entropy",),
    ("metrics",),
    ("training",),
    ("baselines", "mixture"),
    ("experiment",),
    ("audit",),
    ("report",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Names after `tandem.` that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("tandem.")}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_upwards(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    below = {other for other in imported(path) if other != room and HEIGHT[other] >= HEIGHT[room]}
    assert not below, f"{path.name} in room {room} imports {below}, which lie below it"


def test_help_and_report_need_no_torch() -> None:
    code = (
        "import sys, tandem, tandem.settings, tandem.records, tandem.report.render, tandem.cli.main\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_never_imports_plotting() -> None:
    code = "import sys, tandem.experiment.runner\nassert 'matplotlib' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)
