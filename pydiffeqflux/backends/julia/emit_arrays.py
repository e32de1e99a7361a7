"""Programs as Julia source for arrays whose elements cannot be read one by one, such as those on a GPU.

Every statement of a program becomes a function of one work item (one element of what it writes, as a rule), and the
program a function that launches these one after the other. Large matrix products go to the array type's own ``mul!``.
How a function is launched is the business of ``julia/ext/PyDiffEqFluxGPUArraysExt.jl``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ...graph.expr import Call, Expr, Index, Number, call, linear, number, parts
from ...graph.printer import REDUCTIONS, arguments
from ...graph.program import Buffer, Loop, Matrix, Product, Program, Reduction, Scan, Statement
from .emit import BLAS_FROM, JuliaPrinter

#: A reduction of at least ``LONG`` numbers to at most ``FEW`` is shared among ``PARTS`` work items for each of these.
LONG, FEW, PARTS = 2048, 4096, 256

Indices = Sequence[tuple[Index, int]]

_ITEM = Index("item_")


class ArrayPrinter(JuliaPrinter):
    """One program as Julia functions of one-based vectors, with the names of ``PyDiffEqFluxGPUArraysExt``."""

    def __init__(self, program: Program):
        super().__init__(program)
        #: How many numbers the program works in: long reductions keep parts of theirs beyond its own.
        self.workspace = program.workspace
        self._arguments = list(arguments(program))
        self._launches: list[str] = []

    def source(self) -> str:
        for statement in self.program.statements:
            self.statement(statement)
        repeat = self.program.repeat
        if repeat is not None:
            self._launches.append(self.loop(repeat.index.name, repeat.times, None))
            self._arguments.append(repeat.index.name)
            for statement in repeat.body:
                self.statement(statement)
            self._launches.append("end")
        with self.block(self.header()):
            for launch in self._launches:
                self.line(launch)
            self.footer()
        return "\n".join(self.lines) + "\n"

    def loop(self, index: str, n: int, how: str | None) -> str:
        return f"for {index} in 0:{n - 1}"

    def element(self, buffer: Buffer, at: str) -> str:
        return f"{buffer.name}[{buffer.offset + 1} + {at}]"

    def statement(self, s: Statement) -> None:
        if isinstance(s, Product):
            self.product(s)
        elif isinstance(s, Loop):
            apart, together = independent(s)
            with self._items(apart), self.nest(together):
                sign = "+=" if s.accumulate else "="
                self.line(f"{self.element(s.into, self.expr(s.at))} {sign} {self.expr(s.value)}")
        elif isinstance(s, Scan):
            with self._items(s.over[:-1]):
                super().statement(Scan(s.over[-1:], s.how, s.into, s.at, s.value))
        elif s.how in REDUCTIONS and _count(s.across) >= LONG and _count(s.over) <= FEW:
            self._shared(s)
        else:
            with self._items(s.over):
                super().statement(Reduction((), s.across, s.how, s.into, s.at, s.value, s.guard))

    @contextmanager
    def _items(self, over: Indices) -> Iterator[None]:
        """A function that is launched for every combination of these indices."""
        names = ", ".join(self._arguments)
        name = f"{self.program.name}_{len(self._launches)}"
        with self.block(f"Base.@propagate_inbounds function {name}({_ITEM.name}, {names})"):
            self._told_apart(over, _ITEM)
            yield
            self.line("return nothing")
        self.lines.append("")
        self._launches.append(f"each!({name}, {_count(over)}, {names})")

    def _told_apart(self, over: Indices, number_of: Expr) -> None:
        """The indices out of the number of their combination."""
        before = 1
        for index, n in reversed(over):
            rest = call("floordiv", number_of, number(before))
            self.line(f"{index.name} = {self.expr(rest if index is over[0][0] else call('mod', rest, number(n)))}")
            before *= n

    def _shared(self, s: Reduction) -> None:
        """A long reduction: first every work item takes a share, then their results are put together."""
        start, word = REDUCTIONS[s.how]
        held = Buffer("work", "w", _count(s.over) * PARTS, self.program.workspace)
        self.workspace = max(self.workspace, held.offset + held.size)
        part = (Index("part_"), PARTS)
        with self._items([*s.over, part]):
            self.line(f"acc = {self.expr(number(start))}")
            with self.block(f"for share_ in part_:{PARTS}:{_count(s.across) - 1}"):
                self._told_apart(s.across, Index("share_"))
                with self.block(None if s.guard is None else self.when(self.expr(s.guard))):
                    self.line(f"acc = {self.words[word].format('acc', self.expr(s.value))}")
            self.line(f"{self.element(held, _ITEM.name)} = acc")
        with self._items(s.over):
            self.line(f"acc = {self.expr(number(start))}")
            with self.nest([part]):
                at = call("add", call("mul", _ITEM, number(PARTS)), part[0])
                self.line(f"acc = {self.words[word].format('acc', self.element(held, self.expr(at)))}")
            self.line(f"{self.element(s.into, self.expr(s.at))} = acc")

    def product(self, s: Product) -> None:
        left, right = _by_columns(s.left, s.rows, s.inner), _by_columns(s.right, s.inner, s.columns)
        large = s.rows * s.inner * s.columns >= BLAS_FROM
        if s.batch == 1 and large and left is not None and right is not None:
            operands = [f"{m.buffer.name}, {m.buffer.offset + m.offset}" for m in (s.left, s.right)]
            flips = [str(flip).lower() for flip in (left, right)]
            self._launches.append(
                f"multiply!({s.into.name}, {s.into.offset}, {operands[0]}, {flips[0]}, {operands[1]}, {flips[1]},"
                f" {s.rows}, {s.inner}, {s.columns})"
            )
            return
        b, i, k, j = (Index(x) for x in ("b", "i_", "k", "j"))
        with self._items([(b, s.batch), (i, s.rows), (j, s.columns)]):
            self.line(f"acc = {self.expr(number(0.0))}")
            with self.nest([(k, s.inner)]):
                self.line(f"acc += {self._entry(s.left, b, i, k)} * {self._entry(s.right, b, k, j)}")
            out = linear(0, (s.rows * s.columns, s.columns, 1), (b, i, j))
            self.line(f"{self.element(s.into, self.expr(out))} = acc")


def _count(over: Iterable[tuple[Index, int]]) -> int:
    return math.prod(n for _, n in over)


def _by_columns(m: Matrix, rows: int, columns: int) -> bool | None:
    """Whether a matrix lies in memory column after column; None where it does not lie there without gaps."""
    if (m.column == 1 or columns == 1) and (m.row == columns or rows == 1):
        return False
    if (m.row == 1 or rows == 1) and (m.column == rows or columns == 1):
        return True
    return None


def independent(s: Loop) -> tuple[Indices, Indices]:
    """A loop's indices in two: those whose every combination writes elsewhere, and those that have to run in order.

    Where a loop writes is a sum of terms. Those of the first kind are each longer than all the shorter ones reach
    together, and whatever is left (places that are read from memory, say) goes by multiples of more than they reach.
    """
    sizes = dict(s.over)
    terms = [(e, step) for e, step in _terms(s.at, 1) if any(p in sizes for p in parts(e))]
    inside = {p for e, _ in terms if not isinstance(e, Index) for p in parts(e)}
    steps: dict[Index, int] = {}
    for e, step in terms:
        if isinstance(e, Index) and e not in inside:
            steps[e] = steps.get(e, 0) + step
    free = sorted((k for k in steps if steps[k]), key=lambda k: abs(steps[k]))
    for taken in range(len(free), 0, -1):
        reach, alone = 0, True
        for k in free[:taken]:
            alone = alone and abs(steps[k]) > reach
            reach += abs(steps[k]) * (sizes[k] - 1)
        left = math.gcd(*(step for e, step in terms if e not in free[:taken]))
        if alone and (left == 0 or reach < left):
            return [x for x in s.over if x[0] in free[:taken]], [x for x in s.over if x[0] not in free[:taken]]
    return (), s.over


def _terms(e: Expr, times: int) -> list[tuple[Expr, int]]:
    """A sum's terms, each with the number that multiplies it."""
    if isinstance(e, Call) and e.word in ("add", "sub"):
        a, b = e.args
        return _terms(a, times) + _terms(b, times if e.word == "add" else -times)
    if isinstance(e, Call) and e.word == "neg":
        return _terms(e.args[0], -times)
    if isinstance(e, Call) and e.word == "mul":
        for factor, other in (e.args, e.args[::-1]):
            if isinstance(factor, Number):
                return _terms(other, times * int(factor.value))
    return [(e, times)]


def array_source(program: Program) -> tuple[str, int]:
    """The functions of a program for arrays, and how many numbers they work in."""
    printer = ArrayPrinter(program)
    return printer.source(), printer.workspace
