"""From a torch function to graphs: f(t, y) and its vector-Jacobian product, in core ATen.

The function is run once for each graph and recorded (see ``record``): what autograd does for it (custom functions,
``no_grad``, ``detach``) is what is written down. Every tensor that it reaches for becomes an argument of the graphs, so
that its values are read anew at each solve; Python numbers become part of the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import UntraceableError
from ..instead import Instead, depends_on, origins_of
from . import operators
from .decompositions import decompositions
from .record import Line, Recording, TensorMeta, record, replay
from .table import TABLE

Evaluate = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Graphs:
    """The graphs of one right-hand side.

    Attributes:
        forward: ``(t, y, *externals) -> f``.
        backward: ``(t, y, v, *externals) -> (v df/dt, v df/dy, *(v df/dp))``; None for what v does not reach.
        externals: the tensors that the function reaches for, the differentiable ones first; then constants that it
            computes from nothing.
        params: how many of them are differentiable.
        shape: of f; the state's, where it is the right-hand side of an equation.
    """

    forward: Recording
    backward: Recording
    externals: list[Tensor]
    params: int
    shape: tuple[int, ...]


def trace(evaluate: Evaluate, t: Tensor, y: Tensor, first: Sequence[Tensor] = ()) -> Graphs:
    """Trace ``evaluate(t, y)`` and its vector-Jacobian product.

    Args:
        t, y: an example: a time (0-dim) and a state. Shapes and dtypes become part of the graphs.
        first: differentiable tensors that come first among the externals, whether they are reached or not.

    Raises:
        UntraceableError: control flow that depends on values, random numbers, a tensor changed in place, a complex
            state.
    """
    assert operators  # importing it fills the table
    if y.is_complex():
        raise UntraceableError("a complex state cannot be traced: solve it with backend='torch'.")
    t, y = t.detach(), y.detach()
    forward = _record(evaluate, t, y)
    reached = _externals(forward)
    params = [*first, *(x for x in reached if x.requires_grad and not any(x is other for other in first))]
    # A parameter that was computed from another one has a history, which is not to be differentiated here.
    origins = origins_of(params)
    ends = {id(x): x if x.is_leaf else x.detach().requires_grad_() for x in params}

    def pull_back(t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
        # Backwards, what is on a device runs on a thread of that device's: who writes it down is on this one.
        with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False), Instead(ends):
            t, y = t.detach().requires_grad_(), y.detach().requires_grad_()
            out = evaluate(t, y)
            if not out.requires_grad:
                return (None,) * (2 + len(params))
            if depends_on(out, origins):
                raise UntraceableError(
                    "a tensor that was computed outside the right-hand side goes into an autograd.Function there, and"
                    " its gradient would be lost: compute it inside, or pass a leaf (a Parameter), or solve with"
                    " backend='torch', which runs the function as it is."
                )
            return torch.autograd.grad(_Seeded.apply(out, v), [t, y, *ends.values()], allow_unused=True)

    (out,) = [n for n in forward.nodes if n.op == "output"]
    shape = tuple(out.args[0].meta["tensor_meta"].shape)
    v = torch.ones(shape, dtype=y.dtype, device=y.device)
    backward = _record(pull_back, t, y, v)
    _restore(backward, {id(ends[id(x)]): x for x in params})
    known = {id(x) for x in reached}
    rest = [x for x in _externals(backward) if id(x) not in known]
    externals = params + [x for x in reached if not x.requires_grad] + rest
    forward = _core(_lift(forward, externals), [t, y, *externals])
    backward = _core(_lift(backward, externals), [t, y, v, *externals])
    _locate_unknown(backward, forward)
    constants: dict[Recording, dict[fx.Node, Tensor]] = {g: _constants(g) for g in (forward, backward)}
    computed = [tensor for found in constants.values() for tensor in found.values()]
    for graph, found in constants.items():
        _replace(graph, found, computed)
    return Graphs(forward, backward, externals + computed, len(params), shape)


class _Seeded(torch.autograd.Function):
    """A number whose derivative by ``out`` is ``v``.

    To compare the shapes of an output and a gradient that it is given, torch imports SymPy, for half a second.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return out.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return v, None


def _record(function: Callable[..., Any], *example: Tensor) -> Recording:
    """``function`` as a graph of ATen operators, whatever it does."""
    graph = record(function, example)
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            raise UntraceableError.operator(
                str(node.target),
                said(node),
                "draws random numbers: a differential equation has none (dropout? .eval())",
            )
    return graph


