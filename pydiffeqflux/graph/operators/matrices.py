"""Matrix products."""

from __future__ import annotations

from ..program import Matrix, Product
from ..table import Lowering, operator
from ..value import Value, stored
from .pointwise import broadcast, pointwise
from .views import reshaped


def product(low: Lowering, left: Value, right: Value) -> Value:
    """``left @ right`` for two matrices, or two batches of as many."""
    builder = low.builder
    batched = len(left.shape) == 3
    shape = (*left.shape[:-1], right.shape[-1])
    batch = shape[0] if batched else 1
    out = stored(builder.buffer(shape), shape, "float")
    assert out.layout is not None
    builder.add(
        Product(
            out.layout.buffer,
            _matrix(builder.store(left)),
            _matrix(builder.store(right)),
            batch,
            left.shape[-2],
            left.shape[-1],
            right.shape[-1],
        )
    )
    return out


def _matrix(value: Value) -> Matrix:
    layout = value.layout
    assert layout is not None
    batch = layout.strides[0] if len(value.shape) == 3 and value.shape[0] > 1 else 0
    return Matrix(layout.buffer, layout.offset, batch, layout.strides[-2], layout.strides[-1])


@operator("aten.mm.default", "aten.bmm.default")
def _mm(low: Lowering, left: Value, right: Value) -> Value:
    return product(low, left, right)


@operator("aten.mv.default")
def _mv(low: Lowering, matrix: Value, vector: Value) -> Value:
    return reshaped(low, product(low, matrix, reshaped(low, vector, (*vector.shape, 1))), matrix.shape[:1])


@operator("aten.dot.default", "aten.vdot.default")
def _dot(low: Lowering, a: Value, b: Value) -> Value:
    return reshaped(low, product(low, reshaped(low, a, (1, *a.shape)), reshaped(low, b, (*b.shape, 1))), ())


@operator("aten.addmm.default", "aten.baddbmm.default")
def _addmm(
    low: Lowering, bias: Value, left: Value, right: Value, *, beta: float | int = 1, alpha: float | int = 1
) -> Value:
    assert low.shape is not None
    found = product(low, left, right)
    if alpha != 1:
        found = pointwise(low, "mul", found, float(alpha))
    if beta == 0:
        return found
    offset = broadcast(low.builder.settle(bias), low.shape)
    return pointwise(low, "add", found, offset if beta == 1 else pointwise(low, "mul", offset, float(beta)))


@operator("aten.addmv.default")
def _addmv(
    low: Lowering, bias: Value, matrix: Value, vector: Value, *, beta: float | int = 1, alpha: float | int = 1
) -> Value:
    found = pointwise(low, "mul", _mv(low, matrix, vector), float(alpha))
    return pointwise(low, "add", found, pointwise(low, "mul", bias, float(beta)))
