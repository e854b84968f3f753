"""Small changes of a module's source, one at a time, and how they reach functions that are there already.

A change lies within a function, or is the number of a constant of the module. Text, annotations, messages of
errors, and default arguments stay as they are.
"""

import ast
import gc
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
INSTEAD = {"min": "max", "max": "min", "mean": "sum", "sum": "mean", "any": "all", "all": "any"}
"""Functions and methods that are confused."""
LEFT_OUT = {
    "detach",
    "abs",
    "sqrt",
    "square",
    "exp",
    "log",
    "log2",
    "clamp",
    "eval",
    "zero_",
    "mean",
    "sum",
    "roll",
    "masked_fill",
    "double",
    "float",
    "unique",
    "cumsum",
    "sorted",
    "clone",
    "cpu",
}
"""Methods whose result is what they are called on, when the call is forgotten."""
SILENT = {"on_tick", "tick", "preparing", "planned", "run_started", "run_finished", "warn"}
"""Calls that only tell somebody something."""


@dataclass(frozen=True)
class Mutation:
    """One change.

    name    file, line, column, number and what was changed: the same for the same source.
    where   line of the function, 0 of a constant of the module, and its name.
    """

    file: str
    line: int
    last_line: int
    what: str
    number: int
    where: tuple[int, str]
    apply: Callable[[], None]

    @property
    def name(self) -> str:
        """Of this change among all."""
        return f"{self.file}:{self.line}#{self.number} {self.what}"


def mutations_of(source: str, file: str) -> tuple[ast.Module, list[Mutation]]:
    """The syntax tree, and every change of it; `apply` makes one of them, in place."""
    tree = ast.parse(source)
    found: list[Mutation] = []
    for where, root, parts in _roots(tree):
        for node, what, apply in _changes(parts, root):
            first, last = (getattr(node, name, 0) for name in ("lineno", "end_lineno"))
            found.append(Mutation(file, first, last, what, len(found), where, apply))
    return tree, found


def _roots(tree: ast.Module) -> Iterator[tuple[tuple[int, str], ast.AST, list[ast.stmt]]]:
    """Functions that no other one holds, with their statements, and numbers by the names of constants."""

    def functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[tuple[int, str], Function]]:
        for node in body:
            if isinstance(node, Function):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                yield (first, prefix + node.name), node
            elif isinstance(node, ast.ClassDef):
                yield from functions(node.body, f"{prefix}{node.name}.")

    for where, function in functions(tree.body, ""):
        documented = ast.get_docstring(function, clean=False) is not None
        yield where, function, function.body[1:] if documented else function.body
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            if _is_number(statement.value) and name.isupper():
                yield (0, name), statement, [statement]


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _parents(parts: list[ast.stmt], root: ast.AST) -> Iterator[tuple[ast.AST, str, Any, ast.AST]]:
    """Every node below, without what is only said: its parent, the field it stands in, its place there."""
    skipped = (ast.JoinedStr, ast.Raise, ast.Assert, ast.arguments, ast.Import, ast.ImportFrom)

    def below(node: ast.AST) -> Iterator[tuple[ast.AST, str, Any, ast.AST]]:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or isinstance(child, skipped):
                    continue
                if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                    continue  # a docstring
                yield node, field, place, child
                yield from below(child)

    for part in parts:
        if isinstance(part, skipped):
            continue
        if isinstance(root, Function):
            yield root, "body", root.body.index(part), part
        yield from below(part)


def _changes(parts: list[ast.stmt], root: ast.AST) -> Iterator[tuple[ast.AST, str, Callable[[], None]]]:
    for parent, field, place, node in list(_parents(parts, root)):
        for what, new in _instead_of(node):
            text = " ".join(ast.unparse(getattr(node, "test", node)).split())
            shown = text if len(text) <= 60 else text[:57] + "…"

            def put(parent: ast.AST = parent, field: str = field, place: Any = place, new: Any = new) -> None:
                made = new()
                if place is None:
                    setattr(parent, field, made)
                else:
                    getattr(parent, field)[place] = made

            yield node, f"{what}: {shown}", put


