"""``solve``: check what was asked for once, pick a backend, and hand over."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from . import methods, sensealg as sensealgs
from .backends import registry
from .backends.backend import SolveOptions
from .callbacks import Event, PresetTimeCallback
from .controllers import PIDController
from .errors import InvalidArgumentError, StepSizeRequiredError, UnsupportedError
from .methods import Method
from .problem import ODEProblem, save_times
from .sensealg import SenseAlg
from .solution import Solution

log = logging.getLogger("pydiffeqflux")

EventLike = Event | Callable[[Tensor, Any], Tensor]


def solve(
    problem: ODEProblem,
    method: Method | str | None = None,
    *,
    saveat: Tensor | Sequence[float] | float | None = None,
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
    tstops: Sequence[float] | Tensor = (),
    controller: PIDController | None = None,
    per_sample: bool = False,
    dense: bool = True,
    save_everystep: bool = True,
    norm: Callable[[Any], Any] | None = None,
    throw: bool = True,
) -> Solution:
    """Solve an initial value problem; the result is differentiable.

    Gradients reach ``y0``, every tensor that ``problem.func`` uses (module parameters, closures, plain
    tensors), the save times and both ends of the time span.

    Args:
        problem: what to solve.
        method: a method object or its name; Tsit5 where None.
        saveat: the times to return, monotonic within the span; a single number is a spacing. None returns
            every step (``save_everystep=True``) or the end only.
        rtol, atol: relative and absolute tolerance per entry of the state (tensors may broadcast).
        sensealg: how to differentiate, an object or its name; None picks (see ``stats.sensealg`` and
            ``stats.reason``).
        backend: ``"torch"`` (native), ``"julia"``, or ``"auto"``.
        max_steps: accepted and rejected steps together.
        event: an :class:`Event`, or a plain ``condition(t, y)`` (then terminal), or several.
        callbacks: :class:`PresetTimeCallback` objects: changes of the state at given times.
        progress: show a progress bar over the time span.
        dt: the step of a fixed-step method (without it, from save time to save time); the first step of an
            adaptive one.
        dt_min, dt_max: bounds of the step; at ``dt_min`` a step is accepted whatever its error.
        tstops: times that a step must end at (discontinuities of the right-hand side).
        controller: a :class:`PIDController`; PI control where None.
        per_sample: each row of the batch has its own time, step size and statistics; needs
            ``problem.batched``. ``func`` then gets ``t`` of shape ``(B, 1, ..., 1)``.
        dense: keep what ``sol(t)`` needs.
        norm: replaces the root-mean-square norm; takes the scaled error (packed, as one tensor).
        throw: raise on failure; otherwise return the part that was solved, with its ``status``.

    Raises:
        PyDiffEqFluxError: one of its subclasses, naming the argument, the value and the way out.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2), (0.0, 1.0))
        >>> sol = pdf.solve(problem, "tsit5", saveat=torch.linspace(0, 1, 5), rtol=1e-6)
        >>> sol.ys.shape, sol.status.value
        (torch.Size([5, 2]), 'success')
    """
    if not isinstance(problem, ODEProblem):
        raise InvalidArgumentError(f"problem is a {type(problem).__name__}; give an ODEProblem(func, y0, t_span).")
    chosen = methods.resolve("tsit5" if method is None else method)
    options = SolveOptions(
        saves=save_times(saveat, problem),
        unsaved="steps" if save_everystep else "end",
        rtol=_tolerance("rtol", rtol),
        atol=_tolerance("atol", atol),
        sensealg=sensealgs.resolve(sensealg),
        max_steps=_positive_int("max_steps", max_steps),
        events=_events(event),
        doses=_doses(callbacks),
        progress=progress,
        dt=_step("dt", dt),
        dt_min=dt_min,
        dt_max=dt_max,
        stops=tuple(float(s) for s in tstops),
        controller=controller if controller is not None else PIDController(),
        per_sample=per_sample,
        dense=dense,
        norm=norm,
        throw=throw,
    )
    if not 0 <= dt_min < dt_max:
        raise InvalidArgumentError(f"dt_min={dt_min} and dt_max={dt_max} must satisfy 0 <= dt_min < dt_max.")
    if not chosen.adaptive and dt is None and saveat is None:
        raise StepSizeRequiredError(
            f"method={chosen} takes fixed steps: give their size as dt, or the times to step along as saveat."
        )
    if per_sample and not problem.batched:
        raise UnsupportedError(
            "per_sample=True steps each row of y0 for itself, so the rows must be independent systems: say so with"
            " ODEProblem(..., batched=True)."
        )
    engine = registry.get(backend)
    log.info("backend %s, method %s", engine.name, chosen)
    return engine.solve(problem, chosen, options)


def _tolerance(name: str, value: float | Tensor) -> float | Tensor:
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise InvalidArgumentError(f"{name} requires a gradient, but none flows through a tolerance; detach it.")
        if bool((value < 0).any()) or not bool(value.isfinite().all()):
            raise InvalidArgumentError(f"{name} has entries that are negative or not finite; tolerances must be >= 0.")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InvalidArgumentError(f"{name}={value!r} must be a finite number >= 0 (or a tensor of such).")
    return float(value)


def _positive_int(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidArgumentError(f"{name}={value!r} must be a positive integer.")
    return value


def _step(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise InvalidArgumentError(
            f"{name}={value!r} must be a positive number (its sign follows from t_span) or None."
        )
    return float(value)


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


