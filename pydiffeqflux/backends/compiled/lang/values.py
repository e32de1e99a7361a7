"""Values of the language and their conversions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

INT, BOOL, DOUBLE, SINGLE, VOID = ir.IntType(64), ir.IntType(1), ir.DoubleType(), ir.FloatType(), ir.VoidType()


@dataclass(frozen=True)
class Pointer:
    """The type of a flat array."""

    element: Any


@dataclass(frozen=True)
class Value:
    """An LLVM value with its type here; a ``weak`` one is a literal, which takes the type of what it meets."""

    llvm: Any
    type: Any
    weak: bool = False


def literal(x: Any) -> Value:
    """The value of a Python number."""
    if isinstance(x, bool):
        return Value(ir.Constant(BOOL, int(x)), BOOL)
    if isinstance(x, int):
        return Value(ir.Constant(INT, x), INT)
    return Value(ir.Constant(DOUBLE, float(x)), DOUBLE, weak=True)


def llvm_type(kind: Any) -> Any:
    return ir.PointerType(kind.element) if isinstance(kind, Pointer) else kind


def is_float(kind: Any) -> bool:
    return kind in (DOUBLE, SINGLE)


def convert(b: ir.IRBuilder, v: Value, to: Any) -> Any:
    """``v`` as LLVM value of type ``to``."""
    if v.type == to:
        return v.llvm
    if v.weak:
        return ir.Constant(to, v.llvm.constant) if is_float(to) else ir.Constant(to, int(v.llvm.constant))
    if to == BOOL:
        zero = ir.Constant(v.type, 0)
        return b.icmp_signed("!=", v.llvm, zero) if v.type == INT else b.fcmp_unordered("!=", v.llvm, zero)
    if v.type == BOOL:
        whole = b.zext(v.llvm, INT)
        return whole if to == INT else b.sitofp(whole, to)
    if v.type == INT:
        return b.sitofp(v.llvm, to)
    if to == INT:
        return b.fptosi(v.llvm, INT)
    return b.fpext(v.llvm, to) if to == DOUBLE else b.fptrunc(v.llvm, to)


def common(x: Value, y: Value) -> Any:
    """The type in which two numbers meet."""
    kinds = [v.type for v in (x, y) if is_float(v.type) and not v.weak]
    if kinds:
        return DOUBLE if DOUBLE in kinds else SINGLE
    if is_float(x.type) or is_float(y.type):
        return DOUBLE
    return INT
