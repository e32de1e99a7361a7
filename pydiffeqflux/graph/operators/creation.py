"""Tensors out of nothing: constants and ramps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..expr import call, number
from ..table import Lowering, operator
from ..value import Value, constant


def _filled(low: Lowering, value: float | int | bool) -> Value:
    assert low.shape is not None
    return constant(value, low.shape, low.kind)


@operator("aten.full.default", "aten.full_like.default", "aten.new_full.default")
def _full(low: Lowering, first: Any, second: Any, *value: Any, **options: Any) -> Value:
    filler = value[0] if value else second
    if isinstance(filler, Value):
        inner = filler
        assert low.shape is not None
        return Value(low.shape, low.kind, lambda index: call(low.kind, inner.at([])))
    return _filled(low, filler)


@operator("aten.fill.Scalar", "aten.fill.Tensor")
def _fill(low: Lowering, x: Value, value: Any) -> Value:
    return _full(low, x, value)


@operator("aten.scalar_tensor.default", "prims.scalar_tensor.default")
def _scalar_tensor(low: Lowering, value: float | int | bool, **options: Any) -> Value:
    return _filled(low, value)


@operator("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default", "aten.zero.default")
@operator("aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default", "aten.empty_strided.default")
@operator("aten.new_empty_strided.default", "prims.empty_strided.default")
def _zeros(low: Lowering, *shape: Any, **options: Any) -> Value:
    return _filled(low, 0)


@operator("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default")
def _ones(low: Lowering, *shape: Any, **options: Any) -> Value:
    return _filled(low, 1)


@operator("aten.arange.start_step", "aten.arange.start", "aten.arange.default")
def _arange(low: Lowering, *ends: float | int, **options: Any) -> Value:
    start = ends[0] if len(ends) > 1 else 0
    step = ends[2] if len(ends) > 2 else 1
    return _ramp(low, start, step)


@operator("prims.iota.default")
def _iota(low: Lowering, length: int, *, start: int, step: int, **options: Any) -> Value:
    return _ramp(low, start, step)


def _ramp(low: Lowering, start: float | int, step: float | int) -> Value:
    assert low.shape is not None
    kind = low.kind
    first, by = number(start, kind), number(step, kind)
    return Value(
        low.shape,
        kind,
        lambda index: call("add", first, call("mul", call(kind, index[0]), by)),
    )


@operator("aten.eye.default", "aten.eye.m")
def _eye(low: Lowering, *size: int, **options: Any) -> Value:
    assert low.shape is not None
    return Value(low.shape, low.kind, lambda index: call(low.kind, call("eq", index[0], index[1])))


@operator("aten.triu.default")
def _triu(low: Lowering, x: Value, diagonal: int = 0) -> Value:
    return _triangle(x, "ge", diagonal)


@operator("aten.tril.default")
def _tril(low: Lowering, x: Value, diagonal: int = 0) -> Value:
    return _triangle(x, "le", diagonal)


def _triangle(x: Value, side: str, diagonal: int) -> Value:
    zero = number(0, x.kind)

    def at(index: Sequence[Any]) -> Any:
        inside = call(side, index[-1], call("add", index[-2], number(diagonal)))
        return call("where", inside, x.at(index), zero, kind=x.kind)

    return Value(x.shape, x.kind, at)