def _instead_of(node: ast.AST) -> Iterator[tuple[str, Callable[[], ast.AST]]]:
    """What may stand there, each with its name; each is made when it is called for."""
    match node:
        case ast.Compare(ops=[op, *_]) if type(op) in COMPARED:
            yield "other comparison", lambda: _with(node, ops=[COMPARED[type(op)](), *node.ops[1:]])
        case ast.BinOp(op=op) if type(op) in COMPUTED and not _is_text(node):
            yield "other operator", lambda: _with(node, op=COMPUTED[type(op)]())
        case ast.AugAssign(op=op) if type(op) in COMPUTED:
            yield "other operator", lambda: _with(node, op=COMPUTED[type(op)]())
            yield "statement dropped", lambda: _at(ast.Pass(), node)
        case ast.BoolOp(op=op):
            other = ast.Or if isinstance(op, ast.And) else ast.And
            yield "and, or", lambda: _with(node, op=other())
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield "sign dropped", lambda: node.operand
        case ast.Constant(value=bool(value)):
            yield "other truth", lambda: _with(node, value=not value)
        case ast.Constant(value=int(value)):
            yield "one more", lambda: _with(node, value=value + 1)
            yield "one less", lambda: _at(ast.parse(str(value - 1), mode="eval").body, node)
        case ast.Constant(value=float(value)):
            yield "twice", lambda: _with(node, value=2 * value if value else 1.0)
        case ast.Expr(value=ast.Call(func=func)) if _name(func) not in SILENT:
            yield "statement dropped", lambda: _at(ast.Pass(), node)
        case ast.Continue() | ast.Break():
            yield "statement dropped", lambda: _at(ast.Pass(), node)
        case ast.If() | ast.While():
            if isinstance(node, ast.If):
                yield "always", lambda: _with(node, test=_at(ast.Constant(True), node.test))
            yield "never", lambda: _with(node, test=_at(ast.Constant(False), node.test))
        case ast.IfExp():
            yield "other branch", lambda: _with(node, body=node.orelse, orelse=node.body)
        case ast.Slice(lower=lower, upper=upper):
            for name, bound in (("lower", lower), ("upper", upper)):
                if bound is not None:
                    more = {name: _at(ast.BinOp(bound, ast.Add(), ast.Constant(1)), node)}
                    yield f"{name} end one further", lambda more=more: _with(node, **more)
        case ast.Call():
            yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[tuple[str, Callable[[], ast.AST]]]:
    name = _name(node.func)
    if name in SILENT:
        return
    if name in INSTEAD:
        other = INSTEAD[name]
        if isinstance(node.func, ast.Attribute):
            yield f"{other} for {name}", lambda: _with(node, func=_with(node.func, attr=other))
        elif name != "mean" and other != "mean":
            yield f"{other} for {name}", lambda: _with(node, func=_at(ast.Name(other, ast.Load()), node))
    if isinstance(node.func, ast.Attribute) and name in LEFT_OUT:
        yield "call dropped", lambda: node.func.value
    for number, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            rest = [k for n, k in enumerate(node.keywords) if n != number]
            yield f"without {keyword.arg}", lambda rest=rest: _with(node, keywords=rest)
    arguments = node.args
    if len(arguments) >= 2 and not any(isinstance(a, ast.Starred) for a in arguments):
        yield "arguments swapped", lambda: _with(node, args=[arguments[1], arguments[0], *arguments[2:]])
        yield "argument dropped", lambda: _with(node, args=arguments[:-1])


def _name(func: ast.AST) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(isinstance(s, ast.JoinedStr) or isinstance(getattr(s, "value", None), str) for s in sides)


def _with(node: Any, **fields: Any) -> Any:
    """The same node with other fields."""
    values = {name: getattr(node, name) for name in node._fields if hasattr(node, name)}
    return _at(type(node)(**{**values, **fields}), node)


def _at(new: ast.AST, node: ast.AST) -> Any:
    return ast.fix_missing_locations(ast.copy_location(new, node))


@contextmanager
def traced(package: Path) -> Iterator[dict[str, set[int]]]:
    """Lines of the package that run, by file, for a while."""
    lines: dict[str, set[int]] = {}
    start = len(str(package)) + 1

    def of_line(frame: FrameType, _event: str, _: object) -> Any:
        lines[frame.f_code.co_filename[start:]].add(frame.f_lineno)
        return of_line

    def of_call(frame: FrameType, _event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(str(package)):
            return None
        lines.setdefault(frame.f_code.co_filename[start:], set()).add(frame.f_lineno)
        return of_line

    sys.settrace(of_call)
    try:
        yield lines
    finally:
        sys.settrace(None)


def functions_of(package: Path) -> dict[tuple[str, int, str], list[FunctionType]]:
    """Functions of the package that there are now, by file, first line and name."""
    found: dict[tuple[str, int, str], list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(package)):
            code = thing.__code__
            found.setdefault((code.co_filename, code.co_firstlineno, code.co_qualname), []).append(thing)
    return found


@contextmanager
def mutated(
    package: Path, name: str, functions: dict[tuple[str, int, str], list[FunctionType]]
) -> Iterator[None]:
    """One change, in all that uses what is changed, for a while. Raises ValueError where nothing does."""
    file = name.partition(":")[0]
    path = package / file
    tree, found = mutations_of(path.read_text("utf-8"), file)
    mutation = next(one for one in found if one.name == name)
    mutation.apply()
    line, owner = mutation.where
    if line:
        code = _code_in(compile(tree, str(path), "exec"), line, owner)
        ours = functions.get((str(path), line, owner), [])
        if code is None or not ours:
            raise ValueError(f"{owner} in line {line} of {file} is no function that is there")
        before = [(function, function.__code__) for function in ours]
        for function in ours:
            function.__code__ = code
        try:
            yield
        finally:
            for function, old in before:
                function.__code__ = old
        return
    module = "tandem." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    value = getattr(sys.modules[module], owner)
    changed = next(ast.literal_eval(s.value) for s in tree.body if _assigns(s, owner))  # type: ignore[attr-defined]
    users = [
        m
        for n, m in list(sys.modules.items())
        if n.startswith("tandem") and not n.startswith("tandem.audit") and getattr(m, owner, None) is value
    ]
    for user in users:
        setattr(user, owner, changed)
    try:
        yield
    finally:
        for user in users:
            setattr(user, owner, value)


def _assigns(statement: ast.stmt, name: str) -> bool:
    return isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == name


def _code_in(code: CodeType, line: int, name: str) -> CodeType | None:
    for inner in code.co_consts:
        if inspect.iscode(inner):
            if (inner.co_firstlineno, inner.co_qualname) == (line, name):
                return inner
            if (found := _code_in(inner, line, name)) is not None:
                return found
    return None
