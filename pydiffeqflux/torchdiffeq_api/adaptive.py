"""Adaptive methods behind ``odeint``: the package's own loop, with torchdiffeq's options."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..backends.common.autocast import in_own_precision
from ..backends.common.dense import Piecewise
from ..backends.common.failure import failure
from ..backends.common.output import DenseOutput
from ..backends.common.rhs import Rhs
from ..backends.common.stretch import Outcome
from ..backends.eager.integrate import Counts, Hook, Integration, Settings
from ..backends.eager.stepper import Stepper
from ..callbacks import Event
from ..errors import EventNotFoundError, MaxStepsError
from ..methods import Method
from ..problem import SaveTimes, TimePoint
from ..state import StateSpec
from .events import FixedTimeWatch, zero_at_start
from .times import Times


@dataclass
class AdaptiveEngine:
    """Solves with step size control."""

    name: str
    rhs: Rhs
    stepper: Stepper
    settings: Settings
    spec: StateSpec | None
    #: Attempted steps allowed between two output times.
    max_num_steps: int
    #: Begin with the last step size of the solve before, instead of a new estimate.
    resume: bool = False
    #: The method, where it is one of the catalogue's.
    method: Method | None = None
    _last_dt: float | None = field(default=None, init=False)

    @in_own_precision
    def integrate(self, y0: Tensor, times: Times) -> list[Tensor]:
        """The states at all times, the first of them ``y0``.

        Raises:
            SolveError: one of its subclasses.
        """
        if len(times.values) == 1:
            return [y0]
        inner = times.values[1:-1]
        saves = SaveTimes(inner, times.tensor[1:-1] if times.differentiable else None) if inner else None
        loop = self._loop(times.point(0), times.point(len(times.values) - 1), saves)
        out = self._finish(loop, loop.run(y0))
        return [y0, *out.saved, out.y1]

    @in_own_precision
    def until_event(self, y0: Tensor, times: Times, event_fn: Callable[..., Tensor]) -> tuple[float, Tensor]:
        """Time and state of the first event; the state's gradient is that at a fixed time.

        Raises:
            EventNotFoundError: the solve went on to the end of time.
            SolveError: one of its other subclasses.
        """
        event = Event(event_fn)
        if zero_at_start(self.rhs, event, times.values[0], y0):
            return times.values[0], y0
        end = TimePoint(math.copysign(math.inf, times.sign))
        loop = self._loop(times.point(0), end, None)
        loop.watch = FixedTimeWatch(self.rhs, [event], times.sign)
        out = loop.run(y0)
        if out.stopped_by is not None:
            return out.stopped_by.t.value, out.stopped_by.y
        if abs(loop.t) > 1e290:
            raise EventNotFoundError(
                "event_fn never came to zero: the solve from "
                f"t={times.values[0]} went on to the end of time. Check the sign of event_fn, or bound the search with"
                " options={'max_num_steps': ...}."
            )
        self._finish(loop, out)
        raise AssertionError("a solve without an end ended")  # pragma: no cover

    @in_own_precision
    def dense(self, y0: Tensor, times: Times) -> Callable[[Any], Any]:
        """The dense output between the first and the last time."""
        pieces = Piecewise(times.sign)
        ends = (TimePoint(times.values[0]), TimePoint(times.values[-1]))
        loop = self._loop(*ends, None, pieces)
        self._finish(loop, loop.run(y0))
        return DenseOutput(pieces, self.spec)

    def _loop(
        self, t0: TimePoint, t1: TimePoint, saves: SaveTimes | None, pieces: Piecewise | None = None
    ) -> Integration:
        settings = self.settings
        limit = _StepLimit(self.max_num_steps, settings.on_step)
        if self.max_num_steps < settings.max_steps:
            settings = replace(settings, on_step=limit)
        if self.resume and settings.dt is None and self._last_dt is not None:
            settings = replace(settings, dt=self._last_dt)
        loop = Integration(self.rhs, self.stepper, settings, t0, t1, saves, counts=Counts(), pieces=pieces)
        limit.loop = loop
        return loop

    def _finish(self, loop: Integration, out: Outcome) -> Outcome:
        if not out.status.ok:
            span = (loop.t0.value, loop.t1.value)
            raise failure(out.status, out.message, out.t1.value, span, self.name, partial=False)
        self._last_dt = loop.dt
        return out


@dataclass
class _StepLimit:
    """Counts the steps between two output times, as torchdiffeq's ``max_num_steps`` does."""

    limit: int
    then: Hook | None
    loop: Integration = field(init=False)
    _towards: int = field(default=-1, init=False)
    _count: int = field(default=0, init=False)

    def __call__(self, t: float, y: Tensor, dt: float) -> None:
        if self.loop.next_save != self._towards:
            self._towards, self._count = self.loop.next_save, 0
        if self._count >= self.limit:
            raise MaxStepsError(
                f"max_num_steps exceeded: {self.limit} steps were not enough to reach the next output time from"
                f" t={t:.6g} (the step size there is {abs(dt):.3g}). Raise options['max_num_steps'], loosen rtol/atol,"
                " or try a stiff method such as 'rodas5p'."
            )
        self._count += 1
        if self.then is not None:
            self.then(t, y, dt)