def _locate_unknown(graph: Recording, forward: Recording) -> None:
    """Operators without a row in a gradient come from the line that uses them, or what they are the gradient of."""
    lines: dict[str, Line] = {}
    for node in forward.nodes:
        if node.meta.get("said") is not None:
            lines.setdefault(str(node.target), node.meta["said"])
    for node in graph.nodes:
        if node.op == "call_function" and str(node.target) not in TABLE and node.meta.get("said") is None:
            node.meta["said"] = lines.get(str(node.target))


def said(node: fx.Node) -> str | None:
    """The user's line that a node comes from, where that is known."""
    line = node.meta.get("said")
    return None if line is None else str(line)


def _constants(graph: Recording) -> dict[fx.Node, Tensor]:
    """What a graph computes from nothing (the places that an interpolation looks at, say), once and for all."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = graph.held[node.target]
        elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            values[node] = node.target(*args, **kwargs)
    wanted = {}
    for node, value in values.items():
        computed = bool(node.all_input_nodes) or node.op == "get_attr"
        used = any(user not in values for user in node.users)
        if computed and used and isinstance(value, Tensor) and value.numel() > 1:
            wanted[node] = value
    return wanted


def _replace(graph: Recording, found: dict[fx.Node, Tensor], arguments: Sequence[Tensor]) -> None:
    """Take ``found`` as arguments; ``arguments`` lists those of all graphs."""
    nodes = {id(tensor): node for node, tensor in found.items()}
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    for k, tensor in enumerate(arguments):
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"constant_{k}")
        last.meta["tensor_meta"] = TensorMeta(tensor.shape, tensor.dtype)
        if id(tensor) in nodes:
            nodes[id(tensor)].replace_all_uses_with(last)
    graph.graph.eliminate_dead_code()


def _restore(graph: Recording, originals: dict[int, Tensor]) -> None:
    """Let a graph hold the tensors that others stood for."""
    graph.held.update({name: originals.get(id(x), x) for name, x in graph.held.items()})


def _externals(graph: Recording) -> list[Tensor]:
    """The tensors that a graph holds, each once."""
    found: dict[int, Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            tensor = graph.held[node.target]
            found.setdefault(id(tensor), tensor)
    return list(found.values())


def _lift(graph: Recording, externals: Sequence[Tensor]) -> Recording:
    """Externals as arguments, after the others."""
    places = [n for n in graph.nodes if n.op == "placeholder"]
    last = places[-1]
    arguments = {}
    for k, tensor in enumerate(externals):
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"external_{k}")
        last.meta["tensor_meta"] = TensorMeta(tensor.shape, tensor.dtype)
        arguments[id(tensor)] = last
    for node in list(graph.nodes):
        if node.op == "get_attr":
            node.replace_all_uses_with(arguments[id(graph.held[node.target])])
            graph.graph.erase_node(node)
    return graph


def _core(graph: Recording, example: Sequence[Tensor]) -> Recording:
    """The graph again, without mutation, in the operators of the table."""
    functional = torch.func.functionalize(functools.partial(replay, graph), remove="mutations")
    with torch.no_grad():
        graph = record(functional, [x.detach() for x in example], decompositions())
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.copy.default:
            _assigned(graph.graph, node)
        if node.target is torch.ops.aten.copy_.default:
            raise UntraceableError.operator(
                "an operation in place", said(node), "changes a tensor that lives on after the evaluation"
            )
    graph.graph.eliminate_dead_code()
    _merge_equal(graph.graph)
    return graph


def _assigned(graph: fx.Graph, node: fx.Node) -> None:
    """``copy(x, source)`` as what it is, a broadcast of ``source``: vmap knows no rule for ``copy``."""
    x, source = node.args[:2]
    into, given = x.meta["tensor_meta"], source.meta["tensor_meta"]  # type: ignore[union-attr]
    with graph.inserting_before(node):
        value = source
        if given.dtype != into.dtype:
            value = graph.call_function(torch.ops.aten._to_copy.default, (value,), {"dtype": into.dtype})
            value.meta = dict(node.meta, tensor_meta=given._replace(dtype=into.dtype))
        if given.shape != into.shape:
            value = graph.call_function(torch.ops.aten.expand.default, (value, list(into.shape)))
            value.meta = dict(node.meta)
    node.replace_all_uses_with(value)  # type: ignore[arg-type]
    graph.erase_node(node)


def _merge_equal(graph: fx.Graph) -> None:
    """Compute the same thing once."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _frozen(x: Any) -> Any:
    if isinstance(x, dict):
        return tuple((k, _frozen(v)) for k, v in x.items())
    if isinstance(x, tuple | list):
        return tuple(_frozen(v) for v in x)
    return x if isinstance(x, fx.Node) else (type(x).__name__, str(x))
