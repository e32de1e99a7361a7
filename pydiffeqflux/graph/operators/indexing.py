"""Elements picked and placed: concatenation, gathering by integer tensors, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import UntraceableError
from ..expr import Expr, call, number
from ..program import Loop
from ..table import Lowering, operator
from ..value import At, Layout, Value, contiguous_strides, stored, viewed
from .pointwise import Operand, broadcast, pointwise
from .views import sliced


@operator("aten.cat.default", "prims.cat.default")
def _cat(low: Lowering, several: Sequence[Value], dim: int = 0) -> Value:
    assert low.shape is not None
    whole = stored(low.builder.buffer(low.shape), low.shape, low.kind)
    start = 0
    for piece in several:
        if piece.shape == (0,):  # torch lets an empty vector be joined to anything
            continue
        n = piece.shape[dim]
        into = sliced(whole, dim, start, n).layout
        assert into is not None
        low.builder.write(piece, into)
        start += n
    return whole


@operator("aten.stack.default")
def _stack(low: Lowering, several: Sequence[Value], dim: int = 0) -> Value:
    d = dim % (len(several[0].shape) + 1)
    wide = [viewed(v, (*v.shape[:d], 1, *v.shape[d:]), lambda index: [*index[:d], *index[d + 1 :]]) for v in several]
    return _cat(low, wide, d)


@operator("aten.repeat.default")
def _repeat(low: Lowering, x: Value, repeats: Sequence[int]) -> Value:
    assert low.shape is not None
    missing = len(repeats) - len(x.shape)
    kept = low.builder.settle(x)

    def lookup(index: At) -> At:
        return [call("mod", k, number(n)) for k, n in zip(list(index)[missing:], x.shape, strict=True)]

    return viewed(kept, low.shape, lookup)


@operator("aten.roll.default")
def _roll(low: Lowering, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if not dims:
        raise UntraceableError("rolls a flattened tensor; name the dimension")
    by = {d % len(x.shape): s for d, s in zip(dims, shifts, strict=True)}
    kept = low.builder.settle(x)

    def moved(d: int, k: Expr) -> Expr:
        n = x.shape[d]
        return call("mod", call("add", k, number(-by[d] % n)), number(n)) if d in by else k

    return viewed(kept, x.shape, lambda index: [moved(d, k) for d, k in enumerate(index)])


@operator("aten.constant_pad_nd.default")
def _pad(low: Lowering, x: Value, pad: Sequence[int], value: float | int = 0) -> Value:
    assert low.shape is not None
    before = [0] * len(x.shape)
    for i in range(len(pad) // 2):
        before[-1 - i] = pad[2 * i]
    outside = number(value, x.kind)
    return padded(low.builder.store(x), low.shape, before, outside)


def padded(x: Value, shape: Sequence[int], before: Sequence[int], outside: Expr) -> Value:
    """``x`` in a larger (or smaller) frame; ``outside`` where it does not reach. ``x`` must lie in memory."""

    def at(index: At) -> Expr:
        inside: Expr | None = None
        moved: list[Expr] = []
        for k, b, n, full in zip(index, before, x.shape, shape, strict=True):
            j = call("sub", k, number(b))
            if b > 0 or full - b > n:
                # Looked up at a place that exists, whichever way the choice goes.
                good = call("and", call("ge", j, number(0)), call("lt", j, number(n)))
                inside = good if inside is None else call("and", inside, good)
                j = call("minimum", call("maximum", j, number(0)), number(n - 1))
            moved.append(j)
        value = x.at(moved)
        return value if inside is None else call("where", inside, value, outside, kind=x.kind)

    return Value(tuple(shape), x.kind, at)


def _wrapped(index: Expr, n: int) -> Expr:
    """Negative indices count from the end."""
    return call("where", call("lt", index, number(0)), call("add", index, number(n)), index, kind="int")


def _whole(value: Value) -> Value:
    if value.kind != "int":
        raise UntraceableError("picks by truth values, so the result's size depends on them; use torch.where")
    return value


@operator("aten.index.Tensor", "aten._unsafe_index.Tensor")
def _index(low: Lowering, x: Value, indices: Sequence[Value | None]) -> Value:
    assert low.shape is not None
    return viewed(low.builder.settle(x), low.shape, _lookup(low, x, indices))


def _lookup(low: Lowering, x: Value, indices: Sequence[Value | None]) -> Any:
    """Which element of ``x`` an element of ``x[indices]`` is (NumPy's rules of advanced indexing)."""
    picks = {d: low.builder.settle(_whole(i)) for d, i in enumerate(indices) if i is not None}
    shape = torch_broadcast([p.shape for p in picks.values()])
    dims = sorted(picks)
    together = dims == list(range(dims[0], dims[-1] + 1))
    front = dims[0] if together else 0
    seen = {d: broadcast(p, shape) for d, p in picks.items()}

    def lookup(index: At) -> At:
        inner = list(index)[front : front + len(shape)]
        rest = iter([*list(index)[:front], *list(index)[front + len(shape) :]])
        return [_wrapped(seen[d].at(inner), n) if d in seen else next(rest) for d, n in enumerate(x.shape)]

    return lookup


def torch_broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that all of them broadcast to."""
    rank = max(len(s) for s in shapes)
    full = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(max(column) if 0 not in column else 0 for column in zip(*full, strict=True))


@operator("aten.index_put.default", "aten._unsafe_index_put.default", "aten._index_put_impl.default")
def _index_put(
    low: Lowering, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False, *more: Any
) -> Value:
    whole = low.builder.copy(x)
    lookup = _lookup(low, x, indices)
    shape = _picked_shape(x, indices)
    _scatter(low, whole, shape, lookup, broadcast(low.builder.settle(values), shape), accumulate)
    return whole


def _picked_shape(x: Value, indices: Sequence[Value | None]) -> tuple[int, ...]:
    picks = {d: i for d, i in enumerate(indices) if i is not None}
    shape = torch_broadcast([p.shape for p in picks.values()])
    dims = sorted(picks)
    together = dims == list(range(dims[0], dims[-1] + 1))
    front = dims[0] if together else 0
    rest = [n for d, n in enumerate(x.shape) if d not in picks]
    return (*rest[:front], *shape, *rest[front:])


def _scatter(low: Lowering, whole: Value, shape: tuple[int, ...], lookup: Any, values: Value, add: bool) -> None:
    layout = whole.layout
    assert layout is not None
    over = low.builder.indices(shape)
    index = [k for k, _ in over]
    at: Expr = number(layout.offset)
    for k, step in zip(lookup(index), layout.strides, strict=True):
        at = call("add", at, call("mul", k, number(step)))
    low.builder.add(Loop(over, layout.buffer, at, call("float", values.at(index)), add))


@operator("aten.gather.default")
def _gather(low: Lowering, x: Value, dim: int, index: Value, **options: Any) -> Value:
    d, kept, pick = dim % len(x.shape), low.builder.settle(x), low.builder.settle(index)
    return viewed(kept, index.shape, lambda at: [*at[:d], pick.at(at), *at[d + 1 :]])


@operator("aten.scatter_add.default")
def _scatter_add(low: Lowering, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _scattered(low, x, dim, index, source, True)


@operator("aten.scatter.src", "aten.scatter.value")
def _scatter_into(low: Lowering, x: Value, dim: int, index: Value, source: Operand) -> Value:
    """Of several sources for one place, torch keeps any; here it is the last."""
    value = low.value(source)
    return _scattered(low, x, dim, index, value if value.shape else broadcast(value, index.shape), False)


def _scattered(low: Lowering, x: Value, dim: int, index: Value, source: Value, add: bool) -> Value:
    if not x.shape:
        return pointwise(low, "add", x, source) if add else source
    whole, d, pick = low.builder.copy(x), dim % len(x.shape), low.builder.settle(index)
    lookup = lambda at: [*at[:d], pick.at(at), *at[d + 1 :]]  # noqa: E731
    _scatter(low, whole, index.shape, lookup, source, add)
    return whole


@operator("aten.index_select.default")
def _index_select(low: Lowering, x: Value, dim: int, index: Value) -> Value:
    d, kept, pick = dim % len(x.shape), low.builder.settle(x), low.builder.settle(index)
    shape = (*x.shape[:d], *index.shape, *x.shape[d + 1 :])
    return viewed(kept, shape, lambda at: [*at[:d], pick.at([at[d]]), *at[d + 1 :]])


@operator("aten.index_add.default")
def _index_add(low: Lowering, x: Value, dim: int, index: Value, source: Value, *, alpha: float = 1) -> Value:
    if alpha != 1:
        raise UntraceableError(f"alpha={alpha}")
    whole, d, pick = low.builder.copy(x), dim % len(x.shape), low.builder.settle(index)
    lookup = lambda at: [*at[:d], pick.at([at[d]]), *at[d + 1 :]]  # noqa: E731
    _scatter(low, whole, source.shape, lookup, source, True)
    return whole


@operator("aten.embedding.default")
def _embedding(low: Lowering, weight: Value, indices: Value, *more: Any) -> Value:
    return _index(low, weight, [indices])


@operator("aten.diag_embed.default")
def _diag_embed(low: Lowering, x: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
    assert low.shape is not None
    rank = len(low.shape)
    a, b = dim1 % rank, dim2 % rank
    steps = contiguous_strides(low.shape)
    whole = low.builder.copy(Value(low.shape, x.kind, lambda index: number(0, x.kind)))
    rest = [steps[d] for d in range(rank) if d not in (a, b)]
    first = max(0, -offset) * steps[a] + max(0, offset) * steps[b]
    assert whole.layout is not None
    low.builder.write(x, Layout(whole.layout.buffer, first, (*rest, steps[a] + steps[b])))
    return whole


@operator("aten.unfold.default")
def _unfold(low: Lowering, x: Value, dim: int, size: int, step: int) -> Value:
    assert low.shape is not None
    d, kept = dim % len(x.shape), low.builder.settle(x)

    def lookup(index: At) -> At:
        place = call("add", call("mul", index[d], number(step)), index[-1])
        return [*index[:d], place, *index[d + 1 : -1]]

    return viewed(kept, low.shape, lookup)
