"""Element-wise operators: formulas that are written into whoever uses them."""

from __future__ import annotations

import math
from typing import Any

from ...errors import UntraceableError
from ..expr import Expr, call, number
from ..table import Lowering, kind_of, operator
from ..value import At, Value, viewed

Operand = Value | float | int | bool


def broadcast(value: Value, shape: tuple[int, ...]) -> Value:
    """``value`` with the shape ``shape``."""
    if value.shape == shape:
        return value
    missing = len(shape) - len(value.shape)

    def lookup(index: At) -> At:
        return [number(0) if n == 1 else k for k, n in zip(list(index)[missing:], value.shape, strict=True)]

    return viewed(value, shape, lookup)


def pointwise(low: Lowering, word: str, *operands: Operand, as_float: bool = False) -> Value:
    """``word`` of every element; integer operands first become numbers where the result is one."""
    assert low.shape is not None
    values = [low.value(x) for x in operands]
    shape = low.shape
    # An element that is looked at more than once is not computed more than once.
    spread = [low.builder.settle(v) if v.size < _size(shape) else v for v in values]
    seen = [broadcast(v, shape) for v in spread]
    convert = as_float or low.kind == "float"

    def at(index: At) -> Expr:
        parts = [v.at(index) for v in seen]
        if convert:
            parts = [call("float", p) for p in parts]
        result = call(word, *parts)
        return result if result.kind == low.kind else call(low.kind, result)

    return Value(shape, low.kind, at)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


_UNARY = (
    "neg abs sign sqrt exp expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf"
    " erfc sigmoid floor ceil trunc round"
)
for _word in _UNARY.split():

    @operator(f"aten.{_word}.default", f"prims.{_word}.default")
    def _unary(low: Lowering, x: Value, word: str = _word) -> Value:
        return pointwise(low, word, x)


_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
for _word in _COMPARISONS:

    @operator(f"aten.{_word}.Tensor", f"aten.{_word}.Scalar", f"prims.{_word}.default")
    def _comparison(low: Lowering, x: Operand, y: Operand, word: str = _word) -> Value:
        kinds = {low.value(v).kind for v in (x, y)}
        return pointwise(low, word, x, y, as_float=len(kinds) > 1)


_BINARY = {
    "aten.mul.Tensor": "mul",
    "aten.mul.Scalar": "mul",
    "prims.mul.default": "mul",
    "aten.maximum.default": "maximum",
    "aten.minimum.default": "minimum",
    "prims.maximum.default": "maximum",
    "prims.minimum.default": "minimum",
    "aten.atan2.default": "atan2",
    "aten.fmod.Tensor": "fmod",
    "aten.fmod.Scalar": "fmod",
    "aten.remainder.Tensor": "remainder",
    "aten.remainder.Scalar": "remainder",
    "aten.logical_and.default": "and",
    "aten.logical_or.default": "or",
}
for _name, _word in _BINARY.items():

    @operator(_name)
    def _binary(low: Lowering, x: Operand, y: Operand, word: str = _word) -> Value:
        if word in ("and", "or"):
            x, y = truth(low.value(x)), truth(low.value(y))
        return pointwise(low, word, x, y)


def truth(value: Value) -> Value:
    """Whether each element is other than zero."""
    return Value(value.shape, "bool", lambda index: call("bool", value.at(index)))


@operator("aten.logical_not.default")
def _logical_not(low: Lowering, x: Value) -> Value:
    return pointwise(low, "not", truth(x))


for _name, _word in (("and", "and"), ("or", "or"), ("xor", "ne")):

    @operator(f"aten.bitwise_{_name}.Tensor", f"aten.bitwise_{_name}.Scalar", f"prims.bitwise_{_name}.default")
    def _bits(low: Lowering, x: Operand, y: Operand, word: str = _word) -> Value:
        if low.kind != "bool":
            raise UntraceableError("takes truth values only, and was given integers")
        return pointwise(low, word, x, y)


@operator("aten.logical_xor.default")
def _xor(low: Lowering, x: Value, y: Value) -> Value:
    return pointwise(low, "ne", truth(x), truth(y))


@operator("aten.bitwise_not.default", "prims.bitwise_not.default")
def _not(low: Lowering, x: Value) -> Value:
    if low.kind != "bool":
        raise UntraceableError("takes truth values only, and was given integers")
    return pointwise(low, "not", x)


