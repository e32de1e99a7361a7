"""States of a compiled solve as one node of the autograd graph."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .discrete import Gradient, gradient
from .discrete_rosenbrock import gradient as rosenbrock_gradient
from .forward import Forward

#: The same states with a graph that can be differentiated again: from eager torch.
Again = Callable[[], Tensor]


@dataclass
class Observation:
    """States that a solve returned, and where they lie in it.

    Attributes:
        rows: ``(count, n)``, without a graph.
        where, thetas: see ``loops.explicit.integrate``.
        moved: the times of observation are variables of their own, also where they coincide with an end of the span.
        again: computes the same states in eager torch, for second derivatives.
    """

    run: Forward
    rows: Tensor
    where: array[Any]
    thetas: array[Any]
    moved: bool
    again: Again


class _Observe(torch.autograd.Function):
    """``(y0, t0, t1, times, *params) -> states``."""

    @staticmethod
    def forward(ctx: Any, seen: Observation, *inputs: Tensor | None) -> Tensor:
        ctx.seen = seen
        ctx.save_for_backward(*inputs)
        return seen.rows.view(len(seen.rows), *seen.run.problem.packed.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, seeds = ctx.saved_tensors, grads[0].reshape(len(grads[0]), -1)
        if torch.is_grad_enabled():
            return (None, *differentiable_gradients(ctx.seen.again, inputs, ctx.needs_input_grad[1:], seeds))
        return (None, *gradients(ctx.seen, inputs, ctx.needs_input_grad[1:], seeds))


def gradients(
    seen: Observation, inputs: Sequence[Tensor | None], wanted: Sequence[bool], seeds: Tensor
) -> list[Tensor | None]:
    run = seen.run
    y0, t0, t1, times, *params = inputs
    timed = any(wanted[1:4])
    if run.table.implicit:
        found = rosenbrock_gradient(run, seeds, seen.where, seen.thetas)
    else:
        found = gradient(run, seeds, seen.where, seen.thetas, params=any(wanted[4:]), timed=timed)
    assert y0 is not None
    result: list[Tensor | None] = [found.memory[: y0.numel()].view(y0.shape) if wanted[0] else None, None, None, None]
    if timed:
        if seen.moved:
            _move_ends(seen, found, seeds, clocked=wanted[1] or wanted[2])
        for k, (x, value) in enumerate(((t0, found.t0), (t1, found.t1)), start=1):
            if wanted[k] and x is not None:
                result[k] = x.new_tensor(value).reshape(x.shape)
        if times is not None and wanted[3]:
            result[3] = gradient_of_times = times.new_zeros(times.shape)
            gradient_of_times[: len(seeds)] = torch.tensor(found.times[: len(times)], dtype=torch.float64)
    if found.params is None:
        return result + [None] * len(params)
    end = found.params + run.given.p.numel()
    pieces = torch._C._nn.unflatten_dense_tensors(found.memory[found.params : end], run.given.params)
    return result + [piece if want else None for piece, want in zip(pieces, wanted[4:], strict=True)]


def _move_ends(seen: Observation, found: Gradient, seeds: Tensor, *, clocked: bool) -> None:
    """Observations at the very ends of the span: moving the time moves along the solution.

    Moving the end itself moves the time with it, which the sweep has counted: that is taken back.
    """
    run = seen.run
    for r, index in enumerate(seen.where[: len(seeds)]):
        if index >= 0:
            continue
        t = run.problem.t0.value if index == -1 else run.t
        slope = run.model.evaluate(t, seen.rows[r].contiguous(), run.given, run.work)
        along = float((seeds[r] * slope).sum())
        found.times[r] += along
        if clocked and index == -1:
            found.t0 -= along
        elif clocked and run.status.ok:
            found.t1 -= along


def differentiable_gradients(
    again: Again, inputs: Sequence[Tensor | None], wanted: Sequence[bool], seeds: Tensor
) -> list[Tensor | None]:
    """The same gradients as functions of the inputs, by the eager engine: it takes the same steps, and records them."""
    with torch.enable_grad():
        rows = again()
        chosen = [x for x, want in zip(inputs, wanted, strict=True) if want and x is not None]
        values = iter(torch.autograd.grad(rows, chosen, seeds, create_graph=True, allow_unused=True))
        return [next(values) if want and x is not None else None for x, want in zip(inputs, wanted, strict=True)]


def observe(seen: Observation, y0: Tensor, times: Tensor | None) -> Tensor:
    """The observed states, ``(count, ...)``, linked to what they depend on."""
    problem = seen.run.problem
    return _Observe.apply(seen, y0, problem.t0.tensor, problem.t1.tensor, times, *seen.run.given.params)


def nodes(count: int) -> tuple[array[Any], array[Any]]:
    """``where`` and ``thetas`` of the first ``count`` steps' starts (the last one's end among them)."""
    return array("q", range(-1, -1 - count, -1)), array("d", bytes(8 * count))


def node(index: int) -> tuple[array[Any], array[Any]]:
    """``where`` and ``thetas`` of one of them."""
    return array("q", [-1 - index]), array("d", [0.0])
