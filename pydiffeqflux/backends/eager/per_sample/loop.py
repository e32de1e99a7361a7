"""The integration loop of per-sample mode: all rows step at once, each by its own step.

Times, step sizes and the controllers' memories are ``(B,)`` tensors. What happens on the host is decided by one
transfer of a few flags a step (two where events are watched). Rows that have nothing to do make a step too short
to move them; what it gives is dropped.

With gradients enabled the loop records its autograd graph. Selecting rows by ``where`` drops a rejected attempt's
values but not its derivatives, where zero times NaN would be NaN: an attempt that was not finite on some rows is
therefore made again with those rows standing still, before the others may go on from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ....callbacks import Affect
from ....problem import TimePoint
from ....solution import Status
from ....tracking import recording, tracked
from ...backend import SolveOptions
from ...common.affect import affected
from ...common.rhs import Rhs
from ...common.tolerances import Tolerances
from ..stepper import Step, Stepper
from .control import RowControl, initial_steps, row_ratio
from .events import RowCrossing, RowWatch, Segment
from .layout import Layout
from .record import DenseLog, StepLog
from .rows import Rows
from .saving import Saver

#: Step of a row that stands still: nothing against any time, but far from underflow in float32.
STILL = 1e-20


@dataclass(slots=True)
class _Size:
    """Every row's next step."""

    #: Unsigned, without a graph.
    h: Tensor
    #: Signed, with its graph; rows that stand still have a tiny one.
    dt: Tensor
    #: Rows whose step was cut so as to end at ``target``.
    lands: Tensor
    target: Tensor | float


@dataclass(slots=True)
class _Verdict:
    accept: Tensor
    rejected: Tensor
    #: Rejected without usable values: not finite, or an implicit equation unsolved.
    unusable: Tensor
    #: Rows that end here, with no step left to try, and (a mask) those of them with an unsolved equation.
    failed: Tensor
    unsolved: Tensor


