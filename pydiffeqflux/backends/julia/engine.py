"""``backend="julia"``: the common interface's problems, solved and differentiated by the SciML stack."""

from __future__ import annotations

import functools
import logging
import math
import numbers
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...controllers import PIDController
from ...dae_problem import DAEProblem
from ...dde_problem import DDEProblem
from ...errors import DenseOutputError, DtypeError, InvalidTimesError, UnsupportedError, UntraceableError
from ...methods import QNDF, Method, SciMLMethod
from ...problem import ODEProblem, time_point, time_points
from ...sde_problem import SDEProblem
from ...sensealg import ForwardDiffSensitivity, SenseAlg
from ...solution import Solution, Stats
from ...state import State
from ...tracking import transforming
from ..backend import Problem, SolveOptions
from ..common.autocast import without_autocast
from ..common.chain import assemble, chain
from ..common.equation import equation_of
from ..common.failure import failure
from ..common.implicit_rhs import ImplicitRhs
from ..common.progress import progress_bar
from ..common.rhs import Rhs
from ..once import WithoutGradient
from .callback import CalledBack
from .calls import Request
from .complex import in_pairs
from .events import Watch
from .form import Form, form_of
from .held import Held
from .model import Model, Models
from .norm import check_problem as check_norm
from .norm import check_sensealg, with_norm
from .on_device import check_problem, check_solver
from .places import Places
from .rows import solve_rows
from .sensitivities import DEFAULT, Sensitivities
from .session import Session, session
from .solvers import Solvers
from .stretches import Stretches
from .transformed import solve_transformed

log = logging.getLogger("pydiffeqflux")

_NOT_DENSE = "backend='julia' differentiates saved states, not sol(t): give these times as saveat."


class JuliaBackend:
    """``backend="julia"``."""

    name = "julia"

    @without_autocast
    def solve(self, problem: Problem, method: Method, options: SolveOptions) -> Solution:
        began = time.perf_counter()
        _require(problem, options)
        if isinstance(problem, SDEProblem):
            from . import stochastic  # most programs never need it

            return stochastic.solve(session(), problem, method, options, _tolerances(problem.packed, options))
        assert isinstance(problem, ODEProblem | DAEProblem | DDEProblem)
        if isinstance(problem, ODEProblem):
            if transforming():
                return solve_transformed(problem, options, lambda joined, how: self.solve(joined, method, how))
            if options.per_sample:
                solution = solve_rows(problem, method, options, lambda row, how: self.solve(row, method, how))
                solution.stats.time = time.perf_counter() - began
                return solution
            if problem.packed.is_complex():
                problem, options = in_pairs(problem, options)
        if isinstance(problem, DDEProblem):
            rhs = Rhs(problem.func, problem.spec, problem.packed)
            stretches, sensealg, reason = _delayed(problem, rhs, method, options)
        else:
            if isinstance(problem, DAEProblem) and isinstance(method, QNDF):
                method = SciMLMethod("DFBDF")  # what OrdinaryDiffEq has of that family for implicit equations
            rhs = equation_of(problem, method, options)
            stretches, sensealg, reason = _ordinary(problem, rhs, method, options)
        solution, message = _reported(problem, rhs, stretches, options)
        solution.stats = Stats(
            nf=stretches.nf,
            naccept=stretches.naccept,
            nreject=stretches.nreject,
            njac=stretches.njac,
            time=time.perf_counter() - began,
            backend=self.name,
            method=str(method),
            sensealg=sensealg,
            reason=reason,
        )
        if options.throw and not solution.status.ok:
            span = problem.t0.value, problem.t1.value
            raise failure(solution.status, message, float(solution.ts[-1]), span, method)
        return solution


def _reported(
    problem: ODEProblem | DAEProblem | DDEProblem, rhs: Rhs, stretches: Stretches, options: SolveOptions
) -> tuple[Solution, str]:
    """As ``_run``, with a progress bar where one was asked for."""
    if not options.progress:
        return _run(problem, rhs, stretches, options)
    with progress_bar(options.progress, problem.t0.value, problem.t1.value) as report:
        # The clock may still stand at the end of another solve.
        low, high = sorted((problem.t0.value, problem.t1.value))
        inside = None if report is None else (lambda t: report(t) if low <= t <= high else None)
        with session().reporting(inside):
            solution, message = _run(problem, rhs, stretches, options)
        if report is not None:
            report(float(solution.ts[-1]))
    return solution, message


