"""Convolutions and their gradients, as sums over a window, for any number of dimensions, strides and groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...errors import UntraceableError
from ..expr import Expr, call, linear, number
from ..program import Reduction
from ..table import Lowering, operator
from ..value import Value, stored
from .pointwise import pointwise
from .reductions import reduced
from .views import reshaped


def _many(x: Sequence[int], n: int) -> list[int]:
    return list(x) * n if len(x) == 1 else list(x)


def _inside(place: Expr, n: int) -> Expr:
    return call("and", call("ge", place, number(0)), call("lt", place, number(n)))


def _all(conditions: Sequence[Expr]) -> Expr | None:
    found: Expr | None = None
    for c in conditions:
        found = c if found is None else call("and", found, c)
    return found


@operator("aten.convolution.default")
def _convolution(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    assert low.shape is not None
    n = len(x.shape) - 2
    shape = _Window(_many(stride, n), _many(padding, n), _many(dilation, n), groups)
    a, w = low.builder.store(x), low.builder.store(weight)
    if transposed:
        out = shape.backwards(low, a, w, low.shape)
    else:
        out = shape.forwards(low, a, w, low.shape)
    if bias is None:
        return out
    return pointwise(low, "add", out, reshaped(low, low.builder.settle(bias), (1, bias.size, *[1] * n)))


class _Window:
    """How a kernel moves over an image."""

    def __init__(self, stride: list[int], padding: list[int], dilation: list[int], groups: int):
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forwards(self, low: Lowering, x: Value, w: Value, shape: Sequence[int]) -> Value:
        """``out[b, o, p] = sum_{c, k} x[b, c, p * stride - padding + k * dilation] w[o, c, k]``."""
        builder, groups = low.builder, self.groups
        over, across = builder.indices(shape), builder.indices(w.shape[1:])
        b, o, *p = (k for k, _ in over)
        c, *k = (k for k, _ in across)
        places, inside = self._places(p, k, x.shape[2:])
        channel = call("add", call("mul", self._group(o, shape[1]), number(w.shape[1])), c) if groups > 1 else c
        value = call("mul", x.at([b, channel, *places]), w.at([o, c, *k]))
        return self._summed(low, shape, over, across, value, inside)

    def backwards(self, low: Lowering, g: Value, w: Value, shape: Sequence[int]) -> Value:
        """The transpose: ``out[b, c, q] = sum_{o, k} g[b, o, p] w[o, c, k]``, ``q`` the place that ``(p, k)`` reads."""
        builder, groups = low.builder, self.groups
        per_group = w.shape[0] // groups
        over = builder.indices(shape)
        across = builder.indices((per_group, *w.shape[2:]))
        b, c, *q = (k for k, _ in over)
        o, *k = (k for k, _ in across)
        conditions: list[Expr] = []
        p: list[Expr] = []
        for place, tap, s, pad, d, n in zip(q, k, self.stride, self.padding, self.dilation, g.shape[2:], strict=True):
            moved = call("sub", call("add", place, number(pad)), call("mul", tap, number(d)))
            conditions.append(call("ge", moved, number(0)))
            if s > 1:
                conditions.append(call("eq", call("mod", moved, number(s)), number(0)))
                moved = call("floordiv", moved, number(s))
            conditions.append(call("lt", moved, number(n)))
            p.append(moved)
        first: Expr = o
        within: Expr = c
        if groups > 1:
            group = self._group(c, shape[1])
            first = call("add", call("mul", group, number(per_group)), o)
            within = call("sub", c, call("mul", group, number(w.shape[1])))
        value = call("mul", g.at([b, first, *p]), w.at([first, within, *k]))
        return self._summed(low, shape, over, across, value, _all(conditions))

    def weights(self, low: Lowering, x: Value, g: Value, shape: Sequence[int]) -> Value:
        """The kernel's gradient: ``out[o, c, k] = sum_{b, p} g[b, o, p] x[b, c, q]``, ``q`` as above."""
        builder, groups = low.builder, self.groups
        over = builder.indices(shape)
        across = builder.indices((g.shape[0], *g.shape[2:]))
        o, c, *k = (k for k, _ in over)
        b, *p = (k for k, _ in across)
        places, inside = self._places(p, k, x.shape[2:])
        channel = call("add", call("mul", self._group(o, shape[0]), number(shape[1])), c) if groups > 1 else c
        value = call("mul", g.at([b, o, *p]), x.at([b, channel, *places]))
        return self._summed(low, shape, over, across, value, inside)

    def _group(self, channel: Expr, channels: int) -> Expr:
        return call("floordiv", channel, number(channels // self.groups))

    def _places(self, p: Sequence[Expr], k: Sequence[Expr], size: Sequence[int]) -> tuple[list[Expr], Expr | None]:
        places, conditions = [], []
        for start, tap, s, pad, d, n in zip(p, k, self.stride, self.padding, self.dilation, size, strict=True):
            place = call("add", call("mul", start, number(s)), call("mul", tap, number(d)))
            place = call("sub", place, number(pad))
            if pad:
                conditions.append(_inside(place, n))
            places.append(place)
        return places, _all(conditions)

    def _summed(self, low: Lowering, shape: Any, over: Any, across: Any, value: Expr, guard: Expr | None) -> Value:
        out = stored(low.builder.buffer(shape), shape, "float")
        assert out.layout is not None
        at = linear(0, out.layout.strides, [k for k, _ in over])
        low.builder.add(Reduction(over, across, "sum", out.layout.buffer, at, value, guard))
        return out


@operator("aten.convolution_backward.default")
def _convolution_backward(
    low: Lowering,
    grad: Value,
    x: Value,
    weight: Value,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Value | None, ...]:
    if len(x.shape) < 3:
        raise UntraceableError("a convolution without a batch dimension")
    n = len(x.shape) - 2
    shape = _Window(_many(stride, n), _many(padding, n), _many(dilation, n), groups)
    builder = low.builder
    g, a, w = builder.store(grad), builder.store(x), builder.store(weight)
    to_x = to_w = to_bias = None
    if output_mask[0]:
        to_x = shape.forwards(low, g, w, x.shape) if transposed else shape.backwards(low, g, w, x.shape)
    if output_mask[1]:
        to_w = shape.weights(low, g, a, w.shape) if transposed else shape.weights(low, a, g, w.shape)
    if output_mask[2]:
        to_bias = reduced(low, g, "sum", [0, *range(2, n + 2)], False)
    return to_x, to_w, to_bias


@operator("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def _avg_pool(
    low: Lowering,
    x: Value,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    assert low.shape is not None
    sums, count = _pooled(low, x, size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    out = sums.forwards(low, *_as_images(low, x, sums), _images(low.shape, len(sums.stride)))
    return reshaped(low, _scaled(out, 1.0 / count), low.shape)


@operator("aten.avg_pool2d_backward.default", "aten.avg_pool3d_backward.default")
def _avg_pool_backward(
    low: Lowering,
    grad: Value,
    x: Value,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Value:
    assert low.shape is not None
    sums, count = _pooled(low, x, size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    out = sums.backwards(low, *_as_images(low, grad, sums), _images(x.shape, len(sums.stride)))
    return reshaped(low, _scaled(out, 1.0 / count), x.shape)


class _Pool(_Window):
    """A window of ones, over each image by itself."""

    def __init__(self, size: list[int], stride: list[int], padding: list[int]):
        super().__init__(stride, padding, [1] * len(size), 1)
        self.kernel = Value((1, 1, *size), "float", lambda index: number(1.0))


def _pooled(
    low: Lowering,
    x: Value,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> tuple[_Pool, float]:
    n = len(x.shape) - 2 if len(size) == 1 and len(x.shape) > 3 else len(size)
    kernel, pad = _many(size, n), _many(padding, n)
    if ceil_mode or (any(pad) and not count_include_pad):
        raise UntraceableError("averages windows that reach over the edge")
    pool = _Pool(kernel, _many(stride, n) if stride else kernel, pad)
    return pool, float(divisor or math.prod(kernel))


def _images(shape: Sequence[int], n: int) -> tuple[int, ...]:
    """All leading dimensions as one, each image with one channel."""
    return (math.prod(shape[:-n]), 1, *shape[-n:])


def _as_images(low: Lowering, x: Value, pool: _Pool) -> tuple[Value, Value]:
    return reshaped(low, low.builder.store(x), _images(x.shape, len(pool.stride))), pool.kernel


def _scaled(x: Value, factor: float) -> Value:
    """``factor * x``."""
    return Value(x.shape, "float", lambda index: call("mul", x.at(index), number(factor)))
