"""What is to be solved: ``dy/dt = func(t, y)``, ``y(t0) = y0`` on a time span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import InvalidArgumentError, InvalidTimesError
from .state import State, StateSpec, pack

TimeLike = float | int | Tensor


@dataclass(frozen=True)
class TimePoint:
    """A time as a number, and as the user's tensor where that carries a gradient."""

    value: float
    tensor: Tensor | None = None

    @property
    def differentiable(self) -> bool:
        return self.tensor is not None


def time_point(t: TimeLike, name: str) -> TimePoint:
    """``t`` checked: a finite real number, or a tensor with one such element.

    Raises:
        InvalidTimesError: anything else.
    """
    if isinstance(t, Tensor):
        if t.numel() != 1 or t.is_complex() or t.dtype == torch.bool:
            raise InvalidTimesError(f"{name} must be one real number; got a {t.dtype} tensor of shape {tuple(t.shape)}.")
        value = float(t.detach())
        tensor = t.reshape(()) if t.requires_grad else None
    else:
        try:
            value, tensor = float(t), None
        except (TypeError, ValueError):
            raise InvalidTimesError(f"{name}={t!r} must be a real number or a tensor with one element.") from None
    if not math.isfinite(value):
        raise InvalidTimesError(f"{name}={value} is not finite; steady states are not solved for by time stepping.")
    return TimePoint(value, tensor)


@dataclass(frozen=True)
class ODEProblem:
    """An initial value problem ``dy/dt = func(t, y)``, ``y(t_span[0]) = y0``.

    Args:
        func: ``func(t, y)``, any callable or ``nn.Module``; ``t`` is a scalar tensor with the state's real
            dtype, ``y`` and the returned derivative have the structure, shapes and dtypes of ``y0``.
        y0: a floating or complex tensor of any shape, or a (nested) tuple, list or dict of such tensors.
        t_span: ``(t0, t1)``, numbers or tensors (which may require gradients); ``t1 < t0`` solves
            backwards in time.
        batched: the rows of ``y0`` (dimension 0 of each of its tensors) are independent systems. Stiff
            methods then use one small Jacobian a row, and ``solve(..., per_sample=True)`` may step each
            row for itself.

    Raises:
        InvalidStateError, InvalidTimesError, InvalidArgumentError, ShapeError

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2), (0.0, 1.0))
        >>> pdf.solve(problem, "tsit5").ys[-1].shape
        torch.Size([2])
    """

    func: Callable[[Tensor, Any], Any]
    y0: State
    t_span: Sequence[TimeLike] | Tensor
    batched: bool = False
    t0: TimePoint = field(init=False, repr=False)
    t1: TimePoint = field(init=False, repr=False)
    #: The state as one tensor, and how to unpack it (None for a plain tensor).
    packed: Tensor = field(init=False, repr=False)
    spec: StateSpec | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.func):
            raise InvalidArgumentError(f"func={self.func!r} is not callable; give func(t, y) or an nn.Module.")
        packed, spec = pack(self.y0, batched=self.batched)
        try:
            first, last = self.t_span
        except (TypeError, ValueError):
            raise InvalidTimesError(
                f"t_span={self.t_span!r} must hold two times, (t0, t1); further times to save at go into saveat."
            ) from None
        t0, t1 = time_point(first, "t_span[0]"), time_point(last, "t_span[1]")
        if t0.value == t1.value:
            raise InvalidTimesError(f"t_span=({t0.value}, {t1.value}) is empty; its two ends must differ.")
        for name, value in (("packed", packed), ("spec", spec), ("t0", t0), ("t1", t1)):
            object.__setattr__(self, name, value)

    @property
    def direction(self) -> float:
        """1.0 forwards in time, -1.0 backwards."""
        return math.copysign(1.0, self.t1.value - self.t0.value)


@dataclass(frozen=True)
class SaveTimes:
    """The times at which the solution is wanted, as numbers and (where they carry a gradient) a tensor."""

    values: tuple[float, ...]
    tensor: Tensor | None = None

    def point(self, index: int) -> Tensor | None:
        return None if self.tensor is None else self.tensor[index]


def save_times(saveat: Any, problem: ODEProblem) -> SaveTimes | None:
    """``saveat`` checked against the problem's span. A single number is a spacing, as in SciML.

    Raises:
        InvalidTimesError: times that are empty, not finite, not strictly monotonic in the direction of the
            solve, or outside ``t_span`` (a rounding error outside is put onto the end).
    """
    if saveat is None:
        return None
    t0, t1, sign = problem.t0.value, problem.t1.value, problem.direction
    if isinstance(saveat, int | float) and not isinstance(saveat, bool):
        return SaveTimes(_spaced(float(saveat), t0, t1))
    tensor = saveat if isinstance(saveat, Tensor) else None
    try:
        values = [float(v) for v in (saveat.detach().tolist() if tensor is not None else saveat)]
    except (TypeError, ValueError):
        raise InvalidTimesError(f"saveat={saveat!r} must be a 1-D sequence or tensor of times, or a spacing.") from None
    if not values:
        raise InvalidTimesError("saveat is empty; leave it out (None) to save every step.")
    eps = torch.finfo(tensor.dtype).eps if tensor is not None and tensor.is_floating_point() else 1e-15
    slack = 8 * eps * max(abs(t0), abs(t1))
    for i, v in enumerate(values):
        if not math.isfinite(v):
            raise InvalidTimesError(f"saveat[{i}]={v} is not finite.")
        if (v - t0) * sign < 0 or (t1 - v) * sign < 0:
            if min(abs(v - t0), abs(v - t1)) > slack:
                raise InvalidTimesError(
                    f"saveat[{i}]={v} lies outside t_span=({t0}, {t1}); widen t_span or drop that time."
                )
            values[i] = t0 if abs(v - t0) < abs(v - t1) else t1
        if i and (values[i] - values[i - 1]) * sign <= 0:
            raise InvalidTimesError(
                f"saveat must be strictly {'increasing' if sign > 0 else 'decreasing'} (the direction of t_span);"
                f" saveat[{i - 1}]={values[i - 1]} is followed by saveat[{i}]={v}."
            )
    differentiable = tensor is not None and tensor.requires_grad
    return SaveTimes(tuple(values), tensor if differentiable else None)


def _spaced(spacing: float, t0: float, t1: float) -> tuple[float, ...]:
    if not (math.isfinite(spacing) and spacing > 0):
        raise InvalidTimesError(f"saveat={spacing} as a spacing must be positive and finite.")
    count = math.floor(abs(t1 - t0) / spacing * (1 + 1e-12))
    values = [t0 + math.copysign(spacing, t1 - t0) * i for i in range(count + 1)]
    if abs(values[-1] - t1) > 1e-9 * abs(t1 - t0):
        values.append(t1)
    else:
        values[-1] = t1
    return tuple(values)
