"""What the schemes share: the loop's contract, a straight line for dense output, and adaptivity by half steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common.dense import Interpolant
from ...common.rhs import Rhs, Scalar
from ...common.sde import Sde
from ..stepper import Step

_LINE = np.array([[1.0]])

Move = tuple[Tensor, Tensor | None, Any]


class Scheme(ABC):
    """A :class:`~..stepper.Stepper` for stochastic equations; a subclass says how it moves."""

    order: int = 1
    #: The local error is of order 3/2 in dt: steps change with its power 1 / (error_order + 1).
    error_order: float = 0.5
    adaptive = False
    implicit = False

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Any:
        return None

    def slope(self, carry: Any) -> Tensor | None:
        return None

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: Any) -> Step:
        assert isinstance(rhs, Sde) and isinstance(t, float) and isinstance(dt, float)
        y1, error, carry1 = self.move(rhs, t, dt, y, carry)
        return Step(y1, error, lambda: Interpolant(y, (y1 - y,), _LINE, None), carry1)

    @abstractmethod
    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        """The state after a step, an estimate of its error (None: there is none), and the next step's carry."""


class Halved(Scheme):
    """Any scheme with adaptive steps: two steps of half the size are taken, one of the whole size is the check.

    All three see the same Brownian path, of which a rejected step takes nothing away. Gaines & Lyons (1997),
    "Variable step size control in the numerical solution of stochastic differential equations".
    """

    adaptive = True

    def __init__(self, scheme: Scheme):
        self.scheme = scheme
        self.order, self.error_order = scheme.order, scheme.error_order

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Any:
        return self.scheme.start(rhs, t, y)

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        with torch.no_grad():
            whole, _, _ = self.scheme.move(sde, t, dt, y, carry)
        half = 0.5 * dt
        middle, _, carried = self.scheme.move(sde, t, half, y, carry)
        y1, _, carried = self.scheme.move(sde, t + half, t + dt - (t + half), middle, carried)
        return y1, (y1 - whole).detach(), carried
