"""What is to be solved: ``dy/dt = func(t, y)``, or ``M dy/dt = func(t, y)``, ``y(t0) = y0`` on a time span."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import InvalidArgumentError, InvalidTimesError
from .mass_matrix import check_mass_matrix
from .state import State, StateSpec, pack
from .tracking import reading, tracked

TimeLike = float | int | Tensor
#: Where ``solve`` keeps with a problem how it was solved the last time.
ROUTE = "_route"


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
    if type(t) is float and math.isfinite(t):  # the usual case
        return TimePoint(t)
    if isinstance(t, Tensor):
        if t.numel() != 1 or t.is_complex() or t.dtype == torch.bool:
            raise InvalidTimesError(
                f"{name} must be one real number; got a tensor of {t.dtype} and shape {tuple(t.shape)}."
            )
        with reading(name, "all samples are solved over the same times; map over y0 and parameters only"):
            value = float(t.detach())
        tensor = t.reshape(()) if tracked(t) else None
    else:
        try:
            value, tensor = (float("x") if isinstance(t, str | bytes | bool) else float(t)), None
        except (TypeError, ValueError):
            raise InvalidTimesError(f"{name}={t!r} must be a real number or a tensor with one element.") from None
    if not math.isfinite(value):
        raise InvalidTimesError(f"{name}={value} is not finite; steady states are not solved for by time stepping.")
    return TimePoint(value, tensor)


def time_points(times: Any, name: str) -> list[TimePoint]:
    """Several times, each checked as :func:`time_point` does.

    Raises:
        InvalidTimesError: not a sequence or 1-D tensor of times.
    """
    if isinstance(times, Tensor) and times.dim() != 1:
        raise InvalidTimesError(f"{name} must be one-dimensional; got a tensor of shape {tuple(times.shape)}.")
    if isinstance(times, str | bytes | dict) or not hasattr(times, "__iter__"):
        raise InvalidTimesError(f"{name}={times!r} must be a sequence or 1-D tensor of times: [{times!r}] for one.")
    return [time_point(t, f"{name}[{i}]") for i, t in enumerate(times)]


@dataclass(frozen=True)
class ODEProblem:
    """An initial value problem ``dy/dt = func(t, y)``, or ``M dy/dt = func(t, y)``, with ``y(t_span[0]) = y0``.

    Args:
        func: ``func(t, y)``, any callable or ``nn.Module``; ``t`` is a scalar tensor with the state's real
            dtype, ``y`` and the returned derivative have the structure, shapes and dtypes of ``y0``.
        y0: a floating or complex tensor of any shape, or a (nested) tuple, list or dict of such tensors.
        t_span: ``(t0, t1)``, numbers or tensors (which may require gradients); ``t1 < t0`` solves
            backwards in time.
        batched: the rows of ``y0`` (dimension 0 of each of its tensors) are independent systems. Stiff
            methods then use one small Jacobian a row, and ``solve(..., per_sample=True)`` may step each
            row for itself.
        mass_matrix: the constant matrix M, ``(n, n)`` for the n entries of the flattened state (of one row of it
            with ``batched=True``). It may be singular: rows of zeros make their equations algebraic, ``0 = func(t,
            y)``, and the problem a differential-algebraic one, of index 1: the algebraic equations must determine
            the algebraic variables. Methods that take it: Rosenbrock23, Rodas5P, KenCarp4, Kvaerno5, QNDF. It may
            require a gradient, in which its rank counts as a constant.

    Raises:
        InvalidStateError, InvalidTimesError, InvalidArgumentError, ShapeError, MassMatrixError

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2), (0.0, 1.0))
        >>> pdf.solve(problem, "tsit5").ys[-1].shape
        torch.Size([2])
        >>> def circle(t, y):  # y1' = -y2 on y1^2 + y2^2 = 1
        ...     return torch.stack([-y[1], y[0] ** 2 + y[1] ** 2 - 1])
        >>> mass = torch.diag(torch.tensor([1.0, 0.0]))
        >>> dae = pdf.ODEProblem(circle, torch.tensor([0.6, 0.8]), (0.0, 0.5), mass_matrix=mass)
        >>> y = pdf.solve(dae, "rodas5p", rtol=1e-6).ys[-1].detach()
        >>> round(float(y.square().sum()), 4)
        1.0
    """

    func: Callable[[Tensor, Any], Any]
    y0: State
    t_span: Sequence[TimeLike] | Tensor
    batched: bool = False
    mass_matrix: Tensor | None = None
    t0: TimePoint = field(init=False, repr=False)
    t1: TimePoint = field(init=False, repr=False)
    #: The state as one tensor, and how to unpack it (None for a plain tensor).
    packed: Tensor = field(init=False, repr=False)
    spec: StateSpec | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.func):
            raise InvalidArgumentError(f"func={self.func!r} is not callable; give func(t, y) or an nn.Module.")
        packed, spec = pack(self.y0, batched=self.batched)
        t0, t1 = span_ends(self.t_span)
        if self.mass_matrix is not None:
            check_mass_matrix(self.mass_matrix, packed, self.batched)
        for name, value in (("packed", packed), ("spec", spec), ("t0", t0), ("t1", t1)):
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != ROUTE}

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the time span, as numbers."""
        return self.t0.value, self.t1.value

    @property
    def direction(self) -> float:
        """1.0 forwards in time, -1.0 backwards."""
        return math.copysign(1.0, self.t1.value - self.t0.value)


