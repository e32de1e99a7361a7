"""The integration loop along a delay equation: what it does beyond :class:`Integration`.

Steps reach no further than the past is known, end at the breaking points that lie ahead, and find those that
state-dependent lags lead to: a step in which a delayed time passes a breaking point is computed as if it did not (with
the smooth continuation of what lies before), which locates the passing to the method's own order; then the step is
taken again, up to there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....callbacks import Event
from ....solution import Status
from ...common.crossing import differentiable_crossing
from ...common.dense import Interpolant
from ...common.reading import all_finite
from ...common.rhs import Scalar
from ...common.stretch import Outcome
from ..integrate import Integration
from ..stepper import Step
from .breaks import Break
from .equation import DelayRhs, _number

#: Where within a step a delayed time is compared with the breaking points around it.
PROBES = (0.25, 0.5, 0.75, 1.0)


@dataclass
class Passing:
    """A state-dependent lag's delayed time passes a breaking point, on from which it lies after ``low``."""

    lag: int
    low: float
    found: Break


class DelayedIntegration(Integration):
    """One smooth stretch (no jump of the state inside) of a delay equation."""

    rhs: DelayRhs
    always_dense = True

    def __init__(self, rhs: DelayRhs, *args: Any, **options: Any):
        super().__init__(rhs, *args, **options)
        self.dependent = [i for i, lag in enumerate(rhs.lags) if not lag.constant]
        #: What the stops are: breaking points, by their times, and what passes there.
        self.marks: dict[float, Break] = {}
        self.passings: dict[float, list[Passing]] = {}
        #: State-dependent lags that have changed sides at the current time.
        self._turned: set[int] = set()
        self._room = math.inf
        if self.clock is None and rhs.moving:
            wide = torch.float32 if rhs.device.type == "mps" else torch.float64
            self.clock, self.end = (torch.tensor(p.value, dtype=wide, device=rhs.device) for p in (self.t0, self.t1))

    # -- where steps end --------------------------------------------------------------------------

    def plan_stops(self) -> None:
        self.rhs.begin(self.t0, self.y)
        super().plan_stops()
        self._include()
        self.fence()
        self._look()

    def _include(self) -> None:
        """Stop at the breaking points ahead, too."""
        close = self.rhs.close
        for found in self.rhs.breaks.between(self.t, self.t1.value):
            stop = next((s for s in self.stops_ahead if abs(s - found.time) <= close), None)
            if stop is None:
                stop = found.time
                self.stops_ahead.append(stop)
            if stop not in self.marks or found.order < self.marks[stop].order:
                self.marks[stop] = found
        self.stops_ahead.sort()

    def fence(self) -> None:
        super().fence()
        self.rhs.window = (self.t, self.stops_ahead[0] if self.stops_ahead else self.t1.value)

    def _look(self) -> None:
        """How far the past allows to step from here."""
        self._room = self.rhs.room(self.t, self.y) if self.dependent else self.rhs.shortest

    def longest(self) -> float:
        return min(self.settings.dt_max, self._room)

    def first_span(self) -> float:
        return min(super().first_span(), self._room)

    def size(self, dt: float, target: float | None) -> Scalar:
        found = None if target is None or target in self.settings.stops else self.marks.get(target)
        if found is None or target is None or self.clock is None:
            return super().size(dt, target)
        # A breaking point moves with the lags and the start that it comes from.
        stop = target if found.clock is None else found.clock.to(self.clock)
        return (stop - self.clock).to(self.rhs.time_dtype)

    def leave_stop(self, stop: float) -> None:
        found, passings = self.marks.pop(stop, None), self.passings.pop(stop, [])
        orders = [passing.found.order + 1 for passing in passings]
        for passing in passings:
            self.rhs.low[passing.lag] = passing.low
            self._turned.add(passing.lag)
        if stop in self.settings.stops:
            orders.append(1)  # the right-hand side jumps
        if found is not None:
            orders.append(found.order)
        self.rhs.breaks.root(Break(stop, min(orders), None if found is None else found.clock))
        self._include()
        super().leave_stop(stop)

    # -- a step -----------------------------------------------------------------------------------

    def attempt(self, size: Scalar) -> Step:
        self.rhs.overlap = 0.0
        step = super().attempt(size)
        if not self.dependent:
            return step
        made: list[Interpolant] = []
        build = step.interpolant

        def once() -> Interpolant:
            if not made:
                made.append(build())
            return made[0]

        step.interpolant = once
        return step

    def judge(self, step: Step, dt: float, size: Scalar, target: float | None) -> bool:
        if self.rhs.overlap > 0.0:
            self.reject(dt, min(0.9, max(0.2, 1.0 - 1.1 * self.rhs.overlap / dt)), "overlap")
            return False
        if not super().judge(step, dt, size, target):
            return False
        return not (self.dependent and all_finite(step.y1)) or self._stays(step, dt, size, target)

    def advance(self, step: Step, dt: float, size: Scalar, target: float | None) -> bool:
        self._turned = set()
        over = super().advance(step, dt, size, target)
        if not over:
            self._look()
        return over

    def keep(self, piece: Interpolant, dt: float, size: Scalar, end: float | None = None) -> None:
        super().keep(piece, dt, size, end)
        self.rhs.past.append(self.t, dt, piece, end=end, clock=self.clock_of(size))
        self.rhs.reach = self.t + dt if end is None else end

    def underflow(self) -> Outcome:
        if self.why == "overlap" and not self.stepper.adaptive:
            return self.fail(
                Status.STEP_UNDERFLOW, f"a step of dt={abs(self._failed_dt):.6g} is longer than a state-dependent lag"
            )
        if self.why == "overlap" or (self.dependent and self.dt is not None and self._room <= self.dt):
            return self.fail(
                Status.STEP_UNDERFLOW, f"a state-dependent lag shrank to {self._room:.3g}, and steps must be shorter"
            )
        return super().underflow()

    # -- state-dependent lags ---------------------------------------------------------------------

    @torch.no_grad()
    def _first_passing(self, piece: Interpolant, dt: float, target: float | None) -> tuple[float, Passing] | None:
        """The first time within the step, as a fraction, at which a delayed time passes a breaking point."""
        first: tuple[float, Passing] | None = None
        expected = {passing.lag for passing in self.passings.get(target, [])} if target is not None else set()
        for i in self.dependent:
            if i in expected:
                continue
            bounds = self.rhs.breaks.interval(self.rhs.low[i])
            left = 0.0
            for theta in PROBES:
                at = self._delayed_time(i, theta, dt, piece)
                side = 1 if at > bounds[1] + self.rhs.close else 0 if at < bounds[0] - self.rhs.close else None
                if side is not None:
                    root = self._root(i, bounds[side], left, theta, dt, piece)
                    if first is None or root < first[0]:
                        first = root, self._passing(i, bounds[side], side)
                    break
                left = theta
        return first

    def _passing(self, i: int, bound: float, up: int) -> Passing:
        behind = self.rhs.breaks.passed
        found = next(b for b in behind if b.time == bound)
        before = [b.time for b in behind if b.time < bound]
        return Passing(i, bound if up else before[-1] if before else -math.inf, found)

    def _delayed_time(self, i: int, theta: float, dt: float, piece: Interpolant) -> float:
        t, y = self.t + theta * dt, piece.at([theta])[0]
        return t - _number(self.rhs.lag(self.rhs.lags[i], t, y))

    def _root(self, i: int, bound: float, left: float, right: float, dt: float, piece: Interpolant) -> float:
        def gap(theta: float) -> float:
            return self._delayed_time(i, theta, dt, piece) - bound

        if gap(left) * gap(right) >= 0:  # it was on the other side from the start, by rounding
            return left
        from scipy.optimize import brentq  # SciPy is slow to import

        return float(brentq(gap, left, right, xtol=1e-15, rtol=8.9e-16))

    def _stays(self, step: Step, dt: float, size: Scalar, target: float | None) -> bool:
        """Whether all delayed times stay between their breaking points; plans a stop where one does not."""
        piece = step.interpolant()  # may evaluate stages of its own, which are recorded
        first = self._first_passing(piece, dt, target)
        if first is None:
            return True
        theta, passing = first
        when = self.t + theta * dt
        if abs(when - self.t) <= self.rhs.close:
            if passing.lag in self._turned:  # back and forth within rounding: touching, not passing
                return True
            self._turned.add(passing.lag)
            self.rhs.low[passing.lag] = passing.low
            self.carry = self.stepper.start(self.rhs, self.now(), self.y)
            return False
        order = passing.found.order + 1
        stop = next((s for s in (*self.stops_ahead, self.t1.value) if abs(s - when) <= self.rhs.close), None)
        if stop == self.t1.value:
            return True
        if stop is None:
            stop = when
            clock = self._crossing_clock(passing, when, size, piece)
            self.stops_ahead = sorted([*self.stops_ahead, stop])
            self.marks[stop] = Break(stop, order, clock)
        self.passings.setdefault(stop, []).append(passing)
        self.fence()
        if stop == target:  # others may pass there, too
            return self._stays(step, dt, size, target)
        self.counts.nreject += 1
        return False

    def _crossing_clock(self, passing: Passing, when: float, size: Scalar, piece: Interpolant) -> Tensor | None:
        """The time of the passing with its gradient, where somebody may ask for it."""
        if self.clock is None:
            return None
        start, lag = self.clock, self.rhs.lags[passing.lag]
        bound = passing.found.time if passing.found.clock is None else passing.found.clock
        unpack = (lambda x: x) if self.rhs.spec is None else self.rhs.spec.flatten
        ahead = Event(lambda t, y: t.double() - self.rhs.lag(lag, t, unpack(y)).double() - bound)
        return differentiable_crossing(
            self.rhs, ahead, 0, when, lambda time: piece.at_tensor((time - start) / size)
        ).t.tensor
