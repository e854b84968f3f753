"""Syntax trees of source files, for tests of how the package is written; each file is parsed once."""

import ast
import functools
from pathlib import Path


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file's tree."""
    return tuple(ast.walk(ast.parse(path.read_text("utf-8"))))