def _run(
    problem: ODEProblem | DAEProblem | DDEProblem, rhs: Rhs, stretches: Stretches, options: SolveOptions
) -> tuple[Solution, str]:
    """The solution, and what went wrong."""
    saves, runner = options.saves, stretches.run
    # The usual case: all there is is one stretch.
    simple = not options.events and not options.doses and isinstance(problem, ODEProblem)
    if saves is not None and simple and stretches.request.form is None:
        run, ys, y1 = stretches.whole()
        status, message = stretches.status(run)
        if status.ok:
            dense = _Dense(stretches, problem, ys) if options.dense else None
            ts = saves.tensor.double() if saves.tensor is not None else stretches.request.save_times.clone()
            ts = ts.to(ys.device)
            states = ys if problem.spec is None else problem.spec.unflatten(ys)
            return Solution(ts, states, Stats(), status, [], dense), message
        assert y1 is not None
        end = y1
        runner = lambda y0, s: stretches.outcome(run, ys, end, s, stretches.request)  # noqa: E731
    got, status, message = chain(problem, rhs, runner, options, None)
    states = got.states[-1] if got.states else problem.packed
    dense = _Dense(stretches, problem, states) if options.dense and stretches.runs else None
    return assemble(problem, options, got, status, dense), message


def _ordinary(
    problem: ODEProblem | DAEProblem, rhs: Rhs, method: Method, options: SolveOptions
) -> tuple[Stretches, str, str]:
    """What solves an ordinary equation; the sensitivity algorithm's name, and why that one."""
    tools = _Tools.of(session())
    model = tools.model(problem, rhs, options)
    sensealg, reason = _sensealg(problem, model, options)
    form = form_of(problem, rhs, model, sensealg)
    request = tools.request(problem, model, method, sensealg, options, form)
    watch = None
    if options.events:
        watch = Watch(tools.session, tools.models, rhs, options.events, problem.t0.value, problem.packed)
    stretches = Stretches(problem, rhs, request, options, watch)
    return stretches, "none" if sensealg is None else sensealg.name, reason


def _delayed(problem: DDEProblem, rhs: Rhs, method: Method, options: SolveOptions) -> tuple[Stretches, str, str]:
    """The same for a delay equation."""
    from . import delay  # most programs have none

    delay.check(problem, options)
    tools = _Tools.of(session())
    equation = delay.Equation(tools.session, tools.models, problem)
    request = Request(
        equation.model,
        tools.solvers.get(method),
        None,
        **tools.wishes(problem, method, options),
    )
    stretches = delay.DelayedStretches(problem, rhs, equation, request, options)
    return stretches, *delay.sensealg_for(equation, problem)


