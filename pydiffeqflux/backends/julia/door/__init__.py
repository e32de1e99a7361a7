"""``backend="diffeqflux"``: DiffEqFlux.jl's own layers around traced modules, differentiated by Zygote.

The same equations as on ``backend="julia"``, by the way that a Julia program goes: a module is a Lux layer with a
ChainRules rule made of the traced products. That way is slower by far; it is there to compare with.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch
from torch import Tensor

from ....dae_problem import DAEProblem
from ....dde_problem import DDEProblem
from ....errors import StepSizeRequiredError, UnsupportedError
from ....methods import QNDF, Method, SciMLMethod
from ....problem import ODEProblem
from ....sde_problem import SDEProblem
from ....solution import Solution, Stats
from ...backend import Problem, SolveOptions
from ...common.autocast import without_autocast
from ...common.equation import equation_of
from ...common.failure import failure
from ...common.implicit_rhs import ImplicitRhs
from ...common.sde import Sde
from .. import delay as delayed
from ..engine import _held, _keywords, _tolerances, _Tools
from ..form import check_fully, check_massive
from ..session import session
from ..stochastic import StochasticTools, check_noise
from ..stochastic import _keywords as _random
from . import checks, delay, flow, implicit, ordinary, shooting, stochastic
from .call import Call, Called, Layer
from .forms import Tracer

log = logging.getLogger("pydiffeqflux")

#: Functions that say what of DiffEqFlux's they are for.
_SPECIAL = {"FFJORD": flow.layer_of, "multiple_shoot": shooting.layer_of}


class DiffEqFluxBackend:
    """``backend="diffeqflux"``."""

    name = "diffeqflux"

    @without_autocast
    def solve(self, problem: Problem, method: Method, options: SolveOptions) -> Solution:
        began = time.perf_counter()
        checks.options(problem, method, options)
        wanted = torch.is_grad_enabled()
        tools = _Tools.of(session())
        trace = Tracer(tools.models, problem.t0.value, wanted, problem.spec)
        if isinstance(problem, SDEProblem):
            layer, solver, said = _stochastic(problem, method, options, trace)
        else:
            layer, solver, said = _deterministic(problem, method, options, trace)
        call = made(problem, layer, solver, said, options)
        log.info("DiffEqFlux's %s", layer.called)
        numbers: Tensor = Called.apply(call, layer.start, *layer.params)
        states = layer.read(numbers)
        status, message = call.status()
        times = asked(problem, options) if layer.times is None else layer.times
        solution = Solution(
            torch.tensor(times[: len(states)], dtype=torch.float64),
            states if problem.spec is None else problem.spec.unflatten(states),
            Stats(),
            status,
        )
        solution.stats = Stats(
            nf=call.nf,
            time=time.perf_counter() - began,
            backend=self.name,
            layer=layer.called,
            method=str(method),
            sensealg=call.sensealg if call.wanted else "none",
            reason=_reason(call, options),
            seed=layer.seed,
        )
        if options.throw and not status.ok:
            span = problem.t0.value, problem.t1.value
            raise failure(status, message, times[max(len(states) - 1, 0)], span, method)
        return solution


def _deterministic(
    problem: ODEProblem | DDEProblem | DAEProblem, method: Method, options: SolveOptions, trace: Tracer
) -> tuple[Layer, int, str]:
    """The layer, its solver's number, and further keyword arguments as Julia writes them."""
    if isinstance(problem, DAEProblem) and isinstance(method, QNDF):
        method = SciMLMethod("DFBDF")  # what OrdinaryDiffEq has of that family for implicit equations
    solver = _Tools.of(session()).solvers.get(method)
    said = _keywords(problem, method, options)
    if isinstance(problem, DDEProblem):
        delayed.check(problem, replace(options, sensealg=None))
        return delay.layer_of(problem, trace), solver.handle, said
    special = _SPECIAL.get(getattr(problem.func, "theirs", ""))
    if special is not None:
        assert isinstance(problem, ODEProblem)
        return special(problem, trace), solver.handle, said
    rhs = equation_of(problem, method, options)
    start = rhs.settle(problem.t0.value, problem.packed)
    if isinstance(rhs, ImplicitRhs):
        assert isinstance(problem, DAEProblem)
        check_fully(method, solver)
        return implicit.layer_of(problem, rhs, start, trace), solver.handle, said
    assert isinstance(problem, ODEProblem)
    if problem.mass_matrix is not None:
        check_massive(method, solver)
    return ordinary.layer_of(problem, rhs, start, trace), solver.handle, said


def _stochastic(
    problem: SDEProblem, method: Method, options: SolveOptions, trace: Tracer
) -> tuple[Layer, int, str]:
    """The same for a stochastic equation."""
    solver = StochasticTools.of(session()).solver(problem, method)
    if problem.brownian is not None:
        raise UnsupportedError(
            "brownian on backend='diffeqflux' does not exist, whose layers draw a path of their own from the problem's"
            " seed: leave it out, or use backend='julia' or 'torch'."
        )
    if not solver.adaptive and options.dt is None:
        raise StepSizeRequiredError(
            f"method={method} takes fixed steps, and on backend='diffeqflux' their size must be given: say dt."
        )
    sde = equation_of(problem, method, options)
    assert isinstance(sde, Sde)
    check_noise(method, solver, problem, StochasticTools.of(session()).equation(problem, sde, gradients=False))
    layer = stochastic.layer_of(problem, sde, trace)
    steps = _random(solver, options) if solver.adaptive else f"adaptive = false, dt = {options.dt!r}"
    return layer, solver.handle, f"seed = {layer.seed}, {steps}".removesuffix(", ")


def made(problem: Problem, layer: Layer, solver: int, keywords: str, options: SolveOptions) -> Call:
    """The call of a layer that these options ask for."""
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (layer.start, *layer.params))
    # A name that is wrong is so whether or not a gradient is wanted this time.
    sensealg = checks.sensealg(layer, options) if wanted or options.sensealg is not None else ""
    return Call(
        layer,
        solver,
        sensealg if wanted else "",
        wanted,
        problem.t0.value,
        problem.t1.value,
        asked(problem, options) if layer.saves is None else tuple(layer.saves),
        *_wide(problem, layer, options),
        options.max_steps,
        _held(session(), keywords),
    )


def _reason(call: Call, options: SolveOptions) -> str:
    if not call.wanted:
        return "nothing requires a gradient" if torch.is_grad_enabled() else "gradients are disabled"
    return call.layer.reason if options.sensealg is None else "asked for"


def asked(problem: Problem, options: SolveOptions) -> tuple[float, ...]:
    """The times to return."""
    return (problem.t1.value,) if options.saves is None else options.saves.values


def _wide(problem: Problem, layer: Layer, options: SolveOptions) -> tuple[Tensor, Tensor]:
    """The tolerances; of a clock the least of the others.

    Raises:
        UnsupportedError: there is one for each state, and the layer has them in another order.
    """
    rtol, atol = _tolerances(problem.packed, options)
    if rtol.numel() == 1:
        return rtol, atol
    if layer.width is None:
        raise UnsupportedError(
            f"rtol or atol for each state with DiffEqFlux's {layer.called} does not exist: give numbers, or use"
            f" backend='julia' or 'torch'."
        )
    extra = layer.width - rtol.numel()
    return tuple(torch.cat([x, x.min().expand(extra)]) for x in (rtol, atol))  # type: ignore[return-value]
