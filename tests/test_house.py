"""The house: data flows one way, and a module imports only from rooms above its own."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from syntax import nodes
from warm import python

import tandem

ROOT = Path(tandem.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
# From top to bottom. `records` and `settings` are schemas that every room may read.
ROOMS = (
    ("shown",),
    ("advice",),
    ("errors", "fingerprint", "launch"),
    ("model",),  # its names of cells are those of a setting
    ("stopping",),
    ("claims", "decoding", "folders", "group", "patience"),
    ("checksums",),
    ("settings", "records"),
    ("text",),
    ("tokens",),
    ("registration",),
    ("model_folder",),
    ("contexts",),
    ("cross_entropy",),
    ("metrics",),
    ("training",),
    ("objectives",),
    ("baselines", "dynamic_evaluation", "mixture"),
    ("experiment",),
    ("scoring",),
    ("report",),
    ("audit",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Names after `tandem.` that a file imports anywhere."""
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("tandem.")}


def test_imports_go_upwards() -> None:
    for path in SOURCES:
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            below = {other for other in imported(path) if other != room and HEIGHT[other] >= HEIGHT[room]}
            assert not below, f"{path.name} in room {room} imports {below}, which lie below it"


def test_help_and_report_need_no_torch() -> None:
    code = (
        "import sys, tandem, tandem.settings, tandem.records, tandem.objectives\n"
        "import tandem.report.render, tandem.report.figures, tandem.cli.main, tandem.cli.summary\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SCRIPTS = [*sorted((ROOT.parents[1] / "bench").rglob("*.py")), ROOT.parents[1] / "bootstrap.py"]


def calls(path: Path) -> list[ast.Call]:
    """All calls in a file."""
    return [node for node in nodes(path) if isinstance(node, ast.Call)]


def called(call: ast.Call) -> str:
    """The last name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def test_only_a_report_imports_plotting() -> None:
    """What the other commands import, to their end, does not need it."""
    plotting = {"matplotlib", "matplotlib.figure"}
    found = {path.name for path in SOURCES if "import matplotlib" in path.read_text("utf-8")}
    found |= {path.name for path in SOURCES if "from matplotlib" in path.read_text("utf-8")}
    assert found == {"figures.py"}
    code = (
        "import sys\n"
        "import tandem.experiment.runner, tandem.experiment.evaluate, tandem.experiment.generate\n"
        "import tandem.audit, tandem.cli.main, tandem.cli.summary, tandem.cli.progress\n"
        "import tandem.report.render\n"
        f"assert not {plotting!r} & set(sys.modules)\n"
    )
    subprocess.run([python(), "-c", code], env={**os.environ, "WITHOUT_TANDEM": "yes"}, check=True)


def test_no_file_is_read_in_the_encoding_of_the_machine() -> None:
    """Ruff sees only files whose type it knows."""
    for path, call in ((file, call) for file in (*SOURCES, *SCRIPTS) for call in calls(file)):
        named = {keyword.arg for keyword in call.keywords}
        values = [node.value for node in call.args if isinstance(node, ast.Constant)]
        place = f"{path.name}:{call.lineno}"
        if called(call) == "read_text":
            assert call.args or "encoding" in named, place
        elif called(call) == "write_text" and path.name != "big_corpus.py":
            assert len(call.args) > 1 or "encoding" in named, place
        elif called(call) == "open":
            binary = any("b" in str(value) and len(str(value)) <= 3 for value in values)
            assert binary or "encoding" in named or ast.unparse(call.func) == "os.open", place
        if "text" in named or "universal_newlines" in named:
            assert called(call) not in {"run", "Popen", "check_output"} or "encoding" in named, place


def test_text_of_others_is_never_markup() -> None:
    for path in SOURCES:
        text = path.read_text("utf-8")
        assert path.name == "terminal.py" or "from rich.console" not in text, path
        assert "rich.markup" not in text, path
        assert "from_markup" not in text, path
        for call in calls(path):
            assert called(call) != "TextColumn" or any(k.arg == "markup" for k in call.keywords), path
    marked = r"\[/?(bold|dim|italic|red|green|yellow|cyan|blue|magenta)?[^\]\w]*\](?=[^\]]*\[/)"
    assert not [path for path in SOURCES if re.search(marked + r"|\[/\]", path.read_text("utf-8"))]


def shown_parts(text: ast.JoinedStr) -> str:
    """An f-string with `{}` for what it fills in, but for what `command` has quoted."""
    parts = []
    for part in text.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        else:
            assert isinstance(part, ast.FormattedValue)
            quoted = isinstance(part.value, ast.Call) and called(part.value) == "command"
            parts.append("" if quoted else "{!r}" if part.conversion == ord("r") else "{}")
    return "".join(parts)


def test_commands_to_type_are_quoted_in_one_place() -> None:
    """`shown.command` quotes what stands in a command; an f-string does not."""
    typed = re.compile(r"tandem [a-z]+ [^`;]*\{\}|--[a-z][a-z.-]*[ =]\{\}")
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.JoinedStr):
                assert not typed.search(shown_parts(node)), f"{path.name}:{node.lineno}"


def test_scripts_print_in_any_encoding() -> None:
    for path in SCRIPTS:
        if "__main__" in (text := path.read_text("utf-8")) and path.name != "bootstrap.py":
            started = "run_bench(main)" if "as run_bench" in text else "run(main)"  # of measuring.py
            assert "    tolerate_any_encoding()\n" in text or f"    {started}\n" in text, path


READ = {"artefacts", "evaluate", "machine", "run_dir"}
"""Of experiment/, what reads model folders and says what machine this is; nothing there trains."""


def test_the_audit_shares_nothing_with_what_it_audits() -> None:
    """Objectives and baselines are asked by their registry alone, as where another package brings one."""
    for node in (node for path in (ROOT / "audit").glob("*.py") for node in nodes(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            _, room, *rest = [*node.module.split("."), ""]
            assert room != "training", node.module
            if room in ("objectives", "baselines"):
                assert not rest[0], node.module
            if room == "experiment":
                assert rest[0] in READ, node.module
