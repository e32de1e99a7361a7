"""A program as source text: what the emitters have in common. A language fills in its own syntax."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from .expr import Call, Expr, Index, Load, Number, call, linear, number
from .program import Buffer, Loop, Matrix, Product, Program, Reduction, Scan

#: Where a reduction starts, and how it takes one more value: a word of the language.
REDUCTIONS = {
    "sum": (0.0, "add"),
    "prod": (1.0, "mul"),
    "max": (float("-inf"), "maximum"),
    "min": (float("inf"), "minimum"),
}


class Printer(ABC):
    """Prints one program. ``lines`` grows as statements are printed."""

    #: For every word of :data:`~.expr.WORDS` a format of its arguments.
    words: ClassVar[dict[str, str]]
    indent: ClassVar[str] = "    "

    def __init__(self, program: Program):
        self.program = program
        self.lines: list[str] = []
        self._depth = 0

    def source(self) -> str:
        """The whole function."""
        with self.block(self.header()):
            for statement in self.program.statements:
                self.statement(statement)
            repeat = self.program.repeat
            if repeat is not None:
                with self.nest([(repeat.index, repeat.times)]):
                    for statement in repeat.body:
                        self.statement(statement)
            self.footer()
        return "\n".join(self.lines) + "\n"

    # -- what a language fills in -----------------------------------------------------------------

    @abstractmethod
    def header(self) -> str:
        """The line that opens the function."""

    @abstractmethod
    def footer(self) -> None:
        """What stands before the function's end."""

    @abstractmethod
    def loop(self, index: str, n: int, how: str | None) -> str:
        """The line that opens ``for index in 0 .. n - 1``.

        Args:
            how: what is known of an innermost loop: its steps are ``"independent"``, or only add up (``"sum"``).
        """

    @abstractmethod
    def when(self, condition: str) -> str:
        """The line that opens an ``if``."""

    @abstractmethod
    def element(self, buffer: Buffer, at: str) -> str:
        """An element of a buffer, to be read or written; ``at`` counts from zero, within the buffer."""

    @abstractmethod
    def literal(self, value: Number) -> str:
        """A constant of its kind."""

    end: ClassVar[str | None] = None

    # -- expressions ------------------------------------------------------------------------------

    def expr(self, e: Expr) -> str:
        if isinstance(e, Number):
            return self.literal(e)
        if isinstance(e, Index):
            return e.name
        if isinstance(e, Load):
            return "t" if e.buffer.name == "t" else self.element(e.buffer, self.expr(e.at))
        args = [self.expr(a) for a in e.args]
        return self.words[self.word(e)].format(*args)

    def word(self, e: Call) -> str:
        """The word to look up; a language may know better ones for integers or truth values."""
        return e.word

    # -- statements -------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append(self.indent * self._depth + text)

    @contextmanager
    def block(self, opening: str | None) -> Iterator[None]:
        if opening is None:
            yield
            return
        self.line(opening)
        self._depth += 1
        yield
        self._depth -= 1
        if self.end is not None:
            self.line(self.end)

    @contextmanager
    def nest(self, over: Iterable[tuple[Index, int]], how: str | None = None) -> Iterator[None]:
        loops = list(over)
        if not loops:
            yield
            return
        (index, n), *inner = loops
        with self.block(self.loop(index.name, n, None if inner else how)), self.nest(inner, how):
            yield

    def statement(self, s: Loop | Reduction | Scan | Product) -> None:
        if isinstance(s, Loop):
            with self.nest(s.over, None if s.accumulate else "independent"):
                sign = "+=" if s.accumulate else "="
                self.line(f"{self.element(s.into, self.expr(s.at))} {sign} {self.expr(s.value)}")
        elif isinstance(s, Product):
            self.product(s)
        elif isinstance(s, Scan):
            start, word = REDUCTIONS[s.how]
            with self.nest(s.over[:-1]):
                self.line(f"acc = {self.expr(number(start))}")
                with self.nest(s.over[-1:]):
                    self.line(f"acc = {self.words[word].format('acc', self.expr(s.value))}")
                    self.line(f"{self.element(s.into, self.expr(s.at))} = acc")
        elif s.how in ("argmax", "argmin"):
            self._position(s)
        else:
            self._reduction(s)

    def _reduction(self, s: Reduction) -> None:
        start, word = REDUCTIONS[s.how]
        with self.nest(s.over):
            self.line(f"acc = {self.expr(number(start))}")
            how = "sum" if s.how == "sum" and s.guard is None else None
            guard = None if s.guard is None else self.when(self.expr(s.guard))
            with self.nest(s.across, how), self.block(guard):
                self.line(f"acc = {self.words[word].format('acc', self.expr(s.value))}")
            self.line(f"{self.element(s.into, self.expr(s.at))} = acc")

    def _position(self, s: Reduction) -> None:
        better = self.words["gt" if s.how == "argmax" else "lt"]
        ((index, n),) = s.across
        with self.nest(s.over):
            self.line(f"acc = {self.expr(number(REDUCTIONS[s.how[3:]][0]))}")
            self.line(f"place = {self.expr(number(0.0))}")
            with self.block(self.loop(index.name, n, None)):
                self.line(f"item = {self.expr(s.value)}")
                # The first of equals; a NaN beats everything.
                nan = self.words["and"].format(
                    self.words["ne"].format("item", "item"), self.words["eq"].format("acc", "acc")
                )
                with self.block(self.when(self.words["or"].format(better.format("item", "acc"), nan))):
                    self.line("acc = item")
                    self.line(f"place = {self.words['float'].format(index.name)}")
            self.line(f"{self.element(s.into, self.expr(s.at))} = place")

    def product(self, s: Product) -> None:
        """Loops in the order in which memory is read; a language may call a library where that is faster."""
        b, i, k, j = (Index(x) for x in ("b", "i_", "k", "j"))
        left = self._entry(s.left, b, i, k)
        right = self._entry(s.right, b, k, j)
        out = linear(0, (s.rows * s.columns, s.columns, 1), (b, i, j))
        outer = [(b, s.batch)] if s.batch > 1 else []
        into = self.element(s.into, self.expr(out if s.batch > 1 else linear(0, (s.columns, 1), (i, j))))
        if s.right.column == 1 and s.columns > 1:
            self._product_by_rows(s, outer, into, left, right)
            return
        with self.nest([*outer, (i, s.rows), (j, s.columns)]):
            self.line(f"acc = {self.expr(number(0.0))}")
            with self.nest([(k, s.inner)], "sum"):
                self.line(f"acc += {left} * {right}")
            self.line(f"{into} = acc")

    def _product_by_rows(self, s: Product, outer: list[tuple[Index, int]], into: str, left: str, right: str) -> None:
        with self.nest([*outer, (Index("i_"), s.rows)]):
            with self.nest([(Index("j"), s.columns)]):
                self.line(f"{into} = {self.expr(number(0.0))}")
            with self.nest([(Index("k"), s.inner)]):
                self.line(f"acc = {left}")
                with self.nest([(Index("j"), s.columns)], "independent"):
                    self.line(f"{into} += acc * {right}")

    def _entry(self, m: Matrix, b: Index, row: Index, column: Index) -> str:
        at: Expr = linear(m.offset, (m.row, m.column), (row, column))
        if m.batch:
            at = call("add", at, call("mul", b, number(m.batch)))
        return self.expr(Load(m.buffer, at, "float"))


def arguments(program: Program) -> Sequence[str]:
    """The names of a function's arguments, in the order that every engine calls it with."""
    inputs = [n for n in ("t", "y", "v", "p", "c", "i") if n in program.inputs]
    return [*inputs, "w", *(n for n in ("out", "gy", "gp", "gt", "J", "ft") if n in program.outputs)]
