"""``sol(t)`` of a compiled solve, from the steps that it kept."""

from __future__ import annotations

import numbers
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass
class Part:
    """One solve whose steps belong to a dense output, the state it began with, and where an event ended it."""

    forward: Forward
    y0: Tensor
    end: float | None = None


class DenseOutput:
    """``t -> state``, as ``eager.output.dense_output``: differentiable where the solve was."""

    def __init__(self, parts: Sequence[Part], graph: bool, sensealg: SenseAlg | None):
        self.parts, self.graph, self.sensealg = parts, graph, sensealg
        self.problem = parts[0].forward.problem
        self._pieces: Piecewise | None = None
        #: For every step's interpolant: of which part it is, and which step of that.
        self._places: dict[int, tuple[int, int]] = {}

    def __call__(self, t: Any) -> State:
        single = isinstance(t, numbers.Real) or (isinstance(t, Tensor | np.ndarray) and t.ndim == 0)
        points = [time_point(t, "t")] if single else time_points(t, "t")
        if not points:
            raise InvalidTimesError("sol(t) was given no times at all.")
        states = self._states(points)
        if single:
            states = states[0]
        spec = self.problem.spec
        return states if spec is None else spec.unflatten(states)

    @property
    def pieces(self) -> Piecewise:
        if self._pieces is None:
            self._pieces = Piecewise(self.problem.direction)
            for number, part in enumerate(self.parts):
                self._add(number, part)
        return self._pieces

    def _add(self, number: int, part: Part) -> None:
        run, pieces = part.forward, self._pieces
        assert pieces is not None
        times = run.buffers.t[: run.accepted + 1].tolist()
        for i in range(run.accepted):
            piece = piece_of(run, i)
            end = part.end if i == run.accepted - 1 else None
            pieces.append(times[i], times[i + 1] - times[i], piece, end=end)
            self._places[id(piece)] = number, i

    def _states(self, points: Sequence[TimePoint]) -> Tensor:
        pieces = self.pieces
        rows = torch.stack([pieces(point.value) for point in points])
        differentiable = self.graph or any(point.differentiable for point in points)
        if not differentiable or not torch.is_grad_enabled():
            return rows
        found = [pieces.locate(point.value) for point in points]
        places = [self._places[id(piece)] for _, _, piece in found]
        # The sweep meets the steps from the last to the first: observations are put in their order.
        order = sorted(range(len(points)), key=lambda r: places[r])
        seen = []
        for number, part in enumerate(self.parts):
            mine = [r for r in order if places[r][0] == number]
            if mine:
                where = array("q", [places[r][1] for r in mine])
                thetas = array("d", [(points[r].value - found[r][0]) / found[r][1] for r in mine])
                seen.append(self._observed(part, [points[r] for r in mine], rows[mine], where, thetas))
        return torch.cat(seen)[torch.tensor(order).argsort()]

    def _observed(
        self, part: Part, points: Sequence[TimePoint], rows: Tensor, where: array[Any], thetas: array[Any]
    ) -> Tensor:
        own = [torch.tensor(p.value, dtype=torch.float64) if p.tensor is None else p.tensor.double() for p in points]
        times = torch.stack(own) if any(p.differentiable for p in points) else None

        def again() -> Tensor:
            dense = solve_again(part.forward, self.sensealg, dense=True).dense
            assert dense is not None
            when = [point.value for point in points] if times is None else own
            return torch.stack([dense(t) for t in when]).flatten(1)

        seen = Observation(part.forward, rows.view(len(rows), -1), where, thetas, False, again)
        return observe(seen, part.y0, times)


def piece_of(run: Forward, step: int) -> Interpolant:
    """The interpolant of a step."""
    b, n, every, shape = run.buffers, run.problem.packed.numel(), run.table.every, run.problem.packed.shape
    used = np.flatnonzero(run.table.dense.any(axis=1)).tolist()
    slopes = b.k[step * every * n : (step + 1) * every * n].view(every, *shape)
    y0 = b.y[step * n : (step + 1) * n].view(shape)
    # The stages of a Rosenbrock method have the step's size in them.
    size = None if run.table.implicit else float(b.h[step])
    return Interpolant(y0, [slopes[j] for j in used], run.table.dense[used], size)
