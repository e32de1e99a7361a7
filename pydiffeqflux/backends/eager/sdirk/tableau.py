"""ESDIRK methods: diagonally implicit, one diagonal coefficient, an explicit first stage.

The carry's slope is the previous step's last stage (the methods are stiffly accurate: that stage *is* the
solution), so the first stage costs nothing. All others solve ``M x = gamma dt f(t_i, base + x)`` by Newton's
method with one factorisation (M is the mass matrix, or the identity). Stage values are kept as ``u_i = dt k_i = x_i /
gamma``: f is not evaluated at the solution, where stiffness would magnify what Newton left over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ....tracking import recording
from ...common.dense import HERMITE, Coefficients, Interpolant
from ...common.jacobian import Memo
from ...common.rhs import Rhs, Scalar
from ...common.tolerances import Tolerances
from ..convergence import NewtonSettings
from ..linear import Factored, Flags, as_converged, factorise, per_row
from ..newton import Solved, attach_gradient, solve_stage
from ..stepper import Constant, Step, Terms, advance, combine, nonzero

Row = tuple[float, ...]

#: Newton converging slower than this asks for a new Jacobian at the next step (SciPy's and RADAU5's value).
SLOW = 1e-3


@dataclass(frozen=True)
class EsdirkTableau:
    """Coefficients of a stiffly accurate ESDIRK pair.

    Attributes:
        order: of the solution carried on.
        error_order: of the embedded solution (the controller's exponent is 1 / (error_order + 1)).
        gamma: the diagonal coefficient.
        c: nodes.
        a: strictly lower stage weights (``a[i]`` has i entries); the last row with gamma are the weights b.
        error: weights of the error estimate, ``b - b_hat``.
        predictor: for each stage, weights of the earlier stages' slopes that predict its own.
        dense: interpolant weights, one row a stage, one column a power of theta from 1 on; None for the
            cubic Hermite interpolant.
    """

    order: int
    error_order: int
    gamma: float
    c: Row
    a: tuple[Row, ...]
    error: Row
    predictor: tuple[Row, ...]
    dense: tuple[Row, ...] | None = None


class Carry(NamedTuple):
    #: The slope at the current point.
    f: Tensor
    #: A Jacobian from an earlier point that still serves; None asks for a new one.
    jacobian: Constant | None
    memo: Memo


@dataclass
class _Newton:
    """The Jacobian and factors in use during one step; they change when Newton asks for better ones."""

    refresh: Callable[[], Tensor]
    factor: Callable[[Tensor], Factored]
    jacobian: Tensor
    fresh: bool
    w: Factored = field(init=False)
    solved: Flags = field(init=False)
    rate: float = 0.0
    iterations: int = 0

    def __post_init__(self) -> None:
        self.w = self.factor(self.jacobian)
        self.solved = np.ones_like(self.w.regular)

    def note(self, stage: Solved) -> None:
        self.solved = self.solved & stage.solved
        self.rate, self.iterations = max(self.rate, stage.rate), max(self.iterations, stage.iterations)

    def renew(self) -> None:
        self.jacobian, self.fresh = self.refresh(), True
        self.w = self.factor(self.jacobian)


@dataclass
class Esdirk:
    """Steps an :class:`EsdirkTableau`.

    Args:
        tol: the solve's tolerances; the stage equations are solved to a fraction of them.
        batched: the rows of the state are independent systems.
        second_order: gradients through the stages stay exact for the second derivative.
    """

    tableau: EsdirkTableau
    tol: Tolerances
    batched: bool = False
    second_order: bool = False
    adaptive: bool = True
    implicit: bool = True

    def __post_init__(self) -> None:
        tab = self.tableau
        self.order, self.error_order = tab.order, tab.error_order
        self._settings = NewtonSettings(self.tol, self.batched)
        self._bases: list[Terms] = [nonzero(row) for row in tab.a]
        self._predictors: list[Terms] = [nonzero(row) for row in tab.predictor]
        self._b, self._error = nonzero((*tab.a[-1], tab.gamma)), nonzero(tab.error)
        dense: Coefficients = np.array(HERMITE if tab.dense is None else tab.dense, dtype=np.float64)
        self._used: list[int] = np.flatnonzero(dense.any(axis=1)).tolist()
        self._dense: Coefficients = dense[self._used]

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Carry:
        return Carry(rhs.derivative(t, y), None, Memo())

    def slope(self, carry: Carry) -> Tensor:
        return carry.f

    def jacobian_of(self, carry: Carry) -> Tensor | None:
        """The Jacobian that the last step from this carry began with."""
        if carry.memo.linearised is not None:
            return carry.memo.linearised.dfdy
        return None if carry.jacobian is None else carry.jacobian.value

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Carry) -> Step:
        newton = self._newton(rhs, t, dt, y, carry)
        stages = [carry.f * dt]
        while len(stages) < len(self.tableau.c) and newton.solved.any():
            stages.append(self._stage(rhs, t, dt, y, stages, newton))
        if not newton.solved.any():
            return Step(y, torch.zeros_like(y), lambda: self._interpolant(y, y, stages), carry, converged=False)
        y1 = advance(y, 1.0, self._b, stages)
        with torch.no_grad():
            # Filtered by W^-1: unfiltered, the estimate of a stiff component is far larger than its error.
            error = newton.w.solve(rhs.weighed(combine(self._error, stages)))
        # Rows that step for themselves are at different points: nothing is kept for them.
        keep = not per_row(dt) and (newton.rate < SLOW or newton.iterations <= 2)
        return Step(
            y1=y1,
            error=error,
            interpolant=lambda: self._interpolant(y, y1, stages),
            carry=Carry(stages[-1] / dt, Constant(newton.jacobian) if keep else None, Memo()),
            converged=as_converged(newton.solved, y),
        )

    def _newton(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Carry) -> _Newton:
        @torch.no_grad()
        def refresh() -> Tensor:
            return carry.memo.at(rhs, t, y, batched=self.batched, with_time=False).dfdy

        @torch.no_grad()
        def factor(dfdy: Tensor) -> Factored:
            return factorise(dfdy, self.tableau.gamma * dt, batched=self.batched, leading=rhs.leading)

        # After a rejected attempt that renewed the Jacobian here, the memo has it.
        if carry.jacobian is None or carry.memo.linearised is not None:
            return _Newton(refresh, factor, refresh(), True)
        return _Newton(refresh, factor, carry.jacobian.value, False)

    def _stage(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, stages: list[Tensor], newton: _Newton) -> Tensor:
        """``dt`` times the next stage's slope; ``newton.solved`` tells where Newton failed with a new Jacobian too."""
        tab, i = self.tableau, len(stages)
        time, h = (t + dt if tab.c[i] == 1.0 else t + tab.c[i] * dt), tab.gamma * dt
        base = advance(y, 1.0, self._bases[i], stages)
        with torch.no_grad():
            guess = combine(self._predictors[i], stages, tab.gamma)
        found = solve_stage(rhs, time, base, h, guess, newton.w, self._settings)
        if not found.converged and not newton.fresh:
            newton.renew()
            found = solve_stage(rhs, time, base, h, guess, newton.w, self._settings)
        newton.note(found)
        if not (recording() and newton.solved.any()):
            return found.x / tab.gamma
        x, newton.w, here = attach_gradient(
            rhs, time, base, h, found.x, batched=self.batched, second_order=self.second_order
        )
        newton.jacobian = here.dfdy
        newton.fresh = False
        return x / tab.gamma

    def _interpolant(self, y: Tensor, y1: Tensor, stages: list[Tensor]) -> Interpolant:
        if self.tableau.dense is None:
            return Interpolant(y, (y1 - y, stages[0], stages[-1]), self._dense, None)
        return Interpolant(y, [stages[i] for i in self._used], self._dense, None)
