"""Reductions: sums, products, extrema over dimensions, and running sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import UntraceableError
from ..expr import Expr, call, linear, number
from ..program import Reduction, Scan
from ..table import Lowering, operator
from ..value import At, Value, constant, stored
from .pointwise import broadcast, pointwise, truth
from .views import permuted, reshaped


def reduced(low: Lowering, x: Value, how: str, dims: Sequence[int] | None, keepdim: bool) -> Value:
    """``x`` combined over ``dims`` (all of them where None or empty)."""
    rank = len(x.shape)
    gone = sorted({d % rank for d in dims} if dims else range(rank)) if rank else []
    if not gone:
        return x
    if how in ("max", "min") and any(x.shape[d] == 0 for d in gone):
        raise UntraceableError("an extremum of nothing")
    builder = low.builder
    names = builder.indices(x.shape)
    index: list[Expr] = [number(0) if n == 1 else k for k, n in names]
    shape = tuple(n for d, n in enumerate(x.shape) if d not in gone)
    out = stored(builder.buffer(shape), shape, x.kind)
    assert out.layout is not None
    kept = [d for d in range(rank) if d not in gone]
    at: Expr = number(0)
    for d, step in zip(kept, out.layout.strides, strict=True):
        at = call("add", at, call("mul", index[d], number(step)))
    builder.add(
        Reduction(
            tuple(names[d] for d in kept if x.shape[d] != 1),
            tuple(names[d] for d in gone if x.shape[d] != 1),
            how,
            out.layout.buffer,
            at,
            call("float", x.at(index)),
        )
    )
    return reshaped(low, out, [1 if d in gone else n for d, n in enumerate(x.shape)]) if keepdim else out


@operator("aten.sum.default", "aten.sum.dim_IntList", "prims.sum.default")
def _sum(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, **options: Any) -> Value:
    return _as_result(low, reduced(low, _number(low, x), "sum", _dims(dim), keepdim))


def _number(low: Lowering, x: Value) -> Value:
    return x if x.kind == low.kind else Value(x.shape, low.kind, lambda index: call(low.kind, x.at(index)))


def _as_result(low: Lowering, x: Value) -> Value:
    assert low.shape is not None
    return reshaped(low, x, low.shape)


def _dims(dim: Any) -> list[int] | None:
    return None if dim is None else [dim] if isinstance(dim, int) else list(dim)


@operator("aten.mean.default", "aten.mean.dim")
def _mean(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, **options: Any) -> Value:
    total = reduced(low, x, "sum", _dims(dim), keepdim)
    return _divided(total, x.size // max(1, total.size))


@operator("aten.var.correction")
def _var(low: Lowering, x: Value, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Value:
    return _moments(low, x, dim, correction, keepdim)[0]


@operator("aten.var_mean.correction")
def _var_mean(
    low: Lowering, x: Value, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Value, Value]:
    return _moments(low, x, dim, correction, keepdim)


@operator("aten.std.correction")
def _std(low: Lowering, x: Value, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Value:
    return pointwise(low, "sqrt", _moments(low, x, dim, correction, keepdim)[0])


def _moments(low: Lowering, x: Value, dim: Any, correction: float | None, keepdim: bool) -> tuple[Value, Value]:
    """Variance and mean. Twice through the data: the mean, then the squares about it, as torch does."""
    dims, kept = _dims(dim), low.builder.settle(x)
    total = reduced(low, kept, "sum", dims, True)
    count = x.size // max(1, total.size)
    mean = _divided(total, count)
    spread = broadcast(low.builder.store(mean), x.shape)

    def squared(index: At) -> Expr:
        off = call("sub", kept.at(index), spread.at(index))
        return call("mul", off, off)

    squares = reduced(low, Value(x.shape, "float", squared), "sum", dims, keepdim)
    variance = _divided(squares, max(0.0, count - (1 if correction is None else correction)))
    return variance, reshaped(low, low.builder.store(mean), squares.shape)


def _divided(x: Value, by: float) -> Value:
    return Value(x.shape, "float", lambda index: call("div", x.at(index), number(float(by))))


@operator("aten.prod.default", "aten.prod.dim_int")
def _prod(low: Lowering, x: Value, dim: int | None = None, keepdim: bool = False, **options: Any) -> Value:
    return _as_result(low, reduced(low, _number(low, x), "prod", _dims(dim), keepdim))


@operator("aten.amax.default", "aten.max.default")
def _amax(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return _as_result(low, reduced(low, x, "max", _dims(dim), keepdim))


@operator("aten.amin.default", "aten.min.default")
def _amin(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return _as_result(low, reduced(low, x, "min", _dims(dim), keepdim))


@operator("aten.any.default", "aten.any.dim", "aten.any.dims")
def _any(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return _as_result(low, truth(reduced(low, truth(x), "max", _dims(dim), keepdim)))


@operator("aten.all.default", "aten.all.dim", "aten.all.dims")
def _all(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return _as_result(low, truth(reduced(low, truth(x), "min", _dims(dim), keepdim)))


@operator("aten.argmax.default")
def _argmax(low: Lowering, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _position(low, x, "argmax", dim, keepdim)


@operator("aten.argmin.default")
def _argmin(low: Lowering, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _position(low, x, "argmin", dim, keepdim)


def _position(low: Lowering, x: Value, how: str, dim: int | None, keepdim: bool) -> Value:
    if dim is None:
        x, dim = reshaped(low, x, (x.size,)), 0
    if x.shape[dim] > 1 << 24:
        raise UntraceableError(f"a position among {x.shape[dim]} elements")
    if x.shape[dim] == 1:
        return Value(low.shape or (), "int", lambda index: number(0))
    place = reduced(low, x, how, [dim], keepdim)
    assert place.layout is not None
    found = stored(place.layout.buffer, place.shape, "int", place.layout.strides, place.layout.offset)
    return _as_result(low, found)


@operator("aten.max.dim")
def _max_and_position(low: Lowering, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    return _extremum_and_position(low, x, "max", dim, keepdim)


@operator("aten.min.dim")
def _min_and_position(low: Lowering, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    return _extremum_and_position(low, x, "min", dim, keepdim)


def _extremum_and_position(low: Lowering, x: Value, how: str, dim: int, keepdim: bool) -> tuple[Value, Value]:
    kept = low.builder.settle(x)
    extremum = reduced(low, kept, how, [dim], keepdim)
    if not x.shape or x.shape[dim] == 1:
        return extremum, constant(0, extremum.shape)
    place = reduced(low, kept, f"arg{how}", [dim], keepdim)
    assert place.layout is not None
    return extremum, stored(place.layout.buffer, place.shape, "int", place.layout.strides, place.layout.offset)


@operator("aten.cumsum.default")
def _cumsum(low: Lowering, x: Value, dim: int, **options: Any) -> Value:
    return _running(low, x, "sum", dim)


@operator("aten.cumprod.default")
def _cumprod(low: Lowering, x: Value, dim: int, **options: Any) -> Value:
    return _running(low, x, "prod", dim)


def _running(low: Lowering, x: Value, how: str, dim: int) -> Value:
    if not x.shape:
        return x
    along = dim % len(x.shape)
    order = [d for d in range(len(x.shape)) if d != along] + [along]
    seen = _number(low, permuted(x, order))
    builder = low.builder
    out = stored(builder.buffer(seen.shape), seen.shape, low.kind)
    assert out.layout is not None
    names = builder.indices(seen.shape)
    index = [k for k, _ in names]
    at = linear(0, out.layout.strides, index)
    builder.add(Scan(names, how, out.layout.buffer, at, call("float", seen.at(index))))
    return permuted(out, [order.index(d) for d in range(len(order))])