class _Tools:
    """What is made once for a session."""

    def __init__(self, running: Session):
        self.session = running
        self.models, self.solvers, self.sensitivities = Models(running), Solvers(running), Sensitivities(running)
        self.places = Places(running)

    @staticmethod
    @functools.cache
    def of(running: Session) -> _Tools:
        return _Tools(running)

    def model(self, problem: ODEProblem | DAEProblem, rhs: Rhs, options: SolveOptions) -> Model | CalledBack:
        t0, y0 = problem.t0.value, problem.packed
        if isinstance(rhs, ImplicitRhs):
            y0 = y0.detach()
            both = torch.cat([y0.reshape(-1), rhs.near.reshape(-1)])
            return self.models.get(problem.func, rhs.stacked, t0, both, "the residual", rhs.spec)
        place = self.places.of(y0.device)
        try:
            return self.models.get(problem.func, rhs.evaluate, t0, y0, "the right-hand side", rhs.spec, place)
        except UntraceableError as why:
            if options.fallback != "callback":
                raise
            log.warning("%s", why)
            found = CalledBack(self.session, problem.func, rhs, rhs.time(t0), y0)
            found.need("f")
            return found

    def request(
        self,
        problem: ODEProblem | DAEProblem,
        model: Model | CalledBack,
        method: Method,
        sensealg: SenseAlg | None,
        options: SolveOptions,
        form: Form | None,
    ) -> Request:
        """The request; that of the model's last solve, where that was one like it."""
        saves = () if options.saves is None else options.saves.values
        key = (
            method, sensealg, problem.t0.value, problem.t1.value, saves, options.unsaved, options.dense,
            options.max_steps, options.stops, options.dt, options.dt_min, options.dt_max, options.controller,
            options.rtol, options.atol,
        )  # fmt: skip
        # Tensors do not compare, and a norm may have changed inside.
        tensors = isinstance(options.rtol, Tensor) or isinstance(options.atol, Tensor)
        if tensors or form is not None or options.norm is not None:
            return self._request(problem, model, method, sensealg, options, form)
        if model.last is None or model.last[0] != key:
            model.last = key, self._request(problem, model, method, sensealg, options, form)
        return model.last[1]

    def _request(
        self,
        problem: ODEProblem | DAEProblem,
        model: Model | CalledBack,
        method: Method,
        sensealg: SenseAlg | None,
        options: SolveOptions,
        form: Form | None,
    ) -> Request:
        solver = self.solvers.get(method)
        if form is not None:
            form.check_solver(method, solver)
        if solver.implicit and not solver.fully:
            model.need("jac")
        sensitivity = None if sensealg is None else self.sensitivities.get(sensealg)
        if model.place is not None:
            check_solver(model.place, method, solver, sensitivity)
        if sensitivity is not None:
            if isinstance(model, CalledBack) and not sensitivity.plain:
                raise UnsupportedError(
                    f"sensealg={sensealg} with a right-hand side that is called back in Python: it takes plain numbers"
                    f" only, not those that this algorithm follows; take GaussAdjoint() or ForwardSensitivity()."
                )
            model.need(*sensitivity.needs)
        wishes = self.wishes(problem, method, options)
        if options.norm is not None:
            if sensealg is not None and sensitivity is not None:
                check_sensealg(sensealg, sensitivity)
            wishes["options"] = with_norm(
                self.session, self.models, wishes["options"], options.norm, problem.packed
            )
        return Request(model, solver, sensitivity, form=form, **wishes)

    def wishes(
        self, problem: ODEProblem | DDEProblem | DAEProblem, method: Method, options: SolveOptions
    ) -> dict[str, Any]:
        """The fields of a :class:`Request` that say how to solve, whatever the equation."""
        rtol, atol = _tolerances(problem.packed, options)
        return {
            "t0": problem.t0.value,
            "t1": problem.t1.value,
            "saves": () if options.saves is None else options.saves.values,
            "keep": options.unsaved,
            "dense": options.dense,
            "rtol": rtol,
            "atol": atol,
            "max_steps": options.max_steps,
            "stops": _stops(method, options),
            "options": _held(self.session, _keywords(problem, method, options)),
        }


def _held(session: Session, keywords: str) -> Held | None:
    """Julia's number for further keyword arguments."""
    return Held(session, session.call("bridge_options", keywords)) if keywords else None


def _require(problem: Problem, options: SolveOptions) -> None:
    """Raise for what this backend does not do."""
    y0 = problem.packed
    massive = isinstance(problem, ODEProblem) and problem.mass_matrix is not None
    if (massive or isinstance(problem, DAEProblem)) and transforming():
        what = "a mass_matrix" if massive else "a DAEProblem"
        raise UnsupportedError(
            f"{what} with backend='julia' inside torch.func's transforms does not exist: use backend='torch'."
        )
    if y0.is_complex() and options.fallback != "callback":
        raise DtypeError(
            f"y0 is {y0.dtype}, and backend='julia' translates real functions only: give fallback='callback', with"
            f" which Julia calls func in Python, or write it for the real and imaginary parts, or use backend='torch'."
        )
    if y0.real.dtype not in (torch.float32, torch.float64):
        raise DtypeError(
            f"backend='julia' takes states of float32 and float64, and y0 is {y0.dtype}: convert it, or use"
            f" backend='torch'."
        )
    check_problem(problem, options)
    if options.norm is not None:
        check_norm(problem)
    if isinstance(problem, SDEProblem):
        for name, wanted in (("progress", options.progress), ("controller", options.controller != PIDController())):
            if wanted:
                raise UnsupportedError(
                    f"{name} with an SDEProblem does not exist on backend='julia': leave it out, or use"
                    f" backend='torch'."
                )


