"""Many short stretches of one series, solved side by side as one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends.native import compile_at_once
from ..problem import ODEProblem
from ..solve import solve


@dataclass(frozen=True)
class Segments:
    """Where the stretches lie in time.

    Attributes:
        starts: ``(S,)`` the time at which each begins.
        steps: ``(S, L)`` the lengths of its intervals.
        at_once: choose the engine for good at the first solve (see :func:`..backends.native.compile_at_once`).
    """

    starts: Tensor
    steps: Tensor
    at_once: bool = False

    @property
    def even(self) -> bool:
        """Whether each stretch has intervals of one length."""
        return torch.allclose(self.steps, self.steps[:, :1].expand_as(self.steps), rtol=1e-9, atol=0.0)

    def solve(
        self, func: Callable[[Any, Tensor], Tensor], nodes: Tensor, solver: dict[str, Any]
    ) -> tuple[Tensor, int]:
        """The states at the end of each interval, ``(S, L, *state)``, from ``nodes`` ``(S, *state)``.

        Time is counted in intervals, so that stretches at different times and with different spacings go into one
        batch; ``func`` gets its times as ``(S, 1, ..., 1)``. Also returns the number of its evaluations.

        Args:
            solver: keyword arguments of :func:`pydiffeqflux.solve`.
        """
        length = self.steps.shape[1]
        if self.even:
            sol = self._solve(func, self.starts, self.steps[:, 0], nodes, length, solver)
            return sol.ys.transpose(0, 1), sol.stats.nf
        ends, nf, state, begun = [], 0, nodes, self.starts
        for i in range(length):
            sol = self._solve(func, begun, self.steps[:, i], state, 1, solver)
            state, begun = sol.ys[0], begun + self.steps[:, i]
            ends.append(state)
            nf += sol.stats.nf
        return torch.stack(ends, dim=1), nf

    def _solve(
        self,
        func: Callable[[Any, Tensor], Tensor],
        starts: Tensor,
        step: Tensor,
        nodes: Tensor,
        intervals: int,
        solver: dict[str, Any],
    ) -> Any:
        column = (-1, *(1,) * (nodes.dim() - 1))
        start, step = starts.reshape(column), step.reshape(column)
        span = (0.0, float(intervals))

        def in_intervals(s: Any, y: Tensor) -> Tensor:
            return step * func(start + s * step, y)

        if self.at_once:
            compile_at_once(in_intervals)
        problem = ODEProblem(in_intervals, nodes, span, batched=True)
        saves = [float(i + 1) for i in range(intervals)]
        return solve(problem, saveat=saves, **{"dense": False, "save_everystep": False, **solver})
