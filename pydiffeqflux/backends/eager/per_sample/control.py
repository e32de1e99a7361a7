"""Step-size control with one controller a row: the arithmetic of ``eager.control`` on ``(B,)`` tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ....controllers import PIDController
from ....errors import ShapeError
from ...common.rhs import Rhs
from ...common.tolerances import Tolerances
from ..stepper import Stepper
from .layout import Layout


class RowControl:
    """The running state of a :class:`~pydiffeqflux.controllers.PIDController` for every row.

    Works on logarithms: one exponential a step instead of a power for each factor.
    """

    def __init__(self, spec: PIDController, layout: Layout):
        self.spec, self.layout = spec, layout
        self._previous = layout.full(0.0)
        self._before = layout.full(0.0)
        self._rejected = torch.zeros(layout.size, dtype=torch.bool, device=layout.device)

    def factor(self, ratio: Tensor, accept: Tensor, rejected: Tensor, error_order: float) -> Tensor:
        """dt_next / dt of every row; the ratio is infinite where it could not be computed.

        Rows that are neither accepted nor rejected have no step under way; nothing is remembered for them.
        """
        s, k = self.spec, error_order + 1
        log = ratio.clamp(min=1e-10).log()
        up = log * (-(s.icoeff + s.pcoeff + s.dcoeff) / k) + self._previous * ((s.pcoeff + 2 * s.dcoeff) / k)
        if s.dcoeff != 0.0:
            up = up - self._before * (s.dcoeff / k)
            self._before = torch.where(accept, self._previous, self._before)
        factor = torch.where(accept, up, log * (-1.0 / k)).exp_().mul_(s.safety).clamp_(min=s.factor_min)
        # Right after a rejection the step may not grow: the estimate has just proved too hopeful.
        free = accept & ~self._rejected
        self._previous = torch.where(accept, log, self._previous)
        self._rejected = rejected
        return torch.minimum(factor, torch.where(free, s.factor_max, 1.0))

    def forget(self, rows: Tensor) -> None:
        """Start afresh on these rows (their state has jumped)."""
        self._previous = self._previous.masked_fill(rows, 0.0)
        self._before = self._before.masked_fill(rows, 0.0)
        self._rejected = self._rejected & ~rows


def row_ratio(tol: Tolerances, layout: Layout, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
    """Each row's error in units of the tolerance, infinite where it is not a number.

    Raises:
        ShapeError: the user's norm does not give one number a row.
    """
    ratio = torch.as_tensor(tol.ratio(error, y0, y1))
    if ratio.shape != (layout.size,):
        raise ShapeError(
            f"norm returned shape {tuple(ratio.shape)}; with per_sample=True it must give one number a row, shape"
            f" ({layout.size},)."
        )
    return ratio.detach().to(layout.wide).nan_to_num(nan=torch.inf, posinf=torch.inf)


@torch.no_grad()
def initial_steps(
    rhs: Rhs, stepper: Stepper, layout: Layout, tol: Tolerances, t: Tensor, left: Tensor, y0: Tensor, f0: Tensor
) -> Tensor:
    """A first step for every row, shape ``(B,)``, unsigned: as :func:`eager.control.initial_step`.

    NaN for rows whose state or slope is not finite.

    Args:
        left: signed time to the end of the span, ``(B,)``.
    """

    def size(x: Tensor) -> Tensor:
        return torch.as_tensor(tol.norm(x / scale)).to(layout.wide)

    scale = tol.scale(y0.abs())
    d0, d1 = size(y0), size(f0)
    h0 = torch.where((torch.minimum(d0, d1) < 1e-5) | d1.isinf(), 1e-6, 0.01 * d0 / d1)
    h0 = torch.minimum(h0, left.abs())
    step = torch.copysign(h0, left)
    f1 = rhs(layout.spread(t + step), y0 + f0 * layout.spread(step).to(rhs.time_dtype))
    d2 = size(f1 - f0) / h0
    steepest = torch.maximum(d1, d2)
    guess = (0.01 / steepest) ** (1.0 / (stepper.error_order + 1))
    h1 = torch.where(steepest <= 1e-15, torch.clamp(h0 * 1e-3, min=1e-6), guess)
    chosen = torch.minimum(100 * h0, h1)
    return torch.where(chosen.isfinite() & (chosen > 0), chosen, h0).detach()
