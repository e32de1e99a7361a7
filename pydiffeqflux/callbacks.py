"""What may interrupt a solve: events (a function of time and state crosses zero) and doses (given times)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .errors import InvalidArgumentError
from .problem import TimeLike, TimePoint, time_points

Affect = Callable[[Tensor, Any], Any]


@dataclass(frozen=True)
class Event:
    """Happens where ``condition(t, y)`` crosses zero; its time is differentiable.

    Args:
        condition: ``condition(t, y)`` returns a scalar tensor, or with ``per_sample=True`` one value a row,
            shape ``(B,)``.
        terminal: end the solve there (per row in per-sample mode).
        affect: ``affect(t, y)`` returns the state with which the solve goes on (SciML's ``affect!``, as a
            function); None leaves the state alone and only records the event. In per-sample mode it gets
            and returns the whole batch, and only the rows that reached the event take their new value.
        direction: 1 counts upcrossings only, -1 downcrossings only, 0 both; as the solve meets them, which is
            the other way round when it runs backwards in time.
        interp_points: points between two steps at which a crossing is looked for.

    Source: SciML's ``ContinuousCallback``; gradients of event times by the implicit function theorem
    (Chen, Amos & Nickel, "Learning neural event functions for ordinary differential equations", 2021).

    Example:
        A ball that bounces, and loses a tenth of its speed each time:

        >>> import torch, pydiffeqflux as pdf
        >>> ball = lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)])
        >>> bounce = pdf.Event(lambda t, y: y[0], terminal=False, direction=-1,
        ...                    affect=lambda t, y: torch.stack([0 * y[0], -0.9 * y[1]]))
        >>> sol = pdf.solve(pdf.ODEProblem(ball, torch.tensor([1.0, 0.0]), (0.0, 1.0)), event=bounce)
        >>> round(float(sol.events[0].ts[0]), 3)
        0.452
    """

    condition: Callable[[Tensor, Any], Tensor]
    terminal: bool = True
    affect: Affect | None = None
    direction: int = 0
    interp_points: int = 4

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise InvalidArgumentError(f"condition={self.condition!r} is not callable; give condition(t, y).")
        if self.direction not in (-1, 0, 1):
            raise InvalidArgumentError(f"direction={self.direction!r} must be -1, 0 or 1.")
        if isinstance(self.interp_points, bool) or not isinstance(self.interp_points, int) or self.interp_points < 0:
            raise InvalidArgumentError(f"interp_points={self.interp_points!r} must be an integer >= 0.")
        if self.affect is not None and not callable(self.affect):
            raise InvalidArgumentError(f"affect={self.affect!r} is not callable; give affect(t, y) or None.")


@dataclass(frozen=True)
class PresetTimeCallback:
    """Changes the state at given times: a dose, a kick, a reset. The times may carry gradients.

    Args:
        times: numbers or a 1-D tensor, in any order; those outside the time span do nothing.
        affect: ``affect(t, y)`` returns the new state. A value saved at exactly such a time is the one
            before the change.

    Source: SciML's ``PresetTimeCallback``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> dose = pdf.PresetTimeCallback([1.0, 2.0], lambda t, y: y + 5.0)
        >>> decay = pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 3.0))
        >>> float(pdf.solve(decay, callbacks=dose, rtol=1e-8, atol=1e-8).ys[-1]) > 2.5
        True
    """

    times: Sequence[TimeLike] | Tensor
    affect: Affect

    def points(self) -> list[TimePoint]:
        """The times, checked.

        Raises:
            InvalidTimesError: not a sequence of finite numbers.
        """
        return time_points(self.times, "times")

    def __post_init__(self) -> None:
        if not callable(self.affect):
            raise InvalidArgumentError(f"affect={self.affect!r} is not callable; give affect(t, y).")
        self.points()
