"""Heun's method for Stratonovich equations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...common.sde import Sde
from .scheme import Move, Scheme


class HeunScheme(Scheme):
    """Drift and diffusion: the mean over both ends of an Euler step."""

    order = 2

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        w = sde.path.increment(t, dt)
        first = sde.flow(t, y, dt, w)
        return y + 0.5 * (first + sde.flow(t + dt, y + first, dt, w)), None, None
