"""A traced program as a function of the compiled language."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...graph.expr import Call, Expr, Index, Load, Number
from ...graph.program import Buffer, Loop, Matrix, Product, Program, Reduction, Scan

#: The arguments of each kernel: what every loop passes, then what the kernel writes.
_GIVEN = {"f": "typciw", "vjp": "tyvpciw", "vjp_y": "tyvpciw", "jac": "typciw"}
_WRITTEN = {"f": ("out",), "vjp": ("gy", "gp", "gt"), "vjp_y": ("gy",), "jac": ("J", "ft")}

#: How each word is said. Where both sides of a choice can be computed, there is no branch: loops stay vectorisable.
_WORDS = {
    "add": "({} + {})", "sub": "({} - {})", "mul": "({} * {})", "div": "({} / {})", "neg": "(-{})",
    "floordiv": "({} // {})", "mod": "({} % {})", "remainder": "({} % {})",
    "maximum": "maximum({}, {})", "minimum": "minimum({}, {})", "sign": "sign({})", "abs": "abs({})",
    "exp": "exp({})", "expm1": "math.expm1({})", "tanh": "tanh({})", "sigmoid": "sigmoid({})",
    "round": "round({})", "where": "select({}, {}, {})", "float": "real({})", "int": "int({})", "bool": "bool({})",
    "lt": "({} < {})", "le": "({} <= {})", "gt": "({} > {})", "ge": "({} >= {})", "eq": "({} == {})",
    "ne": "({} != {})", "and": "({} & {})", "or": "({} | {})", "not": "(not {})",
}  # fmt: skip
_INDENT = "    "


def emit(program: Program) -> str:
    """The source of a program; its name is the program's."""
    given = [f"{a}: {'Real' if a == 't' else 'Ints' if a == 'i' else 'Reals'}" for a in _GIVEN[program.name]]
    given += [f"{a}: Reals" for a in _WRITTEN[program.name]]
    lines = [f"def {program.name}({', '.join(given)}) -> None:"]
    writer = _Writer()
    for statement in program.statements:
        getattr(writer, f"_{type(statement).__name__}")(statement)
    return "\n".join(lines + (writer.lines or [f"{_INDENT}pass"])) + "\n"


