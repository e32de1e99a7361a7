"""Programs as Python source that numba compiles."""

from __future__ import annotations

import math
from typing import ClassVar

from ...graph.expr import Call, Number
from ...graph.printer import Printer, arguments
from ...graph.program import Buffer, Program

#: What every emitted module starts with. ``F`` is the program's dtype.
PRELUDE = """\
import math
import numba
import numpy as np

F = np.{dtype}


@numba.njit(inline="always")
def maximum(a, b):
    return a if (a > b or a != a) else b


@numba.njit(inline="always")
def minimum(a, b):
    return a if (a < b or a != a) else b


@numba.njit(inline="always")
def sign(a):
    return a if a != a else F((a > 0) - (a < 0))


@numba.njit(inline="always")
def sigmoid(a):
    return F(1.0) / (F(1.0) + math.exp(-a))
"""

_MATH = (
    "sqrt exp expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc".split()
)


class NumbaPrinter(Printer):
    """One program as a function of arrays."""

    words: ClassVar[dict[str, str]] = {
        "add": "({} + {})",
        "sub": "({} - {})",
        "mul": "({} * {})",
        "div": "({} / {})",
        "neg": "(-{})",
        "floordiv": "({} // {})",
        "mod": "({} % {})",
        "pow": "({} ** {})",
        "fmod": "math.fmod({}, {})",
        "remainder": "({} % {})",
        "atan2": "math.atan2({}, {})",
        "maximum": "maximum({}, {})",
        "minimum": "minimum({}, {})",
        "abs": "abs({})",
        "sign": "sign({})",
        "sigmoid": "sigmoid({})",
        "floor": "np.floor({})",
        "ceil": "np.ceil({})",
        "trunc": "np.trunc({})",
        "round": "np.rint({})",
        "lt": "({} < {})",
        "le": "({} <= {})",
        "gt": "({} > {})",
        "ge": "({} >= {})",
        "eq": "({} == {})",
        "ne": "({} != {})",
        "and": "({} and {})",
        "or": "({} or {})",
        "not": "(not {})",
        "where": "({1} if {0} else {2})",
        "float": "F({})",
        "int": "int({})",
        "bool": "({} != 0)",
    } | {name: f"math.{name}({{}})" for name in _MATH}

    def header(self) -> str:
        return f"def {self.program.name}({', '.join(arguments(self.program))}):"

    def footer(self) -> None:
        self.line("return")

    def loop(self, index: str, n: int, how: str | None) -> str:
        return f"for {index} in range({n}):"

    def when(self, condition: str) -> str:
        return f"if {condition}:"

    def element(self, buffer: Buffer, at: str) -> str:
        if buffer.offset:
            at = f"{buffer.offset} + {at}"
        return f"{buffer.name}[{at}]"

    def literal(self, value: Number) -> str:
        if value.kind != "float":
            return repr(value.value)
        v = float(value.value)
        if math.isnan(v):
            return "F(np.nan)"
        return f"F({v!r})" if math.isfinite(v) else f"F({'-' if v < 0 else ''}np.inf)"

    def word(self, e: Call) -> str:
        return e.word


def source(programs: list[Program]) -> str:
    """The module that defines these programs."""
    return "\n\n".join([PRELUDE.format(dtype=programs[0].dtype), *(NumbaPrinter(p).source() for p in programs)])
