"""Events in joint mode: finding where a condition crosses zero, and the gradient of that time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...callbacks import Event
from ...errors import NonFiniteError
from ...problem import TimePoint
from ...tracking import reading, recording
from .crossing import Crossing, condition, differentiable_crossing
from .dense import Interpolant
from .rhs import Rhs, Scalar


class EventWatch:
    """Watches the conditions of a solve, step by step."""

    def __init__(self, rhs: Rhs, events: Sequence[Event], direction: float):
        self.rhs, self.events, self.direction = rhs, events, direction
        self._signs: list[Tensor] = []
        self._passed: list[Crossing] = []

    @torch.no_grad()
    def begin(self, t: float, y: Tensor) -> None:
        """Signs at the start. Within rounding of zero a sign means nothing: the next probe decides then."""
        self._signs = []
        for event in self.events:
            value = condition(self.rhs, event, t, y)
            noise = 64 * torch.finfo(value.dtype).eps * (1.0 + y.abs().amax())
            self._signs.append(torch.where(value.abs() <= noise, 0, value.sign()))

    def check(
        self, t: float, dt: float, t_next: float, y1: Tensor, piece: Interpolant, clock: tuple[Tensor, Scalar] | None
    ) -> Crossing | None:
        """The first crossing in the step that ends the stretch, if any; see also :meth:`passed`."""
        found: list[tuple[float, int]] = []
        with torch.no_grad():
            for index, event in enumerate(self.events):
                found.extend((theta, index) for theta in self._roots(index, event, t, dt, t_next, y1, piece))
        self._passed = []
        for theta, index in sorted(found):
            crossing = self._crossing(theta, index, t, dt, piece, clock)
            if self.events[index].terminal or self.events[index].affect is not None:
                return crossing
            self._passed.append(crossing)
        return None

    def passed(self) -> list[Crossing]:
        """The crossings of the last checked step that were only to be recorded, up to the one that stopped."""
        return self._passed

    def _roots(
        self, index: int, event: Event, t: float, dt: float, t_next: float, y1: Tensor, piece: Interpolant
    ) -> list[float]:
        n = event.interp_points
        thetas = [(i + 1) / (n + 1) for i in range(n)]
        states = [*piece.at(thetas).unbind(0), y1] if thetas else [y1]
        roots: list[float] = []
        left = 0.0
        for theta, state in zip([*thetas, 1.0], states, strict=True):
            when = t_next if theta == 1.0 else t + theta * dt
            sign = condition(self.rhs, event, when, state).sign()
            before = self._signs[index]
            changed = (sign != before) & (before != 0)
            if event.direction != 0:  # up or down along the direction in which the solve runs
                changed &= ~(sign * event.direction < 0)  # NaN stays in, to be complained of
            with reading("an event", "samples meet it at different times; use batched=True with per_sample=True"):
                crossed = changed.nonzero().flatten().tolist()
            for k in crossed:
                roots.append(self._root(event, k, t, dt, piece, left, theta))
            # A condition that is exactly zero here has been counted; its next sign is read off afresh.
            self._signs[index] = sign
            left = theta
        return roots

    def _root(self, event: Event, k: int, t: float, dt: float, piece: Interpolant, left: float, right: float) -> float:
        def value(theta: float) -> float:
            found = float(condition(self.rhs, event, t + theta * dt, piece.at([theta])[0])[k])
            if math.isnan(found):
                raise NonFiniteError(
                    f"an event's condition is NaN at t={t + theta * dt:.6g}; it must be a number on both sides of its"
                    f" zero (a square root or logarithm is not)."
                )
            return found

        low, high = value(left), value(right)
        if low == 0.0 or high == 0.0 or (low > 0) == (high > 0):
            return right if high == 0.0 or abs(high) <= abs(low) else left
        from scipy.optimize import brentq  # SciPy is slow to import

        return float(brentq(value, left, right, xtol=1e-15, rtol=1e-14, maxiter=500, disp=False))

    def _crossing(
        self, theta: float, index: int, t: float, dt: float, piece: Interpolant, clock: tuple[Tensor, Scalar] | None
    ) -> Crossing:
        when = t + theta * dt
        if not recording():
            return Crossing(index, TimePoint(when), piece.at([theta])[0])
        start, size = clock if clock is not None else (torch.tensor(t, dtype=torch.float64, device=piece.y0.device), dt)

        def path(time: Tensor) -> Tensor:
            return piece.at_tensor((time - start) / size)

        return differentiable_crossing(self.rhs, self.events[index], index, when, path)
