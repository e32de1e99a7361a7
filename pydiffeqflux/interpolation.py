"""Piecewise polynomials through given points, differentiable in the points, the knots and the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import InvalidArgumentError, InvalidTimesError, ShapeError, UnknownNameError
from .tracking import tracing, transforming


class PiecewisePolynomial:
    """``sum_k coeffs[k][i] (t - knots[i])^k`` for ``t`` between ``knots[i]`` and ``knots[i + 1]``.

    Args:
        knots: ``(n,)``, increasing.
        coeffs: for each power from 0 on ``(n - 1, *shape)``.
    """

    def __init__(self, knots: Tensor, coeffs: Sequence[Tensor]):
        self.knots, self.coeffs = knots, tuple(coeffs)

    def __call__(self, t: Tensor) -> Tensor:
        """``(*t.shape, *shape)``; beyond the ends the first and the last polynomial go on."""
        return self._evaluate(t, self.coeffs)

    def derivative(self, t: Tensor) -> Tensor:
        """The time derivative, in the same shape; at a knot that of the piece which starts there."""
        slopes = [k * c for k, c in enumerate(self.coeffs) if k]
        return self._evaluate(t, slopes or [torch.zeros_like(self.coeffs[0])])

    def _evaluate(self, t: Tensor, coeffs: Sequence[Tensor]) -> Tensor:
        t = torch.as_tensor(t, dtype=self.knots.dtype, device=self.knots.device)
        flat = t.reshape(-1)
        # Counted and gathered, not looked up by a number: so it can be traced.
        index = (flat.detach()[:, None] >= self.knots[1:-1].detach()).sum(1)
        shape = coeffs[0].shape[1:]
        x = (flat - self.knots.index_select(0, index)).reshape((-1, *(1,) * len(shape)))
        out = coeffs[-1].index_select(0, index)
        for c in reversed(coeffs[:-1]):
            out = c.index_select(0, index) + x * out
        return out.reshape((*t.shape, *shape))


def constant(knots: Tensor, points: Tensor) -> PiecewisePolynomial:
    """The value at the knot before."""
    return PiecewisePolynomial(knots, [points[:-1]])


def linear(knots: Tensor, points: Tensor) -> PiecewisePolynomial:
    """Straight lines."""
    return PiecewisePolynomial(knots, [points[:-1], _slopes(knots, points)])


def quadratic(knots: Tensor, points: Tensor) -> PiecewisePolynomial:
    """The parabola through both ends of a piece and the point after (before, for the last one)."""
    chords = _slopes(knots, points)
    second = chords.diff(dim=0) / _column(knots[2:] - knots[:-2], points)  # divided differences
    curve = torch.cat([second, second[-1:]])
    return PiecewisePolynomial(knots, [points[:-1], chords - curve * _column(knots.diff(), points), curve])


def hermite(knots: Tensor, points: Tensor) -> PiecewisePolynomial:
    """Cubics whose slope at a knot is that of the line to it from the one before: local, and so causal.

    Morrill et al., "On the choice of interpolation scheme for neural CDEs" (2022), section 3.
    """
    chords, h = _slopes(knots, points), _column(knots.diff(), points)
    left = torch.cat([chords[:1], chords[:-1]])  # the first has none before it
    # Both ends' slopes given, m0 = left and m1 = chord: two of the four Hermite terms cancel.
    return PiecewisePolynomial(
        knots, [points[:-1], left, 2 * (chords - left) / h, (left - chords) / h**2]
    )


def natural(knots: Tensor, points: Tensor) -> PiecewisePolynomial:
    """The natural cubic spline: twice continuously differentiable, without curvature at its ends."""
    moments = torch.cat([points.new_zeros(1, *points.shape[1:]), _moments(knots, points), points[:1] * 0])
    h = _column(knots.diff(), points)
    left, right = moments[:-1], moments[1:]
    slope = _slopes(knots, points) - h * (2 * left + right) / 6
    return PiecewisePolynomial(knots, [points[:-1], slope, left / 2, (right - left) / (6 * h)])


def _moments(knots: Tensor, points: Tensor) -> Tensor:
    """Second derivatives at the inner knots: a tridiagonal system."""
    h = knots.diff()
    if len(h) < 2:
        return points[:0]
    right = 6 * _slopes(knots, points).diff(dim=0)
    if tracing():
        return _tridiagonal(2 * (h[:-1] + h[1:]), h[1:-1], right)
    matrix = torch.diag(2 * (h[:-1] + h[1:]))
    if len(h) > 2:
        matrix = matrix + torch.diag(h[1:-1], 1) + torch.diag(h[1:-1], -1)
    return torch.linalg.solve(matrix, right.reshape(len(right), -1)).reshape(right.shape)


def _tridiagonal(diagonal: Tensor, beside: Tensor, right: Tensor) -> Tensor:
    """A symmetric, diagonally dominant system, without a matrix: elimination downwards, then upwards."""
    factors, rows = [diagonal[0]], [right[0]]
    for i in range(1, len(diagonal)):
        ratio = beside[i - 1] / factors[-1]
        factors.append(diagonal[i] - ratio * beside[i - 1])
        rows.append(right[i] - ratio * rows[-1])
    found = [rows[-1] / factors[-1]]
    for i in reversed(range(len(rows) - 1)):
        found.append((rows[i] - beside[i] * found[-1]) / factors[i])
    return torch.stack(found[::-1])


def _slopes(knots: Tensor, points: Tensor) -> Tensor:
    return points.diff(dim=0) / _column(knots.diff(), points)


def _column(values: Tensor, points: Tensor) -> Tensor:
    return values.reshape((-1, *(1,) * (points.dim() - 1)))


#: Each kind with the number of points that it needs.
KINDS: dict[str, tuple[Callable[[Tensor, Tensor], PiecewisePolynomial], int]] = {
    "constant": (constant, 2),
    "linear": (linear, 2),
    "quadratic": (quadratic, 3),
    "hermite": (hermite, 2),
    "cubic": (natural, 2),
}


def interpolate(kind: str, knots: Tensor, points: Tensor) -> PiecewisePolynomial:
    """The piecewise polynomial of this kind through ``points`` ``(n, *shape)`` at ``knots`` ``(n,)``.

    Raises:
        UnknownNameError: no such kind.
    """
    return kind_of(kind)[0](knots, points)


def kind_of(kind: Any, argument: str = "kind") -> tuple[Callable[[Tensor, Tensor], PiecewisePolynomial], int]:
    """How a kind is built, and how many points it needs.

    Raises:
        UnknownNameError: no such kind (the nearest one is in the message).
    """
    if not isinstance(kind, str) or kind.lower() not in KINDS:
        raise UnknownNameError(argument, kind, KINDS)
    return KINDS[kind.lower()]


def check_knots(times: Any, count: int, fewest: int, name: str) -> Tensor:
    """``times`` as a tensor of ``count`` increasing, finite numbers.

    Raises:
        InvalidTimesError: they are not.
        ShapeError: there are more or fewer of them than points.
        InvalidArgumentError: too few for the kind of interpolation.
    """
    knots = torch.as_tensor(times)
    if not knots.is_floating_point():
        knots = knots.to(torch.get_default_dtype())
    if knots.dim() != 1:
        raise InvalidTimesError(f"{name} must be one-dimensional; got a tensor of shape {tuple(knots.shape)}.")
    if len(knots) != count:
        raise ShapeError(f"{name} holds {len(knots)} times for {count} points; there must be one for each.")
    if count < fewest:
        raise InvalidArgumentError(f"{name} holds {count} times; this interpolation needs at least {fewest}.")
    if not transforming() and not (bool(knots.isfinite().all()) and bool((knots.diff() > 0).all())):
        raise InvalidTimesError(f"{name} must be finite and strictly increasing; got {knots.tolist()[:20]}.")
    return knots
