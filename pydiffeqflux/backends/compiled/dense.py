"""``sol(t)`` of a compiled solve, from the steps that it kept."""

from __future__ import annotations

import numbers
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidTimesError
from ...problem import TimePoint, time_point, time_points
from ...sensealg import SenseAlg
from ...state import State
from ..common.dense import Interpolant, Piecewise
from .again import solve_again
from .forward import Forward
from .observed import Observation, observe


class DenseOutput:
    """``t -> state``, as ``eager.output.dense_output``: differentiable where the solve was."""

    def __init__(self, forward: Forward, graph: bool, sensealg: SenseAlg | None):
        self.forward, self.graph, self.sensealg = forward, graph, sensealg
        self._pieces: Piecewise | None = None

    def __call__(self, t: Any) -> State:
        single = isinstance(t, numbers.Real) or (isinstance(t, Tensor | np.ndarray) and t.ndim == 0)
        points = [time_point(t, "t")] if single else time_points(t, "t")
        if not points:
            raise InvalidTimesError("sol(t) was given no times at all.")
        states = self._states(points)
        if single:
            states = states[0]
        spec = self.forward.problem.spec
        return states if spec is None else spec.unflatten(states)

    @property
    def pieces(self) -> Piecewise:
        if self._pieces is None:
            self._pieces = _pieces(self.forward)
        return self._pieces

    def _states(self, points: Sequence[TimePoint]) -> Tensor:
        pieces = self.pieces
        rows = torch.stack([pieces(point.value) for point in points])
        differentiable = self.graph or any(point.differentiable for point in points)
        if not differentiable or not torch.is_grad_enabled():
            return rows
        # The sweep meets the steps from the last to the first: observations are put in their order.
        starts = {id(piece): i for i, (_, _, piece) in enumerate(pieces.steps)}
        found = [pieces.locate(point.value) for point in points]
        order = sorted(range(len(points)), key=lambda r: starts[id(found[r][2])])
        where = array("q", [starts[id(found[r][2])] for r in order])
        thetas = array("d", [(points[r].value - found[r][0]) / found[r][1] for r in order])
        own = [torch.tensor(p.value, dtype=torch.float64) if p.tensor is None else p.tensor.double() for p in points]
        times = torch.stack([own[r] for r in order]) if any(p.differentiable for p in points) else None
        flat = rows[order].view(len(points), -1)

        def again() -> Tensor:
            dense = solve_again(self.forward, self.sensealg, dense=True).dense
            assert dense is not None
            return torch.stack([dense(points[r].value if times is None else own[r]) for r in order]).flatten(1)

        seen = Observation(self.forward, flat, where, thetas, False, again)
        back = torch.tensor(order).argsort()
        return observe(seen, self.forward.problem.packed, times)[back].view(rows.shape)


def _pieces(forward: Forward) -> Piecewise:
    """The interpolant of every step."""
    pieces = Piecewise(forward.problem.direction)
    b, n, every = forward.buffers, forward.problem.packed.numel(), forward.table.every
    shape, count = forward.problem.packed.shape, forward.accepted
    states = b.y[: count * n].view(count, *shape)
    slopes = b.k[: count * every * n].view(count, every, *shape)
    used = np.flatnonzero(forward.table.dense.any(axis=1)).tolist()
    coefficients = forward.table.dense[used]
    times, sizes = b.t[: count + 1].tolist(), b.h[:count].tolist()
    for i in range(count):
        piece = Interpolant(states[i], [slopes[i, j] for j in used], coefficients, sizes[i])
        pieces.append(times[i], times[i + 1] - times[i], piece)
    return pieces
