"""The integration loop in joint mode: one step size for the whole state.

Time runs as a Python float. Where the ends of the span carry gradients, a tensor clock runs beside it: step
sizes are the controller's (constants), except for the last step, which is cut so as to end at ``t1`` and so
depends on both ends. With gradients enabled everything here records its autograd graph, which *is* the
discretise-then-optimise adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...callbacks import Event
from ...controllers import PIDController
from ...problem import SaveTimes, TimePoint
from ...solution import Status
from ...tracking import recording
from ..common.crossing import Crossing
from ..common.dense import Interpolant, Piecewise
from ..common.events import EventWatch
from ..common.reading import all_finite, to_float
from ..common.rhs import Rhs, Scalar
from ..common.stretch import Outcome
from ..common.tolerances import Tolerances
from .control import Controller, initial_step
from .stepper import Step, Stepper

#: Called with t, y and the signed step size.
Hook = Callable[[float, Tensor, float], None]


@dataclass
class Settings:
    """Everything the loop needs to know besides the problem."""

    tol: Tolerances
    controller: PIDController = field(default_factory=PIDController)
    max_steps: int = 100_000
    #: Step of a fixed-step method; None steps from save to save. First step of an adaptive one; None estimates.
    dt: float | None = None
    dt_min: float = 0.0
    dt_max: float = math.inf
    #: Times that a step must end at; after each of them the method starts afresh (a jump of f).
    stops: Sequence[float] = ()
    #: End a step at every save time, instead of reading the saved state off the dense output.
    land: bool = False
    #: What the noise of a stochastic equation is resolved to: steps cannot be smaller.
    resolution: float = 0.0
    progress: Callable[[float], None] | None = None
    on_step: Hook | None = None
    on_accept: Hook | None = None
    on_reject: Hook | None = None
    #: Told of every accepted step before it is taken note of: the loop, the step's dt and its target.
    recorder: Callable[[Integration, float, float | None], None] | None = None


@dataclass
class Counts:
    """Steps so far; shared by the segments of one solve, so that ``max_steps`` bounds them together."""

    naccept: int = 0
    nreject: int = 0

    @property
    def total(self) -> int:
        return self.naccept + self.nreject


class Integration:
    """One smooth stretch from ``t0`` to ``t1``; :meth:`run` does it."""

    #: Whether every step's dense output is wanted.
    always_dense = False

    def __init__(
        self,
        rhs: Rhs,
        stepper: Stepper,
        settings: Settings,
        t0: TimePoint,
        t1: TimePoint,
        saves: SaveTimes | None,
        *,
        counts: Counts,
        pieces: Piecewise | None = None,
        events: Sequence[Event] = (),
        keep_steps: bool = False,
    ):
        self.rhs, self.stepper, self.settings = rhs, stepper, settings
        self.t0, self.t1, self.saves = t0, t1, saves
        self.counts, self.pieces, self.keep_steps = counts, pieces, keep_steps
        self.sign = math.copysign(1.0, t1.value - t0.value)
        self.watch = EventWatch(rhs, events, self.sign) if events else None
        self.control = Controller(settings.controller)
        # The tensor clock runs only where somebody may ask for its gradient.
        self.clock: Tensor | None = None
        self.end: Tensor | None = None
        if recording() and (t0.differentiable or t1.differentiable):
            wide = torch.float32 if rhs.device.type == "mps" else torch.float64
            as_tensor = lambda p: (  # noqa: E731
                p.tensor.to(rhs.device, wide)
                if p.differentiable
                else torch.tensor(p.value, dtype=wide, device=rhs.device)
            )
            self.clock, self.end = as_tensor(t0), as_tensor(t1)

    # -- the loop ---------------------------------------------------------------------------------

    def run(self, y0: Tensor) -> Outcome:
        """Integrate from ``y0`` until the end, an event, or a failure."""
        try:
            return self._run(y0)
        finally:
            self.rhs.fence()

    def _run(self, y0: Tensor) -> Outcome:
        self.t, self.y = self.t0.value, y0
        self.out = Outcome(Status.SUCCESS, y0, self.t0)
        self.next_save = 0
        self.plan_stops()
        self.carry = self.stepper.start(self.rhs, self.now(), y0)
        if not self._begin(y0):
            return self.out
        if self.watch:
            self.watch.begin(self.t, y0)
        self.save_start(y0)
        while True:
            if self.counts.total >= self.settings.max_steps:
                return self.fail(Status.MAX_STEPS, f"max_steps={self.settings.max_steps} steps were not enough")
            dt, target, clipped = self._next_dt()
            if self._stuck or (abs(dt) <= self._smallest_step() and not clipped):
                return self.underflow()
            if self.settings.on_step:
                self.settings.on_step(self.t, self.y, dt)
            size = self.size(dt, target)
            step = self.attempt(size)
            if not self.judge(step, dt, size, target):
                continue
            if self.advance(step, dt, size, target):
                return self.out

    def _begin(self, y0: Tensor) -> bool:
        """Choose the first step; False where the right-hand side is not finite at the start."""
        slope = self.stepper.slope(self.carry)
        if not self.stepper.adaptive:
            self.dt = self.settings.dt
            return True
        if self.settings.dt is not None:
            self.dt = abs(self.settings.dt)
        else:
            f0 = self.rhs.derivative(self.now(), y0) if slope is None else slope
            span = self.first_span()
            if not all_finite(f0):
                self.fail(Status.NON_FINITE, "the right-hand side is NaN or infinite at the initial state")
                return False
            self.dt = initial_step(self.rhs, self.stepper, self.t0.value, span, y0, f0, self.settings.tol)
            if math.isnan(self.dt):
                self.fail(Status.NON_FINITE, "the initial state is NaN or infinite")
                return False
        return True

    def attempt(self, size: Scalar) -> Step:
        return self.stepper.step(self.rhs, self.now(), size, self.y, self.carry)

    def now(self) -> Scalar:
        return self.t if self.clock is None else self.clock

    def first_span(self) -> float:
        """How far ahead, with its sign, the guess of a first step may look."""
        return self.t1.value - self.t0.value

    def longest(self) -> float:
        """The longest step that an adaptive method may take from here."""
        return self.settings.dt_max

    def size(self, dt: float, target: float | None) -> Scalar:
        """The step as the method gets it: a tensor where its start moves, or its end, and it is cut to end there."""
        if self.end is None or self.clock is None or target is None:
            return dt
        if target == self.t1.value:
            return (self.end - self.clock).to(self.rhs.time_dtype)
        # A stop stays where it is, whatever moves the start of the step.
        return (target - self.clock).to(self.rhs.time_dtype) if target in self.settings.stops else dt

    def _smallest_step(self) -> float:
        return max(4 * math.ulp(self.t), 1e-300, self.settings.resolution)

    def plan_stops(self) -> None:
        """Put the stops ahead in order, and keep f on this side of the first of them."""
        first, last = self.t0.value * self.sign, self.t1.value * self.sign
        ahead = {s for s in self.settings.stops if first < s * self.sign < last}
        self.stops_ahead = sorted(ahead, key=lambda s: s * self.sign)
        self.fence()

    def fence(self) -> None:
        """Between two stops f is smooth: keep evaluations on this side of both."""
        if not self.settings.stops:
            return
        end = self.stops_ahead[0] if self.stops_ahead else self.t1.value
        since, until = (t if t in self.settings.stops else side for t, side in ((self.t, -math.inf), (end, math.inf)))
        since, until = (x if math.isfinite(x) else x * self.sign for x in (since, until))
        self.rhs.fence(min(since, until), max(since, until))

    def _next_dt(self) -> tuple[float, float | None, bool]:
        """The signed step, the time it must end at (None: anywhere), and whether it was cut to do so."""
        target = self.stops_ahead[0] if self.stops_ahead else self.t1.value
        if self.dt is None or self.settings.land:
            target = self._next_save(target)
        if self.dt is None:  # a fixed-step method along the save times
            return self._reach(target), target, True
        dt = self.dt if not self.stepper.adaptive else min(max(self.dt, self.settings.dt_min), self.longest())
        left = abs(target - self.t)
        # A hair short of the target counts as there, or a step of rounding size would follow.
        if dt >= left * (1 - 1e-10):
            exact = not self.stepper.adaptive and abs(dt - left) <= 1e-9 * left
            return (math.copysign(dt, self.sign) if exact else self._reach(target)), target, True
        return math.copysign(dt, self.sign), None, False

    def _next_save(self, target: float) -> float:
        """The next save time where it comes before ``target``."""
        values = () if self.saves is None else self.saves.values
        index = self.next_save
        while index < len(values) and (values[index] - self.t) * self.sign <= 0:
            index += 1
        return min(target, values[index], key=lambda s: s * self.sign) if index < len(values) else target

    def _reach(self, target: float) -> float:
        """The step to ``target``, such that ``t + dt`` is never a rounding error beyond it."""
        dt = target - self.t
        return math.nextafter(dt, 0.0) if (self.t + dt - target) * self.sign > 0 else dt

    # -- one step ---------------------------------------------------------------------------------

    def judge(self, step: Step, dt: float, size: Scalar, target: float | None) -> bool:
        """Accept or reject the step, and set the next step size."""
        order = self.stepper.error_order if step.error_order is None else step.error_order
        if step.converged is False:
            self.reject(dt, 0.25, "not converged")
            return False
        if step.error is None:
            return True
        size = self.settings.tol.ratio(step.error, self.y, step.y1)
        flag = step.converged
        if isinstance(flag, Tensor):  # one transfer from a GPU for both
            size = torch.where(flag, size.detach(), math.inf)
        ratio = to_float(size)
        if ratio == math.inf and isinstance(flag, Tensor) and to_float(flag.logical_not().float()) != 0.0:
            self.reject(dt, 0.25, "not converged")
            return False
        self.ratio = ratio
        if ratio <= 1.0 or (abs(dt) <= self.settings.dt_min and math.isfinite(ratio)):
            factor = step.factor if step.factor is not None else self.control.accepted(ratio, order)
            grown = abs(dt) * factor
            # A step that was cut short says nothing against the size that had been planned.
            planned = self.dt if self.dt is not None and abs(dt) < self.dt * 0.999 else 0.0
            self.dt = max(grown, planned) if step.factor is None else (planned or grown)
            return True
        self.reject(dt, self.control.rejected(ratio, order), "" if math.isfinite(ratio) else "non-finite")
        return False

    def reject(self, dt: float, factor: float, why: str) -> None:
        self.counts.nreject += 1
        self.why, self._failed_dt = why, dt
        # At dt_min an error that is too large is accepted; what fails there for another reason always will.
        self._stuck = abs(dt) <= self.settings.dt_min
        # A fixed step that fails is not made smaller: a step of 0 ends the solve with the reason.
        self.dt = abs(dt) * factor if self.stepper.adaptive else 0.0
        if self.settings.on_reject:
            self.settings.on_reject(self.t, self.y, dt)

    def advance(self, step: Step, dt: float, size: Scalar, target: float | None) -> bool:
        """Move past an accepted step: events, saves, bookkeeping. True when the stretch is over."""
        self.counts.naccept += 1
        self.why = ""
        if self.settings.on_accept:
            self.settings.on_accept(self.t, self.y, dt)
        if self.settings.recorder:
            self.settings.recorder(self, dt, target)
        t_next = self.t + dt if target is None else target
        if self.settings.land and self._saves_inside(t_next):
            self.out.saved.append(step.y1)
            self.next_save += 1
        piece: Interpolant | None = None
        if self.always_dense or self.watch or self.pieces is not None or self._saves_inside(t_next):
            piece = step.interpolant()
        if self.watch and piece is not None:
            crossing = self.watch.check(self.t, dt, t_next, step.y1, piece, self.clock_of(size))
            if crossing is not None:
                self._stop_at(crossing, piece, dt, size)
                return True
            self.out.crossings.extend(self.watch.passed())
        if piece is not None:
            self.save_inside(piece, t_next, size)
            self.keep(piece, t_next - self.t, size)
        if self.clock is not None:
            self.clock = self.clock + size
        self.t, self.y, self.carry = t_next, step.y1, step.carry
        if self.keep_steps:
            self.out.step_times.append(self.now())
            self.out.step_states.append(self.y)
        if self.settings.progress:
            self.settings.progress(self.t)
        if target is not None and target == self.t1.value:
            self._save_end()
            self.out.y1, self.out.t1 = self.y, self.t1
            return True
        if target is not None and self.stops_ahead and target == self.stops_ahead[0]:
            self.leave_stop(self.stops_ahead.pop(0))
        if self.carry is None:
            self.carry = self.stepper.start(self.rhs, self.now(), self.y)
        return False

    def leave_stop(self, stop: float) -> None:
        """Start afresh on the far side of a stop."""
        self.fence()
        self.carry = self.stepper.start(self.rhs, self.now(), self.y)

    def keep(self, piece: Interpolant, dt: float, size: Scalar, end: float | None = None) -> None:
        """Keep a step's dense output, where somebody wants it."""
        if self.pieces is not None:
            self.pieces.append(self.t, dt, piece, end=end, clock=self.clock_of(size))

    def clock_of(self, size: Scalar) -> tuple[Tensor, Scalar] | None:
        return None if self.clock is None else (self.clock, size)

    # -- saving -----------------------------------------------------------------------------------

    def _saves_inside(self, t_next: float) -> bool:
        if self.saves is None or self.next_save >= len(self.saves.values):
            return False
        s = self.saves.values[self.next_save]
        return (t_next - s) * self.sign >= 0 and s != self.t1.value

    def save_start(self, y0: Tensor) -> None:
        if self.keep_steps:
            self.out.step_times.append(self.now())
            self.out.step_states.append(y0)
        if self.saves is not None and self.saves.values and self.saves.values[0] == self.t0.value:
            self.out.saved.append(self._moved(y0, 0, self.clock, self.stepper.slope(self.carry)))
            self.next_save = 1

    def save_inside(self, piece: Interpolant, t_next: float, size: Scalar) -> None:
        """States at the save times in ``(t, t_next]``, but for one at the very end of the span."""
        if self.saves is None:
            return
        first = self.next_save
        while self._saves_inside(t_next):
            self.next_save += 1
        due = range(first, self.next_save)
        if not due:
            return
        if self.clock is None and self.saves.tensor is None:
            assert isinstance(size, float)
            self.out.saved.extend(piece.at([(self.saves.values[i] - self.t) / size for i in due]).unbind(0))
            return
        start = self.clock if self.clock is not None else torch.tensor(self.t, dtype=torch.float64)
        for i in due:
            point = self.saves.point(i)
            when = torch.tensor(self.saves.values[i], dtype=start.dtype) if point is None else point.to(start)
            self.out.saved.append(piece.at_tensor((when.to(start.device) - start) / size))

    def _save_end(self) -> None:
        if self.saves is not None and self.next_save < len(self.saves.values):
            self.out.saved.append(self._moved(self.y, self.next_save, self.end, self.stepper.slope(self.carry)))
            self.next_save += 1

    def _moved(self, y: Tensor, index: int, anchor: Tensor | None, slope: Tensor | None) -> Tensor:
        """The state at an end of the span, as a function of the save time *and* of that end.

        Both have the same value, so this adds zero; but the save time's gradient is f there, and the end's
        is less by as much (moving both together must move along the solution once, not twice).
        """
        assert self.saves is not None
        point = self.saves.point(index)
        if point is None and anchor is None:
            return y
        value = self.saves.values[index]
        when = torch.tensor(value, dtype=torch.float64, device=y.device) if point is None else point.double()
        base = torch.tensor(value, dtype=torch.float64, device=y.device) if anchor is None else anchor
        if not recording():
            return y
        f = self.rhs.derivative(self.now(), y) if slope is None else slope
        return y + f * (when - when.detach() - base + base.detach()).to(self.rhs.time_dtype)

    # -- other endings ----------------------------------------------------------------------------

    def _stop_at(self, crossing: Crossing, piece: Interpolant, dt: float, size: Scalar) -> None:
        """End the stretch at an event inside the last step."""
        assert self.watch is not None
        self.out.crossings.extend(self.watch.passed())
        self.save_inside(piece, crossing.t.value, size)
        self.keep(piece, dt, size, end=crossing.t.value)
        self.out.stopped_by = crossing
        self.out.y1, self.out.t1 = crossing.y, crossing.t

    def underflow(self) -> Outcome:
        if self.why == "non-finite":
            return self.fail(Status.NON_FINITE, "the right-hand side or the state became NaN or infinite")
        if self.why == "not converged":
            if not all_finite(self.rhs.evaluate(self.t + self._failed_dt, self.y.detach())):
                return self.fail(Status.NON_FINITE, "the right-hand side became NaN or infinite")
            return self.fail(Status.NOT_CONVERGED, "an implicit stage equation has no solution at the smallest step")
        noise = f", and the Brownian path is resolved to {limit:.3g}" if (limit := self.settings.resolution) else ""
        return self.fail(Status.STEP_UNDERFLOW, f"the step size fell to {self.dt:.3g}{noise}")

    #: Why the last attempted step was rejected ("" for an ordinary error), its size, and whether no other will do.
    why: str = ""
    _failed_dt: float = 0.0
    _stuck: bool = False

    def fail(self, status: Status, message: str) -> Outcome:
        self.out.status, self.out.message = status, message
        self.out.y1, self.out.t1 = self.y, TimePoint(self.t)
        return self.out
