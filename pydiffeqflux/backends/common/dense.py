"""Dense output: the solution between the steps, as polynomials on each of them.

Every method's interpolant has one form, ``y(theta) = y0 + sum_m w_m(theta) v_m`` with
``theta = (t - t0) / dt`` in [0, 1]: tensors ``v_m`` (slopes, differences) weighted by polynomials
``w_m`` without a constant term. What differs between methods is a small matrix of coefficients.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DenseOutputError
from ...tracking import recording
from .autocast import in_own_precision

Scalar = float | Tensor
Coefficients = np.ndarray[Any, np.dtype[np.float64]]


def powers(theta: Tensor, degree: int) -> Tensor:
    """``theta, theta^2, ...`` in a last dimension; as products, whose derivatives of any order exist at 0 too."""
    found = [theta]
    while len(found) < degree:
        found.append(found[-1] * theta)
    return torch.stack(found, dim=-1)


@dataclass(slots=True)
class Interpolant:
    """One step's dense output.

    Attributes:
        y0: state at ``theta = 0``.
        vectors: the ``v_m``, each shaped like the state.
        coeffs: ``(len(vectors), degree)``; row m holds the coefficients of ``theta, theta^2, ...`` in ``w_m``.
        dt: the step, where the vectors are slopes and have to be multiplied by it; None where they are not.
    """

    y0: Tensor
    vectors: Sequence[Tensor]
    coeffs: Coefficients
    dt: Scalar | None

    @in_own_precision
    def at(self, thetas: Sequence[float]) -> Tensor:
        """States at several points, ``(len(thetas), *y0.shape)``; the points themselves carry no gradient."""
        powers = np.power.outer(np.asarray(thetas), np.arange(1, self.coeffs.shape[1] + 1))
        weights = powers @ self.coeffs.T
        if isinstance(self.dt, float):
            weights *= self.dt
        w = torch.as_tensor(weights, dtype=self.y0.dtype, device=self.y0.device)
        out = (w @ torch.stack(tuple(self.vectors)).reshape(len(self.vectors), -1)).reshape(len(thetas), *self.y0.shape)
        if isinstance(self.dt, Tensor):
            out = out * self.dt
        return out + self.y0

    def at_tensor(self, theta: Tensor, derivative: bool = False) -> Tensor:
        """State at ``theta`` (0-dim, or broadcastable against the state, one point a row), with its gradient.

        With ``derivative`` the derivative with respect to theta instead.
        """
        degree = self.coeffs.shape[1]
        # High-order polynomials cancel: their weights are computed in double precision and rounded at the end.
        theta = theta if theta.device.type == "mps" else theta.double()
        basis, matrix = powers(theta, degree), self.coeffs
        if derivative:
            basis = torch.cat([torch.ones_like(basis[..., :1]), basis[..., :-1]], dim=-1)
            matrix = matrix * np.arange(1, degree + 1)
        weights = (basis @ torch.as_tensor(matrix, dtype=theta.dtype, device=theta.device).T).to(self.y0.dtype)
        total = (weights * torch.stack(tuple(self.vectors), dim=-1)).sum(-1)
        if self.dt is not None:
            total = total * self.dt
        return total if derivative else self.y0 + total


#: Rows for the basis (y1 - y0) / dt, f0, f1 of the cubic Hermite interpolant, to be used with ``dt``.
HERMITE = np.array([[0.0, 3.0, -2.0], [1.0, -2.0, 1.0], [0.0, -1.0, 1.0]])


def hermite(y0: Tensor, y1: Tensor, f0: Tensor, f1: Tensor, dt: Scalar) -> Interpolant:
    """Cubic Hermite interpolant through both ends and their slopes (order 3)."""
    return Interpolant(y0, ((y1 - y0) / dt, f0, f1), HERMITE, dt)


@dataclass(slots=True)
class Piecewise:
    """The interpolants of a whole solve, in the order in which the steps were taken (joint stepping)."""

    direction: float = 1.0
    starts: list[float] = field(default_factory=list)
    steps: list[tuple[float, float, Interpolant]] = field(default_factory=list)
    #: Start and size of each step as tensors, where these carry gradients.
    clocks: list[tuple[Tensor, Scalar] | None] = field(default_factory=list)
    end: float = 0.0

    def append(
        self,
        t: float,
        dt: float,
        piece: Interpolant,
        *,
        end: float | None = None,
        clock: tuple[Tensor, Scalar] | None = None,
    ) -> None:
        """Add the step from ``t`` of size ``dt``; it counts up to ``end`` where an event cut it short."""
        self.starts.append(t * self.direction)
        self.steps.append((t, dt, piece))
        self.clocks.append(clock)
        self.end = t + dt if end is None else end

    @property
    def span(self) -> tuple[float, float]:
        return self.steps[0][0], self.end

    def locate(self, t: float, side: str = "right") -> tuple[float, float, Interpolant]:
        """The step that holds time ``t``; at a boundary the one that starts there (``side="right"``)."""
        return self.steps[self._index(t, side)]

    def _index(self, t: float, side: str = "right") -> int:
        find = bisect.bisect_right if side == "right" else bisect.bisect_left
        index = find(self.starts, t * self.direction) - 1
        return min(max(index, 0), len(self.steps) - 1)

    def along(self, t: Scalar, index: int) -> Tensor:
        """The state at ``t`` by the polynomial of one step, which may be asked beyond its ends."""
        start, dt, piece = self.steps[index]
        clock = self.clocks[index] if recording() else None
        if clock is None and not isinstance(t, Tensor):
            return piece.at([(t - start) / dt])[0]
        when = t.double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device=piece.y0.device)
        first, size = (start, dt) if clock is None else clock
        return piece.at_tensor((when - first) / size)

    def near(self, t: Scalar, close: float) -> Tensor:
        """The state at ``t`` by the polynomial of the step that holds ``close``."""
        return self.along(t, self._index(close))

    def __call__(self, t: float, side: str = "right") -> Tensor:
        """The state at time ``t``.

        Raises:
            DenseOutputError: a time outside the solved span.
        """
        first, last = self.span
        slack = 1e-9 * max(abs(first), abs(last), abs(last - first))
        low, high = min(first, last), max(first, last)
        if not (low - slack <= t <= high + slack):
            raise DenseOutputError(f"t={t!r} lies outside the solved span [{low}, {high}]; solve further first.")
        return self.along(t, self._index(t, side))

    def at_tensor(self, t: Tensor) -> Tensor:
        """The state at a 0-dim tensor ``t``, differentiable in it."""
        value = float(t.detach())
        self(value)  # the range check
        return self.near(t, value)
