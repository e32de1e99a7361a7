"""Euler-Heun: the simplest method that solves Stratonovich equations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...common.sde import Sde
from .scheme import Move, Scheme


class EulerHeunScheme(Scheme):
    """The drift where the step starts; the diffusion's mean over both ends of a step without drift."""

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        w = sde.path.increment(t, dt)
        f, noise = sde.both_product(t, y, w)
        return y + f * dt + 0.5 * (noise + sde.product(t + dt, y + noise, w)), None, None
