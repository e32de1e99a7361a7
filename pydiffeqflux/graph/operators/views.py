"""Shape operators: the same elements, looked up another way. Only a reshape of scattered elements moves anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...errors import UntraceableError
from ..expr import Expr, call, number
from ..table import Lowering, operator
from ..value import At, Layout, Value, contiguous_strides, stored, viewed
from .pointwise import broadcast


@operator(
    "aten.detach.default",
    "aten.detach_copy.default",
    "aten.alias.default",
    "aten.alias_copy.default",
    "aten.clone.default",
    "aten.lift_fresh_copy.default",
    "aten.lift_fresh.default",
    "aten.contiguous.default",
    "prims.clone.default",
    "prims.view_of.default",
    "aten.positive.default",
    "aten.conj.default",
)
def _same(low: Lowering, x: Value, **options: Any) -> Value:
    return x


def permuted(x: Value, dims: Sequence[int]) -> Value:
    """Dimensions in another order."""
    order = [d % len(x.shape) for d in dims]
    back = [order.index(d) for d in range(len(order))]
    layout = x.layout and Layout(x.layout.buffer, x.layout.offset, tuple(x.layout.strides[d] for d in order))
    return viewed(x, [x.shape[d] for d in order], lambda index: [index[b] for b in back], layout)


@operator("aten.permute.default", "aten.permute_copy.default", "prims.transpose.default")
def _permute(low: Lowering, x: Value, dims: Sequence[int]) -> Value:
    return permuted(x, dims)


@operator("aten.transpose.int", "aten.transpose_copy.int")
def _transpose(low: Lowering, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return permuted(x, order)


@operator("aten.t.default", "aten.t_copy.default")
def _t(low: Lowering, x: Value) -> Value:
    return permuted(x, range(len(x.shape))[::-1])


@operator("aten.expand.default", "aten.expand_copy.default")
def _expand(low: Lowering, x: Value, size: Sequence[int], implicit: bool = False) -> Value:
    assert low.shape is not None
    return broadcast(low.builder.settle(x), low.shape)


@operator("prims.broadcast_in_dim.default")
def _broadcast_in_dim(low: Lowering, x: Value, shape: Sequence[int], dims: Sequence[int]) -> Value:
    wide = [x.shape[dims.index(d)] if d in dims else 1 for d in range(len(shape))]
    return broadcast(reshaped(low, low.builder.settle(x), wide), tuple(shape))


def reshaped(low: Lowering, x: Value, shape: Sequence[int]) -> Value:
    """The elements in the same order, under another shape."""
    shape = tuple(shape)
    if shape == x.shape:
        return x
    if [n for n in shape if n != 1] == [n for n in x.shape if n != 1]:
        return _with_ones(x, shape)
    packed = low.builder.packed(x)
    assert packed.layout is not None
    return stored(packed.layout.buffer, shape, x.kind, offset=packed.layout.offset)


def _with_ones(x: Value, shape: tuple[int, ...]) -> Value:
    """Dimensions of length one come and go."""
    long = [d for d, n in enumerate(shape) if n != 1]
    mine = [d for d, n in enumerate(x.shape) if n != 1]

    def lookup(index: At) -> At:
        found: list[Expr] = [number(0)] * len(x.shape)
        for d, m in zip(long, mine, strict=True):
            found[m] = index[d]
        return found

    layout = None
    if x.layout is not None:
        strides = dict(zip(long, (x.layout.strides[m] for m in mine), strict=True))
        layout = Layout(x.layout.buffer, x.layout.offset, tuple(strides.get(d, 0) for d in range(len(shape))))
    return viewed(x, shape, lookup, layout)


@operator(
    "aten.view.default",
    "aten.view_copy.default",
    "aten._unsafe_view.default",
    "aten.reshape.default",
    "aten._reshape_alias.default",
    "aten._reshape_alias_copy.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
    "aten.squeeze_copy.dim",
    "aten.squeeze_copy.dims",
    "aten.squeeze_copy.default",
    "aten.unsqueeze.default",
    "aten.unsqueeze_copy.default",
    "aten.flatten.using_ints",
    "prims.reshape.default",
    "prims.squeeze.default",
)
def _reshape(low: Lowering, x: Value, *how: Any) -> Value:
    assert low.shape is not None
    return reshaped(low, x, low.shape)


def selected(x: Value, dim: int, at: Expr) -> Value:
    """One slice along a dimension, the dimension gone."""
    d = dim % len(x.shape)
    layout = None
    if x.layout is not None and isinstance(at, type(number(0))):
        steps = x.layout.strides
        layout = Layout(x.layout.buffer, x.layout.offset + int(at.value) * steps[d], steps[:d] + steps[d + 1 :])
    shape = x.shape[:d] + x.shape[d + 1 :]
    return viewed(x, shape, lambda index: [*index[:d], at, *index[d:]], layout)


@operator("aten.select.int", "aten.select_copy.int")
def _select(low: Lowering, x: Value, dim: int, index: int) -> Value:
    return selected(x, dim, number(index % x.shape[dim]))


def sliced(x: Value, dim: int, start: int, count: int, step: int = 1) -> Value:
    """``count`` slices along a dimension."""
    d = dim % len(x.shape)
    layout = None
    if x.layout is not None:
        steps = list(x.layout.strides)
        first = x.layout.offset + start * steps[d]
        steps[d] *= step
        layout = Layout(x.layout.buffer, first, tuple(steps))

    def lookup(index: At) -> At:
        moved = call("add", call("mul", index[d], number(step)), number(start))
        return [*index[:d], moved, *index[d + 1 :]]

    return viewed(x, (*x.shape[:d], count, *x.shape[d + 1 :]), lookup, layout)


def bounds(n: int, start: int | None, end: int | None, step: int) -> tuple[int, int]:
    """First index and number of a Python slice."""
    first, last, _ = slice(start, end, step).indices(n)
    return first, max(0, math.ceil((last - first) / step))


@operator("aten.slice.Tensor", "aten.slice_copy.Tensor")
def _slice(
    low: Lowering, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    return sliced(x, dim, *bounds(x.shape[dim], start, end, step), step)


@operator("aten.split.Tensor", "aten.split_copy.Tensor")
def _split(low: Lowering, x: Value, size: int, dim: int = 0) -> tuple[Value, ...]:
    n = x.shape[dim]
    return tuple(sliced(x, dim, s, min(size, n - s)) for s in range(0, n, size))


@operator("aten.split_with_sizes.default", "aten.split_with_sizes_copy.default")
def _split_with_sizes(low: Lowering, x: Value, sizes: Sequence[int], dim: int = 0) -> tuple[Value, ...]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(sliced(x, dim, s, n) for s, n in zip(starts, sizes, strict=True))


@operator("aten.unbind.int", "aten.unbind_copy.int")
def _unbind(low: Lowering, x: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(selected(x, dim, number(i)) for i in range(x.shape[dim]))


@operator("<built-in function getitem>")
def _getitem(low: Lowering, several: tuple[Value, ...], index: int) -> Value:
    return several[index]


@operator("aten.diagonal.default", "aten.diagonal_copy.default")
def _diagonal(low: Lowering, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    assert low.shape is not None
    a, b = dim1 % len(x.shape), dim2 % len(x.shape)
    down, right = max(0, -offset), max(0, offset)

    def lookup(index: At) -> At:
        rest = iter(index[:-1])
        k = index[-1]
        ends = {a: call("add", k, number(down)), b: call("add", k, number(right))}
        return [ends[d] if d in ends else next(rest) for d in range(len(x.shape))]

    return viewed(x, low.shape, lookup)


@operator("aten.flip.default")
def _flip(low: Lowering, x: Value, dims: Sequence[int]) -> Value:
    turned = {d % len(x.shape) for d in dims}

    def lookup(index: At) -> At:
        return [
            call("sub", number(n - 1), k) if d in turned else k
            for d, (n, k) in enumerate(zip(x.shape, index, strict=False))
        ]

    return viewed(x, x.shape, lookup)


@operator("aten.as_strided.default", "aten.as_strided_copy.default")
def _as_strided(
    low: Lowering, x: Value, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Value:
    # What torch says about memory holds for tensors that it made contiguous, as autograd's copies of slices are.
    packed = low.builder.packed(x)
    assert packed.layout is not None
    if max((n - 1) * s for n, s in zip(size, stride, strict=True)) + (storage_offset or 0) >= x.size if size else False:
        raise UntraceableError("looks into memory beyond its tensor")
    offset = packed.layout.offset + (storage_offset or 0)
    return stored(packed.layout.buffer, size, x.kind, stride, offset)


@operator("aten.as_strided_scatter.default", "prims.as_strided_scatter.default")
def _as_strided_scatter(
    low: Lowering,
    x: Value,
    source: Value,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> Value:
    whole = low.builder.copy(x)
    assert whole.layout is not None
    into = Layout(whole.layout.buffer, storage_offset or 0, tuple(stride))
    low.builder.write(broadcast(source, tuple(size)), into)
    return whole


def overwritten(low: Lowering, x: Value, part: Value, source: Value) -> Value:
    """A copy of ``x`` in which ``source`` replaces ``part`` (a view of a value that has ``x``'s shape)."""
    whole = low.builder.copy(x)
    assert whole.layout is not None and part.layout is not None
    into = Layout(whole.layout.buffer, part.layout.offset, part.layout.strides)
    low.builder.write(broadcast(source, part.shape), into)
    return whole


def _placeholder(x: Value, low: Lowering) -> Value:
    """A stored value of ``x``'s shape, whose views say where pieces of a contiguous ``x`` lie."""
    return stored(low.builder.buffer(x.shape), x.shape, "float", contiguous_strides(x.shape))


@operator("aten.slice_scatter.default")
def _slice_scatter(
    low: Lowering,
    x: Value,
    source: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    part = sliced(_placeholder(x, low), dim, *bounds(x.shape[dim], start, end, step), step)
    return overwritten(low, x, part, source)


@operator("aten.select_scatter.default")
def _select_scatter(low: Lowering, x: Value, source: Value, dim: int, index: int) -> Value:
    return overwritten(low, x, selected(_placeholder(x, low), dim, number(index % x.shape[dim])), source)


@operator("aten.diagonal_scatter.default")
def _diagonal_scatter(low: Lowering, x: Value, source: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    a, b = dim1 % len(x.shape), dim2 % len(x.shape)
    steps = contiguous_strides(x.shape)
    first = max(0, -offset) * steps[a] + max(0, offset) * steps[b]
    rest = [steps[d] for d in range(len(x.shape)) if d not in (a, b)]
    part = stored(low.builder.buffer(x.shape), source.shape, "float", [*rest, steps[a] + steps[b]], first)
    return overwritten(low, x, part, source)


@operator("aten.copy.default")
def _copy(low: Lowering, x: Value, source: Value, non_blocking: bool = False) -> Value:
    return broadcast(source, x.shape)


@operator("aten.select_backward.default")
def _select_backward(low: Lowering, grad: Value, sizes: Sequence[int], dim: int, index: int) -> Value:
    zero = _zeros(sizes)
    return overwritten(low, zero, selected(_placeholder(zero, low), dim, number(index % sizes[dim])), grad)


@operator("aten.slice_backward.default")
def _slice_backward(
    low: Lowering, grad: Value, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Value:
    zero = _zeros(sizes)
    return overwritten(
        low, zero, sliced(_placeholder(zero, low), dim, *bounds(sizes[dim], start, end, step), step), grad
    )


def _zeros(shape: Sequence[int]) -> Value:
    return Value(tuple(shape), "float", lambda index: number(0.0))
