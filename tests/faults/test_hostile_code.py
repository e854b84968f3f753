"""No reader that runs what it reads is reachable in the package: pickles, and YAML that makes objects."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from syntax import nodes

import tandem

ROOT = Path(tandem.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
RUNS_CODE = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"),
    *("pandas.read_pickle", "imp", "xmlrpc", "torch.package", "torch.hub"),
}
"""Modules that read by running, or that fetch code."""
LOADS = re.compile(r"^(torch|np|numpy|th)\.load$")
YAML = re.compile(r"^yaml\.(load|load_all|unsafe_load|unsafe_load_all|full_load|full_load_all)$")
SWITCHES = {"allow_pickle", "weights_only", "trust_remote_code", "shell"}
RUNS = {"eval", "exec", "compile", "execfile"}


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, and names from them."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(called: ast.expr) -> str:
    """Such as `torch.load`; of a call on something else its last name, after a dot."""
    if isinstance(called, ast.Attribute):
        return f"{dotted(called.value)}.{called.attr}"
    return called.id if isinstance(called, ast.Name) else ""


def faults(path: Path) -> Iterator[str]:
    """What a file does that might run what it reads."""
    for name in imported(path):
        if name in RUNS_CODE or name.partition(".")[0] in RUNS_CODE:
            yield f"imports {name}"
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg in SWITCHES}
        if LOADS.search(called) and called.startswith(("torch", "th")):
            yield f"calls {called}"  # weights are in safetensors
        if given.get("allow_pickle", "False") != "False" or given.get("weights_only", "True") != "True":
            yield f"{called} may unpickle"
        if given.get("trust_remote_code", "False") != "False":
            yield f"{called} runs the code of a hub"
        if YAML.search(called) and [ast.unparse(argument) for argument in node.args[1:]] != ["_Loader"]:
            yield f"{called} may make objects"
        if called in RUNS or called.endswith((".read_pickle", ".unsafe_load", ".full_load", "literal_eval")):
            yield f"calls {called}"
        if given.get("shell", "False") != "False" or called in ("os.system", "os.popen"):
            yield f"{called} asks a shell"


def test_nothing_that_is_read_is_run() -> None:
    assert len(SOURCES) > 100
    assert not [f"{path.name}: {fault}" for path in SOURCES for fault in faults(path)]


def test_what_runs_code_is_found(tmp_path: Path) -> None:
    """Each of these lines is a fault."""
    for number, line in enumerate(
        (
            "import pickle", "from pickle import loads", "import joblib.x", "import torch.hub",
            "torch.load(x)",
            "torch.load(x, weights_only=True)", "np.load(x, allow_pickle=True)", "yaml.load(x, yaml.Loader)",
            "yaml.unsafe_load(x)", "yaml.full_load(x)", "eval(x)", "f(trust_remote_code=True)",
            "subprocess.run(x, shell=True)", "os.system(x)", "pandas.read_pickle(x)",
        )
    ):  # fmt: skip
        (tmp_path / f"{number}.py").write_text(line, "utf-8")
        assert list(faults(tmp_path / f"{number}.py")), line


def test_the_yaml_loader_is_a_safe_one() -> None:
    import yaml

    from tandem.settings.files import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    assert not any("python" in str(tag) for tag in _Loader.yaml_constructors)
