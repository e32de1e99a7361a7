"""From a torch function to graphs: f(t, y) and its vector-Jacobian product, in core ATen.

The function is run once for each graph, under ``make_fx``: what autograd does for it (custom functions, ``no_grad``,
``detach``) is what is recorded. Every tensor that it reaches for becomes an argument of the graphs, so that its values
are read anew at each solve; Python numbers become part of the graph.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import PyDiffEqFluxError, UntraceableError
from . import operators
from .decompositions import decompositions
from .table import TABLE

Evaluate = Callable[[Tensor, Tensor], Tensor]

_OPTIONS: dict[str, Any] = (
    {"record_stack_traces": True} if "record_stack_traces" in inspect.signature(make_fx).parameters else {}
)


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

    forward: fx.GraphModule
    backward: fx.GraphModule
    externals: list[Tensor]
    params: int
    shape: tuple[int, ...]


def trace(evaluate: Evaluate, t: Tensor, y: Tensor) -> Graphs:
    """Trace ``evaluate(t, y)`` and its vector-Jacobian product.

    Args:
        t, y: an example: a time (0-dim) and a state. Shapes and dtypes become part of the graphs.

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
    params = [x for x in reached if x.requires_grad]

    def pull_back(t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            t, y = t.detach().requires_grad_(), y.detach().requires_grad_()
            out = evaluate(t, y)
            if not out.requires_grad:
                return (None,) * (2 + len(params))
            return torch.autograd.grad(out, [t, y, *params], v, allow_unused=True)

    (out,) = [n for n in forward.graph.nodes if n.op == "output"]
    shape = tuple(out.args[0].meta["tensor_meta"].shape)
    v = torch.ones(shape, dtype=y.dtype)
    backward = _record(pull_back, t, y, v)
    known = {id(x) for x in reached}
    rest = [x for x in _externals(backward) if id(x) not in known]
    externals = params + [x for x in reached if not x.requires_grad] + rest
    forward = _core(_lift(forward, externals), [t, y, *externals])
    backward = _core(_lift(backward, externals), [t, y, v, *externals])
    for graph in (forward, backward):
        _locate_unknown(graph, evaluate, t, y)
    constants: dict[fx.GraphModule, dict[fx.Node, Tensor]] = {g: _constants(g) for g in (forward, backward)}
    computed = [tensor for found in constants.values() for tensor in found.values()]
    for graph, found in constants.items():
        _replace(graph, found, computed)
    return Graphs(forward, backward, externals + computed, len(params), shape)


def _record(function: Callable[..., Any], *example: Tensor) -> fx.GraphModule:
    """``function`` as a graph of ATen operators, whatever it does."""
    try:
        graph = make_fx(function, **_OPTIONS)(*example)
    except PyDiffEqFluxError:
        raise
    except RuntimeError as why:
        if "data-dependent" not in str(why) and "tracing tensor" not in str(why):
            raise
        raise UntraceableError(
            f"the right-hand side decides by the value of a tensor{_blamed(why)}: say it with torch.where, or solve it"
            f" with backend='torch', which runs it as it is."
        ) from why
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            raise UntraceableError.operator(
                str(node.target),
                said(node),
                "draws random numbers: a differential equation has none (dropout? .eval())",
            )
    return graph


def _blamed(error: BaseException) -> str:
    """Where in the user's code an error came from."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _foreign(frame.filename):
            return f" ({frame.filename}, line {frame.lineno}: {frame.line})"
    return ""


def _locate_unknown(graph: fx.GraphModule, evaluate: Evaluate, t: Tensor, y: Tensor) -> None:
    """Find the lines that operators without a row come from, by running the function again and watching."""
    nodes = [n for n in graph.graph.nodes if n.op == "call_function" and str(n.target) not in TABLE]
    if any(n.meta["said"] is None for n in nodes):
        with torch.no_grad(), _Lines() as lines:
            evaluate(t, y)
        for node in nodes:
            node.meta["said"] = node.meta["said"] or lines.found.get(str(node.target))


class _Lines(TorchDispatchMode):
    """The user's line at which each operator was first called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for frame in reversed(traceback.extract_stack()):
            if not _foreign(frame.filename):
                self.found.setdefault(str(func), f"{frame.filename}, line {frame.lineno}: {frame.line}")
                break
        return func(*args, **(kwargs or {}))


def _foreign(path: str) -> bool:
    """Whether a file is torch's or this package's, or nobody's."""
    return re.search(r"[/\\](torch|pydiffeqflux)[/\\]", path) is not None or path.startswith("<")


def said(node: fx.Node) -> str | None:
    """The user's line that a node comes from, where that is known."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in ([^\n]*)\n\s*([^\n]*)', node.stack_trace or "")
    mine = [f for f in frames if not _foreign(f[0])] or frames
    return f"{mine[-1][0]}, line {mine[-1][1]}: {mine[-1][3].strip()}" if mine else None


def _constants(graph: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """What a graph computes from nothing (the places that an interpolation looks at, say), once and for all."""
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(graph, node.target)
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


def _replace(graph: fx.GraphModule, found: dict[fx.Node, Tensor], arguments: Sequence[Tensor]) -> None:
    """Take ``found`` as arguments; ``arguments`` lists those of all graphs."""
    nodes = {id(tensor): node for node, tensor in found.items()}
    last = [n for n in graph.graph.nodes if n.op == "placeholder"][-1]
    for k, tensor in enumerate(arguments):
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"constant_{k}")
        if id(tensor) in nodes:
            nodes[id(tensor)].replace_all_uses_with(last)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _externals(graph: fx.GraphModule) -> list[Tensor]:
    """The tensors that a graph holds, each once."""
    found: dict[int, Tensor] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            tensor = getattr(graph, node.target)
            found.setdefault(id(tensor), tensor)
    return list(found.values())


def _lift(graph: fx.GraphModule, externals: Sequence[Tensor]) -> fx.GraphModule:
    """Externals as arguments, after the others."""
    places = [n for n in graph.graph.nodes if n.op == "placeholder"]
    last = places[-1]
    arguments = {}
    for k, tensor in enumerate(externals):
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"external_{k}")
        arguments[id(tensor)] = last
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            node.replace_all_uses_with(arguments[id(getattr(graph, node.target))])
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _core(function: Callable[..., Any], example: Sequence[Tensor]) -> fx.GraphModule:
    """The graph again, without mutation, in the operators of the table."""
    run = fx.Interpreter(function).run if isinstance(function, fx.GraphModule) else function
    given = [x.detach() for x in example]
    functional = torch.func.functionalize(lambda *xs: run(*xs), remove="mutations")
    with torch.no_grad(), fx_traceback.preserve_node_meta():
        graph = make_fx(functional, decomposition_table=decompositions())(*given)
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.copy.default:
            _assigned(graph.graph, node)
        if node.target is torch.ops.aten.copy_.default:
            raise UntraceableError.operator(
                "an operation in place", said(node), "changes a tensor that lives on after the evaluation"
            )
        node.meta["said"] = said(node)
    graph.graph.eliminate_dead_code()
    _merge_equal(graph.graph)
    graph.recompile()
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
