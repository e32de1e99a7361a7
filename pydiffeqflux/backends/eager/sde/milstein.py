"""Milstein's method."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...common.sde import Sde
from .scheme import Move, Scheme


class MilsteinScheme(Scheme):
    """``y + f dt + g dW + 1/2 sum_k (dg_k/dy) g_k I``, I being ``dW_k^2 - dt`` (Ito) or ``dW_k^2`` (Stratonovich)."""

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        w = sde.path.increment(t, dt)
        square = w * w
        if sde.interpretation == "ito":
            square = square - dt
        g, term = sde.along_itself(t, y, 0.5 * square)
        return y + sde(t, y) * dt + sde.times(g, w) + term, None, None


class DerivativeFreeMilstein(Scheme):
    """The derivative by a difference along the diffusion, over the square root of the step.

    Kloeden & Platen (1992), section 11.1.
    """

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        w = sde.path.increment(t, dt)
        root = abs(dt) ** 0.5
        f, g = sde.both(t, y)
        square, ahead = w * w, y
        if sde.interpretation == "ito":
            square, ahead = square - dt, y + f * dt
        moved = sde.diffusion(t, ahead + root * (g if sde.elementwise else g.squeeze(-1)))
        return y + f * dt + sde.times(g, w) + sde.times(moved - g, square) / (2 * root), None, None
