"""Euler-Maruyama."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...common.sde import Sde
from .scheme import Move, Scheme


class EulerMaruyama(Scheme):
    """``y + f dt + g dW``."""

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        f, noise = sde.both_product(t, y, sde.path.increment(t, dt))
        return y + f * dt + noise, None, None
