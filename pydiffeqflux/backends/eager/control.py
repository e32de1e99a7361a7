"""Step size control: error norms, the first step, and the controllers' arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...controllers import PIDController
from .rhs import Rhs
from .stepper import Stepper

Norm = Callable[[Tensor], Any]

#: An absolute tolerance that is as good as zero, and a normal number in single precision.
_TINY = 1e-37


def rms_norm(x: Tensor) -> Tensor:
    """Root mean square of all entries: the norm of Hairer, Norsett & Wanner I, equation (II.4.11)."""
    if x.is_complex():
        x = torch.view_as_real(x)
        return torch.linalg.vector_norm(x) * math.sqrt(2.0 / max(x.numel(), 1))
    return torch.linalg.vector_norm(x) * (1.0 / math.sqrt(max(x.numel(), 1)))


def row_norm(x: Tensor) -> Tensor:
    """:func:`rms_norm` of every row on its own: shape ``(B,)``."""
    rows = x.reshape(x.shape[0], -1)
    return torch.linalg.vector_norm(rows, dim=1) * (1.0 / math.sqrt(rows.shape[1]))


@dataclass(frozen=True)
class Tolerances:
    """``atol + rtol * |y|``, per entry. Both may be tensors that broadcast against the packed state."""

    rtol: float | Tensor
    atol: float | Tensor
    norm: Norm = rms_norm

    def __post_init__(self) -> None:
        # With atol=0 an entry that is and stays zero would have the scaled error 0 / 0.
        least = self.atol.clamp_min(_TINY) if isinstance(self.atol, Tensor) else max(self.atol, _TINY)
        object.__setattr__(self, "atol", least)

    def scale(self, size: Tensor) -> Tensor:
        return size * self.rtol + self.atol

    @torch.no_grad()
    def ratio(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """Norm of the error in units of the tolerance: a step is accepted up to 1."""
        return self.norm(error / self.scale(torch.maximum(y0.abs(), y1.abs())))


class _Reduce(torch.autograd.Function):
    """The largest entry, also over dimensions that ``torch.func.vmap`` hides: there steps are joint."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.amax()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, None]:
        return _Reduce.apply(x), None


def to_float(x: Any) -> float:
    """A tensor's value as a number; under ``vmap`` the largest over the mapped dimension."""
    if not isinstance(x, Tensor):
        return float(x)
    try:
        return float(x.detach().item())
    except RuntimeError:  # vmap refuses item() on the samples it maps over
        return float(_Reduce.apply(x.detach()).item())


def all_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite; under ``vmap`` in none of the samples."""
    return to_float(torch.isfinite(x.detach()).all().logical_not().to(torch.float32)) == 0.0


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
