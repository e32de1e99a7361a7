"""What is to be solved: ``dy/dt = func(t, y(t), y(t - lag_1), ...)`` with a history before ``t0``, on a time span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .errors import (
    DtypeError,
    HistoryDtypeError,
    HistoryError,
    HistoryShapeError,
    InvalidArgumentError,
    InvalidLagError,
    InvalidTimesError,
    PyDiffEqFluxError,
    ShapeError,
)
from .problem import TimeLike, TimePoint, span_ends, time_point
from .state import State, StateSpec, pack

LagLike = float | Tensor | Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Lag:
    """One lag: a number (and the user's tensor, where that carries a gradient), or a function of time and state."""

    name: str
    value: float = math.nan
    tensor: Tensor | None = None
    func: Callable[[Tensor, Any], Any] | None = None

    @property
    def constant(self) -> bool:
        return self.func is None


@dataclass(frozen=True)
class DDEProblem:
    """A delay differential equation ``dy/dt = func(t, y(t), y(t - lag_1), ..., y(t - lag_k))``.

    Args:
        func: ``func(t, y, y_1, ..., y_k)``, any callable or ``nn.Module``: after time and state the state at each
            lag before, one argument a lag, in the order of ``lags``. All of them, and the derivative that it
            returns, have the structure, shapes and dtypes of ``y0``.
        y0: the state at ``t0``, as for :class:`ODEProblem`. It may differ from ``history(t0)``: the state then
            jumps there.
        t_span: ``(t0, t1)`` with ``t0 < t1``, numbers or tensors (which may require gradients).
        lags: how long ago; a number or a 0-dim tensor (constant; a tensor may require its gradient), or a function
            ``lag(t, y)`` that returns one number as a tensor (state-dependent). Several in a tuple, or constant
            ones as a 1-D tensor. All are positive, at all times.
        history: the state before ``t0``: ``history(t)`` for a scalar tensor ``t <= t0`` (a module's parameters get
            their gradients), or a state like ``y0``, which it then was all the time. None: ``y0``. It is smooth;
            where a state-dependent lag crosses ``t0`` it is asked for times up to one step beyond.
        batched: the rows of ``y0`` are independent systems: stiff methods then use one small Jacobian a row.

    Steps are never longer than the shortest lag: every delayed state then lies in the part that is solved already,
    so that explicit methods stay explicit and the recorded gradient is that of the computed solution. A lag that is
    a small fraction of ``t_span`` costs at least that many steps.

    Where the solution has a jump in a low derivative (at ``t0``, at the given ``tstops``, at events and doses, and a
    lag after each of these, up to the method's order), a step ends: at times known ahead for constant lags, at times
    that are located on the way for state-dependent ones. These times move with the lags they come from, in gradients
    too.

    Raises:
        InvalidLagError: no lag; one that is not positive, or not a number or a function.
        HistoryShapeError, HistoryDtypeError, HistoryError: a history that does not fit ``y0``, or fails.
        InvalidArgumentError, InvalidStateError, InvalidTimesError, ShapeError: as for :class:`ODEProblem`.

    Source: Bellen & Zennaro, "Numerical methods for delay differential equations" (2003); Hairer, Norsett & Wanner,
    "Solving Ordinary Differential Equations I", section II.17.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> tau = torch.tensor(1.0, requires_grad=True)
        >>> problem = pdf.DDEProblem(lambda t, y, past: -past, torch.ones(1), (0.0, 2.0), lags=tau)
        >>> sol = pdf.solve(problem, "tsit5", saveat=[0.5, 2.0], rtol=1e-6)
        >>> [round(y, 4) for y in sol.ys[:, 0].tolist()]  # 1 - t, then 1 - t + (t - 1)^2 / 2
        [0.5, -0.5]
        >>> sol.ys[-1].sum().backward()
        >>> round(tau.grad.item(), 4)
        -1.0
    """

    func: Callable[..., Any]
    y0: State
    t_span: Sequence[TimeLike] | Tensor
    lags: LagLike | Sequence[LagLike] = field(kw_only=True)
    history: Callable[[Tensor], Any] | State | None = field(default=None, kw_only=True)
    batched: bool = field(default=False, kw_only=True)
    t0: TimePoint = field(init=False, repr=False)
    t1: TimePoint = field(init=False, repr=False)
    #: The state as one tensor, and how to unpack it (None for a plain tensor).
    packed: Tensor = field(init=False, repr=False)
    spec: StateSpec | None = field(init=False, repr=False)
    #: The lags, checked, and the history as a function of time to packed states.
    delays: tuple[Lag, ...] = field(init=False, repr=False)
    past: History = field(init=False, repr=False)
    direction: float = field(init=False, repr=False, default=1.0)

    def __post_init__(self) -> None:
        if not callable(self.func):
            raise InvalidArgumentError(
                f"func={self.func!r} is not callable; give func(t, y, delayed, ...) or an nn.Module."
            )
        packed, spec = pack(self.y0, batched=self.batched)
        t0, t1 = span_ends(self.t_span)
        if t1.value < t0.value:
            raise InvalidTimesError(
                f"t_span=({t0.value}, {t1.value}) runs backwards; a history determines what comes after it: give"
                f" ({t1.value}, {t0.value})."
            )
        past = History(self.history, packed, spec)
        for name, value in (("packed", packed), ("spec", spec), ("t0", t0), ("t1", t1)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "delays", lags_of(self.lags))
        object.__setattr__(self, "past", past)


def lags_of(lags: Any) -> tuple[Lag, ...]:
    """The lags, checked.

    Raises:
        InvalidLagError: there is none, or one is not a positive number and not a function.
    """
    single = callable(lags) or isinstance(lags, str) or not hasattr(lags, "__iter__")
    single = single or (isinstance(lags, Tensor) and lags.dim() == 0)
    several = [lags] if single else list(lags)
    if not several:
        raise InvalidLagError("lags is empty; without a delay this is an ODEProblem.")
    return tuple(_lag(lag, "lags" if single else f"lags[{i}]") for i, lag in enumerate(several))


def _lag(lag: Any, name: str) -> Lag:
    if callable(lag) and not isinstance(lag, Tensor):
        return Lag(name, func=lag)
    try:
        point = time_point(lag, name)
    except InvalidTimesError as why:
        raise InvalidLagError(
            f"{name}={lag!r} must be one finite number, a tensor with one element, or a function lag(t, y)."
        ) from why
    if point.value <= 0:
        raise InvalidLagError(f"{name}={point.value} must be positive: how long ago, not when.")
    return Lag(name, point.value, point.tensor)


def checked_lag(name: str, value: Any) -> Tensor:
    """What a state-dependent lag returned.

    Raises:
        ShapeError: it is not one real number.
    """
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(f"{name}(t, y) returned {kind}; a lag is one real number, as a tensor.")
    return value


class History:
    """The state before ``t0``, packed as the solvers see it.

    Args:
        given: a function of time, a state, or None for the initial state.
        packed, spec: the initial state.

    Raises:
        HistoryShapeError, HistoryDtypeError: a state that does not go with ``y0``.
    """

    def __init__(self, given: Any, packed: Tensor, spec: StateSpec | None):
        self._func = given if callable(given) and not isinstance(given, Tensor) else None
        self._spec, self._like = spec, packed
        self._checked = False
        #: The state, where it is the same at all times.
        self.state: Tensor | None = None
        if self._func is None:
            self.state = packed if given is None else self._packed(given, "history")

    @property
    def func(self) -> Any:
        """The user's function; None where the history is a state."""
        return self._func

    def at(self, t: Tensor) -> Tensor:
        """The packed state at the scalar tensor ``t``.

        Raises:
            HistoryError: the function fails there; or what it returns does not go with ``y0``.
        """
        if self._func is None:
            assert self.state is not None
            return self.state
        try:
            state = self._func(t)
        except PyDiffEqFluxError:
            raise
        except Exception as why:
            raise HistoryError(
                f"history(t) failed at t={float(t.detach()):.6g}: {type(why).__name__}: {why}. It is asked for every"
                f" time that a lag reaches back to (and, where a state-dependent lag passes the start, for times up to"
                f" a step beyond it): give a function that covers them, or shorter lags."
            ) from why
        if self._checked and self._spec is None:
            found: Tensor = state
            return found
        packed = self._packed(state, f"history({float(t.detach()):.6g})")
        if not self._checked and not bool(packed.detach().isfinite().all()):
            raise HistoryError(
                f"history(t) is NaN or infinite at t={float(t.detach()):.6g}: it must be defined at every time that a"
                f" lag reaches back to."
            )
        self._checked = True
        return packed

    def _packed(self, state: Any, where: str) -> Tensor:
        like = self._like
        if self._spec is not None:
            try:
                return self._spec.flatten(state, where)
            except DtypeError as why:
                raise HistoryDtypeError(str(why)) from why
            except ShapeError as why:
                raise HistoryShapeError(str(why)) from why
            except PyDiffEqFluxError as why:
                raise HistoryShapeError(f"{where} is not a state like y0: {why}") from why
        if not isinstance(state, Tensor):
            raise HistoryShapeError(
                f"{where} is a {type(state).__name__}; it must be a tensor of the shape {tuple(like.shape)} of y0 (or a"
                f" function of time that returns one)."
            )
        if state.shape != like.shape:
            raise HistoryShapeError(
                f"{where} has the shape {tuple(state.shape)} and y0 {tuple(like.shape)}: they must be the same."
            )
        if state.dtype != like.dtype or state.device != like.device:
            raise HistoryDtypeError(
                f"{where} is {state.dtype} on {state.device} and y0 {like.dtype} on {like.device}: convert one of them."
            )
        return state
