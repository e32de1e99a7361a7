"""``F(t, y, y') = 0`` as the steppers see it.

Which entries of y are differential is known. The unknowns of a consistent start are the derivatives of those and the
values of all others: with u either of the two for each entry, B = dF/du has a column of dF/dy' or of dF/dy, and index 1
means that it has an inverse (P. N. Brown, A. C. Hindmarsh & L. R. Petzold, "Consistent initial condition calculation
for differential-algebraic systems", SIAM J. Sci. Comput. 19 (1998) 1495-1512). Differentiated once more in time, the
same matrix gives the derivatives of the algebraic variables.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...dae_problem import DAEProblem
from ...errors import HighIndexError, InitialisationError, ShapeError
from ..backend import SolveOptions
from .autocast import as_called
from .jacobian import Linearised, differentiate, from_columns, to_columns
from .mass import is_singular
from .reading import to_float
from .rhs import Rhs, Scalar
from .settle import Policy, policy_of, settled


class ImplicitRhs(Rhs):
    """The residual of a :class:`DAEProblem`.

    Args:
        problem: with a consistent state, or one near it.
        policy: what to do with a state that is not consistent.
    """

    def __init__(self, problem: DAEProblem, policy: Policy):
        self._function = as_called(problem.residual, problem.packed)
        super().__init__(self._function, problem.spec, problem.packed)
        self.policy, self.batched = policy, problem.batched
        self.mask = problem.mask
        #: A derivative near that of the current state; at the very start the user's, which is checked too.
        self.near = problem.packed_slope.detach()
        self._given = True
        self.linearise_implicit = self.linearised

    def residual(self, t: Scalar, y: Tensor, dy: Tensor) -> Tensor:
        """F, counted and (the first time) checked."""
        self.nf += 1
        return self._residual(self.time(t), y, dy)

    def _residual(self, time: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        spec = self.spec
        if self._checked:
            return self._function(time, y, dy) if spec is None else self._flat(time, y, dy)
        slope = dy if spec is None else spec.unflatten(dy)
        out = self._guarded(lambda t, y: self._function(t, y, slope), "the residual", time, y)
        if spec is not None:
            out = spec.flatten(out, "the residual's return value")
        if not isinstance(out, Tensor) or out.shape != y.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(f"the residual returned {got}; it must have the shape of the state, {tuple(y.shape)}.")
        self._check(out, y)
        self._checked = True
        return out

    def _flat(self, time: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        assert self.spec is not None
        value: Any = self._function(time, self.spec.unflatten(y), self.spec.unflatten(dy))
        return self.spec.flatten(value, "the residual's return value")

    def evaluate(self, t: Scalar, y: Tensor) -> Tensor:
        """The residual of the latest derivative: what the loop asks for in order to see whether it is finite."""
        return self._residual(self.time(t), y, self.near)

    def stacked(self, t: Scalar, both: Tensor) -> Tensor:
        """The residual of the state and, behind it, its derivative, flat."""
        y, dy = (part.reshape(self.mask.shape) for part in both.chunk(2))
        return self._residual(self.time(t), y, dy).reshape(-1)

    def defect(self, t: Scalar, y: Tensor, x: Tensor, h: Scalar) -> Tensor:
        return self.residual(t, y, x / h) * -h

    def linearised(self, t: Scalar, y: Tensor, dy: Tensor, batched: bool, with_time: bool = False) -> Linearised:
        """``F``, ``-dF/dy`` and ``dF/dy'``, in the places of f, df/dy and M of ``M y' = f`` (and dF/dt)."""
        by_y = differentiate(
            self, lambda time, z: self._residual(time, z, dy), t, y, batched=batched, with_time=with_time
        )
        by_dy = differentiate(
            self, lambda time, slope: self._residual(time, y, slope), t, dy, batched=batched, with_time=False
        )
        return Linearised(by_y.f, -by_y.dfdy, by_y.dfdt, by_dy.dfdy)

    # -- consistent states ------------------------------------------------------------------------

    def _both(self, u: Tensor, y: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """y and y' with the unknowns in their places."""
        return torch.where(self.mask, y, u), torch.where(self.mask, u, dy)

    def _unknowns(self, t: Scalar, y: Tensor, policy: Policy) -> Tensor:
        """u at a state with these differential variables."""
        near = self.near

        def equations(u: Tensor) -> Tensor:
            return self.residual(t, *self._both(u, y, near))

        def matrix(u: Tensor) -> Tensor:
            self.njac += 1
            return self._columns(self.linearised(t, *self._both(u, y, near), self.batched))

        start = torch.where(self.mask, near, y)
        return settled(start, equations, matrix, policy, to_float(t), batched=self.batched, check=_check_index)

    def _columns(self, here: Linearised) -> Tensor:
        """B, ``(N, N)`` or one a row."""
        assert here.leading is not None
        chosen = to_columns(self.mask, self.batched).unsqueeze(-2)
        return torch.where(chosen, here.leading, -here.dfdy)

    def settle(self, t: Scalar, y: Tensor) -> Tensor:
        # The derivative is checked where the user gave one; after a jump only the algebraic variables are.
        if not self._given:
            self.near = self._unknowns_of_slope(t, y)
        u = self._unknowns(t, y, self.policy)
        self._given = False
        y, dy = self._both(u, y, self.near)
        self.near = dy.detach()
        return y

    def _unknowns_of_slope(self, t: Scalar, y: Tensor) -> Tensor:
        """After a jump: a derivative that belongs to the nearest consistent state."""
        with torch.no_grad():
            u = self._unknowns(t, y, Policy(self.policy.tol, solve=True))
            return self._both(u, y, self.near)[1]

    def derivative(self, t: Scalar, y: Tensor) -> Tensor:
        """dy/dt at a consistent state; NaN where there is none near it."""
        try:
            u = self._unknowns(t, y, Policy(self.policy.tol, solve=True))
        except InitialisationError:
            return torch.full_like(y, math.nan)
        y, dy = self._both(u, y, self.near)
        here = self.linearised(t, y, dy, self.batched, with_time=True)
        # 0 = dF/dt + dF/dy_d y_d' + B (y_a', y_d''), of which the algebraic part is wanted.
        known = torch.where(self.mask, dy, 0.0)
        moving = -(here.dfdy @ to_columns(known, self.batched).unsqueeze(-1)).squeeze(-1)
        if here.dfdt is not None:
            moving = moving + to_columns(here.dfdt, self.batched)
        rest = torch.linalg.solve_ex(self._columns(here), -moving.unsqueeze(-1))[0].squeeze(-1)
        return torch.where(self.mask, dy, from_columns(rest, y))


def _check_index(matrix: Tensor, t: float) -> None:
    if is_singular(matrix):
        raise HighIndexError(
            f"at t={t:.6g} the equations do not determine the derivatives of the differential variables and the"
            f" algebraic variables: the index is above 1, or differential_vars names the wrong entries. Replace"
            f" constraints by their derivatives in time until every algebraic variable appears in one of them."
        )


def implicit_rhs(problem: DAEProblem, options: SolveOptions) -> ImplicitRhs:
    """The equation of a problem, as the loop steps along it."""
    return ImplicitRhs(problem, policy_of(options))
