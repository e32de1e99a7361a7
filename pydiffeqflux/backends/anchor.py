"""The user's own function inside what this package wraps around it."""

from __future__ import annotations

from types import FunctionType
from typing import Any

#: Wrappers that hold the function as ``model`` and, apart from their type, nothing else.
WRAPPERS = ("Autonomous", "RowFunction", "Conforming")


def anchor_of(func: Any) -> Any:
    """What engines remember a function by."""
    if type(func) is FunctionType:
        return func
    while type(func).__name__ in WRAPPERS and type(func).__module__.startswith("pydiffeqflux."):
        func = func.model
    return func
