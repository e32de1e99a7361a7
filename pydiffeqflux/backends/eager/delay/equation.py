"""A delay equation as the steppers see it: a right-hand side of time and state that reads the past by itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....dde_problem import DDEProblem, Lag, checked_lag
from ....errors import InvalidLagError
from ....problem import TimePoint
from ....tracking import reading, recording
from ...common.autocast import as_called
from ...common.dense import Piecewise
from ...common.reading import to_float
from ...common.rhs import Rhs, Scalar
from .breaks import Break, Breaks

#: Times that are closer than this, relative to the span's largest time, count as one.
CLOSE = 1e-12


class DelayRhs(Rhs):
    """``func(t, y, y(t - lag_1), ...)`` as a function of ``t`` and ``y``.

    Which polynomial of the past a delayed state is read off is told by where the current step lies, not by the delayed
    time alone: at a breaking point, rounding would pick the wrong side, and a stage beyond one has to see the smooth
    continuation of what came before it.

    Args:
        problem: what is to be solved.
        order: the method's, up to which breaking points count.
    """

    def __init__(self, problem: DDEProblem, order: int):
        super().__init__(as_called(problem.func, problem.packed), problem.spec, problem.packed)
        self.lags, self.history = problem.delays, problem.past
        self.start = problem.t0.value
        self.past = Piecewise()
        #: The time up to which the past is known.
        self.reach = self.start
        span = max(abs(self.start), abs(problem.t1.value), problem.t1.value - self.start)
        self.close = CLOSE * span
        self.differentiable = recording()
        self.breaks = Breaks(self.lags, order, self.close, self.differentiable)
        #: The smooth interval that the current step lies in.
        self.window = (-math.inf, math.inf)
        #: For each state-dependent lag the breaking point after which its delayed time lies.
        self.low = [-math.inf for _ in self.lags]
        #: How far the current step's stages have reached beyond what is known.
        self.overlap = 0.0
        self.shortest = min((lag.value for lag in self.lags if lag.constant), default=math.inf)
        self._begun = False

    @property
    def moving(self) -> bool:
        """Whether breaking points, and so the ends of steps, carry gradients."""
        return self.differentiable and any(lag.tensor is not None or not lag.constant for lag in self.lags)

    @property
    def models(self) -> tuple[Any, ...]:
        return (self.func, self.history.func, *(lag.func for lag in self.lags))

    def begin(self, t: TimePoint, y0: Tensor) -> None:
        """A stretch begins: the state jumps there, but at the start of the first one perhaps not."""
        order = 0 if self._begun or self._jumps(t.value, y0) else 1
        self._begun = True
        self.breaks.root(Break(t.value, order, t.tensor if self.differentiable else None))

    @torch.no_grad()
    def _jumps(self, t: float, y0: Tensor) -> bool:
        """Whether the history ends elsewhere than the state begins, by more than rounding."""
        before = self.history.state if self.history.state is not None else self.history.at(self.time(t))
        if before is y0:
            return False
        apart = (before - y0).abs() > 8 * torch.finfo(before.dtype).eps * y0.abs()
        return to_float(apart.any().to(torch.float32)) > 0.0

    # -- evaluation -------------------------------------------------------------------------------

    def evaluate(self, t: Scalar, y: Tensor) -> Tensor:
        unpack = (lambda x: x) if self.spec is None else self.spec.unflatten
        delayed = [unpack(self.delayed(i, t, y)) for i in range(len(self.lags))]
        if not self._checked:
            return self._first(t, y, lambda when, state: self.func(when, state, *delayed))
        out = self.func(self.time(t), unpack(y), *delayed)
        return out if self.spec is None else self.spec.flatten(out)

    def delayed(self, i: int, t: Scalar, y: Tensor) -> Tensor:
        """The packed state at lag ``i`` before ``t``."""
        lag = self.lags[i]
        if lag.constant:
            when: Scalar = _wide(t) - (lag.value if lag.tensor is None or not recording() else lag.tensor.double())
            at = _number(t) - lag.value
            low, high = self.window[0] - lag.value, self.window[1] - lag.value
        else:
            value = self.lag(lag, t, y)
            when = _wide(t) - value.double() if recording() else _number(t) - _number(value)
            at = _number(when)
            low, high = self.breaks.interval(self.low[i])
        if at > self.reach + self.close:
            self.overlap = max(self.overlap, at - self.reach)
        margin = min(4 * self.close, (high - low) / 4)
        return self.read(when, min(max(at, low + margin), high - margin))

    def read(self, t: Scalar, close: float) -> Tensor:
        """The past at ``t``, as it is around ``close``."""
        if close >= self.start and self.past.steps:
            return self.past.near(t, close)
        if self.history.state is not None:
            return self.history.state
        beyond = _number(t) - self.start
        if 0.0 < beyond <= 4 * self.close:  # by rounding: a history need not be defined there
            t = t - beyond
        return self.history.at(_as_time(t, self.time_dtype, self.device))

    def lag(self, lag: Lag, t: Scalar, y: Tensor) -> Tensor:
        """A state-dependent lag's value, a positive 0-dim tensor.

        Raises:
            ShapeError: it is not one real number.
            InvalidLagError: it is not positive.
        """
        assert lag.func is not None
        value = checked_lag(lag.name, lag.func(self.time(t), y if self.spec is None else self.spec.unflatten(y)))
        number = _number(value)
        # NaN passes: the step is then rejected like any other that is not finite.
        if number <= 0:
            raise InvalidLagError(
                f"{lag.name}(t, y) is {number:.6g} at t={_number(t):.6g}; a lag must be positive at all times, or the"
                f" equation would need states that are not known yet: bound it from below (torch.clamp)."
            )
        return value.reshape(())

    def room(self, t: float, y: Tensor) -> float:
        """How long a step from here may be without reaching beyond what is known, as far as that can be told."""
        longest = self.shortest
        with torch.no_grad():
            for lag in self.lags:
                if not lag.constant:
                    value = _number(self.lag(lag, t, y))
                    longest = min(longest, value) if value == value else longest
        return longest


def _wide(t: Scalar) -> Scalar:
    return t.double() if isinstance(t, Tensor) else t


def _number(t: Scalar) -> float:
    """The value of a time, which no transform may hide."""
    if not isinstance(t, Tensor):
        return t
    with reading("a delayed time", "all samples read the past at the same times; use constant lags"):
        return float(t.detach())


def _as_time(t: Scalar, dtype: torch.dtype, device: torch.device) -> Tensor:
    return t.to(dtype) if isinstance(t, Tensor) else torch.scalar_tensor(t, dtype=dtype, device=device)
