"""``backend="julia"`` behind ``odeint`` and its family: torchdiffeq's calls on SciML's solvers and adjoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import methods
from .. import sensealg as sensealgs
from ..backends.common.rhs import Rhs
from ..callbacks import Event
from ..errors import EventNotFoundError, InvalidOptionError, MaxStepsError, UnknownNameError, UnsupportedError
from ..methods import Method
from ..problem import ODEProblem, TimePoint, time_point, time_points
from ..sensealg import SenseAlg
from ..solution import Solution, Status
from ..solve import solve
from ..state import StateSpec
from .callbacks import warn_of_invalid
from .events import zero_at_start
from .options import ADAMS, SCIPY, UNLIMITED, MethodLike, Options, Problem, packed_norm, stops
from .state import Conforming
from .times import Times

#: What ``backend`` may be. None is this package's own loop, as before there was a choice.
BACKENDS = (None, "torch", "julia")
#: Where a search for an event gives up: time has no end for torchdiffeq, but Julia wants one.
FOREVER = 1e300


def on_julia(backend: str | None) -> bool:
    """Whether Julia is to solve.

    Raises:
        UnknownNameError: ``backend`` is neither None, ``"torch"`` nor ``"julia"``.
    """
    if backend not in BACKENDS:
        raise UnknownNameError("backend", backend, [b for b in BACKENDS if b])
    return backend == "julia"


class Packed:
    """The user's function of a packed state. Two around the same function are equal: its trace is found again."""

    def __init__(self, model: Callable[[Tensor, Any], Any], spec: StateSpec | None):
        self.model, self.spec = model, spec
        self._call = Conforming(model) if spec is None else self._structured

    def __call__(self, t: Tensor, y: Tensor) -> Any:
        return self._call(t, y)

    def _structured(self, t: Tensor, y: Tensor) -> Tensor:
        assert self.spec is not None
        return self.spec.flatten(self.model(t, self.spec.unflatten(y)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packed) and self.model == other.model and self.spec == other.spec

    def __hash__(self) -> int:
        try:
            return hash(self.model)
        except TypeError:
            return id(self.model)


@dataclass
class JuliaEngine:
    """Solves by Julia. What it is asked for, and what it returns, is as for the native engines."""

    func: Packed
    problem: Problem
    method: Method
    sensealg: SenseAlg | None
    #: Further arguments of ``solve``.
    asked: dict[str, Any]
    #: Attempted steps allowed between two output times.
    max_num_steps: int
    _rhs: Rhs = field(init=False)

    def __post_init__(self) -> None:
        self._rhs = Rhs(self.func, None, self.problem.packed)

    def integrate(self, y0: Tensor, times: Times) -> list[Tensor]:
        """The states at all times, the first of them ``y0``.

        Raises:
            SolveError: one of its subclasses.
        """
        if len(times.values) == 1:
            return [y0]
        later = times.tensor[1:] if times.differentiable else list(times.values[1:])
        sol = self._solve(y0, times.point(0), times.point(-1), len(times.values) - 1, saveat=later, dense=False)
        return [y0, *sol.ys.unbind(0)]

    def until_event(self, y0: Tensor, times: Times, event_fn: Callable[..., Tensor]) -> tuple[float, Tensor]:
        """Time and state of the first event; the state's gradient is that at a fixed time.

        Raises:
            EventNotFoundError: the solve went on to the end of time.
            SolveError: one of its other subclasses.
        """
        start = times.values[0]
        if zero_at_start(self._rhs, Event(event_fn), start, y0):
            return start, y0
        end = TimePoint(math.copysign(FOREVER, times.sign))
        spec = self.problem.spec
        condition = event_fn if spec is None else (lambda t, y: event_fn(t, spec.unflatten(y)))
        with torch.no_grad():
            found = self._solve(
                y0.detach(), TimePoint(start), end, 1, event=Event(condition), save_everystep=False, dense=False
            )
        if found.status is not Status.EVENT:
            raise EventNotFoundError(
                f"event_fn never came to zero: the solve from t={start} went on to t={float(found.ts[-1]):.0e}. Check"
                f" the sign of event_fn, or bound the search with options={{'max_num_steps': ...}}."
            )
        when = float(found.ts[-1])
        if not torch.is_grad_enabled():
            return when, found.ys[-1]
        # Once more, up to a time that is known now: that is what is differentiated.
        sol = self._solve(y0, times.point(0), TimePoint(when), 1, saveat=[when], dense=False)
        return when, sol.ys[-1]

    def dense(self, y0: Tensor, times: Times) -> Callable[[Any], Any]:
        """The dense output between the first and the last time."""
        with torch.no_grad():
            sol = self._solve(y0.detach(), times.point(0), times.point(-1), 1, save_everystep=False)
        return DenseOutput(self, y0, times, sol)

    def at(self, y0: Tensor, times: Times, points: list[TimePoint]) -> list[Tensor]:
        """States with their gradients: solved for once more, for Julia's dense output has none."""
        values = sorted({p.value for p in points}, reverse=times.sign < 0)
        sol = self._solve(y0, times.point(0), times.point(-1), 1, saveat=values, dense=False)
        states = dict(zip(values, sol.ys.unbind(0), strict=True))
        return [self._moving(p, states[p.value]) for p in points]

    def _moving(self, p: TimePoint, state: Tensor) -> Tensor:
        """Adds zero: a time that moves takes the state along its tangent."""
        if p.tensor is None:
            return state
        return state + self._rhs(p.value, state) * (p.tensor - p.tensor.detach()).to(self._rhs.time_dtype)

    def _solve(self, y0: Tensor, t0: TimePoint, t1: TimePoint, outputs: int, **how: Any) -> Solution:
        span = [t.value if t.tensor is None else t.tensor for t in (t0, t1)]
        problem = ODEProblem(self.func, y0, span)
        try:
            return solve(
                problem,
                self.method,
                rtol=self.problem.rtol,
                atol=self.problem.atol,
                sensealg=self.sensealg,
                backend="julia",
                max_steps=min(self.max_num_steps * outputs, UNLIMITED),
                **self.asked,
                **how,
            )
        except MaxStepsError as why:
            raise MaxStepsError(f"options['max_num_steps']={self.max_num_steps}: {why}") from why


class DenseOutput:
    """``solution(t)`` of :func:`odeint_dense`."""

    def __init__(self, engine: JuliaEngine, y0: Tensor, times: Times, solution: Solution):
        self._engine, self._y0, self._times, self._solution = engine, y0, times, solution
        # Whether anything the solve depends on asks for a gradient: then evaluations do.
        with torch.enable_grad():
            value = engine._rhs.evaluate(times.values[0], y0)
        self._differentiable = value.requires_grad or y0.requires_grad

    def __call__(self, t: Any) -> Any:
        single = not isinstance(t, list | tuple) and torch.as_tensor(t).dim() == 0
        points = [time_point(t, "t")] if single else time_points(t, "t")
        with torch.no_grad():
            states = self._solution(t if not isinstance(t, Tensor) else t.detach())  # raises for times outside
        wanted = self._differentiable or any(p.tensor is not None for p in points)
        if torch.is_grad_enabled() and wanted:
            found = self._engine.at(self._y0, self._times, points)
            states = found[0] if single else torch.stack(found)
        spec = self._engine.problem.spec
        return states if spec is None else spec.unflatten(states)


def engine_for(
    func: Callable[[Tensor, Any], Any],
    method: MethodLike,
    options: dict[str, Any] | None,
    problem: Problem,
    sensealg: SenseAlg | None,
) -> JuliaEngine:
    """Julia's engine for a call.

    Args:
        method: a name of torchdiffeq's or of this package's catalogue that OrdinaryDiffEq has, too, any solver of
            OrdinaryDiffEq as one writes it in Julia (``"FBDF"``), or None for tsit5.
        options: ``first_step, min_step, max_step, step_t, jump_t, max_num_steps, safety, ifactor, dfactor`` and
            ``norm`` of adaptive methods, ``step_size`` of fixed-step ones, and ``sensealg`` and ``fallback`` of
            :func:`pydiffeqflux.solve`.
        sensealg: how to differentiate, where ``options`` does not say.

    Raises:
        UnsupportedError: torchdiffeq's method or option that Julia has nothing for.
        InvalidOptionError: an option with a value that cannot be worked with.
    """
    # A pair of orders 5 and 4 as dopri5 is, and compiled already when Julia starts.
    name = "tsit5" if method is None else method
    if name in (*ADAMS, SCIPY):
        raise UnsupportedError(
            f"method={name!r} does not exist on backend='julia': take Julia's own, 'VCABM' for Adams methods and 'FBDF'"
            f" for stiff equations, or leave backend out."
        )
    resolved = methods.resolve(name, "julia")
    taken = Options(str(name), options)
    asked: dict[str, Any] = {}
    if (fallback := taken.take("fallback")) is not None:
        asked["fallback"] = fallback
    chosen = sensealgs.resolve(taken.take("sensealg")) or sensealg
    limit = UNLIMITED
    if resolved.adaptive:
        limit = _adaptive(taken, problem, asked)
    else:
        _fixed(taken, asked)
    taken.done()
    warn_of_invalid(str(name), problem.callbacks, ())
    return JuliaEngine(Packed(func, problem.spec), problem, resolved, chosen, asked, limit)


def _adaptive(options: Options, problem: Problem, asked: dict[str, Any]) -> int:
    """Fill in what ``solve`` calls these options; the limit of steps."""
    options.take("dtype")  # times are float64 whatever it says
    norm = options.take("norm")
    if norm is not None:
        asked["norm"] = packed_norm(norm, problem.spec)
    smallest, largest = options.number("min_step", 0.0), options.number("max_step", math.inf, above=0)
    if smallest > largest:
        raise InvalidOptionError(f"options: min_step={smallest} must not be larger than max_step={largest}.")
    asked |= {
        "dt": options.number("first_step", None, above=0),
        "dt_min": max(smallest, 0.0),
        "dt_max": largest,
        "tstops": stops(options),
    }
    for name in ("safety", "ifactor", "dfactor"):
        if options.take(name) is not None:
            raise UnsupportedError(
                f"options[{name!r}] is not for backend='julia', where every solver has a step size control of its own:"
                f" leave it out, or leave backend out."
            )
    return int(min(options.number("max_num_steps", UNLIMITED, above=0), UNLIMITED))


def _fixed(options: Options, asked: dict[str, Any]) -> None:
    for name in ("grid_constructor", "perturb", "interp"):
        if options.take(name):
            raise UnsupportedError(
                f"options[{name!r}] does not exist on backend='julia', where steps have the size options['step_size'],"
                f" end at no output time, and are interpolated by the method's own polynomial: leave it out, or leave"
                f" backend out."
            )
    asked["dt"] = options.number("step_size", None, above=0)
