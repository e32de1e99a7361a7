"""Rosenbrock methods: one Jacobian and one factorisation a step, and no iteration.

Written for the transformed stages of Hairer & Wanner II, section IV.7 (equation 7.25), which need no product
with the Jacobian. With ``W = M - gamma dt df/dy`` (M the mass matrix, or the identity) each stage solves::

    W u_i = gamma (dt f(t + c_i dt, y + sum_j a_ij u_j) + M sum_j C_ij u_j + d_i dt^2 df/dt)

and the step ends at ``y + sum_i b_i u_i``. Everything is explicit in the Jacobian, so that the autograd graph
through it (second derivatives of the right-hand side) is the exact derivative of the step, of any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...common.dense import Coefficients, Interpolant
from ...common.jacobian import Linearised, Memo
from ...common.rhs import Rhs, Scalar
from ..linear import factorise
from ..stepper import Step, Terms, advance, combine, nonzero

Row = tuple[float, ...]


@dataclass(frozen=True)
class RosenbrockTableau:
    """Coefficients of a Rosenbrock pair in transformed form.

    Attributes:
        order: of the solution carried on.
        error_order: of the embedded solution (the controller's exponent is 1 / (error_order + 1)).
        gamma: the diagonal coefficient, the same for all stages.
        c, a: nodes, and weights of earlier stages in a stage's state (``a[i]`` has i entries).
        coupling: the C above.
        d: weights of df/dt.
        b: weights of the solution.
        error: weights of the error estimate.
        dense: interpolant weights, one row a stage, one column a power of theta from 1 on.
    """

    order: int
    error_order: int
    gamma: float
    c: Row
    a: tuple[Row, ...]
    coupling: tuple[Row, ...]
    d: Row
    b: Row
    error: Row
    dense: tuple[Row, ...]

    @property
    def fsal(self) -> bool:
        """The last stage evaluates f at the new point."""
        return self.c[-1] == 1.0 and self.a[-1] == self.b[:-1] and self.b[-1] == 0.0


class Carry(NamedTuple):
    #: f at the current point, where the last step evaluated it.
    f: Tensor | None
    memo: Memo


@dataclass
class Rosenbrock:
    """Steps a :class:`RosenbrockTableau`."""

    tableau: RosenbrockTableau
    batched: bool = False
    adaptive: bool = True
    implicit: bool = True

    def __post_init__(self) -> None:
        tab = self.tableau
        self.order, self.error_order = tab.order, tab.error_order
        self._states: list[Terms] = [nonzero(row) for row in tab.a]
        self._couplings: list[Terms] = [nonzero([tab.gamma * c for c in row]) for row in tab.coupling]
        self._b, self._error = nonzero(tab.b), nonzero(tab.error)
        dense: Coefficients = np.array(tab.dense, dtype=np.float64)
        self._used: list[int] = np.flatnonzero(dense.any(axis=1)).tolist()
        self._dense: Coefficients = dense[self._used]

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Carry:
        return Carry(rhs(t, y) if self._keeps_f(rhs) else None, Memo())

    def _keeps_f(self, rhs: Rhs) -> bool:
        """Whether f at the step's end is handed on; with a mass matrix it is not the slope of the solution."""
        return self.tableau.fsal and rhs.mass is None

    def slope(self, carry: Carry) -> Tensor | None:
        return carry.f

    def jacobian_of(self, carry: Carry) -> Tensor | None:
        """The Jacobian that the last step from this carry used."""
        return None if carry.memo.linearised is None else carry.memo.linearised.dfdy

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Carry) -> Step:
        tab = self.tableau
        here = carry.memo.at(rhs, t, y, batched=self.batched, with_time=True)
        if carry.f is None:
            rhs.nf += 1  # the Jacobian's own evaluation serves as the first stage's
        w = factorise(here.dfdy, tab.gamma * dt, batched=self.batched, leading=here.leading)
        f = here.f
        stages: list[Tensor] = []
        for i in range(len(tab.c)):
            if i:
                f = rhs(t + dt if tab.c[i] == 1.0 else t + tab.c[i] * dt, advance(y, 1.0, self._states[i], stages))
            stages.append(w.solve(self._stage_rhs(rhs, i, dt, f, here, stages)))
        y1 = advance(y, 1.0, self._b, stages)
        with torch.no_grad():
            error = combine(self._error, stages)
        return Step(
            y1=y1,
            error=error,
            interpolant=lambda: Interpolant(y, [stages[i] for i in self._used], self._dense, None),
            carry=Carry(f if self._keeps_f(rhs) else None, Memo()),
            converged=w.converged,
        )

    def _stage_rhs(self, rhs: Rhs, i: int, dt: Scalar, f: Tensor, here: Linearised, stages: list[Tensor]) -> Tensor:
        tab = self.tableau
        total = f * (tab.gamma * dt)
        if tab.d[i] != 0.0 and here.dfdt is not None:
            weight = tab.gamma * tab.d[i] * dt * dt
            total = total + here.dfdt * weight if isinstance(weight, Tensor) else total.add(here.dfdt, alpha=weight)
        if rhs.mass is not None and self._couplings[i]:
            return total + rhs.weighed(combine(self._couplings[i], stages))
        return advance(total, 1.0, self._couplings[i], stages)
