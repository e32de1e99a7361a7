"""Tensors while a graph is turned into a program: lying in memory with strides, or still a formula.

A value that is a formula costs nothing until somebody stores it; whoever uses it writes the formula into his own
(which fuses element-wise chains). Shape operations only change how an index is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .expr import Expr, Index, Kind, Load, call, expensive, linear, number
from .program import Buffer, Loop, Program, Statement

At = Sequence[Expr]


@dataclass(frozen=True)
class Layout:
    """Where in a buffer a tensor lies."""

    buffer: Buffer
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor: ``at`` gives the expression of one element."""

    shape: tuple[int, ...]
    kind: Kind
    at: Callable[[At], Expr]
    layout: Layout | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def stored(
    buffer: Buffer, shape: Sequence[int], kind: Kind, strides: Sequence[int] | None = None, offset: int = 0
) -> Value:
    """The value that lies in ``buffer``. Integers and truth values lie there as numbers of the program's dtype."""
    steps = contiguous_strides(shape) if strides is None else tuple(strides)
    held: Kind = "int" if buffer.name == "i" else "float"

    def at(index: At) -> Expr:
        return call(kind, Load(buffer, linear(offset, steps, index), held), kind=kind)

    return Value(tuple(shape), kind, at, Layout(buffer, offset, steps))


def constant(value: float | int | bool, shape: Sequence[int] = (), kind: Kind | None = None) -> Value:
    """The same number everywhere."""
    leaf = number(value, kind)
    return Value(tuple(shape), leaf.kind, lambda index: leaf)


def viewed(value: Value, shape: Sequence[int], lookup: Callable[[At], At], layout: Layout | None = None) -> Value:
    """``value`` seen through an index map."""
    if value.layout is not None and layout is not None:
        return stored(layout.buffer, shape, value.kind, layout.strides, layout.offset)
    return Value(tuple(shape), value.kind, lambda index: value.at(lookup(index)))


class Builder:
    """Writes the statements of one program."""

    def __init__(self, program: Program):
        self.program = program
        self._count = 0
        #: What has been stored already, by the formula's identity (the formula is kept alive, so that it stays unique).
        self._kept: dict[int, tuple[Value, Value]] = {}

    def indices(self, shape: Sequence[int]) -> tuple[tuple[Index, int], ...]:
        """A fresh loop variable for each dimension."""
        named = []
        for n in shape:
            named.append((Index(f"k{self._count}"), n))
            self._count += 1
        return tuple(named)

    def add(self, statement: Statement) -> None:
        self.program.statements.append(statement)

    def buffer(self, shape: Sequence[int]) -> Buffer:
        """A piece of the workspace."""
        return Buffer("work", "w", math.prod(shape))

    def write(self, value: Value, into: Layout, *, accumulate: bool = False) -> None:
        """Compute ``value`` into memory."""
        over = self.indices(value.shape)
        # A dimension of one needs no loop: its index is zero.
        index = [number(0) if n == 1 else k for k, n in over]
        self.add(
            Loop(
                tuple((k, n) for k, n in over if n != 1),
                into.buffer,
                linear(into.offset, into.strides, index),
                call("float", value.at(index)),
                accumulate,
            )
        )

    def store(self, value: Value) -> Value:
        """``value`` in memory, where it may already be."""
        if value.layout is not None:
            return value
        if id(value) not in self._kept:
            self._kept[id(value)] = value, self.copy(value)
        return self._kept[id(value)][1]

    def copy(self, value: Value) -> Value:
        """``value`` in memory of its own, contiguous."""
        kept = stored(self.buffer(value.shape), value.shape, value.kind)
        assert kept.layout is not None
        self.write(value, kept.layout)
        return kept

    def packed(self, value: Value) -> Value:
        """``value`` in memory, contiguous."""
        if in_order(value):
            return value
        return self.store(value) if value.layout is None else self.copy(value)

    def settle(self, value: Value) -> Value:
        """``value`` kept in memory if its formula is dear: for whoever will look at an element more than once."""
        if value.layout is not None or not expensive(value.at([Index("_")] * len(value.shape))):
            return value
        return self.store(value)


def in_order(value: Value) -> bool:
    """Whether ``value`` lies in memory in the order of its elements, without gaps."""
    if value.layout is None:
        return False
    return _steps(value.shape, value.layout.strides) == _steps(value.shape, contiguous_strides(value.shape))


def _steps(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The strides that matter: those of dimensions longer than one."""
    return [s for n, s in zip(shape, strides, strict=True) if n != 1]
