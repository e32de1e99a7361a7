"""Adams methods: Adams-Bashforth, and Adams-Bashforth-Moulton predictor-corrector pairs.

The order grows with the history, up to ``max_order``, and so does the number of points: a step from k known
slopes predicts with order k and corrects with order k + 1. Until there are three, steps are Runge-Kutta ones.
The weights are the integrals of the Lagrange polynomials through the points where they really lie, so that a
step of another size (the last one, say) keeps the order; on an even grid they are the classical numbers.

E. Hairer, S. P. Norsett, G. Wanner, "Solving Ordinary Differential Equations I", 2nd edition (1993), sections
III.1 and III.5.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....errors import UnsupportedError
from ...common.dense import Interpolant, hermite
from ...common.rhs import Rhs, Scalar
from ..rk.rk4_38 import TABLEAU as START
from ..rk.tableau import ExplicitRK
from ..stepper import Step

#: Below this many known slopes a step is a Runge-Kutta one.
FEWEST = 3
#: Adams-Moulton of this order is as far as it is reasonable to go (and as far as torchdiffeq goes).
HIGHEST = 12

#: Past points, newest first: their times and slopes.
History = tuple[tuple[Scalar, Tensor], ...]
Weights = Sequence[Scalar]

# Exact for polynomials through up to 12 points.
_NODES, _QUADRATURE = np.polynomial.legendre.leggauss(HIGHEST // 2)
_NODES, _QUADRATURE = (_NODES + 1) / 2, _QUADRATURE / 2


@dataclass(frozen=True)
class Corrector:
    """How often the corrector is repeated, and the change below which that stops.

    One iteration is PECE; the test is that of torchdiffeq, on the increment of the step.
    """

    max_iterations: int = 1
    rtol: float | Tensor | None = None
    atol: float | Tensor = 0.0

    @torch.no_grad()
    def settled(self, before: Tensor, after: Tensor) -> bool:
        if self.rtol is None:
            return False
        scale = self.atol + self.rtol * torch.maximum(before.abs(), after.abs())
        return bool(((before - after).abs() < scale).all())


@dataclass
class Adams:
    """Adams-Bashforth (``corrector=None``) or Adams-Bashforth-Moulton. The carry is the history."""

    max_order: int = 4
    corrector: Corrector | None = None
    adaptive: bool = False
    implicit: bool = False
    error_order: int = 0

    def __post_init__(self) -> None:
        known = self.max_order - 1
        self.order = 4 if known < FEWEST else known + (self.corrector is not None)
        self._starter = ExplicitRK(START)

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> History:
        return ()

    def slope(self, carry: History | None) -> None:
        return None

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: History | None) -> Step:
        if isinstance(dt, Tensor) and dt.dim():
            raise UnsupportedError(
                "a multistep method with fixed steps does not step each row for itself; leave per_sample=True out,"
                " or take a Runge-Kutta method such as method='rk4'."
            )
        f0 = rhs(t, y)
        history: History = ((t, f0), *(carry or ()))[: max(self.max_order - 1, 1)]
        if len(history) < FEWEST:
            first = self._starter.step(rhs, t, dt, y, f0)
            return Step(first.y1, None, first.interpolant, history)
        slopes = [f for _, f in history]
        points = [(time - t) / dt for time, _ in history]
        change = _combine(weights(points, y.dtype), slopes) * dt
        converged = True
        if self.corrector is not None:
            change, converged = self._correct(rhs, t, dt, y, change, points, slopes)
        if not converged:
            history = history[:-1]
        y1 = y + change
        return Step(
            y1=y1,
            error=None,
            interpolant=lambda: _interpolant(rhs, t, dt, y, y1, f0),
            carry=history,
            converged=converged,
        )

    def _correct(
        self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, change: Tensor, points: Weights, slopes: Sequence[Tensor]
    ) -> tuple[Tensor, bool]:
        assert self.corrector is not None
        newest, *others = weights([1.0, *points], y.dtype)
        if isinstance(newest, Tensor):  # a 0-dim float64 tensor would promote a 0-dim float32 state
            newest = newest.to(rhs.time_dtype)
        known = _combine(others, slopes) * dt
        for _ in range(self.corrector.max_iterations):
            before = change
            change = known + rhs(t + dt, y + before) * (newest * dt)
            if self.corrector.settled(before, change):
                return change, True
        return change, self.corrector.rtol is None


def _combine(weights: Weights, slopes: Sequence[Tensor]) -> Tensor:
    """``sum_j weights[j] * slopes[j]``, in double precision: the weights of high orders are large and cancel."""
    like = slopes[0]
    wide = torch.complex128 if like.is_complex() else torch.float64
    if like.device.type == "mps":
        wide = like.dtype
    if isinstance(weights[0], Tensor):
        row = torch.stack(list(weights)).to(wide)  # type: ignore[arg-type]
    else:
        row = torch.tensor(weights, dtype=wide, device=like.device)
    return torch.tensordot(row, torch.stack(list(slopes)).to(wide), 1).to(like.dtype)


def _interpolant(rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, y1: Tensor, f0: Tensor) -> Interpolant:
    return hermite(y, y1, f0, rhs(t + dt, y1), dt)


def weights(points: Weights, dtype: torch.dtype = torch.float64) -> Weights:
    """The integrals over [0, 1] of the Lagrange polynomials through ``points``.

    By Gauss quadrature, which is exact here, of the polynomials in product form, which is accurate for any
    spacing. Points that are tensors give tensors, with their gradient. Points that are even within the rounding
    errors of times in ``dtype`` count as even.
    """
    if any(isinstance(p, Tensor) for p in points):
        return _tensor_weights(points)
    where = np.array(points, dtype=np.float64)
    rounded = where.round()
    jitter = 1e-9 if torch.finfo(dtype).eps < 1e-12 else 1e-5
    return _even_weights(tuple(rounded)) if (abs(where - rounded) < jitter).all() else _integrals(where)


@functools.lru_cache(maxsize=64)
def _even_weights(points: tuple[float, ...]) -> list[float]:
    return _integrals(np.array(points))


def _integrals(points: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    own = np.eye(len(points), dtype=bool)
    # [j, m]: the factor of the m-th point in the j-th polynomial, 1 for its own.
    below = np.where(own, 1.0, points[:, None] - points[None, :])
    above = np.where(own, 1.0, _NODES[:, None, None] - points[None, None, :])
    found: list[float] = (_QUADRATURE @ (above / below).prod(-1)).tolist()
    return found


def _tensor_weights(points: Weights) -> list[Tensor]:
    like = next(p for p in points if isinstance(p, Tensor))
    where = torch.stack([torch.as_tensor(p, dtype=torch.float64, device=like.device) for p in points])
    own = torch.eye(len(points), dtype=torch.bool, device=like.device)
    nodes, quadrature = (torch.as_tensor(x, device=like.device) for x in (_NODES, _QUADRATURE))
    below = torch.where(own, 1.0, where[:, None] - where[None, :])
    above = torch.where(own, 1.0, nodes[:, None, None] - where[None, None, :])
    return list((quadrature @ (above / below).prod(-1)).to(like.dtype).unbind(0))
