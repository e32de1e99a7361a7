"""Step size control: error norms, the first step, and the controllers' arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...controllers import PIDController
from ..common.reading import to_float
from ..common.rhs import Rhs
from ..common.tolerances import Tolerances
from .stepper import Stepper


@torch.no_grad()
def initial_step(rhs: Rhs, stepper: Stepper, t0: float, span: float, y0: Tensor, f0: Tensor, tol: Tolerances) -> float:
    """A first step size (unsigned), after Hairer, Norsett & Wanner I, section II.4; costs one evaluation.

    NaN where ``y0`` is not finite.
    """
    scale = tol.scale(y0.abs())
    d0, d1 = to_float(tol.norm(y0 / scale)), to_float(tol.norm(f0 / scale))
    if not math.isfinite(d0):
        return math.nan
    h0 = 1e-6 if min(d0, d1) < 1e-5 or math.isinf(d1) else 0.01 * d0 / d1
    h0 = min(h0, abs(span))
    f1 = rhs.derivative(t0 + math.copysign(h0, span), y0 + f0 * math.copysign(h0, span))
    d2 = to_float(tol.norm((f1 - f0) / scale)) / h0
    steepest = max(d1, d2)
    if steepest <= 1e-15:
        h1 = max(1e-6, h0 * 1e-3)
    else:
        h1 = (0.01 / steepest) ** (1.0 / (stepper.error_order + 1))
    chosen = min(100 * h0, h1)
    return chosen if math.isfinite(chosen) and chosen > 0 else h0


@dataclass
class Controller:
    """The running state of a :class:`~pydiffeqflux.controllers.PIDController` in joint mode."""

    spec: PIDController
    _previous: float = 1.0
    _before: float = 1.0
    _rejected: bool = field(default=False)

    def accepted(self, ratio: float, error_order: float) -> float:
        """dt_next / dt after a step with this error ratio (at most 1) was accepted."""
        s, k = self.spec, error_order + 1
        ratio = max(ratio, 1e-10)
        factor = s.safety * ratio ** (-(s.icoeff + s.pcoeff + s.dcoeff) / k)
        factor *= self._previous ** ((s.pcoeff + 2 * s.dcoeff) / k) * self._before ** (-s.dcoeff / k)
        # Right after a rejection the step may not grow: the estimate has just proved too hopeful.
        limit = 1.0 if self._rejected else s.factor_max
        self._before, self._previous, self._rejected = self._previous, ratio, False
        return min(limit, max(s.factor_min, factor))

    def rejected(self, ratio: float, error_order: float) -> float:
        """dt_next / dt after a rejection; a ratio that is not finite shrinks the step as far as allowed."""
        self._rejected = True
        if not math.isfinite(ratio):
            return self.spec.factor_min
        factor = self.spec.safety * ratio ** (-1.0 / (error_order + 1))
        return min(1.0, max(self.spec.factor_min, factor))
