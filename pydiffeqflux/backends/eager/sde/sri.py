"""Roessler's SRI methods: Runge-Kutta for diagonal and scalar noise, of strong order 1.5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...common.sde import Sde
from ..stepper import advance, combine, nonzero
from .scheme import Move, Scheme

Row = Sequence[float]


@dataclass(frozen=True)
class SriTableau:
    """Coefficients as in Roessler (2010), section 5; row i of a matrix has the i entries below the diagonal.

    Drift and diffusion have stages of their own, ``H0_i`` and ``H1_i``:
    ``H0_i = y + dt sum_j a0_ij f_j + sum_j b0_ij g_j I_(1,0) / dt``,
    ``H1_i = y + dt sum_j a1_ij f_j + sqrt(dt) sum_j b1_ij g_j``.
    """

    c0: Row
    c1: Row
    a0: Sequence[Row]
    a1: Sequence[Row]
    b0: Sequence[Row]
    b1: Sequence[Row]
    alpha: Row
    beta1: Row
    beta2: Row
    beta3: Row
    beta4: Row
    order: int = 2


class Sri(Scheme):
    """The stepper of a tableau.

    The error estimate is that of Rackauckas & Nie (2017), "Adaptive methods for stochastic differential equations
    via natural embeddings and rejection sampling with memory": leaving out ``beta3`` and ``beta4`` gives a method
    of order 1, and what the drift's stages differ by from its first is the drift's share.
    """

    def __init__(self, tableau: SriTableau, adaptive: bool):
        self.tableau, self.adaptive, self.order = tableau, adaptive, tableau.order
        used = (*tableau.a0, *tableau.a1)
        self._drifts = [a != 0.0 or any(len(row) > i and row[i] for row in used) for i, a in enumerate(tableau.alpha)]

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        tab = self.tableau
        w, u = sde.path.with_integral(t, dt)
        mean, root = u / dt, dt**0.5
        squared = (w * w - dt) / (2 * root)  # I_(1,1) / sqrt(dt)
        cubed = (w * w * w - 3 * dt * w) / (6 * dt)  # I_(1,1,1) / dt
        slopes: list[Tensor] = []
        noises: list[Tensor] = []
        for i, wanted in enumerate(self._drifts):
            if wanted and i and not (any(tab.a0[i]) or any(tab.b0[i]) or tab.c0[i]):
                slopes.append(slopes[0])  # the first stage again
            elif wanted:
                stage = advance(y, dt, nonzero(tab.a0[i]), slopes)
                if any(tab.b0[i]):
                    stage = stage + combine(nonzero(tab.b0[i]), noises) * mean
                slopes.append(sde(t + tab.c0[i] * dt, stage))
            else:
                slopes.append(y)  # never looked at
            stage = advance(advance(y, dt, nonzero(tab.a1[i]), slopes), root, nonzero(tab.b1[i]), noises)
            g = sde.diffusion(t + tab.c1[i] * dt, stage)
            noises.append(g if sde.elementwise else g.squeeze(-1))
        y1 = advance(y, dt, nonzero(tab.alpha), slopes)
        extra = torch.zeros_like(y)
        for g, b1, b2, b3, b4 in zip(noises, tab.beta1, tab.beta2, tab.beta3, tab.beta4, strict=True):
            y1 = y1 + g * (b1 * w + b2 * squared)
            extra = extra + g * (b3 * mean + b4 * cubed)
        return y1 + extra, self._error(dt, slopes, extra) if self.adaptive else None, None

    def _error(self, dt: float, slopes: list[Tensor], extra: Tensor) -> Tensor:
        drift = (combine(nonzero(self.tableau.alpha), slopes) - slopes[0]) * dt
        return drift.detach().abs() + extra.detach().abs()