@operator("aten.add.Tensor", "aten.add.Scalar", "prims.add.default")
def _add(low: Lowering, x: Operand, y: Operand, alpha: float | int = 1) -> Value:
    return pointwise(low, "add", x, _scaled(low, y, alpha))


@operator("aten.sub.Tensor", "aten.sub.Scalar", "prims.sub.default")
def _sub(low: Lowering, x: Operand, y: Operand, alpha: float | int = 1) -> Value:
    return pointwise(low, "sub", x, _scaled(low, y, alpha))


@operator("aten.rsub.Tensor", "aten.rsub.Scalar")
def _rsub(low: Lowering, x: Operand, y: Operand, alpha: float | int = 1) -> Value:
    return pointwise(low, "sub", y, _scaled(low, x, alpha))


def _scaled(low: Lowering, y: Operand, alpha: float | int) -> Operand:
    if alpha == 1:
        return y
    value = low.value(y)
    factor = number(float(alpha)) if low.kind == "float" else number(alpha)
    return Value(value.shape, low.kind, lambda index: call("mul", call(low.kind, value.at(index)), factor))


@operator("aten.div.Tensor", "aten.div.Scalar", "prims.div.default")
def _div(low: Lowering, x: Operand, y: Operand) -> Value:
    return pointwise(low, "div" if low.kind == "float" else "floordiv", x, y)


