"""Imports go one way: also those that functions make, and whatever the order in which modules are imported."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pydiffeqflux

ROOT = Path(pydiffeqflux.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def imported(name: str, *, everywhere: bool) -> set[str]:
    """The modules of this package that a module imports; packages stand for the modules that they name."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {full if full in MODULES else base for full in names}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        elif everywhere or not isinstance(node, ast.FunctionDef):
            todo += ast.iter_child_nodes(node)
    return {module for module in found if module in MODULES and module != name}


def test_no_circles_at_import() -> None:
    TopologicalSorter({name: imported(name, everywhere=False) for name in MODULES}).prepare()


def test_no_circles_at_all() -> None:
    """A function's import may be there to save time, never to break a circle."""
    TopologicalSorter({name: imported(name, everywhere=True) for name in MODULES}).prepare()
