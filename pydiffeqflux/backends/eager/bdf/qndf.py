"""QNDF: the variable-order, quasi-constant-step method of ode15s, orders 1 to 5 (1 and 2 L-stable).

L. F. Shampine & M. W. Reichelt, "The MATLAB ODE suite", SIAM J. Sci. Comput. 18 (1997) 1-22, section 2. Order and
step selection follow SciPy's BDF. Dense output is the polynomial through the last order + 1 points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ....errors import UnsupportedError
from ....tracking import recording
from ...common.dense import Interpolant
from ...common.jacobian import stage_jacobian
from ...common.reading import to_float
from ...common.rhs import Rhs, Scalar
from ...common.tolerances import Tolerances
from ..convergence import NewtonSettings
from ..linear import Factored, factorise
from ..newton import Solved, attach_gradient, solve_stage
from ..stepper import Step
from . import coefficients as ndf

NEWTON_ITERATIONS = 4
MAX_FACTOR = 10.0


@dataclass(slots=True)
class Frozen:
    """Constants of the Newton iteration that serve step after step: no gradient passes through them."""

    jacobian: Tensor
    w: Factored
    #: The h in ``W = M - h df/dy``.
    h: Scalar
    #: M, where it is not the identity.
    leading: Tensor | None


class Carry(NamedTuple):
    #: The slope at the current point.
    f: Tensor
    #: ``(ROWS, *state)``, the backward differences; None before the first step.
    table: Tensor | None
    #: The step that the table is for.
    dt: Scalar
    order: int
    #: Steps taken with this dt and order.
    equal: int
    frozen: Frozen | None


@dataclass
class Qndf:
    """Steps the NDF family.

    Args:
        tol: the solve's tolerances; Newton's method and the choice of the order go by them.
        batched: the rows of the state are independent systems: one small Jacobian a row. They share the step
            and the order all the same.
        second_order: gradients through the implicit equation stay exact for the second derivative.
    """

    tol: Tolerances
    batched: bool = False
    second_order: bool = False
    order: int = ndf.MAX_ORDER
    #: Of the first steps, which have order 1.
    error_order: int = 1
    adaptive: bool = True
    implicit: bool = True

    def __post_init__(self) -> None:
        self._settings = NewtonSettings(self.tol, self.batched, NEWTON_ITERATIONS)

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Carry:
        if isinstance(t, Tensor) and t.dim():
            raise UnsupportedError(
                "per_sample=True with method='qndf': its rows share one step and one order; use 'rodas5p',"
                " 'rosenbrock23', 'kencarp4' or 'kvaerno5' per sample, or per_sample=False."
            )
        return Carry(rhs.derivative(t, y), None, 0.0, 1, 0, None)

    def slope(self, carry: Carry) -> Tensor:
        return carry.f

    def jacobian_of(self, carry: Carry) -> Tensor | None:
        """The Jacobian that served last."""
        return None if carry.frozen is None else carry.frozen.jacobian

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Carry) -> Step:
        order = carry.order
        table, equal = self._table(dt, y, carry)
        predicted, known = _apply(ndf.predictor(order), table)
        h, base = dt / float(ndf.ALPHA[order]), predicted - known
        solved, frozen = self._solve(rhs, t + dt, base, h, known, carry.frozen)
        x = solved.x
        if solved.converged and recording():
            x, w, here = attach_gradient(rhs, t + dt, base, h, x, batched=self.batched, second_order=self.second_order)
            frozen = Frozen(here.dfdy, w, h, here.leading)
        correction = x - known
        table = _apply(ndf.advance(order), torch.cat([table, correction.unsqueeze(0)]))
        y1 = base + x
        error = correction.detach() * float(ndf.ERROR[order])
        factor, order_next = 1.0, order
        if solved.converged and equal >= order:
            factor, order_next = self._choose(order, table.detach(), error, y, y1, solved.iterations)
        return Step(
            y1=y1,
            error=error,
            interpolant=lambda: Interpolant(y, table[1 : order + 1].unbind(), ndf.dense(order), None),
            # A change of order starts the count again, as one of the step does.
            carry=Carry(x / h, table, dt, order_next, equal + 1 if order_next == order else 0, frozen),
            converged=solved.converged,
            error_order=order,
            factor=factor,
        )

    def _table(self, dt: Scalar, y: Tensor, carry: Carry) -> tuple[Tensor, int]:
        """The differences for steps of ``dt``, and how many such steps lie behind."""
        if carry.table is None:
            first = torch.stack([y, carry.f * dt])
            return torch.cat([first, first.new_zeros(ndf.ROWS - 2, *y.shape)]), 0
        if isinstance(dt, float) and dt == carry.dt:
            return carry.table, carry.equal
        return _apply(ndf.rescale(carry.order, dt / carry.dt), carry.table), 0

    @torch.no_grad()
    def _solve(
        self, rhs: Rhs, t: Scalar, base: Tensor, h: Scalar, guess: Tensor, frozen: Frozen | None
    ) -> tuple[Solved, Frozen]:
        """Solve the implicit equation; with a new Jacobian only where the old one does not do."""
        if frozen is not None:
            if not (isinstance(h, float) and h == frozen.h):
                w = factorise(frozen.jacobian, h, batched=self.batched, leading=frozen.leading)
                frozen = Frozen(frozen.jacobian, w, h, frozen.leading)
            solved = solve_stage(rhs, t, base, h, guess, frozen.w, self._settings)
            if solved.converged:
                return solved, frozen
        here = stage_jacobian(rhs, t, base + guess, guess, h, batched=self.batched)
        w = factorise(here.dfdy, h, batched=self.batched, leading=here.leading)
        frozen = Frozen(here.dfdy, w, h, here.leading)
        return solve_stage(rhs, t, base, h, guess, frozen.w, self._settings), frozen

    def _choose(
        self, order: int, table: Tensor, error: Tensor, y: Tensor, y1: Tensor, iterations: int
    ) -> tuple[float, int]:
        """The step's growth and the next order: of the neighbouring orders the one that allows the longest step."""
        errors = {order: error}
        if order > 1:
            errors[order - 1] = table[order] * float(ndf.ERROR[order - 1])
        if order < ndf.MAX_ORDER:
            errors[order + 1] = table[order + 2] * float(ndf.ERROR[order + 1])
        growth = {}
        for k, estimate in errors.items():
            ratio = max(to_float(self.tol.ratio(estimate, y, y1)), 1e-10)
            growth[k] = ratio ** (-1.0 / (k + 1))
        best = max(growth, key=lambda k: growth[k])
        # The more iterations Newton needed, the less is hoped for.
        safety = 0.9 * (2 * NEWTON_ITERATIONS + 1) / (2 * NEWTON_ITERATIONS + iterations)
        return min(MAX_FACTOR, safety * growth[best]), best


def _apply(matrix: ndf.Matrix | Tensor, table: Tensor) -> Tensor:
    """A matrix applied to the rows of a table."""
    weights = torch.as_tensor(matrix).to(table)
    return (weights @ table.reshape(table.shape[0], -1)).reshape(weights.shape[0], *table.shape[1:])
