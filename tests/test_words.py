"""One word for one thing, and no alternative that anybody asks for by its name."""

import ast
from collections import Counter
from pathlib import Path

from syntax import nodes

import tandem
from tandem.baselines import BASELINES
from tandem.experiment.executors import EXECUTORS
from tandem.model.cells_tandem import CELLS
from tandem.objectives import OBJECTIVES

ROOT = Path(tandem.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
PARTICIPLES = {"made", "held", "taken", "kept"}
"""They say what happened to a thing, and not what it is."""
OWN = (
    *("model/cell_*.py", "objectives/*.py", "baselines/*.py", "experiment/executors/*.py"),
    "model/cells_tandem.py",
)
"""Where alternatives and their registries are."""
ALTERNATIVES = {*CELLS, *OBJECTIVES, *BASELINES, *EXECUTORS}


def test_a_class_name_is_unique() -> None:
    names = Counter(node.name for path in SOURCES for node in nodes(path) if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_names_are_nouns() -> None:
    """A variable or an argument is not called by a participle alone, and positions are not `at`."""
    for path in SOURCES:
        names = {node.arg for node in nodes(path) if isinstance(node, ast.arg)}
        names |= {n.id for n in nodes(path) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assert not names & {*PARTICIPLES, "at"}, path


def asked(node: ast.AST) -> set[str]:
    """The texts that a comparison or a case compares with."""
    if isinstance(node, ast.Compare):
        parts: list[ast.AST] = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    else:
        return set()
    constants = (inner for part in parts for inner in ast.walk(part) if isinstance(inner, ast.Constant))
    return {constant.value for constant in constants if isinstance(constant.value, str)}


def alternative_classes() -> set[str]:
    """Classes of the alternatives, and of what they record."""
    files = [path for pattern in OWN[:4] for path in ROOT.glob(pattern)]
    defined = {node.name for path in files for node in nodes(path) if isinstance(node, ast.ClassDef)}
    return defined - {"ContextBlock", "Objective", "Baseline"}


def test_nobody_asks_which_alternative_it_is() -> None:
    classes = alternative_classes()
    own = {path for pattern in OWN for path in ROOT.glob(pattern)}
    for path, node in ((file, node) for file in SOURCES if file not in own for node in nodes(file)):
        assert not asked(node) & (ALTERNATIVES - {"local", "untrained"}), f"{path}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            named = {inner.id for inner in ast.walk(node.args[1]) if isinstance(inner, ast.Name)}
            assert not named & classes, f"{path}: {ast.unparse(node)}"
