"""Fixed-step methods behind ``odeint``: along a grid of times, with interpolation to the output times."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backends.common.autocast import in_own_precision
from ..backends.common.crossing import condition
from ..backends.common.dense import Interpolant, Piecewise
from ..backends.common.output import DenseOutput
from ..backends.common.rhs import Rhs, Scalar
from ..backends.eager.integrate import Hook
from ..backends.eager.stepper import Step, Stepper
from ..callbacks import Event
from ..errors import InvalidTimesError, MaxStepsError, StepSizeRequiredError
from ..state import StateSpec
from ..tracking import recording, tracked
from .events import first_zero, zero_at_start
from .times import Times

#: Weight of the change in linear interpolation.
LINEAR = np.array([[1.0]])
GridConstructor = Callable[[Any, Any, Tensor], Tensor]

#: Steps that a search for an event takes before it gives up.
MAX_EVENT_STEPS = 20_000
NOT_CONVERGED = "Functional iteration did not converge. Solution may be incorrect."


class Span(NamedTuple):
    """Where a step starts and ends; its start and size again, as tensors where the times carry a gradient."""

    t0: float
    t1: float
    start: Scalar
    size: Scalar


@dataclass(slots=True)
class Stride:
    """One step, taken."""

    span: Span
    y0: Tensor
    step: Step

    def state(self, when: float, time: Tensor | None, interp: str) -> Tensor:
        """The state at a time inside; ``time`` is that time where it carries a gradient."""
        t0, t1, start, size = self.span
        if when == t1 and time is None:
            return self.step.y1
        theta = (when - t0) / (t1 - t0) if time is None else (time - start) / size
        if interp == "cubic":
            piece = self.step.interpolant()
            return piece.at([theta])[0] if isinstance(theta, float) else piece.at_tensor(theta)
        if isinstance(theta, float):
            return torch.lerp(self.y0, self.step.y1, theta)
        change = self.step.y1 - self.y0
        return self.y0 + change * theta.to(change.real.dtype if change.is_complex() else change.dtype)


@dataclass
class GridEngine:
    """Solves with fixed steps.

    Args:
        step_size: the size of the steps; or
        grid_constructor: makes the grid of ``(func, y0, t)``. Without either the grid is ``t``.
        interp: how to get from the grid to the output times, "linear" or "cubic".
        perturb: evaluate f just inside both ends of every step, as f may jump there.
        on_step: called before every step.
    """

    name: str
    rhs: Rhs
    stepper: Stepper
    spec: StateSpec | None
    step_size: float | None = None
    grid_constructor: GridConstructor | None = None
    interp: str = "linear"
    perturb: bool = False
    on_step: Hook | None = None

    @in_own_precision
    def integrate(self, y0: Tensor, times: Times) -> list[Tensor]:
        """The states at all times, the first of them ``y0``.

        Raises:
            InvalidTimesError: a grid that does not lead from the first time to the last.
        """
        states, taken = [y0], 1
        values, count = times.values, len(times.values)
        if count == 1:
            return states
        grid = self._grid(y0, times)
        # A step that ends at an output time, or at the last time, carries that time's gradient in its size.
        interpolated = count - 1 if times.differentiable and grid is not times.tensor else 0
        for stride in self._walk(y0, self._spans(grid, times.sign)):
            while taken < count and (stride.span.t1 - values[taken]) * times.sign >= 0:
                time = times.tensor[taken] if taken < interpolated else None
                states.append(stride.state(values[taken], time, self.interp))
                taken += 1
        return states

    @in_own_precision
    def until_event(self, y0: Tensor, times: Times, event_fn: Callable[..., Tensor]) -> tuple[float, Tensor]:
        """Time and state of the first event; the state's gradient is that at a fixed time.

        Raises:
            StepSizeRequiredError: no ``step_size``.
            MaxStepsError: no event within 20000 steps.
        """
        if self.step_size is None:
            raise StepSizeRequiredError(
                f"an event with the fixed-step method {self.name!r} needs the size of the steps: give"
                " options={'step_size': ...}."
            )
        event = Event(event_fn)
        if zero_at_start(self.rhs, event, times.values[0], y0):
            return times.values[0], y0
        with torch.no_grad():
            signs = condition(self.rhs, event, times.values[0], y0).sign()
        for stride in self._walk(y0, self._endless(times)):
            with torch.no_grad():
                now = condition(self.rhs, event, stride.span.t1, stride.step.y1).sign()
            if bool((now != signs).any()):
                return self._locate(stride, event, signs)
        raise MaxStepsError(
            f"event_fn came to no zero within {MAX_EVENT_STEPS} steps of size {self.step_size}; check its sign, or"
            " take larger steps."
        )

    @in_own_precision
    def dense(self, y0: Tensor, times: Times) -> Callable[[Any], Any]:
        """The dense output between the first and the last time: cubic on each step."""
        pieces = Piecewise(times.sign)
        for stride in self._walk(y0, self._spans(self._grid(y0, times).detach(), times.sign)):
            t0, t1, *_ = stride.span
            pieces.append(t0, t1 - t0, stride.step.interpolant(), end=t1)
        return DenseOutput(pieces, self.spec)

    # -- the walk ---------------------------------------------------------------------------------

    def _walk(self, y: Tensor, spans: Iterable[Span]) -> Iterator[Stride]:
        carry = None
        for span in spans:
            t0, t1, start, size = span
            if self.on_step is not None:
                self.on_step(t0, y, t1 - t0)
            if self.perturb:
                self.rhs.fence(min(t0, t1), max(t0, t1))
            step = self.stepper.step(self.rhs, start, size, y, carry)
            self.rhs.fence()
            if not step.converged:
                warnings.warn(NOT_CONVERGED, stacklevel=5)
            yield Stride(span, y, step)
            y, carry = step.y1, step.carry

    def _spans(self, grid: Tensor, sign: float) -> Iterator[Span]:
        """The steps along a grid."""
        values = grid.detach().tolist()
        differentiable = recording() and tracked(grid)
        for i, (t0, t1) in enumerate(itertools.pairwise(values)):
            if (t1 - t0) * sign < 0:
                raise InvalidTimesError(f"the grid must go the way of t, but grid[{i}]={t0} is followed by {t1}.")
            if t0 == t1:
                continue
            if differentiable:
                yield Span(t0, t1, grid[i], (grid[i + 1] - grid[i]).to(self.rhs.time_dtype))
            else:
                yield Span(t0, t1, t0, t1 - t0)

    def _endless(self, times: Times) -> Iterator[Span]:
        """The steps of a search for an event."""
        assert self.step_size is not None
        first, dt = times.point(0), self.step_size * times.sign
        for i in range(MAX_EVENT_STEPS):
            t0 = first.value + i * dt
            start = t0 if first.tensor is None else first.tensor.double() + i * dt
            yield Span(t0, first.value + (i + 1) * dt, start, dt)

    def _grid(self, y0: Tensor, times: Times) -> Tensor:
        if self.step_size is not None:
            first, last = times.values[0], times.values[-1]
            # A rounding error too many would add a step of no size.
            slack = 1 - 4 * torch.finfo(times.tensor.dtype).eps
            steps = max(math.ceil(abs(last - first) / self.step_size * slack), 1)
            t = times.tensor
            inner = torch.arange(1, steps, dtype=t.dtype, device=t.device) * (self.step_size * times.sign) + t[0]
            return torch.cat([t[:1], inner, t[-1:]])
        if self.grid_constructor is None:
            return times.tensor
        grid = self.grid_constructor(self.rhs, y0, times.tensor)
        if not isinstance(grid, Tensor) or grid.dim() != 1 or len(grid) < 2:
            raise InvalidTimesError("grid_constructor must return a one-dimensional tensor of at least two times.")
        if float(grid[0]) != times.values[0] or float(grid[-1]) != times.values[-1]:
            raise InvalidTimesError(
                f"the grid must start at t[0]={times.values[0]} and end at t[-1]={times.values[-1]}; got"
                f" {float(grid[0])} and {float(grid[-1])}."
            )
        return grid

    def _locate(self, stride: Stride, event: Event, signs: Tensor) -> tuple[float, Tensor]:
        """The first component's zero inside the stride."""
        piece = self._between(stride)
        t0, t1, start, size = stride.span

        @torch.no_grad()
        def gap(theta: float) -> float:
            values = condition(self.rhs, event, t0 + theta * (t1 - t0), piece.at([theta])[0])
            return float((values * signs).min())

        theta = first_zero(gap)
        when = t0 + theta * (t1 - t0)
        if isinstance(start, Tensor):
            return when, piece.at_tensor((when - start) / size)
        return when, piece.at([theta])[0]

    def _between(self, stride: Stride) -> Interpolant:
        if self.interp == "cubic":
            return stride.step.interpolant()
        return Interpolant(stride.y0, (stride.step.y1 - stride.y0,), LINEAR, None)
