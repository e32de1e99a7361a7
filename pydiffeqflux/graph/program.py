"""A program: loops over scalar expressions and matrix products, on flat buffers. What the emitters translate.

Every buffer is one-dimensional and of the program's dtype (integer constants apart); every index is computed. A
statement reads buffers that earlier statements have written, and never one that it writes itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .buffer import Buffer as Buffer
from .expr import Expr, Index, Load, parts


@dataclass
class Loop:
    """``into[at] = value`` (or ``+=``) for every index; the last index runs fastest."""

    over: tuple[tuple[Index, int], ...]
    into: Buffer
    at: Expr
    value: Expr
    accumulate: bool = False


@dataclass
class Reduction:
    """As :class:`Loop`, with ``value`` combined over further indices first.

    Attributes:
        how: ``"sum"``, ``"prod"``, ``"max"``, ``"min"`` (NaN wins), ``"argmax"``, ``"argmin"`` (of the one index that
            is reduced).
        guard: of those indices, only where this holds (None: everywhere).
    """

    over: tuple[tuple[Index, int], ...]
    across: tuple[tuple[Index, int], ...]
    how: str
    into: Buffer
    at: Expr
    value: Expr
    guard: Expr | None = None


@dataclass
class Scan:
    """A running sum (``how="sum"``) or product (``"prod"``) along the last index of ``over``."""

    over: tuple[tuple[Index, int], ...]
    how: str
    into: Buffer
    at: Expr
    value: Expr


@dataclass(frozen=True)
class Matrix:
    """A strided ``(rows, columns)`` matrix in a buffer; ``batch`` is the distance from one matrix to the next."""

    buffer: Buffer
    offset: int
    batch: int
    row: int
    column: int


@dataclass
class Product:
    """``into[b] = left[b] @ right[b]`` for ``b`` in ``range(batch)``; ``into`` is contiguous."""

    into: Buffer
    left: Matrix
    right: Matrix
    batch: int
    rows: int
    inner: int
    columns: int


Statement = Loop | Reduction | Scan | Product


@dataclass
class Repeat:
    """Statements that run once for every value of an index, after all others."""

    index: Index
    times: int
    body: list[Statement]


@dataclass
class Program:
    """A function on flat buffers.

    Attributes:
        dtype: ``"float32"`` or ``"float64"``.
        inputs, outputs: its arguments, by name and size.
        workspace: how many numbers it needs to work in.
    """

    name: str
    dtype: str
    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]
    statements: list[Statement] = field(default_factory=list)
    repeat: Repeat | None = None
    workspace: int = 0


def reads(statement: Statement) -> set[Buffer]:
    """The buffers that a statement reads."""
    if isinstance(statement, Product):
        return {statement.left.buffer, statement.right.buffer}
    exprs = [statement.at, statement.value]
    if isinstance(statement, Reduction) and statement.guard is not None:
        exprs.append(statement.guard)
    found = {p.buffer for e in exprs for p in parts(e) if isinstance(p, Load)}
    if isinstance(statement, Loop) and statement.accumulate:
        found.add(statement.into)
    return found


def allocate(program: Program, results: Iterable[Buffer] = ()) -> None:
    """Lay the workspace out: drop statements that nobody reads, and let buffers share memory over time.

    Args:
        results: buffers besides ``program.outputs`` that are wanted in the end.
    """
    wanted: set[Buffer] = {*program.outputs.values(), *results}
    if program.repeat is not None:
        program.repeat.body = _needed(program.repeat.body, wanted)
    program.statements = _needed(program.statements, wanted)
    once = program.statements
    again = program.repeat.body if program.repeat is not None else []
    last: dict[Buffer, float] = {b: i for i, s in enumerate(once) for b in (*reads(s), s.into)}
    # What a repeated statement touches has to be there until the end.
    last |= {b: float("inf") for s in again for b in (*reads(s), s.into)}
    live: list[Buffer] = []
    for i, statement in enumerate((*once, *again)):
        live = [b for b in live if last[b] >= i]
        new = statement.into
        if new.role == "work" and new not in live:
            new.offset = _first_fit(live, new.size)
            live.append(new)
            program.workspace = max(program.workspace, new.offset + new.size)


def _needed(statements: list[Statement], wanted: set[Buffer]) -> list[Statement]:
    """Those that write something wanted; what they read is wanted then, too."""
    kept: list[Statement] = []
    for statement in reversed(statements):
        if statement.into in wanted:
            kept.append(statement)
            wanted |= reads(statement)
    return kept[::-1]


def _first_fit(live: list[Buffer], size: int) -> int:
    start = 0
    for b in sorted(live, key=lambda b: b.offset):
        if b.offset - start >= size:
            break
        start = max(start, b.offset + b.size)
    return start


def depending(statements: list[Statement], source: Buffer) -> tuple[list[Statement], list[Statement]]:
    """``statements`` in two: those that have nothing to do with ``source``, and those that have."""
    reached = {source}
    while True:
        # A buffer that is written in pieces belongs to one side with all of them.
        more = {s.into for s in statements if reads(s) & reached} - reached
        if not more:
            break
        reached |= more
    return [s for s in statements if s.into not in reached], [s for s in statements if s.into in reached]
