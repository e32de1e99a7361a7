"""Implicit Runge-Kutta methods for fixed steps: tableaus, and the stepper that runs any of them.

There is no error estimate, so nothing but the size of the step decides about the error: the stage equations are
solved to rounding, whatever the tolerances of the solve are. Stages are kept as ``u_i = dt k_i``, recovered from
the increments ``x = A u`` and not by evaluating f at the solution, where stiffness would magnify what Newton's
method left over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ....tracking import recording
from ...common.dense import hermite
from ...common.jacobian import jacobian
from ...common.rhs import Rhs, Scalar
from ...common.tolerances import Tolerances
from ..convergence import NewtonSettings
from ..linear import Factored, factorise, per_row
from ..newton import attach_gradient
from ..stepper import Constant, Step, combination, increment
from .coupled import couple, kronecker, mix
from .robust import Attempt, solve_robustly

Row = tuple[float, ...]

#: A simplified Newton iteration that converges slower than this had better have a new Jacobian at the next step.
SLOW = 0.05


@dataclass(frozen=True)
class ImplicitTableau:
    """Coefficients of an implicit Runge-Kutta method: all of ``a``, row by row.

    A method whose ``a`` is lower triangular is solved stage by stage, any other one for all stages at once. The
    diagonal of a triangular one may begin with a zero: an explicit first stage.
    """

    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row

    @property
    def triangular(self) -> bool:
        return all(w == 0.0 for i, row in enumerate(self.a) for w in row[i + 1 :])


class Iteration(NamedTuple):
    """What the stages have in common, and what is found out on the way."""

    rhs: Rhs
    t: Scalar
    dt: Scalar
    y: Tensor
    f0: Tensor
    dfdy: Tensor
    settings: NewtonSettings


class Stages(NamedTuple):
    """The stages ``u_i = dt k_i``, and a Jacobian for the next step (None where it had better have a new one)."""

    us: list[Tensor]
    converged: bool
    dfdy: Tensor | None


@dataclass
class FixedImplicit:
    """Steps an :class:`ImplicitTableau`. The carry is a Jacobian that still serves.

    Args:
        batched: the rows of the state are independent systems (one small Jacobian a row).
        second_order: gradients through the stages stay exact for the second derivative.
        max_iterations: of Newton's method, for each equation.
    """

    tableau: ImplicitTableau
    batched: bool = False
    second_order: bool = False
    max_iterations: int = 100
    adaptive: bool = False
    implicit: bool = True
    error_order: int = 0

    def __post_init__(self) -> None:
        tab = self.tableau
        self.order = tab.order
        self._inverse = None if tab.triangular else np.linalg.inv(np.array(tab.a))

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> None:
        return None

    def slope(self, carry: Any) -> None:
        return None

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Constant | None) -> Step:
        f0 = rhs(t, y)
        with torch.no_grad():
            dfdy = jacobian(rhs, t, y, batched=self.batched).dfdy if carry is None else carry.value
        solve = self._one_by_one if self._inverse is None else self._together
        stages = solve(Iteration(rhs, t, dt, y, f0, dfdy, self._settings(y)))
        y1 = y + combination(self.tableau.b, stages.us)
        return Step(
            y1=y1,
            error=None,
            interpolant=lambda: hermite(y, y1, f0, rhs(_node(t, dt, 1.0), y1), dt),
            # Rows that step for themselves are at different points: nothing is kept for them.
            carry=None if stages.dfdy is None or per_row(dt) else Constant(stages.dfdy),
            converged=stages.converged,
        )

    def _settings(self, y: Tensor) -> NewtonSettings:
        # NewtonSettings solves to a fraction of its tolerances; these bring it near rounding.
        near = 1e-9 if torch.finfo(y.dtype).eps < 1e-12 else 1e-6
        return NewtonSettings(Tolerances(near, near), self.batched, self.max_iterations)

    def _one_by_one(self, at: Iteration) -> Stages:
        tab, dfdy = self.tableau, at.dfdy
        us: list[Tensor] = []
        factors: dict[float, Factored] = {}
        converged = True
        latest: Tensor | None = dfdy
        for i, (c, row) in enumerate(zip(tab.c, tab.a, strict=True)):
            time, base, gamma = _node(at.t, at.dt, c), increment(at.y, 1.0, row[:i], us), row[i]
            if gamma == 0.0:
                us.append((at.f0 if i == 0 else at.rhs(time, base)) * at.dt)
                continue
            with torch.no_grad():
                if gamma not in factors:
                    factors[gamma] = factorise(dfdy, gamma * at.dt, batched=self.batched)
                guess = at.f0.detach() * (at.dt * gamma)
            x, attempt, found = self._solve(at.rhs, time, base, gamma * at.dt, guess, factors[gamma], at.settings)
            converged = converged and attempt.converged
            latest = found if found is not None else latest if attempt.rate < SLOW else None
            us.append(x / gamma)
        return Stages(us, converged, latest)

    def _together(self, at: Iteration) -> Stages:
        tab, dim, dt = self.tableau, 1 if self.batched else 0, at.dt
        assert self._inverse is not None
        wide = dt.unsqueeze(dim) if isinstance(dt, Tensor) and dt.dim() else dt
        system = couple(at.rhs, at.t, dt, at.y, tab.c, tab.a, dim)
        base = torch.stack([at.y] * len(tab.c), dim)
        with torch.no_grad():
            w = factorise(kronecker(tab.a, at.dfdy), dt, batched=self.batched)
            guess = torch.stack([at.f0.detach() * (dt * c) for c in tab.c], dim)
        x, attempt, found = self._solve(system, at.t, base, wide, guess, w, at.settings)
        dfdy = at.dfdy if attempt.rate < SLOW else None
        if found is not None:  # of the last stage: the last block on the diagonal
            size = found.shape[-1] // len(tab.c)
            dfdy = found[..., -size:, -size:] / tab.a[-1][-1]
        return Stages(list(mix(self._inverse, x, dim).unbind(dim)), attempt.converged, dfdy)

    def _solve(
        self, rhs: Rhs, t: Scalar, base: Tensor, h: Scalar, guess: Tensor, w: Factored, settings: NewtonSettings
    ) -> tuple[Tensor, Attempt, Tensor | None]:
        """The solution of ``x = h f(t, base + x)``; where a gradient is recorded, with that, and the Jacobian there."""
        attempt = solve_robustly(rhs, t, base, h, guess, w, settings)
        if not recording():
            return attempt.x, attempt, None
        x, _, here = attach_gradient(rhs, t, base, h, attempt.x, batched=self.batched, second_order=self.second_order)
        return x, attempt, here.dfdy


def _node(t: Scalar, dt: Scalar, c: float) -> Scalar:
    return t + dt if c == 1.0 else t + c * dt