@operator("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _div_mode(low: Lowering, x: Operand, y: Operand, rounding_mode: str | None = None) -> Value:
    if low.kind != "float":
        raise UntraceableError("rounds a division of integers")
    quotient = pointwise(low, "div", x, y)
    return quotient if rounding_mode is None else pointwise(low, rounding_mode, quotient)


@operator("aten.floor_divide.default")
def _floor_divide(low: Lowering, x: Operand, y: Operand) -> Value:
    if low.kind != "float":
        return pointwise(low, "floordiv", x, y)
    return pointwise(low, "floor", pointwise(low, "div", x, y))


@operator("aten.reciprocal.default")
def _reciprocal(low: Lowering, x: Value) -> Value:
    return pointwise(low, "div", 1.0, x)


@operator("aten.rsqrt.default")
def _rsqrt(low: Lowering, x: Value) -> Value:
    return pointwise(low, "div", 1.0, pointwise(low, "sqrt", x))


@operator("aten.isposinf.default")
def _is_infinity(low: Lowering, x: Value) -> Value:
    return pointwise(low, "eq", x, math.inf)


@operator("aten.isneginf.default")
def _is_minus_infinity(low: Lowering, x: Value) -> Value:
    return pointwise(low, "eq", x, -math.inf)


@operator("prims.hypot.default", "aten.hypot.default")
def _hypot(low: Lowering, x: Value, y: Value) -> Value:
    """Scaled by the larger of the two, so that no square overflows."""
    a, b = (low.builder.settle(pointwise(low, "abs", v)) for v in (x, y))
    large = low.builder.settle(pointwise(low, "maximum", a, b))
    ratio = pointwise(low, "div", pointwise(low, "minimum", a, b), large)
    root = pointwise(low, "sqrt", pointwise(low, "add", 1.0, pointwise(low, "mul", ratio, ratio)))
    even = pointwise(low, "eq", large, 0.0)
    return pointwise(low, "where", even, 0.0, pointwise(low, "mul", large, root))


@operator("aten.square.default")
def _square(low: Lowering, x: Value) -> Value:
    return power(low, x, 2)


@operator("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar", "prims.pow.default")
def power(low: Lowering, x: Operand, y: Operand) -> Value:
    """A power; small whole exponents become products, as torch computes them."""
    if not isinstance(y, Value) and isinstance(x, Value):
        if y in (2, 3):
            base = low.builder.settle(x)
            square = pointwise(low, "mul", base, base)
            return square if y == 2 else pointwise(low, "mul", square, base)
        if y == 1:
            return pointwise(low, "mul", x, 1.0 if low.kind == "float" else 1)
        if y == 0:
            return pointwise(low, "where", True, 1.0 if low.kind == "float" else 1, x)
        if y in (0.5, -0.5, -1, -2) and low.kind == "float":
            return _small_power(low, x, float(y))
    if low.kind != "float":
        raise UntraceableError("raises integers to a power")
    return pointwise(low, "pow", x, y)


def _small_power(low: Lowering, x: Value, y: float) -> Value:
    if y == 0.5:
        return pointwise(low, "sqrt", x)
    if y == -0.5:
        return pointwise(low, "div", 1.0, pointwise(low, "sqrt", x))
    base = low.builder.settle(x)
    return pointwise(low, "div", 1.0, base if y == -1 else pointwise(low, "mul", base, base))


@operator("aten.where.self", "prims.where.default")
def where(low: Lowering, condition: Operand, x: Operand, y: Operand) -> Value:
    """A choice, element by element; both sides are known, one is taken."""
    c, a, b = (low.value(v) for v in (condition, x, y))
    assert low.shape is not None
    shape, kind = low.shape, low.kind
    seen = [broadcast(low.builder.settle(v) if v.shape != shape else v, shape) for v in (c, a, b)]

    def at(index: At) -> Expr:
        return call(
            "where", *(call(k, v.at(index)) for k, v in zip(("bool", kind, kind), seen, strict=True)), kind=kind
        )

    return Value(shape, kind, at)


@operator("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(low: Lowering, x: Value, mask: Value, value: Operand) -> Value:
    return where(low, mask, value, x)


@operator("aten.clamp.default", "aten.clamp.Tensor")
def _clamp(low: Lowering, x: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    value = x
    if min is not None:
        value = pointwise(low, "maximum", value, min)
    return value if max is None else pointwise(low, "minimum", value, max)


@operator("aten.clamp_min.default", "aten.clamp_min.Tensor")
def _clamp_min(low: Lowering, x: Value, min: Operand) -> Value:
    return _clamp(low, x, min)


@operator("aten.clamp_max.default", "aten.clamp_max.Tensor")
def _clamp_max(low: Lowering, x: Value, max: Operand) -> Value:
    return _clamp(low, x, None, max)


@operator("aten.relu.default")
def _relu(low: Lowering, x: Value) -> Value:
    return pointwise(low, "maximum", x, 0.0 if low.kind == "float" else 0)


@operator("aten.isnan.default")
def _isnan(low: Lowering, x: Value) -> Value:
    return pointwise(low, "ne", x, x)


@operator("aten.isinf.default")
def _isinf(low: Lowering, x: Value) -> Value:
    absolute = Value(x.shape, x.kind, lambda index: call("abs", x.at(index)))
    return pointwise(low, "eq", absolute, float("inf"), as_float=True)


@operator("aten.isfinite.default")
def _isfinite(low: Lowering, x: Value) -> Value:
    absolute = Value(x.shape, x.kind, lambda index: call("abs", x.at(index)))
    return pointwise(low, "lt", absolute, float("inf"), as_float=True)


@operator("aten.signbit.default")
def _signbit(low: Lowering, x: Value) -> Value:
    return pointwise(low, "lt", x, 0, as_float=True)


@operator("aten.sgn.default")
def _sgn(low: Lowering, x: Value) -> Value:
    return pointwise(low, "sign", x)


@operator("aten.tanh_backward.default")
def _tanh_backward(low: Lowering, grad: Value, output: Value) -> Value:
    kept = low.builder.settle(output)
    square = pointwise(low, "mul", kept, kept)
    return pointwise(low, "mul", grad, pointwise(low, "sub", 1.0, square))


@operator("aten.sigmoid_backward.default")
def _sigmoid_backward(low: Lowering, grad: Value, output: Value) -> Value:
    kept = low.builder.settle(output)
    return pointwise(low, "mul", pointwise(low, "mul", grad, pointwise(low, "sub", 1.0, kept)), kept)


@operator("aten.threshold_backward.default")
def _threshold_backward(low: Lowering, grad: Value, x: Value, threshold: float) -> Value:
    above = Value(x.shape, "bool", lambda index: call("gt", x.at(index), number(float(threshold))))
    return where(low, above, grad, 0.0)


@operator("aten.softshrink_backward.default")
def _softshrink_backward(low: Lowering, grad: Value, x: Value, lambd: float) -> Value:
    size = Value(x.shape, "float", lambda index: call("abs", x.at(index)))
    inside = Value(x.shape, "bool", lambda index: call("le", size.at(index), number(float(lambd))))
    return where(low, inside, 0.0, grad)


@operator("aten._to_copy.default", "prims.convert_element_type.default", "aten.to.dtype")
def _to(low: Lowering, x: Value, *dtype: Any, **options: Any) -> Value:
    assert low.shape is not None and low.result is not None
    kind = kind_of(low.result)
    if x.kind == "float" and kind == "int":
        return Value(x.shape, kind, lambda index: call("int", call("trunc", x.at(index))))
    return Value(x.shape, kind, lambda index: call(kind, x.at(index))) if kind != x.kind else x
