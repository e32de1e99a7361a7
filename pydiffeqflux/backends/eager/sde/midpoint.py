"""The midpoint rule for Stratonovich equations, and the log-ODE method that is built on it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...common.sde import Sde
from .scheme import Move, Scheme


class MidpointScheme(Scheme):
    """Drift and diffusion in the middle of an Euler step."""

    order = 2

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        w = sde.path.increment(t, dt)
        first = sde.flow(t, y, dt, w)
        return y + sde.flow(t + 0.5 * dt, y + 0.5 * first, dt, w), None, None


class LogOdeScheme(Scheme):
    """The midpoint rule plus ``sum_jk A_jk (dg_k/dy) g_j``, the brackets of the diffusion's columns times Levy area."""

    order = 2

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        w, area = sde.path.with_levy_area(t, dt)
        when, middle = t + 0.5 * dt, y + 0.5 * sde.flow(t, y, dt, w)
        f, g = sde.both(when, middle)
        y1 = y + f * dt + sde.times(g, w)
        if sde.noise == "general":
            y1 = y1 + sde.along(when, middle, g @ area)
        return y1, None, None
