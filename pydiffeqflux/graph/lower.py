"""From a traced graph to a program: every node by its row of the operator table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..errors import UntraceableError
from .expr import Index, Kind, call, expensive, linear, size
from .program import Buffer, Loop, Program, Repeat, allocate, depending
from .record import Recording
from .table import TABLE, Lowering
from .value import Builder, Layout, Value, constant, contiguous_strides, in_order, stored

#: Formulas longer than this are stored: compilers and readers have their limits.
LONGEST = 40


@dataclass(frozen=True)
class Slot:
    """Where an argument of the graph, or a result, lies: ``size`` numbers of a buffer from ``offset`` on.

    Integers lie in the buffer ``"i"``; truth values lie among the numbers, as 0 and 1.
    """

    buffer: str
    offset: int
    shape: tuple[int, ...]
    kind: Kind = "float"

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def lower(
    graph: Recording,
    name: str,
    dtype: torch.dtype,
    arguments: Sequence[Slot],
    results: Sequence[Slot],
    inputs: dict[str, int],
    outputs: dict[str, int],
) -> Program:
    """The program of ``graph``.

    Args:
        arguments: where each placeholder's value lies, in order.
        results: where each output goes, in order. An output that is None is zero.
        inputs, outputs: the buffers that the program takes and writes, by name and length.

    Raises:
        UntraceableError: an operator that the table lacks, or cannot take with these arguments.
    """
    program = _program(name, dtype, inputs, outputs)
    builder = Builder(program)
    given = _given(program, arguments)
    kept = []
    for value, slot in zip(_walk(graph, builder, dtype, given), results, strict=True):
        if value is not None and (buffer := _whole_buffer(value)) is not None:
            # Computed where it is wanted.
            buffer.role, buffer.name, buffer.offset = "output", slot.buffer, slot.offset
            kept.append(buffer)
            continue
        layout = Layout(program.outputs[slot.buffer], slot.offset, contiguous_strides(slot.shape))
        builder.write(constant(0.0, slot.shape) if value is None else value, layout)
    allocate(program, kept)
    return program


def lower_jacobian(
    backward: Recording,
    dtype: torch.dtype,
    arguments: Sequence[Slot],
    shape: tuple[int, ...],
    inputs: dict[str, int],
) -> Program:
    """The program of the Jacobian ``J (n, n)`` and the time derivative ``ft (n,)``: one row after the other.

    Row ``r`` is the vector-Jacobian product with the r-th unit vector. What does not depend on that vector (the
    forward evaluation, in the main) is computed once.

    Args:
        backward: the graph of ``(v df/dt, v df/dy)``.
        arguments: where its placeholders lie but for ``v``, which is the third.
        shape: of the state.
        inputs: as for :func:`lower`.
    """
    n = math.prod(shape)
    program = _program("jac", dtype, inputs, {"J": n * n, "ft": n})
    outputs = program.outputs
    builder = Builder(program)
    row, unit = Index("row"), builder.buffer(shape)
    given = _given(program, arguments)
    given.insert(2, stored(unit, shape, "float"))
    to_t, to_y = _walk(backward, builder, dtype, given)
    for value, into, first, step in ((to_y, outputs["J"], (n,), 1), (to_t, outputs["ft"], (1,), 0)):
        found = constant(0.0, shape if step else ()) if value is None else value
        over = builder.indices(found.shape)
        index = [k for k, _ in over]
        at = call("add", linear(0, first, [row]), linear(0, contiguous_strides(found.shape), index))
        builder.add(Loop(over, into, at, call("float", found.at(index))))
    once, again = depending(program.statements, unit)
    stores = [s for s in once if s.into in outputs.values()]  # rows that do not depend on the vector: zeros
    over = builder.indices((n,))
    hot = Loop(over, unit, over[0][0], call("float", call("eq", over[0][0], row)))
    program.statements = [s for s in once if s not in stores]
    program.repeat = Repeat(row, n, [hot, *again, *stores])
    allocate(program)
    return program


def _program(name: str, dtype: torch.dtype, inputs: dict[str, int], outputs: dict[str, int]) -> Program:
    return Program(
        name,
        str(dtype).removeprefix("torch."),
        {n: Buffer("input", n, size) for n, size in inputs.items()},
        {n: Buffer("output", n, size) for n, size in outputs.items()},
    )


def _given(program: Program, arguments: Sequence[Slot]) -> list[Value]:
    return [stored(program.inputs[slot.buffer], slot.shape, slot.kind, offset=slot.offset) for slot in arguments]


def _whole_buffer(value: Value) -> Buffer | None:
    """The piece of the workspace that holds just this value, in order."""
    if value.layout is None or value.kind != "float":
        return None
    buffer = value.layout.buffer
    alone = buffer.role == "work" and buffer.size == value.size and value.layout.offset == 0
    return buffer if alone and in_order(value) else None


def _walk(graph: Recording, builder: Builder, dtype: torch.dtype, arguments: list[Value]) -> list[Value | None]:
    known: dict[fx.Node, Any] = {}
    given = iter(arguments)
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = next(given)
        elif node.op == "output":
            results = node.args[0] if isinstance(node.args[0], tuple | list) else [node.args[0]]
            return [None if r is None else known[r] for r in results]
        elif node.op == "get_attr":
            known[node] = _small_constant(graph.held[node.target], node)
        else:
            known[node] = _apply(node, builder, dtype, known)
    raise AssertionError("a graph without an output")


def _small_constant(tensor: torch.Tensor, node: fx.Node) -> Value:
    """A tensor that the function made of Python numbers (``torch.tensor([1.0, 2.0])``)."""
    numbers = tensor.detach().reshape(-1).tolist()
    if len(set(numbers)) == 1:
        return constant(numbers[0], tuple(tensor.shape))
    raise UntraceableError(f"a constant tensor of shape {tuple(tensor.shape)} made inside the function ({node.name}).")


def _apply(node: fx.Node, builder: Builder, dtype: torch.dtype, known: dict[fx.Node, Any]) -> Any:
    name, where = str(node.target), node.meta.get("said")
    row = TABLE.get(name)
    if row is None:
        raise UntraceableError.operator(name, where)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: known[n])
    meta: Any = node.meta.get("tensor_meta")
    context = Lowering(builder, dtype, None, None)
    if hasattr(meta, "shape"):
        if meta.dtype.is_complex or (meta.dtype.is_floating_point and meta.dtype != dtype and meta.shape):
            raise UntraceableError.operator(name, where, f"computes in {meta.dtype} where the state is {dtype}")
        context = Lowering(builder, dtype, tuple(meta.shape), meta.dtype)
    try:
        value = row(context, *args, **kwargs)
    except UntraceableError as why:
        raise UntraceableError.operator(name, where, str(why)) from why
    except TypeError as why:  # arguments that the row does not take
        raise UntraceableError.operator(name, where, f"is not translated with these arguments ({why})") from why
    return _kept(node, builder, value)


def _kept(node: fx.Node, builder: Builder, value: Any) -> Any:
    """A formula that several look at, or that has grown long, is computed once."""
    if not isinstance(value, Value) or value.layout is not None:
        return value
    formula = value.at([Index("_")] * len(value.shape))
    if size(formula) > LONGEST or (_uses(node) > 1 and (expensive(formula) or size(formula) > 1)):
        return builder.store(value)
    return value


def _uses(node: fx.Node) -> int:
    """How often a node is used, twice by one that takes it twice."""
    found: list[fx.Node] = []
    for user in node.users:
        fx.node.map_arg((user.args, user.kwargs), found.append)
    return found.count(node)
