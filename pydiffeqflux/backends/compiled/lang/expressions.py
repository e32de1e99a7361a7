"""Expressions of the language."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from . import words
from .values import BOOL, DOUBLE, INT, SINGLE, VOID, Pointer, Value, common, convert, is_float, literal, llvm_type

if TYPE_CHECKING:
    from .compiler import Unit

_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_FLOAT = {ast.Add: "fadd", ast.Sub: "fsub", ast.Mult: "fmul", ast.Div: "fdiv"}
_INT = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.BitAnd: "and_", ast.BitOr: "or_", ast.BitXor: "xor",
    ast.LShift: "shl", ast.RShift: "ashr",
}  # fmt: skip
#: What LLVM has an instruction or a lowering of its own for; everything else comes from the C library.
_INTRINSICS = {
    math.sqrt: "llvm.sqrt", math.fabs: "llvm.fabs", math.floor: "llvm.floor", math.ceil: "llvm.ceil",
    math.trunc: "llvm.trunc", math.copysign: "llvm.copysign", round: "llvm.rint",
}  # fmt: skip
_LIBRARY = {
    math.exp: "exp", math.expm1: "expm1", math.log: "log", math.log1p: "log1p", math.log2: "log2",
    math.log10: "log10", math.sin: "sin", math.cos: "cos", math.tan: "tan", math.asin: "asin", math.acos: "acos",
    math.atan: "atan", math.atan2: "atan2", math.sinh: "sinh", math.cosh: "cosh", math.tanh: "tanh",
    math.asinh: "asinh", math.acosh: "acosh", math.atanh: "atanh", math.erf: "erf", math.erfc: "erfc",
    math.fmod: "fmod", math.pow: "pow",
}  # fmt: skip
#: What the matrix product is called, by whether it is in single precision.
GEMM = {True: "pydiffeqflux_sgemm", False: "pydiffeqflux_dgemm"}


class Expressions:
    """Translates the expressions of one function."""

    def __init__(self, unit: Unit, b: ir.IRBuilder, slots: dict[str, tuple[Any, Any]], names: dict[str, Any]):
        self.unit, self.b, self.slots, self.names = unit, b, slots, names

    def __call__(self, e: ast.expr) -> Value:
        return getattr(self, f"_{type(e).__name__}")(e)

    def truth(self, e: ast.expr) -> Any:
        return convert(self.b, self(e), BOOL)

    def known(self, e: ast.expr) -> bool | None:
        """The value of a condition that the dtype decides; None for any other."""
        if isinstance(e, ast.Call) and self._global(e.func) is words.is_single:
            return self.unit.real == SINGLE
        return None

    def constant(self, e: ast.expr) -> int:
        return int(eval(compile(ast.Expression(e), "<constant>", "eval"), dict(self.names)))

    def _global(self, e: ast.expr) -> Any:
        """What a name that is no variable stands for."""
        if isinstance(e, ast.Attribute):
            return getattr(self._global(e.value), e.attr)
        assert isinstance(e, ast.Name)
        if e.id in self.names:
            return self.names[e.id]
        return getattr(__import__("builtins"), e.id)

    # -- leaves -----------------------------------------------------------------------------------

    def _Constant(self, e: ast.Constant) -> Value:
        return literal(e.value)

    def _Name(self, e: ast.Name) -> Value:
        if e.id in self.slots:
            slot, kind = self.slots[e.id]
            return Value(self.b.load(slot, typ=llvm_type(kind)), kind)
        return literal(self._global(e))

    def _Attribute(self, e: ast.Attribute) -> Value:
        return literal(self._global(e))

    def place(self, e: ast.Subscript) -> tuple[Any, Any]:
        """Where an element lies, and its type."""
        array = self(e.value)
        index = self(e.slice)
        return self._at(array, index.llvm), array.type.element

    def _at(self, array: Value, index: Any) -> Any:
        return self.b.gep(array.llvm, [index], inbounds=True, source_etype=array.type.element)

    def _Subscript(self, e: ast.Subscript) -> Value:
        if isinstance(e.slice, ast.Slice):
            array = self(e.value)
            assert e.slice.lower is not None and e.slice.upper is None
            return Value(self._at(array, self(e.slice.lower).llvm), array.type)
        place, element = self.place(e)
        return Value(self.b.load(place, typ=element), element)

    # -- operators --------------------------------------------------------------------------------

    def _UnaryOp(self, e: ast.UnaryOp) -> Value:
        if isinstance(e.op, ast.Not):
            return Value(self.b.not_(self.truth(e.operand)), BOOL)
        v = self(e.operand)
        if isinstance(e.op, ast.UAdd):
            return v
        if v.weak:
            return literal(-v.llvm.constant)
        return Value(self.b.fneg(v.llvm) if is_float(v.type) else self.b.neg(v.llvm), v.type)

    def _BinOp(self, e: ast.BinOp) -> Value:
        return self.operate(e.op, self(e.left), self(e.right))

    def operate(self, op: ast.operator, x: Value, y: Value, *, summed: bool = False) -> Value:
        """``x op y``; ``summed`` where it adds to a running sum."""
        kind = type(op)
        if kind is ast.Pow:
            return self._power(x, y)
        meet = common(x, y)
        if kind is ast.Div and meet == INT:
            meet = DOUBLE
        a, b = convert(self.b, x, meet), convert(self.b, y, meet)
        if meet != INT:
            if kind is ast.Mod:
                return self._remainder(a, b, meet)
            flags = self.unit.sum_flags if summed else self.unit.flags
            return Value(getattr(self.b, _FLOAT[kind])(a, b, flags=flags), meet)
        if kind in (ast.FloorDiv, ast.Mod):
            return self._divide(a, b, kind)
        return Value(getattr(self.b, _INT[kind])(a, b), INT)

    def _divide(self, a: Any, b: Any, kind: type) -> Value:
        """Rounding down, as Python does; the divisor is positive."""
        zero = ir.Constant(INT, 0)
        rest = self.b.srem(a, b)
        below = self.b.icmp_signed("<", rest, zero)
        if kind is ast.Mod:
            return Value(self.b.select(below, self.b.add(rest, b), rest), INT)
        return Value(self.b.sub(self.b.sdiv(a, b), self.b.zext(below, INT)), INT)

    def _remainder(self, a: Any, b: Any, kind: Any) -> Value:
        """Floating, with the sign of the divisor."""
        rest = self.b.frem(a, b)
        zero = ir.Constant(kind, 0.0)
        other = self.b.fcmp_ordered("<", self.b.fmul(rest, b), zero)
        return Value(self.b.select(other, self.b.fadd(rest, b), rest), kind)

    def _power(self, x: Value, y: Value) -> Value:
        if y.type == INT and isinstance(y.llvm, ir.Constant) and 0 < y.llvm.constant <= 8:
            base = Value(convert(self.b, x, DOUBLE), DOUBLE) if x.weak else x
            out = base
            for _ in range(y.llvm.constant - 1):
                out = self.operate(ast.Mult(), out, base)
            return out
        return self._library("pow", [x, y])

    def _Compare(self, e: ast.Compare) -> Value:
        x, y, op = self(e.left), self(e.comparators[0]), _COMPARE[type(e.ops[0])]
        meet = common(x, y)
        a, b = convert(self.b, x, meet), convert(self.b, y, meet)
        if meet == INT:
            return Value(self.b.icmp_signed(op, a, b), BOOL)
        compare = self.b.fcmp_unordered if op == "!=" else self.b.fcmp_ordered
        return Value(compare(op, a, b), BOOL)

    def _branches(self, condition: Any, yes: Callable[[], Value], no: Callable[[], Value]) -> Value:
        """One of two values, of which only the one is computed."""
        function = self.b.function
        blocks = [function.append_basic_block(n) for n in ("yes", "no")]
        join = function.append_basic_block("join")
        self.b.cbranch(condition, *blocks)
        ends, values = [], []
        for block, compute in zip(blocks, (yes, no), strict=True):
            self.b.position_at_end(block)
            values.append(compute())
            ends.append(self.b.block)
        kind = values[0].type if values[0].type == values[1].type else common(*values)
        incoming = []
        for end, value in zip(ends, values, strict=True):
            self.b.position_at_end(end)
            incoming.append((convert(self.b, value, kind), end))
            self.b.branch(join)
        self.b.position_at_end(join)
        phi = self.b.phi(kind)
        for llvm, end in incoming:
            phi.add_incoming(llvm, end)
        return Value(phi, kind)

    def _IfExp(self, e: ast.IfExp) -> Value:
        known = self.known(e.test)
        if known is not None:
            return self(e.body if known else e.orelse)
        return self._branches(self.truth(e.test), lambda: self(e.body), lambda: self(e.orelse))

    def _BoolOp(self, e: ast.BoolOp) -> Value:
        value = Value(self.truth(e.values[0]), BOOL)
        for later in e.values[1:]:
            rest = lambda later=later: Value(self.truth(later), BOOL)  # noqa: E731
            if isinstance(e.op, ast.And):
                value = self._branches(value.llvm, rest, lambda: literal(False))
            else:
                value = self._branches(value.llvm, lambda: literal(True), rest)
        return value

    # -- calls ------------------------------------------------------------------------------------

    def _Call(self, e: ast.Call) -> Value:
        target = self._global(e.func)
        args = [self(a) for a in e.args]
        if target in _INTRINSICS:
            return self._intrinsic(_INTRINSICS[target], args)
        if target in _LIBRARY:
            return self._library(_LIBRARY[target], args)
        special = getattr(self, f"_do_{getattr(target, '__name__', '')}", None)
        if special is not None:
            return special(*args)
        if not inspect.isfunction(target):
            raise TypeError(f"{ast.unparse(e)} calls what the language does not know")
        llvm, returns, takes = self.unit.function(target)
        pairs = zip(args, takes, strict=True)
        given = [a.llvm if isinstance(k, Pointer) else convert(self.b, a, k) for a, k in pairs]
        return Value(self.b.call(llvm, given), returns)

    def _floating(self, args: list[Value]) -> tuple[list[Any], Any]:
        kind = DOUBLE
        strong = [a.type for a in args if is_float(a.type) and not a.weak]
        if strong and DOUBLE not in strong:
            kind = SINGLE
        return [convert(self.b, a, kind) for a in args], kind

    def _intrinsic(self, name: str, args: list[Value]) -> Value:
        given, kind = self._floating(args)
        suffix = "f32" if kind == SINGLE else "f64"
        return Value(self.b.call(self._declared(f"{name}.{suffix}", kind, len(given)), given), kind)

    def _library(self, name: str, args: list[Value]) -> Value:
        given, kind = self._floating(args)
        return Value(self.b.call(self._declared(name + ("f" if kind == SINGLE else ""), kind, len(given)), given), kind)

    def _declared(self, name: str, kind: Any, count: int) -> Any:
        found = self.unit.module.globals.get(name)
        if found is not None:
            return found
        declared = ir.Function(self.unit.module, ir.FunctionType(kind, [kind] * count), name=name)
        for attribute in () if name.startswith("llvm.") else ("nounwind", "readnone"):
            declared.attributes.add(attribute)
        return declared

    def _do_min(self, *args: Value) -> Value:
        return self._least("<", args)

    def _do_max(self, *args: Value) -> Value:
        return self._least(">", args)

    def _least(self, op: str, args: tuple[Value, ...]) -> Value:
        """As Python's: the first unless a later one compares better (which NaN never does)."""
        best = args[0]
        for other in args[1:]:
            meet = common(best, other)
            a, b = convert(self.b, best, meet), convert(self.b, other, meet)
            better = self.b.icmp_signed(op, b, a) if meet == INT else self.b.fcmp_ordered(op, b, a)
            best = Value(self.b.select(better, b, a), meet)
        return best

    def _do_abs(self, x: Value) -> Value:
        if is_float(x.type):
            return self._intrinsic("llvm.fabs", [x])
        negative = self.b.icmp_signed("<", x.llvm, ir.Constant(INT, 0))
        return Value(self.b.select(negative, self.b.neg(x.llvm), x.llvm), INT)

    def _do_float(self, x: Value) -> Value:
        return Value(convert(self.b, x, DOUBLE), DOUBLE)

    def _do_int(self, x: Value) -> Value:
        return Value(convert(self.b, x, INT), INT)

    def _do_bool(self, x: Value) -> Value:
        return Value(convert(self.b, x, BOOL), BOOL)

    def _do_real(self, x: Value) -> Value:
        return Value(convert(self.b, x, self.unit.real), self.unit.real)

    def _do_isnan(self, x: Value) -> Value:
        return Value(self.b.fcmp_unordered("!=", x.llvm, x.llvm), BOOL)

    def _do_isinf(self, x: Value) -> Value:
        size = self._intrinsic("llvm.fabs", [x])
        return Value(self.b.fcmp_ordered("==", size.llvm, ir.Constant(size.type, math.inf)), BOOL)

    def _do_isfinite(self, x: Value) -> Value:
        size = self._intrinsic("llvm.fabs", [x])
        return Value(self.b.fcmp_ordered("<", size.llvm, ir.Constant(size.type, math.inf)), BOOL)

    def _do_select(self, condition: Value, x: Value, y: Value) -> Value:
        meet = x.type if x.type == y.type else common(x, y)
        chosen = self.b.select(convert(self.b, condition, BOOL), convert(self.b, x, meet), convert(self.b, y, meet))
        return Value(chosen, meet)

    def _do_bits(self, x: Value) -> Value:
        whole = self.b.bitcast(x.llvm, ir.IntType(32 if x.type == SINGLE else 64))
        return Value(self.b.sext(whole, INT) if x.type == SINGLE else whole, INT)

    def _do_from_bits(self, x: Value) -> Value:
        narrow = self.b.trunc(x.llvm, ir.IntType(32)) if self.unit.real == SINGLE else x.llvm
        return Value(self.b.bitcast(narrow, self.unit.real), self.unit.real)

    def _do_wide_from_bits(self, x: Value) -> Value:
        return Value(self.b.bitcast(x.llvm, DOUBLE), DOUBLE)

    def _do_reals_at(self, address: Value) -> Value:
        return self._array_at(address, self.unit.real)

    def _do_wide_at(self, address: Value) -> Value:
        return self._array_at(address, DOUBLE)

    def _do_ints_at(self, address: Value) -> Value:
        return self._array_at(address, INT)

    def _do_gemm(self, turned_a: Value, turned_b: Value, *args: Value) -> Value:
        real, byte, whole = self.unit.real, ir.IntType(8), ir.IntType(32)
        m, n, k, a, lda, b, ldb, c, ldc = args
        letters = [self._constant_at(byte, ord("T" if x.llvm.constant else "N")) for x in (turned_a, turned_b)]
        m_, n_, k_, lda_, ldb_, ldc_ = (self._constant_at(whole, x.llvm.constant) for x in (m, n, k, lda, ldb, ldc))
        one, zero = self._constant_at(real, 1.0), self._constant_at(real, 0.0)
        given = [*letters, m_, n_, k_, one, a.llvm, lda_, b.llvm, ldb_, zero, c.llvm, ldc_]
        name = GEMM[real == SINGLE]
        target = self.unit.module.globals.get(name)
        if target is None:
            target = ir.Function(self.unit.module, ir.FunctionType(VOID, [x.type for x in given]), name=name)
        self.b.call(target, given)
        return Value(None, VOID)

    def _constant_at(self, kind: Any, value: Any) -> Any:
        """Where a number lies in memory."""
        name = f"constant.{kind}.{value}"
        found = self.unit.module.globals.get(name)
        if found is None:
            found = ir.GlobalVariable(self.unit.module, kind, name)
            found.global_constant, found.linkage, found.initializer = True, "internal", ir.Constant(kind, value)
        return found

    def _do_peek(self, x: Value, k: Value) -> Value:
        place = self.b.gep(x.llvm, [k.llvm], source_etype=INT)
        return Value(self.b.load_atomic(place, "acquire", 8, typ=INT), INT)

    def _do_poke(self, x: Value, k: Value, value: Value) -> Value:
        place = self.b.gep(x.llvm, [k.llvm], source_etype=INT)
        self.b.store_atomic(value.llvm, place, "release", 8)
        return Value(None, VOID)

    def _array_at(self, address: Value, element: Any) -> Value:
        return Value(self.b.inttoptr(address.llvm, ir.PointerType(element)), Pointer(element))

    def _do_kernel(self, address: Value, *args: Value) -> Value:
        kind = ir.FunctionType(VOID, [llvm_type(a.type) for a in args])
        target = self.b.inttoptr(address.llvm, ir.PointerType(kind))
        self.b.call(target, [a.llvm for a in args])
        return Value(None, VOID)
