"""Whether a function treats the rows of its state apart, by its graph.

A node's value has *an axis of rows* where its slice for each row is computed from that row of the state alone (and from
what is the same for all of them), by the same formula for every row; a slice may be several entries next to each other,
as many for every row. The state has one, its first; operators hand it on, or mix rows and end it. Operators that are
not known here end it, too: the answer is then no, never a wrong yes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from . import operators  # noqa: F401 (fills the table)
from .table import TABLE
from .trace import Graphs

Axes = dict[fx.Node, int | None]
#: Where an operator's row sits decides what it is: all of these modules' are element-wise.
_POINTWISE = "pydiffeqflux.graph.operators.pointwise"
_SAME = "detach alias clone lift_fresh_copy lift_fresh contiguous positive view_of".split()
_VIEWS = "view view_copy _unsafe_view reshape _reshape_alias flatten".split()
_REDUCTIONS = "sum mean amax amin prod var std any all var_mean max min".split()
_SIZES = {*_VIEWS, "expand", "full", "zeros", "ones", "new_zeros", "new_ones", "new_full", "empty"}


class Mixed(Exception):
    """Rows meet here, or may."""


def separate(whole: Graphs, part: Graphs, rows: int, fewer: int) -> bool:
    """Whether ``part``, traced on the first ``fewer`` rows, computes for any rows what ``whole`` does for its ``rows``.

    So it is if both have the same operators with the same arguments, sizes of new shapes apart, and treat rows apart.
    """
    mine, other = list(whole.forward.nodes), list(part.forward.nodes)
    if len(mine) != len(other) or fewer < 2:
        return False
    twin = dict(zip(mine, other, strict=True))
    try:
        if not all(_alike(a, b, twin, (rows, fewer)) for a, b in twin.items()):
            return False
        held = {
            a: _constant(x, y, rows, fewer)
            for a, x, y in zip(mine[2:], whole.externals, part.externals, strict=False) if a.users
        }  # fmt: skip
        return _apart(whole, held, rows) and _apart(part, {twin[a]: axis for a, axis in held.items()}, fewer)
    except Mixed:
        return False


def _alike(a: fx.Node, b: fx.Node, twin: dict[fx.Node, fx.Node], sizes: tuple[int, int]) -> bool:
    if a.op != b.op or (a.op == "call_function" and a.target is not b.target):
        return False
    shaped = a.op == "call_function" and _name(a) in _SIZES

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, fx.Node):
            return twin[x] is y
        if isinstance(x, list | tuple):
            return isinstance(y, list | tuple) and len(x) == len(y) and all(map(same, x, y))
        if shaped and type(x) is type(y) is int and x * sizes[1] == y * sizes[0]:
            return True
        return type(x) is type(y) and bool(x == y)

    return same(a.args, b.args) and same(list(a.kwargs.items()), list(b.kwargs.items()))


def _constant(a: Tensor, b: Tensor, rows: int, fewer: int) -> int | None:
    """The axis along which two constants are as long as there are rows, and the same for each; None: they are equal."""
    if a is b or torch.equal(a, b):
        return None
    for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)):
        if a.dim() == b.dim() and (m, n) == (rows, fewer):
            first = a.narrow(axis, 0, 1)
            if torch.equal(a, first.expand_as(a)) and torch.equal(b, first.expand_as(b)):
                return axis
    raise Mixed


def _apart(graphs: Graphs, held: Axes, rows: int) -> bool:
    """Whether the result's first axis is one of rows."""
    axes: Axes = {}
    for k, node in enumerate(graphs.forward.nodes):
        if node.op == "placeholder":  # time, state, whatever is reached for
            axes[node] = 0 if k == 1 else held.get(node)
        elif node.op == "output":
            return isinstance(node.args[0], fx.Node) and axes[node.args[0]] == 0
        else:
            axes[node] = _axis(node, axes, rows)
    return False


def _given(node: fx.Node) -> tuple[Any, ...]:
    """The operator's arguments in their order."""
    return node.args


def _name(node: fx.Node) -> str:
    return str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _axis(node: fx.Node, axes: Axes, rows: int) -> int | None:
    """The axis of rows of a node's value; None: it has none and depends on no row."""
    name = _name(node)
    if name == "expand" and axes[_given(node)[0]] is None:
        return _spread(node, rows)
    if name in ("full", "zeros", "ones", "new_zeros", "new_ones", "new_full") and not any(
        axes[x] is not None for x in node.all_input_nodes
    ):
        return next((d for d, n in enumerate(_shape(node)) if n == rows), None)
    if all(axes[x] is None for x in node.all_input_nodes):
        return None
    row = TABLE.get(str(node.target))
    if row is not None and row.__module__ == _POINTWISE:
        return _aligned(node, node.all_input_nodes, axes, rows)
    rule = _RULES.get(name)
    if rule is None:
        raise Mixed
    return rule(node, axes, rows)


def _spread(node: fx.Node, rows: int) -> int | None:
    """A new axis of as many equal entries as there are rows is one of rows."""
    before, after = _shape(_given(node)[0]), _shape(node)
    before = (1,) * (len(after) - len(before)) + before
    return next((d for d, (m, n) in enumerate(zip(before, after, strict=True)) if m == 1 and n == rows), None)


