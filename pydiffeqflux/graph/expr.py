"""Scalar expressions: what one element of a tensor is, in terms of elements of other tensors.

The language is small on purpose: an emitter has to be able to say every word of it. Index arithmetic is written with
the same nodes, of kind ``"int"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .buffer import Buffer

#: What an expression evaluates to: a number of the program's dtype, an integer, or a truth value.
Kind = str  # "float" | "int" | "bool"


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float | int | bool
    kind: Kind


@dataclass(frozen=True)
class Index:
    """A loop variable."""

    name: str
    kind: Kind = "int"


@dataclass(frozen=True)
class Load:
    """One element of a buffer."""

    buffer: Buffer
    at: Expr
    kind: Kind


@dataclass(frozen=True)
class Call:
    """A word of the language (see :data:`WORDS`) applied to arguments."""

    word: str
    args: tuple[Expr, ...]
    kind: Kind


Expr = Number | Index | Load | Call

#: Every word, with the number of its arguments and a Python meaning, by which constants are folded and which the
#: emitters' tests hold their own translations against.
WORDS: dict[str, tuple[int, Callable[..., object]]] = {
    "add": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
    "div": (2, lambda a, b: a / b if b else math.nan if a == 0 or a != a else math.copysign(math.inf, a)),
    "neg": (1, lambda a: -a),
    "floordiv": (2, lambda a, b: a // b),  # of integers, the divisor positive
    "mod": (2, lambda a, b: a % b),
    "pow": (2, math.pow),
    "fmod": (2, math.fmod),
    "remainder": (2, lambda a, b: a - b * math.floor(a / b)),  # has the sign of b
    "atan2": (2, math.atan2),
    "maximum": (2, lambda a, b: a if a != a or a > b else b),  # NaN wins
    "minimum": (2, lambda a, b: a if a != a or a < b else b),
    "abs": (1, abs),
    "sign": (1, lambda a: a if a != a else (a > 0) - (a < 0)),
    "sqrt": (1, lambda a: math.sqrt(a) if a >= 0 else math.nan),
    "exp": (1, math.exp),
    "expm1": (1, math.expm1),
    "log": (1, math.log),
    "log1p": (1, math.log1p),
    "log2": (1, math.log2),
    "log10": (1, math.log10),
    "sin": (1, math.sin),
    "cos": (1, math.cos),
    "tan": (1, math.tan),
    "asin": (1, math.asin),
    "acos": (1, math.acos),
    "atan": (1, math.atan),
    "sinh": (1, math.sinh),
    "cosh": (1, math.cosh),
    "tanh": (1, math.tanh),
    "asinh": (1, math.asinh),
    "acosh": (1, math.acosh),
    "atanh": (1, math.atanh),
    "erf": (1, math.erf),
    "erfc": (1, math.erfc),
    "sigmoid": (1, lambda a: 1 / (1 + math.exp(-a))),
    "floor": (1, math.floor),
    "ceil": (1, math.ceil),
    "trunc": (1, math.trunc),
    "round": (1, round),  # halves to even
    "lt": (2, lambda a, b: a < b),
    "le": (2, lambda a, b: a <= b),
    "gt": (2, lambda a, b: a > b),
    "ge": (2, lambda a, b: a >= b),
    "eq": (2, lambda a, b: a == b),
    "ne": (2, lambda a, b: a != b),
    "and": (2, lambda a, b: a and b),
    "or": (2, lambda a, b: a or b),
    "not": (1, lambda a: not a),
    "where": (3, lambda c, a, b: a if c else b),
    "float": (1, float),
    "int": (1, int),
    "bool": (1, bool),
}

#: Words that cost about as much as a memory access, or less; everything else is worth keeping once computed.
CHEAP = frozenset(
    "add sub mul neg abs sign maximum minimum lt le gt ge eq ne and or not where float int bool floor ceil".split()
)
_TRUTH = frozenset(("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "bool"))


def number(value: float | int | bool, kind: Kind | None = None) -> Number:
    """A constant, its kind told by its Python type unless given."""
    if kind is None:
        kind = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
    return Number({"float": float, "int": int, "bool": bool}[kind](value), kind)


def call(word: str, *args: Expr, kind: Kind | None = None) -> Expr:
    """``word`` applied to ``args``, simplified where integers make that exact."""
    if len(args) != WORDS[word][0]:
        raise ValueError(f"{word} takes {WORDS[word][0]} arguments, got {len(args)}")
    if kind is None:
        kind = "bool" if word in _TRUTH else word if word in ("float", "int") else _wider(args)
    if kind == "int" and all(isinstance(a, Number) for a in args):
        return number(WORDS[word][1](*(a.value for a in args)), "int")  # type: ignore[union-attr, arg-type]
    return _simplified(word, args, kind) or Call(word, args, kind)


def _wider(args: Sequence[Expr]) -> Kind:
    kinds = {a.kind for a in args}
    return "float" if "float" in kinds else "int" if "int" in kinds else "bool"


def _simplified(word: str, args: tuple[Expr, ...], kind: Kind) -> Expr | None:
    """Neutral elements of index arithmetic, conversions to what a thing already is, choices already made."""
    if word in ("float", "int", "bool") and args[0].kind == word:  # already is one
        return args[0]
    if word == "float" and isinstance(args[0], Number):
        return number(float(args[0].value))
    if word == "where" and isinstance(args[0], Number):
        return args[1] if args[0].value else args[2]
    if kind != "int" or len(args) != 2:
        return None
    a, b = args
    zero, one = Number(0, "int"), Number(1, "int")
    if word == "add" and zero in args:
        return b if a == zero else a
    if word == "mul" and (zero in args or one in args):
        return zero if zero in args else (b if a == one else a)
    if (word == "sub" and b == zero) or (word == "floordiv" and b == one):
        return a
    return zero if word == "mod" and b == one else None


def linear(offset: int, strides: Sequence[int], at: Sequence[Expr]) -> Expr:
    """``offset + sum(stride * index)``."""
    total: Expr = number(offset)
    for stride, index in zip(strides, at, strict=True):
        total = call("add", total, call("mul", index, number(stride)))
    return total


def parts(expr: Expr) -> Iterator[Expr]:
    """``expr`` and everything inside it, index arithmetic included."""
    yield expr
    inside = expr.args if isinstance(expr, Call) else (expr.at,) if isinstance(expr, Load) else ()
    for part in inside:
        yield from parts(part)


def size(expr: Expr) -> int:
    """How many words an expression has, index arithmetic left out."""
    return sum(1 for p in parts(expr) if isinstance(p, Call) and p.kind != "int")


def expensive(expr: Expr) -> bool:
    """Whether computing it again costs more than loading it, were it kept."""
    calls = [p for p in parts(expr) if isinstance(p, Call) and p.kind != "int"]
    return len(calls) > 6 or any(c.word not in CHEAP for c in calls)