def span_ends(t_span: Any) -> tuple[TimePoint, TimePoint]:
    """Both ends of a time span, checked.

    Raises:
        InvalidTimesError: not two finite times, or twice the same.
    """
    try:
        first, last = t_span
    except (TypeError, ValueError):
        raise InvalidTimesError(
            f"t_span={t_span!r} must hold two times, (t0, t1); further times to save at go into saveat."
        ) from None
    t0, t1 = time_point(first, "t_span[0]"), time_point(last, "t_span[1]")
    if t0.value == t1.value:
        raise InvalidTimesError(f"t_span=({t0.value}, {t1.value}) is empty; its two ends must differ.")
    return t0, t1


@dataclass(frozen=True)
class SaveTimes:
    """The times at which the solution is wanted, as numbers and (where they carry a gradient) a tensor."""

    values: tuple[float, ...]
    tensor: Tensor | None = None

    def point(self, index: int) -> Tensor | None:
        return None if self.tensor is None else self.tensor[index]


class HasSpan(Protocol):
    """What save times are checked against."""

    @property
    def t0(self) -> TimePoint: ...
    @property
    def t1(self) -> TimePoint: ...
    @property
    def t_span(self) -> Any: ...
    @property
    def direction(self) -> float: ...


def save_times(saveat: Any, problem: HasSpan) -> SaveTimes | None:
    """``saveat`` checked against the problem's span. A single number is a spacing, as in SciML.

    Raises:
        InvalidTimesError: times that are empty, not finite, not strictly monotonic in the direction of the
            solve, or outside ``t_span`` (a rounding error outside is put onto the end).
    """
    if saveat is None:
        return None
    t0, t1 = problem.t0.value, problem.t1.value
    if isinstance(saveat, Tensor):
        if (plain := _plain_times(saveat, t0, t1)) is not None:
            return plain
    elif isinstance(saveat, numbers.Real) and not isinstance(saveat, bool):
        return SaveTimes(_spaced(float(saveat), t0, t1))
    points, sign = time_points(saveat, "saveat"), problem.direction
    if not points:
        raise InvalidTimesError("saveat is empty; leave it out (None) to save every step.")
    values = [point.value for point in points]
    slack = 8 * max(_resolution(saveat), _resolution(problem.t_span)) * max(abs(t0), abs(t1))
    for i, v in enumerate(values):
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
    if isinstance(saveat, Tensor):
        return SaveTimes(tuple(values), saveat if tracked(saveat) else None)
    if not any(point.differentiable for point in points):
        return SaveTimes(tuple(values))
    own = [torch.tensor(p.value, dtype=torch.float64) if p.tensor is None else p.tensor.double() for p in points]
    return SaveTimes(tuple(values), torch.stack(own))


#: The last save times that were checked, with their span, as the tensor that they were then.
_checked: tuple[float, float, Tensor, SaveTimes] | None = None


def _plain_times(saveat: Tensor, t0: float, t1: float) -> SaveTimes | None:
    """The usual case at once: a vector without a gradient, monotonic and within the span. None for any other.

    A loop solves at the same times again and again: they are compared with the last ones before they are checked.
    """
    global _checked
    if saveat.dim() != 1 or not saveat.is_floating_point() or tracked(saveat) or not saveat.is_cpu:
        return None
    if _checked is not None:
        s0, s1, before, found = _checked
        if t0 == s0 and t1 == s1 and before.dtype is saveat.dtype and torch.equal(before, saveat):
            return found
    values = saveat.tolist()
    if not values:
        return None
    if t0 < t1:
        fine = t0 <= values[0] and values[-1] <= t1 and all(map(operator.lt, values, values[1:]))
    else:
        fine = t0 >= values[0] and values[-1] >= t1 and all(map(operator.gt, values, values[1:]))
    if not fine:
        return None
    found = SaveTimes(tuple(values))
    _checked = t0, t1, saveat.detach().clone(), found
    return found


def _resolution(times: Any) -> float:
    """The relative rounding error that these times may carry: that of the coarsest dtype among them."""
    coarsest = 1e-15
    for t in (times,) if hasattr(times, "dtype") else times:
        if isinstance(t, np.ndarray | np.generic):
            t = torch.as_tensor(t)
        if isinstance(t, Tensor) and t.is_floating_point():
            coarsest = max(coarsest, torch.finfo(t.dtype).eps)
    return coarsest


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
