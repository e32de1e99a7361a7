"""``odeint`` in machine code, where ``backend="torch"`` would choose that: the steps that the eager loop would take."""

from __future__ import annotations

from torch import Tensor

from ..backends import native
from ..backends.backend import SolveOptions
from ..backends.common.tolerances import rms_norm
from ..errors import SolveError
from ..problem import ODEProblem, SaveTimes
from ..sensealg import SenseAlg
from ..solution import Solution
from .adaptive import AdaptiveEngine
from .call import Call
from .options import UNLIMITED


def states(call: Call, sensealg: SenseAlg | None = None) -> Tensor | None:
    """The states at all times, time first; None where the eager loop is to solve for them (and to count)."""
    engine = call.engine
    if not isinstance(engine, AdaptiveEngine) or not _covered(call, engine):
        return None
    settings = engine.settings
    assert isinstance(settings.tol.rtol, float) and isinstance(settings.tol.atol, float)
    assert engine.method is not None
    values = call.times.values
    options = SolveOptions(
        saves=SaveTimes(values),
        unsaved="end",
        rtol=settings.tol.rtol,
        atol=settings.tol.atol,
        sensealg=sensealg,
        max_steps=UNLIMITED,
        dt=settings.dt,
        dt_min=settings.dt_min,
        dt_max=settings.dt_max,
        controller=settings.controller,
        dense=False,
        throw=sensealg is not None,
    )
    problem = ODEProblem(call.rhs.func, call.y0, (values[0], values[-1]))
    try:
        found = native.compiled_solution(problem, engine.method, options)
    except SolveError:  # the eager loop says it in the words of this interface
        return None
    if not isinstance(found, Solution) or not found.status.ok:
        return None
    ys = found.ys
    assert isinstance(ys, Tensor)
    return ys


def _covered(call: Call, engine: AdaptiveEngine) -> bool:
    """Whether the call asks for nothing that only the eager loop has."""
    settings = engine.settings
    numbers = isinstance(settings.tol.rtol, float) and isinstance(settings.tol.atol, float)
    hooks = settings.on_step, settings.on_accept, settings.on_reject
    return (
        engine.method is not None
        and numbers
        and settings.tol.norm is rms_norm
        and hooks == (None, None, None)
        and not settings.stops
        and engine.max_num_steps == UNLIMITED
        and call.spec is None
        and len(call.times.values) > 1
        and not call.times.differentiable
        and bool(settings.tol.rtol + settings.tol.atol > 0)
    )
