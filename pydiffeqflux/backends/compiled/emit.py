"""A traced program as a function of the compiled language (see ``lang``)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

from ...graph.expr import Call, Expr, Index, Number, linear
from ...graph.printer import Printer, arguments
from ...graph.program import Buffer, Matrix, Product, Program

_LIBRARY = "log log2 log10 sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc sqrt floor ceil trunc"


#: Rows of the left matrix from which on the right one is turned around.
TURNED = 8


class LanguagePrinter(Printer):
    """One program. Where both sides of a choice can be computed there is no branch: loops stay vectorisable."""

    words: ClassVar[dict[str, str]] = {
        "add": "({} + {})", "sub": "({} - {})", "mul": "({} * {})", "div": "({} / {})", "neg": "(-{})",
        "floordiv": "({} // {})", "mod": "({} % {})", "pow": "math.pow({}, {})", "fmod": "math.fmod({}, {})",
        "remainder": "({} % {})", "atan2": "math.atan2({}, {})", "maximum": "maximum({}, {})",
        "minimum": "minimum({}, {})", "abs": "abs({})", "sign": "sign({})", "sigmoid": "sigmoid({})",
        "exp": "exp({})", "log1p": "log1p({})", "expm1": "expm1({})", "tanh": "tanh({})", "round": "round({})",
        "lt": "({} < {})",
        "le": "({} <= {})", "gt": "({} > {})", "ge": "({} >= {})", "eq": "({} == {})", "ne": "({} != {})",
        "and": "({} & {})", "or": "({} | {})", "not": "(not {})", "where": "select({}, {}, {})",
        "float": "real({})", "int": "int({})", "bool": "bool({})",
        "maximum of integers": "max({}, {})", "minimum of integers": "min({}, {})",
    } | {name: f"math.{name}({{}})" for name in _LIBRARY.split()}  # fmt: skip

    def header(self) -> str:
        kinds = {"t": "Real", "i": "Ints"}
        named = [f"{name}: {kinds.get(name, 'Reals')}" for name in arguments(self.program)]
        return f"def {self.program.name}({', '.join(named)}) -> None:"

    def footer(self) -> None:
        self.line("return")

    def loop(self, index: str, n: int, how: str | None) -> str:
        return f"for {index} in range({n}):"

    def when(self, condition: str) -> str:
        return f"if {condition}:"

    def element(self, buffer: Buffer, at: str) -> str:
        return f"{buffer.name}[{buffer.offset} + {at}]" if buffer.offset else f"{buffer.name}[{at}]"

    def literal(self, value: Number) -> str:
        if value.kind != "float":
            return repr(value.value)
        v = float(value.value)
        if math.isnan(v):
            return "real(math.nan)"
        return f"real({v!r})" if math.isfinite(v) else f"real({'-' if v < 0 else ''}math.inf)"

    def expr(self, e: Expr) -> str:
        if isinstance(e, Call) and e.word == "pow" and isinstance(e.args[1], Number):
            return self._power(self.expr(e.args[0]), e.args[1])
        return super().expr(e)

    def word(self, e: Call) -> str:
        return f"{e.word} of integers" if e.kind == "int" and e.word in ("maximum", "minimum") else e.word

    def _power(self, base: str, exponent: Number) -> str:
        """Small whole powers are products, a square root is one; the others are the C library's."""
        x = float(exponent.value)
        if x == 0.5:
            return f"math.sqrt({base})"
        if x == int(x) and 1 <= abs(x) <= 8:
            return f"({base} ** {int(x)})" if x > 0 else f"(real(1.0) / ({base} ** {int(-x)}))"
        return f"math.pow({base}, {self.literal(exponent)})"

    #: How many numbers the program needs to work in, with what the printer adds.
    workspace: int = 0

    def product(self, s: Product) -> None:
        """Along the columns of the right matrix, four rows of it at a time: a quarter of the traffic of one.

        A right matrix that lies the other way (a layer's weight) is first turned around where there are rows enough to
        make that worth it: measured on 128 rows and 16 to 32 columns, 5 times as fast as inner products that short.
        """
        if s.right.column != 1 and s.rows >= TURNED and s.columns >= 4 and s.inner >= 4:
            s = self._turned(s)
        if s.right.column != 1 or s.columns < 4 or s.inner < 4:
            super().product(s)
            return
        b, i, k, j = (Index(x) for x in ("b", "i_", "k", "j"))
        outer = [(b, s.batch)] if s.batch > 1 else []
        out = linear(0, (s.rows * s.columns, s.columns, 1), (b if outer else Number(0, "int"), i, j))
        into, rows = self.element(s.into, self.expr(out)), s.inner // 4 * 4
        with self.nest([*outer, (i, s.rows)]):
            with self.nest([(j, s.columns)]):
                self.line(f"{into} = {self.literal(Number(0.0, 'float'))}")
            with self.block(f"for k in range(0, {rows}, 4):"):
                at = [Index(f"(k + {d})") for d in range(4)]
                for d, index in enumerate(at):
                    self.line(f"a{d} = {self._entry(s.left, b, i, index)}")
                with self.nest([(j, s.columns)]):
                    terms = (f"a{d} * {self._entry(s.right, b, index, j)}" for d, index in enumerate(at))
                    self.line(f"{into} += {' + '.join(terms)}")
            if rows < s.inner:
                with self.block(f"for k in range({rows}, {s.inner}):"):
                    self.line(f"acc = {self._entry(s.left, b, i, k)}")
                    with self.nest([(j, s.columns)]):
                        self.line(f"{into} += acc * {self._entry(s.right, b, k, j)}")

    def _turned(self, s: Product) -> Product:
        """The same product with a copy of the right matrix, row by row; a batch of one matrix is copied once."""
        size, batch = s.inner * s.columns, s.batch if s.right.batch else 1
        copy = Buffer("work", "w", batch * size, self.program.workspace)
        self.workspace = max(self.workspace, copy.offset + copy.size)
        b, k, j = (Index(x) for x in ("b", "k", "j"))
        at = linear(0, (size, s.columns, 1), (b if batch > 1 else Number(0, "int"), k, j))
        with self.nest([*([(b, batch)] if batch > 1 else []), (k, s.inner), (j, s.columns)]):
            self.line(f"{self.element(copy, self.expr(at))} = {self._entry(s.right, b, k, j)}")
        return replace(s, right=Matrix(copy, 0, size if batch > 1 else 0, s.columns, 1))


def emit(program: Program) -> tuple[str, int]:
    """The source of a program, and how many numbers it needs to work in.

    The function's name is the program's, its arguments are ``graph.printer.arguments``.
    """
    printer = LanguagePrinter(program)
    source = printer.source()
    return source, max(program.workspace, printer.workspace)