def _sensealg(
    problem: ODEProblem | DAEProblem, model: Model | CalledBack, options: SolveOptions
) -> tuple[SenseAlg | None, str]:
    """The algorithm and why. None means that nothing is recorded."""
    if not torch.is_grad_enabled():
        return None, "gradients are disabled"
    ends = (problem.packed, problem.t0.tensor, problem.t1.tensor, options.saves and options.saves.tensor)
    # What changes the state on the way may bring a gradient that nobody sees before.
    changed = bool(options.doses) or any(event.affect is not None for event in options.events)
    if not changed and not model.params and not any(isinstance(x, Tensor) and x.requires_grad for x in ends):
        return None, "nothing requires a gradient"
    if options.sensealg is not None:
        return options.sensealg, "asked for"
    if isinstance(problem, DAEProblem):
        return ForwardDiffSensitivity(), "what differentiates fully implicit equations in Julia"
    return DEFAULT, "SciMLSensitivity's recommendation: the parameters' gradient by Gauss quadrature"


def _tolerances(y0: Tensor, options: SolveOptions) -> tuple[Tensor, Tensor]:
    """Both tolerances, one number or one for each state, alike."""
    both = [torch.as_tensor(x, dtype=torch.float64).cpu() for x in (options.rtol, options.atol)]
    if all(x.numel() == 1 for x in both):
        return both[0].reshape(1).clone(), both[1].reshape(1).clone()
    wide = [x.expand(y0.shape).reshape(-1).contiguous() for x in both]
    return wide[0], wide[1]


def _stops(method: Method, options: SolveOptions) -> tuple[float, ...]:
    stops = list(options.stops)
    if not method.adaptive and options.dt is None and options.saves is not None:
        stops += options.saves.values  # fixed steps from save time to save time
    return tuple(stops)


def _keywords(problem: ODEProblem | DAEProblem | DDEProblem, method: Method, options: SolveOptions) -> str:
    """What was asked for beyond the defaults, as Julia writes keyword arguments."""
    said = []
    span = problem.t1.value - problem.t0.value
    if not method.adaptive:
        said += ["adaptive = false", f"dt = {span if options.dt is None else math.copysign(options.dt, span)!r}"]
    elif options.dt is not None:
        said.append(f"dt = {math.copysign(options.dt, span)!r}")
    if options.dt_min > 0:
        said += [f"dtmin = {options.dt_min!r}", "force_dtmin = true"]
    if math.isfinite(options.dt_max):
        said.append(f"dtmax = {math.copysign(options.dt_max, span)!r}")
    c = options.controller
    if method.adaptive and c != PIDController():
        numbers = (c.pcoeff, c.icoeff, c.dcoeff, c.safety, c.factor_min, c.factor_max)
        said.append(f'control = "{" ".join(repr(float(x)) for x in numbers)}"')
    return ", ".join(said)


class _Dense:
    """``sol(t)``: a number or 0-dim tensor gives one state, a 1-D tensor or sequence several, time first."""

    def __init__(self, stretches: Stretches, problem: ODEProblem | DAEProblem | DDEProblem, solved: Tensor):
        self._stretches, self._problem, self._solved = stretches, problem, solved

    def __call__(self, t: Any) -> State:
        single = isinstance(t, numbers.Real) or (isinstance(t, Tensor | np.ndarray) and t.ndim == 0)
        points = [time_point(t, "t")] if single else time_points(t, "t")
        if not points:
            raise InvalidTimesError("sol(t) was given no times at all.")
        low, high = sorted((self._problem.t0.value, self._stretches.runs[-1].last_t))
        for point in points:
            if not low <= point.value <= high:
                raise DenseOutputError(
                    f"t={point.value!r} lies outside the solved span [{low}, {high}]; solve further first."
                )
        states = torch.stack([self._stretches.at(p.value) for p in points])
        if torch.is_grad_enabled() and self._solved.requires_grad:
            states = WithoutGradient.apply(_NOT_DENSE, states, self._solved)
        spec = self._problem.spec
        found = states[0] if single else states
        return found if spec is None else spec.unflatten(found)
