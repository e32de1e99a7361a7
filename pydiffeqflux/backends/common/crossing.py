"""An event that happened, and the gradient of its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...callbacks import Event
from ...errors import ShapeError
from ...problem import TimePoint
from ...tracking import tracked
from .rhs import Rhs, Scalar

Path = Callable[[Tensor], Tensor]


@dataclass
class Crossing:
    """One event that happened: which, when, and the state just before anything was done about it."""

    index: int
    t: TimePoint
    y: Tensor


def condition(rhs: Rhs, event: Event, t: Scalar, y: Tensor) -> Tensor:
    """The event's condition at a packed state, as a 1-D tensor."""
    value = event.condition(rhs.time(t), y if rhs.spec is None else rhs.spec.unflatten(y))
    if not isinstance(value, Tensor) or value.is_complex():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(f"an event's condition must return a real tensor (a scalar, or one value a row); got {kind}.")
    return value.reshape(-1)


def differentiable_crossing(rhs: Rhs, event: Event, index: int, when: float, path: Path) -> Crossing:
    """The crossing at time ``when`` with its gradient, by the implicit function theorem.

    Two Newton steps on ``condition(t, path(t)) = 0`` from the known root: they do not move it, but their
    derivatives are the root's, up to the third order.
    """
    start = torch.tensor(when, dtype=torch.float64, device=rhs.device)

    def gap(time: Tensor) -> Tensor:
        values = condition(rhs, event, time, path(time))
        return values[values.detach().abs().argmin()] if values.numel() > 1 else values[0]

    time = start
    for _ in range(2):
        slope, value = torch.func.grad_and_value(gap)(time)
        # A tangential touch has no derivative; leave the time constant rather than divide by zero.
        safe = torch.where(slope == 0, torch.ones_like(slope), slope)
        move = torch.where(slope == 0, torch.zeros_like(slope), value / safe)
        time = time - (move - move.detach())
    if not tracked(time):
        return Crossing(index, TimePoint(when), path(start))
    return Crossing(index, TimePoint(when, time), path(time))


def link_crossing(rhs: Rhs, events: Sequence[Event], index: int, when: float, y: Tensor) -> Crossing:
    """An event that a stretch ended with, its time made differentiable along the solution's tangent."""
    if not torch.is_grad_enabled():
        return Crossing(index, TimePoint(when), y)
    slope = rhs.derivative(when, y)

    def path(time: Tensor) -> Tensor:
        return y + slope * (time - time.detach()).to(rhs.time_dtype)

    return differentiable_crossing(rhs, events[index], index, when, path)
