"""A traced program as a function of the compiled language (see ``lang``)."""

from __future__ import annotations

import math
from typing import ClassVar

from ...graph.expr import Call, Expr, Number
from ...graph.printer import arguments
from ...graph.program import Buffer, Program
from .products import Products

_LIBRARY = "log log2 log10 sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc sqrt floor ceil trunc"


class LanguagePrinter(Products):
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


def emit(program: Program) -> tuple[str, int]:
    """The source of a program, and how many numbers it needs to work in.

    The function's name is the program's, its arguments are ``graph.printer.arguments``.
    """
    printer = LanguagePrinter(program)
    source = printer.source()
    return source, max(program.workspace, printer.workspace)
