"""Flat memory, which expressions read and programs write."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Buffer:
    """Flat memory of ``size`` numbers.

    Attributes:
        role: ``"input"`` (an argument of the function), ``"output"`` (likewise, written), or ``"work"`` (a piece of
            the workspace).
        name: of the argument that it is, or is a piece of.
        offset: where in that argument it begins.
    """

    role: str
    name: str
    size: int
    offset: int = 0
