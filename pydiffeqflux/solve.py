"""``solve``: check what was asked for once, pick a backend, and hand over."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch import Tensor

from . import methods, sde_methods
from . import sensealg as sensealgs
from .backends import registry
from .backends.backend import Problem, SolveOptions
from .callbacks import Event, PresetTimeCallback
from .controllers import PIDController
from .dae_problem import DAEProblem
from .dde_problem import DDEProblem
from .errors import (
    InvalidArgumentError,
    InvalidToleranceError,
    MassMatrixMethodError,
    PyDiffEqFluxError,
    StepSizeRequiredError,
    UnknownNameError,
    UnknownOptionError,
    UnsupportedError,
)
from .methods import Method
from .problem import ROUTE, ODEProblem, TimeLike, TimePoint, save_times, time_points
from .sde_problem import SDEProblem, refuse_gradient
from .sensealg import SenseAlg
from .solution import Solution

log = logging.getLogger("pydiffeqflux")

EventLike = Event | Callable[[Tensor, Any], Tensor]


def solve(
    problem: Problem,
    method: Method | str | None = None,
    *,
    saveat: Tensor | Sequence[TimeLike] | float | None = None,
    rtol: float | Tensor = 1e-3,
    atol: float | Tensor = 1e-6,
    sensealg: SenseAlg | str | None = None,
    backend: str = "auto",
    max_steps: int = 100_000,
    event: EventLike | Sequence[EventLike] | None = None,
    callbacks: PresetTimeCallback | Sequence[PresetTimeCallback] | None = None,
    progress: bool = False,
    dt: float | None = None,
    dt_min: float = 0.0,
    dt_max: float = math.inf,
    tstops: Sequence[TimeLike] | Tensor = (),
    controller: PIDController | None = None,
    per_sample: bool = False,
    dense: bool = True,
    save_everystep: bool = True,
    norm: Callable[[Any], Any] | None = None,
    throw: bool = True,
    fallback: str | None = None,
    initialise: str = "check",
    **unknown: NoReturn,
) -> Solution:
    """Solve an initial value problem; the result is differentiable.

    Gradients reach ``y0``, every tensor that ``problem.func`` uses (module parameters, closures, plain
    tensors), the save times and both ends of the time span.

    Args:
        problem: what to solve; an :class:`SDEProblem` takes the methods of ``sde_methods``, no events, and no
            ``per_sample``, and its steps end at the save times (between them ``sol(t)`` is a straight line); a
            :class:`DDEProblem` takes explicit Runge-Kutta methods, Rosenbrock23, Rodas5P and KenCarp4, and no
            ``per_sample``.
        method: a method object or its name; where None, Tsit5 (with a mass matrix Rodas5P; for a
            :class:`DAEProblem` QNDF; for an :class:`SDEProblem` SOSRI, SOSRA, or, on Stratonovich equations, Heun's;
            on general noise in Ito's sense EM, which needs ``dt``).
        saveat: the times to return, monotonic within the span; a single number is a spacing. None returns
            every step (``save_everystep=True``) or the end only.
        rtol, atol: relative and absolute tolerance per entry of the state (tensors may broadcast).
        sensealg: how to differentiate, an object or its name; None picks (see ``stats.sensealg`` and
            ``stats.reason``).
        backend: ``"torch"`` (native: compiled for the CPU where that pays, eager elsewhere; ``stats.backend`` says
            which, ``stats.fallback`` why), ``"eager"`` or ``"compiled"`` for one of the two, ``"julia"``,
            ``"diffeqflux"`` (DiffEqFlux's own layers, to compare with: docs/julia.md), or ``"auto"``.
        max_steps: accepted and rejected steps together.
        event: an :class:`Event`, or a plain ``condition(t, y)`` (then terminal), or several.
        callbacks: :class:`PresetTimeCallback` objects: changes of the state at given times.
        progress: show a progress bar over the time span.
        dt: the step of a fixed-step method (without it, from save time to save time); the first step of an
            adaptive one.
        dt_min, dt_max: bounds of the step; at ``dt_min`` a step is accepted whatever its error.
        tstops: times that a step must end at (discontinuities of the right-hand side).
        controller: a :class:`PIDController`; its default, integral control, where None.
        per_sample: each row of the batch has its own time, step size and statistics; needs
            ``problem.batched``. ``func`` then gets ``t`` of shape ``(B, 1, ..., 1)``, with as many dimensions as
            the state's tensors (``(B, 1)`` where these differ). Without ``saveat`` every row has its own times,
            ``ts (T, B)``; rows that took fewer steps repeat their end. Saved states of a row after its terminal
            event are the event's; after its failure they are NaN.
        dense: keep what ``sol(t)`` needs.
        norm: replaces the root-mean-square norm; takes the scaled error (packed, as one tensor) and with
            ``per_sample`` returns one number a row.
        throw: raise on failure; otherwise return the part that was solved, with its ``status``.
        fallback: with ``backend="julia"``, ``"callback"`` lets Julia call ``func`` in Python where it cannot be
            translated, at some tens of microseconds an evaluation; None raises then.
        initialise: with algebraic equations (a singular ``mass_matrix``) the initial state must satisfy them, as every
            state after a jump. ``"check"`` raises where it does not, by more than the tolerances; ``"solve"`` keeps
            the differential variables (``mass_matrix @ y0``) and solves for the rest. Either way the gradient knows
            that the algebraic variables are functions of the others.

    Raises:
        PyDiffEqFluxError: one of its subclasses, naming the argument, the value and the way out.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2), (0.0, 1.0))
        >>> sol = pdf.solve(problem, "tsit5", saveat=torch.linspace(0, 1, 5), rtol=1e-6)
        >>> sol.ys.shape, sol.status.value
        (torch.Size([5, 2]), 'success')
    """
    if unknown:
        raise UnknownOptionError("solve", next(iter(unknown)), OPTIONS)
    if not isinstance(problem, Problem):
        raise InvalidArgumentError(
            f"problem is a {type(problem).__name__}; give an ODEProblem(func, y0, t_span), an SDEProblem, a DDEProblem"
            f" or a DAEProblem (an EnsembleProblem goes into solve_ensemble)."
        )
    given = (
        method, backend, rtol, atol, sensealg, max_steps, event, callbacks, progress, dt, dt_min, dt_max, tstops,
        controller, per_sample, dense, save_everystep, norm, throw, fallback, initialise,
    )  # fmt: skip
    numbers_only = (
        type(rtol) is float and type(atol) is float and event is None and callbacks is None and norm is None
        and type(tstops) is tuple and not tstops and isinstance(problem, ODEProblem) and problem.mass_matrix is None
    )  # fmt: skip
    if numbers_only and (route := problem.__dict__.get(ROUTE)) is not None:
        again: Solution | None = route.again(problem, given, saveat)
        if again is not None:
            return again
    chosen, options = _known(given) if numbers_only else _check(problem, *given)
    options = options.at(save_times(saveat, problem))
    if not chosen.adaptive and dt is None and saveat is None:
        raise StepSizeRequiredError(
            f"method={chosen} takes fixed steps: give their size as dt, or the times to step along as saveat."
        )
    if isinstance(problem, SDEProblem):
        _check_stochastic(options)
    elif isinstance(problem, DDEProblem):
        if per_sample:
            raise UnsupportedError("per_sample=True with a DDEProblem: its rows share their steps; leave it out.")
    elif isinstance(problem, DAEProblem):
        _check_implicit(chosen, options)
    elif problem.mass_matrix is not None:
        _check_mass(problem, chosen, per_sample)
    if per_sample and not problem.batched:
        raise UnsupportedError(
            "per_sample=True steps each row of y0 for itself, so the rows must be independent systems: say so with"
            " ODEProblem(..., batched=True)."
        )
    engine = registry.get(backend)
    log.info("backend %s, method %s", engine.name, chosen)
    solution = engine.solve(problem, chosen, options)
    if numbers_only and isinstance(problem, ODEProblem):
        _remember(problem, chosen, options, given, saveat, solution)
    return solution


def _remember(
    problem: ODEProblem, method: Method, options: SolveOptions, given: tuple[Any, ...], saveat: Any, solution: Solution
) -> None:
    """Keep with a problem that is solved a second time how it was."""
    own = problem.__dict__
    if ROUTE not in own:
        own[ROUTE] = None
    elif solution.stats.backend == "compiled":
        from .backends.compiled.route import route_of

        own[ROUTE] = route_of(problem, method, options, given, saveat)


def _known(given: tuple[Any, ...]) -> tuple[Method, SolveOptions]:
    """As ``_check`` for any ODEProblem, once and for all."""
    try:
        return _remembered(*given)
    except TypeError as why:
        if isinstance(why, PyDiffEqFluxError):
            raise
        return _check(None, *given)  # an argument that cannot be looked up: what is wrong with it will be said here


@functools.lru_cache(maxsize=256, typed=True)
def _remembered(*given: Any) -> tuple[Method, SolveOptions]:
    return _check(None, *given)


def _check(
    problem: Problem | None, method: Any, backend: str, rtol: Any, atol: Any, sensealg: Any,
    max_steps: Any, event: Any, callbacks: Any, progress: bool, dt: Any, dt_min: Any, dt_max: Any, tstops: Any,
    controller: Any, per_sample: bool, dense: bool, save_everystep: bool, norm: Any, throw: bool, fallback: Any,
    initialise: str,
) -> tuple[Method, SolveOptions]:  # fmt: skip
    """As :func:`solve`; ``problem`` None stands for any ODEProblem."""
    chosen = _method(method, problem, backend)
    options = SolveOptions(
        saves=None,
        unsaved="steps" if save_everystep else "end",
        rtol=_tolerance("rtol", rtol, problem),
        atol=_tolerance("atol", atol, problem),
        sensealg=sensealgs.resolve(sensealg),
        max_steps=_positive_int("max_steps", max_steps),
        events=_events(event),
        doses=_doses(callbacks),
        progress=progress,
        dt=_step("dt", dt),
        dt_min=_bound("dt_min", dt_min),
        dt_max=_bound("dt_max", dt_max),
        stops=tuple(point.value for point in time_points(tstops, "tstops")),
        controller=_controller(controller),
        per_sample=per_sample,
        dense=dense,
        norm=_norm(norm),
        throw=throw,
        fallback=_fallback(fallback),
        initialise=_initialise(initialise),
    )
    if not 0 <= dt_min < dt_max:
        raise InvalidArgumentError(f"dt_min={dt_min} and dt_max={dt_max} must satisfy 0 <= dt_min < dt_max.")
    if chosen.adaptive and not _all_positive(options.rtol + options.atol):
        raise InvalidToleranceError(
            f"rtol={rtol} and atol={atol} are both zero, and no step has an error of zero: make one of them positive."
        )
    return chosen, options


#: The keyword arguments of :func:`solve`.
OPTIONS = tuple(p.name for p in inspect.signature(solve).parameters.values() if p.kind is p.KEYWORD_ONLY)


def _method(method: Method | str | None, problem: Problem | None, backend: str) -> Method:
    if isinstance(problem, DAEProblem):
        return methods.resolve("qndf" if method is None else method, backend)
    if not isinstance(problem, SDEProblem):
        stiff = isinstance(problem, ODEProblem) and problem.mass_matrix is not None
        ordinary = methods.resolve(("rodas5p" if stiff else "tsit5") if method is None else method, backend)
        if isinstance(ordinary, sde_methods.SDEMethod):
            raise UnsupportedError(
                f"method={ordinary} is for an SDEProblem; {'a DDE' if isinstance(problem, DDEProblem) else 'an ODE'}"
                f"Problem, which has no noise, takes Tsit5 and its like."
            )
        return ordinary
    noise, interpretation = problem.noise, problem.interpretation
    chosen = sde_methods.default(noise, interpretation) if method is None else sde_methods.resolve(method, backend)
    sde_methods.check(chosen, noise, interpretation)
    return chosen


def _check_stochastic(options: SolveOptions) -> None:
    """What there is for ordinary differential equations only."""
    if options.events:
        raise UnsupportedError(
            "event with an SDEProblem: between two steps its path is not known, and a crossing cannot be located; look"
            " for it in the saved states of a solve with small steps."
        )
    if options.per_sample:
        raise UnsupportedError("per_sample=True with an SDEProblem: its rows share their steps; leave it out.")
    known = (sensealgs.DiscreteAdjoint, sensealgs.BacksolveAdjoint)
    if options.sensealg is not None and not isinstance(options.sensealg, known):
        raise UnsupportedError(
            f"sensealg={options.sensealg.name} is for ODEs; an SDEProblem has DiscreteAdjoint and BacksolveAdjoint."
        )
    if options.saves is not None and options.saves.tensor is not None:
        refuse_gradient(TimePoint(options.saves.values[0], options.saves.tensor), "saveat")
    for dose in options.doses:
        for point in dose.points():
            refuse_gradient(point, "the time of a callback")


def _tolerance(name: str, value: float | Tensor, problem: Problem | None) -> float | Tensor:
    if not isinstance(value, Tensor):
        if not _is_number(value) or not math.isfinite(value) or value < 0:
            raise InvalidToleranceError(f"{name}={value!r} must be a finite number >= 0 (or a tensor of such).")
        return float(value)
    if value.requires_grad:
        raise InvalidToleranceError(f"{name} requires a gradient, but none flows through a tolerance; detach it.")
    if not value.is_floating_point():
        raise InvalidToleranceError(f"{name} has dtype {value.dtype}; a tolerance is a real number: {name}.double().")
    if bool((value < 0).any()) or not bool(value.isfinite().all()):
        raise InvalidToleranceError(f"{name}={value.tolist()} must be finite and >= 0 everywhere.")
    assert problem is not None
    state = problem.packed.shape
    missing = len(state) - len(value.shape)
    if missing < 0 or any(n not in (1, m) for n, m in zip(value.shape, state[missing:], strict=True)):
        raise InvalidToleranceError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to the state's {tuple(state)} (states"
            f" that are a structure are packed into one vector)."
        )
    return value


def _all_positive(tol: float | Tensor) -> bool:
    return bool((tol > 0).all()) if isinstance(tol, Tensor) else tol > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _positive_int(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidArgumentError(f"{name}={value!r} must be a positive integer.")
    return value


def _step(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not (math.isfinite(value) and value > 0):
        raise InvalidArgumentError(f"{name}={value!r} must be a positive number (t_span gives its sign) or None.")
    return float(value)


def _bound(name: str, value: float) -> float:
    if not _is_number(value):
        raise InvalidArgumentError(f"{name}={value!r} must be a number: a bound of the step's size.")
    return float(value)


_INTEGRAL = PIDController()


def _controller(controller: Any) -> PIDController:
    if controller is None:
        return _INTEGRAL
    if not isinstance(controller, PIDController):
        raise InvalidArgumentError(
            f"controller={controller!r} is not a PIDController; give one, or PIController() or IController()."
        )
    return controller


def _norm(norm: Any) -> Any:
    if norm is not None and not callable(norm):
        raise InvalidArgumentError(f"norm={norm!r} is not callable; give a function of the scaled error, or None.")
    return norm


def _fallback(fallback: Any) -> str | None:
    if fallback not in (None, "callback"):
        raise UnknownNameError("fallback", fallback, ["callback"])
    return None if fallback is None else "callback"


def _initialise(initialise: Any) -> str:
    if initialise not in ("check", "solve"):
        raise UnknownNameError("initialise", initialise, ["check", "solve"])
    return str(initialise)


def _check_mass(problem: ODEProblem, method: Method, per_sample: bool) -> None:
    """Whether ``M y' = f`` is something for this method.

    Raises:
        MassMatrixMethodError: it is not.
    """
    if not isinstance(method, methods.SciMLMethod) and not method.takes_mass:
        raise MassMatrixMethodError(
            f"method={method} cannot take a mass_matrix: use one of {', '.join(methods.taking_mass())}"
            f" (or, where the matrix has an inverse, solve for the derivative in func by torch.linalg.solve)."
        )
    if per_sample:
        raise MassMatrixMethodError(
            "per_sample=True with a mass_matrix does not exist: leave it out; with batched=True each row still has a"
            " small Jacobian of its own."
        )


def _check_implicit(method: Method, options: SolveOptions) -> None:
    """What there is for explicit equations only.

    Raises:
        MassMatrixMethodError, UnsupportedError: for the method and the options.
    """
    if not isinstance(method, methods.QNDF | methods.SciMLMethod):
        raise MassMatrixMethodError(
            f"method={method} cannot solve a DAEProblem, whose equations are implicit in dy/dt: use 'qndf' (or write"
            f" them as M dy/dt = f, an ODEProblem with a mass_matrix)."
        )
    if options.per_sample:
        raise UnsupportedError("per_sample=True with a DAEProblem: its rows share their steps; leave it out.")
    known = sensealgs.DiscreteAdjoint | sensealgs.ForwardDiffSensitivity
    if options.sensealg is not None and not isinstance(options.sensealg, known):
        raise UnsupportedError(
            f"sensealg={options.sensealg.name} with a DAEProblem does not exist: use DiscreteAdjoint() (on"
            f" backend='julia' ForwardDiffSensitivity()), or an ODEProblem with a mass_matrix."
        )


def _events(event: Any) -> tuple[Event, ...]:
    if event is None:
        return ()
    several = event if isinstance(event, tuple | list) else [event]
    return tuple(e if isinstance(e, Event) else Event(e) for e in several)


def _doses(callbacks: Any) -> tuple[PresetTimeCallback, ...]:
    if callbacks is None:
        return ()
    several = callbacks if isinstance(callbacks, tuple | list) else [callbacks]
    for c in several:
        if not isinstance(c, PresetTimeCallback):
            raise InvalidArgumentError(
                f"callbacks takes PresetTimeCallback objects; got a {type(c).__name__}. Conditions go into event."
            )
    return tuple(several)
