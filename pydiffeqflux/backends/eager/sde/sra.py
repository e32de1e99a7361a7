"""Roessler's SRA methods: Runge-Kutta for additive noise, of strong order 1.5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...common.sde import Sde
from ..stepper import advance, nonzero
from .scheme import Move, Scheme

Row = Sequence[float]


@dataclass(frozen=True)
class SraTableau:
    """Coefficients as in Roessler (2010), section 6; row i of a matrix has the i entries below the diagonal.

    ``H_i = y + dt sum_j a0_ij f(t + c0_j dt, H_j) + sum_j b0_ij g(t + c1_j dt) I_(1,0) / dt`` and
    ``y1 = y + dt sum_i alpha_i f_i + sum_i (beta1_i I_(1) + beta2_i I_(1,0) / dt) g(t + c1_i dt)``.
    """

    c0: Row
    c1: Row
    a0: Sequence[Row]
    b0: Sequence[Row]
    alpha: Row
    beta1: Row
    beta2: Row
    order: int = 2


class Sra(Scheme):
    """The stepper of a tableau; the error estimate is the distance to Euler-Maruyama on the same path."""

    def __init__(self, tableau: SraTableau, adaptive: bool):
        self.tableau, self.adaptive, self.order = tableau, adaptive, tableau.order
        #: Stages at whose time the diffusion is wanted.
        self._noisy = [
            bool(b1 or b2 or any(len(row) > i and row[i] for row in tableau.b0))
            for i, (b1, b2) in enumerate(zip(tableau.beta1, tableau.beta2, strict=True))
        ]

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        tab = self.tableau
        w, u = sde.path.with_integral(t, dt)
        mean = u / dt
        at: dict[float, Tensor] = {}  # the diffusion by the times at which it is wanted
        for c, noisy in zip(tab.c1, self._noisy, strict=True):
            if noisy and c not in at:
                at[c] = sde.diffusion(t + c * dt, y)
        by_mean = {c: sde.times(g, mean) for c, g in at.items()}
        slopes: list[Tensor] = []
        for i, c in enumerate(tab.c0):
            stage = advance(y, dt, nonzero(tab.a0[i]), slopes)
            for b, c1 in zip(tab.b0[i], tab.c1, strict=False):
                if b:
                    stage = stage + b * by_mean[c1]
            slopes.append(sde(t + c * dt, stage))
        y1 = advance(y, dt, nonzero(tab.alpha), slopes)
        for b1, b2, c in zip(tab.beta1, tab.beta2, tab.c1, strict=True):
            if b1:
                y1 = y1 + b1 * sde.times(at[c], w)
            if b2:
                y1 = y1 + b2 * by_mean[c]
        return y1, self._error(sde, t, dt, y, y1, slopes[0], w, at.get(0.0)) if self.adaptive else None, None

    def _error(
        self, sde: Sde, t: float, dt: float, y: Tensor, y1: Tensor, f: Tensor, w: Tensor, g: Tensor | None
    ) -> Tensor:
        g = sde.diffusion(t, y) if g is None else g
        return (y1 - y - f * dt - sde.times(g, w)).detach()
