"""Events as torchdiffeq has them: the first zero ends the solve, and ``odeint`` leaves its time constant.

``odeint(..., event_fn=...)`` gives the state's gradient at a fixed event time; ``odeint_event`` adds how that
time moves. So a program that links the two itself, as torchdiffeq's users may, does not get it twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..backends.common.crossing import Crossing, condition
from ..backends.common.dense import Interpolant
from ..backends.common.events import EventWatch
from ..backends.common.rhs import Rhs, Scalar
from ..callbacks import Event
from ..errors import NonFiniteError
from ..problem import TimePoint
from ..tracking import recording


class FixedTimeWatch(EventWatch):
    """Takes the signs at the start as they are, and the time of the event as a constant."""

    @torch.no_grad()
    def begin(self, t: float, y: Tensor) -> None:
        self._signs = [condition(self.rhs, event, t, y).sign() for event in self.events]

    def _crossing(
        self, theta: float, index: int, t: float, dt: float, piece: Interpolant, clock: tuple[Tensor, Scalar] | None
    ) -> Crossing:
        when = t + theta * dt
        if clock is None or not recording():
            return Crossing(index, TimePoint(when), piece.at([theta])[0])
        start, size = clock
        return Crossing(index, TimePoint(when), piece.at_tensor((when - start) / size))


@torch.no_grad()
def zero_at_start(rhs: Rhs, event: Event, t: float, y: Tensor) -> bool:
    """Whether the solve is at the event already, to the last digit."""
    return bool((condition(rhs, event, t, y) == 0).any())


def first_zero(gap: Callable[[float], float]) -> float:
    """Where in [0, 1] a function that starts positive comes to zero; 1 where it does so at the end only.

    Raises:
        NonFiniteError: the function is NaN somewhere.
    """

    def checked(theta: float) -> float:
        value = gap(theta)
        if math.isnan(value):
            raise NonFiniteError("event_fn is NaN near the event; it must be a number on both sides of its zero.")
        return value

    if checked(0.0) <= 0.0:
        return 0.0
    if checked(1.0) >= 0.0:
        return 1.0
    from scipy.optimize import brentq  # SciPy is slow to import

    return float(brentq(checked, 0.0, 1.0, xtol=1e-15, rtol=1e-14, maxiter=500, disp=False))