class RowLoop:
    """Steps all rows from one shared time to the next (:meth:`run_to`)."""

    def __init__(
        self,
        rhs: Rhs,
        stepper: Stepper,
        tol: Tolerances,
        options: SolveOptions,
        layout: Layout,
        start: TimePoint,
        y0: Tensor,
        direction: float,
        progress: Callable[[float], None] | None,
    ):
        self.rhs, self.stepper, self.tol, self.options, self.layout = rhs, stepper, tol, options, layout
        self.sign, self.progress, self.at = direction, progress, start
        self.rows = Rows(rhs, stepper, layout, start, y0)
        self.control = RowControl(options.controller, layout)
        self.watch = RowWatch(rhs, options.events, layout, direction) if options.events else None
        self.saver = Saver(options.saves, layout, direction)
        self.steps = StepLog() if options.saves is None and options.unsaved == "steps" else None
        self.dense = DenseLog(direction) if options.dense else None
        self.crossings: list[RowCrossing] = []
        #: Next step of every row, unsigned; meaningless for a fixed-step method that goes from save to save.
        self.dt = layout.full(math.inf if options.dt is None else options.dt)
        self.active = self.rows.alive
        self.naccept = torch.zeros_like(self.rows.code)
        self.nreject = torch.zeros_like(self.rows.code)
        self._attempts = 0
        bounded = stepper.adaptive and (options.dt_min > 0 or options.dt_max < math.inf)
        self._bounds = (options.dt_min, options.dt_max) if bounded else None
        self._t0 = start.value
        # Rounded to the state's dtype, a step that is cut to end somewhere must not lead beyond.
        narrow = stepper.adaptive and rhs.time_dtype != layout.wide
        self._shrink = 1.0 - 0.5 * torch.finfo(rhs.time_dtype).eps if narrow else 1.0

    # -- from one shared time to the next ---------------------------------------------------------

    def run_to(self, end: TimePoint, *, fresh: bool) -> None:
        """Bring every row to ``end``, or to where it ends before.

        Args:
            fresh: the states are new: step sizes and errors of the past say nothing.
        """
        rows = self.rows
        self.end = end
        self.end_clock: Tensor | None = None
        if recording() and (end.differentiable or rows.clock is not None):
            self._wind()
        self._fence()
        if rows.carry is None:
            rows.restart()
        if fresh:
            self.log_step()
        self.saver.open(end)
        self.active = rows.alive
        self._lay_targets(end)
        if fresh:
            self._begin(None)
        self.some_idle = not bool(self.active.all())
        going = bool(self.active.any())
        while going:
            going = self._iterate() if self._attempts < self.options.max_steps else self._bounded()
        self.at = end
        self.saver.close(rows, end)
        rows.carry = None  # the right-hand side may jump here
        self.rhs.fence()

    def _fence(self) -> None:
        """Keep f on this side of the stops at the stretch's ends."""
        inside = [(self.at.value, -math.inf * self.sign), (self.end.value, math.inf * self.sign)]
        bounds = [t if t in self.options.stops else open_ for t, open_ in inside]
        self.rhs.fence(min(bounds), max(bounds))

    def begin(self) -> None:
        """Evaluate the rows where they start, and save those states where they are asked for."""
        self.rows.restart()
        self.saver.begin(self.rows, self.at)

    def _user_time(self) -> Tensor:
        return self.layout.user_time(self.rhs.time(self.rows.times))

    def log_step(self) -> None:
        """Keep the states that rows start from, where every step is kept."""
        if self.steps is not None:
            self.steps.add(self.rows.alive, self.rows.times, self.rows.y)

    def apply(self, affect: Affect) -> None:
        """Change the state of all rows that have not ended."""
        rows = self.rows
        new = affected(self.rhs, affect, self._user_time(), rows.y)
        rows.move(rows.t, self.layout.where(rows.alive, new, rows.y), rows.clock)
        rows.carry = None

    def _wind(self) -> None:
        self.rows.wind()
        self.end_clock = self.layout.time(self.end)

    def _lay_targets(self, end: TimePoint) -> None:
        """A fixed-step method without ``dt`` steps from save time to save time."""
        self._targets: Tensor | None = None
        if not self.stepper.adaptive and self.options.dt is None:
            assert self.options.saves is not None
            sign = self.sign
            first, last = self.at.value * sign, end.value * sign
            inside = [s * sign for s in self.options.saves.values if first < s * sign < last]
            self._targets = torch.tensor([*inside, last], dtype=self.layout.wide, device=self.layout.device)

    def _begin(self, rows: Tensor | None) -> None:
        """First step sizes, and nothing remembered: for some rows or all."""
        here = self.rows
        if self.stepper.adaptive:
            if self.options.dt is not None:
                dt = self.layout.full(self.options.dt)
            else:
                dt = initial_steps(
                    self.rhs, self.stepper, self.layout, self.tol, here.t, self.end.value - here.t, here.start,
                    here.slope(),
                )  # fmt: skip
            self.dt = dt if rows is None else torch.where(rows, dt, self.dt)
            self.control.forget(torch.ones_like(self.active) if rows is None else rows)
            undefined = dt.isnan()  # so are the state or its slope
            self._end_failed(self.active & (undefined | (dt <= self._resolution())), undefined, None)
        elif self.options.dt is not None:
            smallest = 4 * math.ulp(max(abs(self._t0), abs(self.end.value)))
            if self.options.dt <= smallest:
                self._end_failed(self.active, None, None)
        if self.watch:
            self.watch.begin(here.t, here.start, rows)

    def _resolution(self) -> Tensor:
        """Below this a step no longer moves the time: four units in its last place."""
        return self.rows.t.abs() * (4 * torch.finfo(self.layout.wide).eps) + 1e-300

    def _bounded(self) -> bool:
        """One more step for those rows only that have steps left."""
        over = self.active & (self.naccept + self.nreject >= self.options.max_steps)
        if bool(over.any()):
            self.rows.finish(over, Status.MAX_STEPS)
            self.active = self.active & ~over
            self.some_idle = True
            if not bool(self.active.any()):
                return False
        return self._iterate()

    # -- one step ---------------------------------------------------------------------------------

    def _iterate(self) -> bool:
        """One step of all rows; whether any of them has further to go."""
        rows, active = self.rows, self.active
        size = self._next_size()
        step = self._step(size.dt)
        verdict = self._judge(step, size)
        accept = verdict.accept
        t_next = torch.where(accept, torch.where(size.lands, size.target, rows.t + size.h * self.sign), rows.t)
        upto = self.saver.upto(t_next)
        ahead = active & ~verdict.failed & ((self.end.value - t_next) * self.sign > 0)
        due = accept if upto is None else self.saver.due(upto)
        flags = torch.stack([accept, ~accept, verdict.unusable, verdict.failed, ahead, ~ahead, due])
        some, held, unusable, failed, going, idle, is_due = map(bool, flags.any(1).tolist())
        self.some_idle = idle
        self._attempts += 1
        self.naccept += accept
        self.nreject += verdict.rejected
        self.active = ahead
        if unusable and some and recording():
            step = self._without(verdict.unusable, size)
        if some:
            stopped = self._advance(step, size, accept, t_next, upto if is_due else None, held)
            if stopped:
                going = self._jump(stopped)
            if self.steps is not None:
                self.steps.add(accept, rows.times, rows.y)
        if failed:
            self._end_failed(verdict.failed, verdict.unusable, verdict.unsolved)
        if failed or (unusable and some):
            going, self.some_idle = bool(self.active.any()), True
        if self.progress:
            signed = torch.where(rows.alive, rows.t * self.sign, torch.inf).min() * self.sign
            self.progress(min(float(signed), self.end.value, key=lambda t: t * self.sign))
        return going

    def _next_size(self) -> _Size:
        rows, sign, end = self.rows, self.sign, self.end.value
        target: Tensor | float = end
        if self._targets is not None:
            index = torch.searchsorted(self._targets, rows.t * sign, right=True)
            target = self._targets[index.clamp(max=len(self._targets) - 1)] * sign
            h = left = (target - rows.t) * sign
            lands = torch.ones_like(self.active)
        else:
            left = (end - rows.t) * sign
            dt = self.dt
            if self._bounds is not None:
                dt = dt.clamp(*self._bounds)
            # A hair short of the target counts as there, or a step of rounding size would follow.
            lands = dt >= left * (1 - 1e-10)
            cut = lands if self.stepper.adaptive else dt > left * (1 + 1e-9)
            h = torch.where(cut, left, dt)
        signed = h * sign
        if self._shrink != 1.0:
            signed = torch.where(lands, signed * self._shrink, signed)
        if self.some_idle:
            signed = torch.where(self.active, signed, self._still())
        if self.end_clock is not None:
            at_end = lands & self.active & (torch.as_tensor(target, device=left.device) == end)
            signed = torch.where(at_end, (self.end_clock - rows.times) * self._shrink, signed)
        return _Size(h, signed, lands, target)

    def _still(self) -> Tensor:
        """A step that moves nothing, back into what was solved: the model may not be defined beyond the end."""
        return torch.where(self.rows.t == self._t0, STILL * self.sign, -STILL * self.sign).to(self.layout.wide)

    def _step(self, dt: Tensor) -> Step:
        rows = self.rows
        if rows.carry is None:
            rows.slope()
        size = self.layout.spread(dt.to(self.rhs.time_dtype))
        return self.stepper.step(self.rhs, rows.now, size, rows.start, rows.carry)

    def _judge(self, step: Step, size: _Size) -> _Verdict:
        """Accept or reject every row's step, and set the next step sizes."""
        active = self.active
        if step.error is None:
            fine = self.rows.finite(step.y1)
            accept = active & fine
            bad = active & ~fine
            return _Verdict(accept, bad, bad, bad, torch.zeros_like(bad))
        ratio = row_ratio(self.tol, self.layout, step.error, self.rows.start, step.y1)
        converged = torch.as_tensor(step.converged, device=ratio.device)
        good = (ratio <= 1.0) & converged
        if self.options.dt_min > 0:
            good = good | ((size.h <= self.options.dt_min) & ratio.isfinite() & converged)
        accept, rejected = active & good, active & ~good
        order = self.stepper.error_order if step.error_order is None else step.error_order
        factor = self.control.factor(ratio, accept, rejected, order)
        if step.factor is not None:
            factor = torch.where(accept, torch.as_tensor(step.factor, dtype=factor.dtype), factor)
        if step.converged is not True:
            factor = torch.where(converged, factor, 0.25)
        # A step that was cut short says nothing against the size that had been planned.
        planned = torch.where(accept & (size.h < self.dt * 0.999), self.dt, 0.0)
        dt = torch.maximum(size.h * factor, planned)
        self.dt = torch.where(active, dt, self.dt) if self.some_idle else dt
        unusable = rejected & (ratio.isinf() | ~converged)
        failed = active & (self.dt <= self._resolution()) & ~(accept & size.lands)
        if self.options.dt_min > 0:  # what is rejected at dt_min has another reason than its error, and will again
            failed = failed | (rejected & (size.h <= self.options.dt_min))
        return _Verdict(accept, rejected, unusable, failed, rejected & ~converged)

    def _without(self, unusable: Tensor, size: _Size) -> Step:
        """The attempt once more, with these rows standing still, so that no derivative of theirs is NaN."""
        self.rows.set_aside_undefined(unusable)
        self.active = self.active & self.rows.alive
        return self._step(torch.where(unusable, self._still(), size.dt))

    def _end_failed(self, failed: Tensor, unusable: Tensor | None, unsolved: Tensor | None) -> None:
        """End rows that have no step left to try."""
        rows = self.rows
        if unsolved is not None:
            rows.finish(failed & unsolved, Status.NOT_CONVERGED)
        if unusable is not None:
            rows.finish(failed & unusable, Status.NON_FINITE)
            rows.set_aside_undefined(failed & unusable)
        rows.finish(failed, Status.STEP_UNDERFLOW)
        self.active = self.active & ~failed

    # -- past an accepted step --------------------------------------------------------------------

    def _advance(
        self, step: Step, size: _Size, accept: Tensor, t_next: Tensor, upto: Tensor | None, held: bool
    ) -> list[RowCrossing]:
        """Move the accepted rows; the crossings at which some of them stopped early."""
        rows, layout = self.rows, self.layout
        y_next = layout.where(accept, step.y1, rows.y) if held else step.y1
        clock = rows.clock
        if clock is not None:
            clock = torch.where(accept, clock + size.dt, clock)
        stopped: list[RowCrossing] = []
        needed = self.watch is not None or self.dense is not None or upto is not None
        piece = step.interpolant() if needed else None
        begin = rows.times
        if self.watch is not None and piece is not None:
            stopped, passed = self.watch.check(Segment(accept, begin, size.dt, t_next, step.y1, piece))
            self.crossings += [*passed, *stopped]
            for crossing in stopped:
                if tracked(crossing.t) and clock is None:
                    clock = t_next
                t_next = torch.where(crossing.rows, crossing.t.detach(), t_next)
                y_next = layout.where(crossing.rows, crossing.y, y_next)
                clock = None if clock is None else torch.where(crossing.rows, crossing.t, clock)
            if stopped and upto is not None:
                upto = self.saver.upto(t_next)
        if upto is not None and piece is not None:
            at_ends = self._targets is not None and clock is None and not self.saver.differentiable
            self.saver.take(upto, piece, step.y1, begin, size.dt, at_ends=at_ends)
        if self.dense is not None and piece is not None:
            self.dense.add(accept, begin, size.dt, piece)
        carry = rows.merge_carry(accept, step.carry, rows.carry) if held else step.carry
        rows.move(t_next, y_next, clock)
        rows.carry = carry
        return stopped

    def _jump(self, stopped: list[RowCrossing]) -> bool:
        """End rows at terminal events, and let the others jump; whether any row has further to go."""
        rows, layout = self.rows, self.layout
        y, jumped = rows.y, torch.zeros_like(self.active)
        for crossing in stopped:
            event = self.options.events[crossing.index]
            if event.terminal:
                rows.finish(crossing.rows, Status.EVENT)
            elif event.affect is not None:
                y = layout.where(crossing.rows, affected(self.rhs, event.affect, self._user_time(), rows.y), y)
                jumped = jumped | crossing.rows
        rows.move(rows.t, y, rows.clock)
        if rows.clock is not None and self.end_clock is None:
            self._wind()
        self.active = rows.alive & ((self.end.value - rows.t) * self.sign > 0)
        if bool(jumped.any()):
            old = rows.carry
            rows.carry = self.stepper.start(self.rhs, rows.now, rows.start)
            if old is not None:
                rows.carry = rows.merge_carry(jumped, rows.carry, old)
            self._begin(jumped & self.active)
        self.some_idle = not bool(self.active.all())
        return bool(self.active.any())