def _aligned(node: fx.Node, inputs: Sequence[fx.Node], axes: Axes, rows: int) -> int:
    """The axis that all inputs with rows share, counted from the end, as broadcasting does."""
    out = _shape(node)
    found = {len(_shape(x)) - axis for x in inputs if (axis := axes[x]) is not None}
    if len(found) != 1:
        raise Mixed
    (back,) = found
    for x in inputs:
        shape = _shape(x)
        if axes[x] is None and len(shape) >= back and shape[-back] != 1:  # another number for every row
            raise Mixed
    axis = len(out) - back
    if any(_shape(x)[-back] != out[axis] for x in inputs if axes[x] is not None):
        raise Mixed
    return axis


def _same(node: fx.Node, axes: Axes, rows: int) -> int | None:
    return axes[_given(node)[0]]


def _view(node: fx.Node, axes: Axes, rows: int) -> int:
    """Rows that come first stay first, whatever becomes of the rest."""
    shape = _shape(node)
    if axes[_given(node)[0]] != 0 or not shape or shape[0] % rows:
        raise Mixed
    return 0


def _expand(node: fx.Node, axes: Axes, rows: int) -> int:
    return _aligned(node, [_given(node)[0]], axes, rows)


def _permute(node: fx.Node, axes: Axes, rows: int) -> int:
    axis, count = axes[_given(node)[0]], len(_shape(node))
    assert axis is not None
    order = list(range(count))
    if _name(node) == "t":
        order = order[::-1]
    elif _name(node) == "permute":
        order = [d % count for d in _given(node)[1]]
    else:
        a, b = (int(d) % count for d in _given(node)[1:3])
        order[a], order[b] = order[b], order[a]
    return order.index(axis)


def _unsqueeze(node: fx.Node, axes: Axes, rows: int) -> int:
    axis, at = axes[_given(node)[0]], int(_given(node)[1]) % len(_shape(node))
    assert axis is not None
    return axis + 1 if at <= axis else axis


def _squeeze(node: fx.Node, axes: Axes, rows: int) -> int:
    shape, axis = _shape(_given(node)[0]), axes[_given(node)[0]]
    assert axis is not None
    wanted = _given(node)[1] if len(_given(node)) > 1 else range(len(shape))
    wanted = wanted if isinstance(wanted, Sequence) else [wanted]
    return axis - sum(1 for d in wanted if d % len(shape) < axis and shape[d] == 1)


def _within(node: fx.Node, axes: Axes, rows: int) -> int:
    """``slice`` and ``select``: along another axis."""
    x, dim = _given(node)[0], int(_given(node)[1]) if len(_given(node)) > 1 else 0
    axis, dim = axes[x], dim % len(_shape(x))
    assert axis is not None
    if dim == axis:
        raise Mixed
    return axis - 1 if _name(node) == "select" and dim < axis else axis


def _joined(node: fx.Node, axes: Axes, rows: int) -> int:
    """``cat`` and ``stack``: along another axis, and everything that is joined has one."""
    inputs, dim = _given(node)[0], int(_given(node)[1]) if len(_given(node)) > 1 else 0
    found = {axes[x] for x in inputs}
    dim %= len(_shape(node))
    (axis,) = found if len(found) == 1 else (None,)
    if axis is None or (_name(node) == "cat" and dim == axis):
        raise Mixed
    return axis + 1 if _name(node) == "stack" and dim <= axis else axis


def _product(node: fx.Node, axes: Axes, rows: int) -> int:
    """``mm`` and ``bmm``, and after a bias ``addmm``: rows of the left, columns of the right, or the batch."""
    left, right = _given(node)[-2:]
    a, b = axes[left], axes[right]
    axis: int
    batched = int(_name(node) == "bmm")
    if batched and a == b == 0:
        axis = 0
    elif a == batched and b is None:
        axis = batched
    elif a is None and b == batched + 1:
        axis = batched + 1
    else:
        raise Mixed
    if _name(node) == "addmm":
        bias = _given(node)[0]
        back = 2 - axis
        if axes[bias] is not None:
            if axes[bias] != axis - 2 + len(_shape(bias)):
                raise Mixed
        elif len(_shape(bias)) >= back and _shape(bias)[-back] != 1:
            raise Mixed
    return axis


def _reduction(node: fx.Node, axes: Axes, rows: int) -> int:
    """Over other axes, which are named."""
    shape, axis = _shape(_given(node)[0]), axes[_given(node)[0]]
    dims = _given(node)[1] if len(_given(node)) > 1 else None
    dims = [dims] if isinstance(dims, int) else dims
    assert axis is not None
    gone = {d % len(shape) for d in dims or ()}
    if not gone or axis in gone:
        raise Mixed
    kept = _given(node)[2] if len(_given(node)) > 2 else node.kwargs.get("keepdim", False)
    return axis if kept else axis - sum(d < axis for d in gone)


Rule = Callable[[fx.Node, dict[fx.Node, int | None], int], int | None]
_RULES: dict[str, Rule] = {
    **dict.fromkeys((*_SAME, "<built-in function getitem>"), _same),
    **dict.fromkeys(_VIEWS, _view), **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("t", "permute", "transpose"), _permute), "expand": _expand, "unsqueeze": _unsqueeze,
    "squeeze": _squeeze, "slice": _within, "select": _within, "cat": _joined, "stack": _joined, "mm": _product,
    "bmm": _product, "addmm": _product,
}  # fmt: skip
