"""Automatic switching: an explicit method while the problem is not stiff, an implicit one while it is.

The explicit step's last two evaluations give a lower estimate of the dominant eigenvalue, ``|f2 - f1| / |y2 -
y1|`` (L. F. Shampine, "Stiffness and nonstiff differential equation solvers II", ACM Trans. Math. Softw. 3 (1977)
44-53; Hairer & Wanner II, section IV.2). Where it keeps the step at the edge of the stability region, accuracy
would allow longer ones and the implicit method takes over. On the way back the norm of the Jacobian, an upper
estimate, has to fit well inside.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ...errors import UnsupportedError
from ..common.jacobian import to_columns
from ..common.reading import to_float
from ..common.rhs import Rhs, Scalar
from ..common.tolerances import rms_norm, row_norm
from .linear import matrix_norm
from .rk.tableau import ExplicitRK, ExplicitTableau
from .stepper import Step, Stepper

#: Of the stability region: a longer step counts as stiff, a shorter one not.
MARGIN = 0.9
#: So many more stiff steps than others, and the implicit method takes over; so many in a row that are not, and
#: the explicit one does (OrdinaryDiffEq's values; SciPy and MATLAB do not switch).
TO_STIFF = 10
TO_NONSTIFF = 3


@runtime_checkable
class StiffStepper(Stepper, Protocol):
    """A stepper that can be switched to."""

    batched: bool

    def jacobian_of(self, carry: Any) -> Tensor | None:
        """The Jacobian that the last step from this carry used."""
        ...


class Carry(NamedTuple):
    #: The active method's own carry; None right after a switch.
    inner: Any
    stiff: bool
    #: Steps that spoke for a switch.
    votes: int
    #: Switches so far, both ways.
    switches: int


class _Watch:
    """A right-hand side that remembers its last two evaluations."""

    def __init__(self, rhs: Rhs):
        self.rhs = rhs
        self.last: list[tuple[Tensor, Tensor]] = []

    def __call__(self, t: Scalar, y: Tensor) -> Tensor:
        f = self.rhs(t, y)
        self.last = [*self.last[-1:], (y.detach(), f.detach())]
        return f


class AutoSwitchStepper:
    """Steps ``nonstiff`` or ``stiff``, by what the problem shows; all rows together.

    Raises:
        UnsupportedError: a non-stiff method that has fixed steps, which say nothing about stability, or is no
            Runge-Kutta method; a stiff one that is explicit.
    """

    adaptive = True
    implicit = True

    def __init__(self, nonstiff: Stepper, stiff: Stepper):
        if not (isinstance(nonstiff, ExplicitRK) and nonstiff.adaptive and isinstance(stiff, StiffStepper)):
            raise UnsupportedError(
                "AutoSwitch takes an adaptive explicit Runge-Kutta method (Tsit5, Dopri5, Vern7, ...), which can tell"
                " when a problem is stiff, and an implicit one (Rosenbrock23, Rodas5P, KenCarp4, Kvaerno5, QNDF)."
            )
        self.nonstiff, self.stiff = nonstiff, stiff
        self.order = min(nonstiff.order, stiff.order)
        self.error_order = nonstiff.error_order  # of the first step; every step says its own
        self._boundary = stability_boundary(nonstiff.tableau)

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Carry:
        if isinstance(t, Tensor) and t.dim():
            raise UnsupportedError(
                "per_sample=True with an automatic switching method: its rows switch together; name one of its two"
                " methods, or use per_sample=False."
            )
        return Carry(self.nonstiff.start(rhs, t, y), False, 0, 0)

    def slope(self, carry: Carry) -> Tensor | None:
        if carry.inner is None:
            return None
        return self._active(carry).slope(carry.inner)

    def _active(self, carry: Carry) -> Stepper:
        return self.stiff if carry.stiff else self.nonstiff

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Carry) -> Step:
        active, inner = self._active(carry), carry.inner
        if inner is None:
            inner = active.start(rhs, t, y)
        if carry.stiff:
            step = active.step(rhs, t, dt, y, inner)
            found = self.stiff.jacobian_of(inner)
            eigenvalue = float("inf") if found is None else matrix_norm(found)
        else:
            watch = _Watch(rhs)
            step = active.step(watch, t, dt, y, inner)  # type: ignore[arg-type]  # it only ever calls it
            eigenvalue = self._estimate(watch.last)
        step.carry = self._vote(carry, step.carry, eigenvalue * abs(to_float(dt)))
        if step.error_order is None:
            step.error_order = active.error_order
        return step

    def _vote(self, carry: Carry, inner: Any, reach: float) -> Carry:
        """The next carry, of the other method where enough steps spoke for it."""
        looks_stiff = reach > MARGIN * self._boundary
        if carry.stiff:
            votes = 0 if looks_stiff else carry.votes + 1
            switch = votes >= TO_NONSTIFF
        else:
            # The controller bounces off the stability boundary: a single short step takes back one vote, not all.
            votes = carry.votes + 1 if looks_stiff else max(0, carry.votes - 1)
            switch = votes >= TO_STIFF
        if switch:
            return Carry(None, not carry.stiff, 0, carry.switches + 1)
        return Carry(inner, carry.stiff, votes, carry.switches)

    @torch.no_grad()
    def _estimate(self, last: list[tuple[Tensor, Tensor]]) -> float:
        """A lower estimate of the largest |eigenvalue| (of the stiffest row)."""
        (y1, f1), (y2, f2) = last
        rise, run = f2 - f1, y2 - y1
        if self.stiff.batched:
            rise, run = row_norm(to_columns(rise, True)), row_norm(to_columns(run, True))
        else:
            rise, run = rms_norm(rise), rms_norm(run)
        return to_float(torch.where(run > 0, rise / run, 0.0).max())


def stability_boundary(tableau: ExplicitTableau) -> float:
    """How far the stability region reaches along the negative real axis."""
    stages = len(tableau.c)
    a = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = row
    # R(z) = 1 + sum_k z^(k+1) b A^k 1, a polynomial, as A is nilpotent.
    coefficients, power = [1.0], np.ones(stages)
    b = np.array(tableau.b)
    for _ in range(stages):
        coefficients.append(float(b @ power))
        power = a @ power
    z = np.linspace(0.0, 50.0, 50_001)
    growth = np.abs(np.polynomial.polynomial.polyval(-z, coefficients))
    return float(z[int(np.argmax(growth > 1.0 + 1e-9))])