class _Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0

    def _line(self, depth: int, text: str) -> None:
        self.lines.append(_INDENT * (depth + 1) + text)

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def _loops(self, depth: int, over: Sequence[tuple[Index, int]]) -> int:
        """Open a loop for every index; how deep that leads."""
        for index, n in over:
            self._line(depth, f"for {index.name} in range({n}):")
            depth += 1
        return depth

    def _Loop(self, s: Loop) -> None:
        depth = self._loops(0, s.over)
        self._line(depth, f"{place(s.into, s.at)} {'+=' if s.accumulate else '='} {text(s.value)}")

    def _Scan(self, s: Scan) -> None:
        depth = self._loops(0, s.over[:-1])
        total = self._name("total")
        self._line(depth, f"{total} = real(0.0)")
        depth = self._loops(depth, s.over[-1:])
        self._line(depth, f"{total} += {text(s.value)}")
        self._line(depth, f"{place(s.into, s.at)} = {total}")

    def _Reduction(self, s: Reduction) -> None:
        depth = self._loops(0, s.over)
        total, value, best = self._name("total"), self._name("value"), self._name("best")
        start = {"sum": "0.0", "prod": "1.0", "max": "-math.inf", "min": "math.inf"}
        start |= {"argmax": "-math.inf", "argmin": "math.inf"}
        self._line(depth, f"{total} = real({start[s.how]})")
        if s.how.startswith("arg"):
            self._line(depth, f"{best} = 0")
        inner = self._loops(depth, s.across)
        if s.guard is not None:
            self._line(inner, f"if {text(s.guard)}:")
            inner += 1
        if s.how in ("sum", "prod"):
            self._line(inner, f"{total} {'+=' if s.how == 'sum' else '*='} {text(s.value)}")
        elif s.how in ("max", "min"):
            self._line(inner, f"{total} = {s.how}imum({text(s.value)}, {total})")
        else:
            op = ">" if s.how == "argmax" else "<"
            self._line(inner, f"{value} = real({text(s.value)})")
            self._line(inner, f"if ({value} {op} {total}) | (({value} != {value}) & ({total} == {total})):")
            self._line(inner + 1, f"{total} = {value}")
            self._line(inner + 1, f"{best} = {s.across[0][0].name}")
        self._line(depth, f"{place(s.into, s.at)} = {best if s.how.startswith('arg') else total}")

    def _Product(self, s: Product) -> None:
        """The innermost loop runs along memory: along the columns of the right matrix, or along the inner dimension."""
        b, r, k, j = (self._name(x) for x in "brkj")
        depth = 0
        if s.batch > 1:
            self._line(depth, f"for {b} in range({s.batch}):")
            depth += 1
        self._line(depth, f"for {r} in range({s.rows}):")
        depth += 1
        batch = b if s.batch > 1 else None

        def into(column: str) -> str:
            row = f"{r} * {s.columns}" if batch is None else f"({b} * {s.rows} + {r}) * {s.columns}"
            return buffer_at(s.into, f"{row} + {column}")

        along_columns = s.right.column == 1 and s.columns >= 4 and s.inner > 1
        if not along_columns:
            total = self._name("total")
            self._line(depth, f"for {j} in range({s.columns}):")
            self._line(depth + 1, f"{total} = real(0.0)")
            self._line(depth + 1, f"for {k} in range({s.inner}):")
            self._line(depth + 2, f"{total} += {entry(s.left, batch, r, k)} * {entry(s.right, batch, k, j)}")
            self._line(depth + 1, f"{into(j)} = {total}")
            return
        four = s.inner // 4 * 4
        self._line(depth, f"for {j} in range({s.columns}):")
        self._line(depth + 1, f"{into(j)} = 0.0")
        if four:
            self._line(depth, f"for {k} in range(0, {four}, 4):")
            names = [self._name("a") for _ in range(4)]
            for d, name in enumerate(names):
                self._line(depth + 1, f"{name} = {entry(s.left, batch, r, f'({k} + {d})')}")
            self._line(depth + 1, f"for {j} in range({s.columns}):")
            terms = (f"{a} * {entry(s.right, batch, f'({k} + {d})', j)}" for d, a in enumerate(names))
            self._line(depth + 2, f"{into(j)} += {' + '.join(terms)}")
        if four < s.inner:
            a = self._name("a")
            self._line(depth, f"for {k} in range({four}, {s.inner}):")
            self._line(depth + 1, f"{a} = {entry(s.left, batch, r, k)}")
            self._line(depth + 1, f"for {j} in range({s.columns}):")
            self._line(depth + 2, f"{into(j)} += {a} * {entry(s.right, batch, k, j)}")


def buffer_at(buffer: Buffer, index: str) -> str:
    if buffer.name == "t":
        return "t"
    return f"{buffer.name}[{buffer.offset} + {index}]" if buffer.offset else f"{buffer.name}[{index}]"


def place(buffer: Buffer, index: Expr) -> str:
    return buffer_at(buffer, text(index))


def entry(matrix: Matrix, batch: str | None, row: str, column: str) -> str:
    """One entry of a strided matrix."""
    terms = [str(matrix.offset)] if matrix.offset else []
    for index, stride in ((batch, matrix.batch), (row, matrix.row), (column, matrix.column)):
        if index is not None and stride:
            terms.append(index if stride == 1 else f"{index} * {stride}")
    return buffer_at(matrix.buffer, " + ".join(terms) or "0")


def text(e: Expr) -> str:
    """An expression of the language."""
    if isinstance(e, Number):
        if isinstance(e.value, float) and not math.isfinite(e.value):
            return "math.nan" if math.isnan(e.value) else "math.inf" if e.value > 0 else "(-math.inf)"
        return repr(e.value) if e.value >= 0 and not str(e.value).startswith("-") else f"({e.value!r})"
    if isinstance(e, Index):
        return e.name
    if isinstance(e, Load):
        return place(e.buffer, e.at)
    assert isinstance(e, Call)
    if e.word == "pow":
        return _power(*e.args)
    said = [text(a) for a in e.args]
    if e.word in _WORDS:
        return _WORDS[e.word].format(*said)
    return f"math.{e.word}({', '.join(said)})"


def _power(base: Expr, exponent: Expr) -> str:
    """Small whole powers are products; the others are the C library's."""
    said = text(base)
    if isinstance(exponent, Number):
        x = float(exponent.value)
        if x == int(x) and 1 <= x <= 8:
            return f"({said} ** {int(x)})"
        if x == int(x) and -8 <= x <= -1:
            return f"(1.0 / ({said} ** {int(-x)}))"
        if x == 0.5:
            return f"math.sqrt({said})"
    return f"math.pow({said}, {text(exponent)})"
