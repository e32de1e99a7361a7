"""Positions and momenta: states that come in two halves, each of which drives the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import PhaseSpaceError

#: One half's rate of change, from the time and the other half.
Half = Callable[[Any, Any], Any]


def halves(y: Tensor) -> tuple[Tensor, Tensor]:
    """``(q, p)`` of a state ``(..., 2n)``.

    Raises:
        PhaseSpaceError: the last dimension is odd, or there is none.
    """
    if not isinstance(y, Tensor) or not y.dim() or y.shape[-1] % 2:
        got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
        raise PhaseSpaceError(
            f"the state has {got}; positions and momenta (q, p) are the two halves of its last dimension, so that"
            f" must be even: torch.cat([q, p], -1)."
        )
    n = y.shape[-1] // 2
    return y[..., :n], y[..., n:]


class SeparableField(nn.Module):
    """``dq/dt = velocity(t, p)``, ``dp/dt = force(t, q)``: what symplectic methods step, half by half.

    As a right-hand side it takes a tensor ``(..., 2n)``, or a pair ``(q, p)``. Any right-hand side whose ``separable``
    attribute is such a field is stepped by it; one without is evaluated as a whole, at twice the cost.

    Args:
        velocity: ``velocity(t, p)``; ``p`` itself (unit masses) where None.
        force: ``force(t, q)``.

    Raises:
        PhaseSpaceError: called with a state that has no two halves.

    Source: Hairer, Lubich & Wanner, "Geometric numerical integration" (2006), section I.1.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> pendulum = pdf.SeparableField(None, lambda t, q: -torch.sin(q))
        >>> problem = pdf.ODEProblem(pendulum, torch.tensor([1.0, 0.0]), (0.0, 10.0))
        >>> pdf.solve(problem, "velocity_verlet", dt=0.1).ys.shape
        torch.Size([101, 2])
    """

    def __init__(self, velocity: Half | None, force: Half):
        super().__init__()
        self.velocity: Half = _itself if velocity is None else velocity
        self.force = force

    @property
    def separable(self) -> SeparableField:
        return self

    def forward(self, t: Any, y: Any) -> Any:
        if isinstance(y, tuple | list) and len(y) == 2:
            q, p = y
            pair = self.velocity(t, p), self.force(t, q)
            return list(pair) if isinstance(y, list) else pair
        q, p = halves(y)
        return torch.cat([self.velocity(t, p), self.force(t, q)], -1)


def _itself(t: Any, p: Any) -> Any:
    return p
