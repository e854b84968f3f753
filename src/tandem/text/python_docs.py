"""The embedded default corpus: the English prose that ships with every Python installation."""

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

NOT_PROSE = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}
WORD = re.compile(r"\w+")
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_docs() -> Iterator[str]:
    """One document per standard library module (its docstrings, in source order), then one per help topic.

    Modules are read through `ast`, never imported. Tests, installed packages and files that do not parse are
    passed over. The order is that of sorted paths and topics, so text depends on the Python version alone.
    A topic that stands within another is passed over: in validation it would have been read in training.
    About 2.2 MB in 700 documents with Python 3.11.
    """
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if NOT_PROSE.isdisjoint(path.relative_to(library).parts) and (document := _module_prose(path)):
            yield document
    yield from _help_topics()


def _module_prose(path: Path) -> str:
    """The docstrings of one module, cleaned and joined by blank lines; '' where there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own source
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return ""
    return _encodable("\n\n".join(_docstrings(tree)))


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of `node` and of all definitions below it, in source order."""
    if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node, clean=False)):
        yield inspect.cleandoc(docstring)
    for child in ast.iter_child_nodes(node):
        # Definitions stand in statements only, so whole expressions need not be walked.
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _docstrings(child)


def _help_topics() -> Iterator[str]:
    """The texts behind `help('TOPIC')`, sorted by topic."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    words = {name: f" {' '.join(re.findall(WORD, topics[name]))} " for name in topics}
    # By length, so that of two equal ones the first remains.
    order = sorted(topics, key=lambda name: (-len(words[name]), name))
    for name in sorted(topics):
        longer = order[: order.index(name)]
        if not any(words[name] in words[other] for other in longer):
            yield _encodable(topics[name])


def _encodable(text: str) -> str:
    """`text` without lone surrogates, which a docstring about them may hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
