"""Programs as Julia source: in-place functions on flat memory that allocate nothing."""

from __future__ import annotations

import math
from typing import ClassVar

from ...graph.expr import Index, Number
from ...graph.printer import Printer, arguments
from ...graph.program import Buffer, Matrix, Product, Program

#: Products with more multiplications than this go to BLAS, which smaller ones would wait for.
BLAS_FROM = 20_000

# Julia raises where C and torch return NaN (the root of a negative number, say): the bundled package has functions
# of these names that return NaN, too.
_SAFE = "sqrt log log1p log2 log10 sin cos tan asin acos acosh atanh".split()
_SAME = "exp expm1 atan sinh cosh tanh asinh erf erfc sign floor ceil trunc abs".split()


class JuliaPrinter(Printer):
    """One program as a Julia function of zero-based flat vectors (``PyDiffEqFlux.Flat``)."""

    end: ClassVar[str | None] = "end"
    words: ClassVar[dict[str, str]] = {
        "add": "({} + {})",
        "sub": "({} - {})",
        "mul": "({} * {})",
        "div": "({} / {})",
        "neg": "(-{})",
        "floordiv": "fld({}, {})",
        "mod": "mod({}, {})",
        "pow": "nan_pow({}, {})",
        "fmod": "rem({}, {})",
        "remainder": "nan_mod({}, {})",
        "atan2": "atan({}, {})",
        "maximum": "max({}, {})",
        "minimum": "min({}, {})",
        "sigmoid": "sigmoid({})",
        "round": "round({})",
        "lt": "({} < {})",
        "le": "({} <= {})",
        "gt": "({} > {})",
        "ge": "({} >= {})",
        "eq": "({} == {})",
        "ne": "({} != {})",
        "and": "({} && {})",
        "or": "({} || {})",
        "not": "(!{})",
        "where": "ifelse({}, {}, {})",
        "float": "number(T, {})",
        "int": "whole({})",
        "bool": "({} != 0)",
        **{name: f"nan_{name}({{}})" for name in _SAFE},
        **{name: f"{name}({{}})" for name in _SAME},
    }

    def header(self) -> str:
        return f"function {self.program.name}({', '.join(arguments(self.program))})"

    def footer(self) -> None:
        self.line("return nothing")

    def loop(self, index: str, n: int, how: str | None) -> str:
        # Julia may then run several steps at a time; a sum is added up in another order, the same at every run.
        hint = {"independent": "@simd ivdep ", "sum": "@simd ", None: ""}[how]
        return f"{hint}for {index} in 0:{n - 1}"

    def when(self, condition: str) -> str:
        return f"if {condition}"

    def element(self, buffer: Buffer, at: str) -> str:
        return f"{buffer.name}[{buffer.offset} + {at}]" if buffer.offset else f"{buffer.name}[{at}]"

    def literal(self, value: Number) -> str:
        if value.kind == "bool":
            return "true" if value.value else "false"
        if value.kind == "int":
            return repr(value.value)
        v = float(value.value)
        if math.isnan(v):
            return "T(NaN)"
        return f"T({v!r})" if math.isfinite(v) else f"T({'-' if v < 0 else ''}Inf)"

    def product(self, s: Product) -> None:
        unit = all(1 in (m.row, m.column) for m in (s.left, s.right))
        if not unit or s.rows * s.inner * s.columns < BLAS_FROM:
            super().product(s)
            return
        with self.nest([(Index("b"), s.batch)] if s.batch > 1 else []):
            into = f"{s.into.name}, {s.into.offset}"
            if s.batch > 1:
                into += f" + b * {s.rows * s.columns}"
            left, right = self._operand(s.left), self._operand(s.right)
            self.line(f"product!({into}, {left}, {right}, {s.rows}, {s.inner}, {s.columns})")

    def _operand(self, m: Matrix) -> str:
        first = f"{m.buffer.offset + m.offset}" + (f" + b * {m.batch}" if m.batch else "")
        return f"{m.buffer.name}, {first}, {m.row}, {m.column}"


def source(programs: list[Program]) -> str:
    """The functions, as the body of a module that has ``T`` and the names of ``PyDiffEqFlux.Emitted``."""
    return "\n".join(JuliaPrinter(p).source() for p in programs)
