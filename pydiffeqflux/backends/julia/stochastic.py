"""Stochastic equations on Julia: drift and diffusion traced, solved by StochasticDiffEq, differentiated by SciML."""

from __future__ import annotations

import functools
import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ... import sensealg as sensealgs
from ...errors import (
    GradientError,
    JuliaError,
    MethodNoiseError,
    StepSizeRequiredError,
    UnknownNameError,
    UnsupportedError,
)
from ...methods import Method
from ...problem import TimePoint
from ...sde_methods import SciMLSDEMethod, SDEMethod
from ...sde_problem import SDEProblem
from ...solution import Solution, Stats, Status
from ...tracking import transforming
from ..backend import SolveOptions
from ..eager.failure import failure
from ..eager.integrate import Outcome
from ..eager.joint import assemble, chain
from ..eager.sde.equation import Sde
from ..eager.sde.setup import equation_of
from ..eager.stretch import Stretch
from ..once import once
from .model import Model, Models, addresses
from .noise import Grid, grid, step_times
from .session import Session
from .stretches import _STATUS

#: The solver of StochasticDiffEq that is the same method.
_NAMES = {
    "em": "EM(false)",
    "milstein": "RKMil",
    "heun": "EulerHeun",
    "sra1": "SRA1",
    "sra3": "SRA3",
    "sosra": "SOSRA",
    "sriw1": "SRIW1",
    "sriw2": "SRIW2",
    "sosri": "SOSRI",
}
#: The same with steps of their own choice, where that is another solver.
_ADAPTIVE = {"em": "LambaEM(false)", "heun": "LambaEulerHeun"}

_NO_SECOND = "backend='julia' has no second derivative of an SDE: differentiate twice with backend='torch'."


@dataclass(frozen=True)
class StochasticSolver:
    """A solver that Julia holds; whether it chooses its steps, and whether it asks for a second Brownian motion."""

    handle: int
    adaptive: bool
    second: bool


class StochasticEquation:
    """Drift and diffusion as Julia knows them."""

    def __init__(self, session: Session, drift: Model, diffusion: Model, sde: Sde, y0: Tensor):
        self.session, self.drift, self.diffusion = session, drift, diffusion
        d = y0.shape[-1]
        rows = y0.numel() // d
        shape = diffusion.kernels.graphs.shape
        # One Brownian motion a row multiplies entry by entry, too, if it is repeated.
        m = 0 if sde.elementwise or sde.noise == "scalar" else shape[-1]
        self.scalar, self.width = sde.noise == "scalar", rows * m
        self.handle: int = session.call(
            "bridge_stochastic", drift.handle, diffusion.handle, rows, d, m, self.scalar
        )
        weakref.finalize(self, session.drop, self.handle)

    @property
    def params(self) -> list[Tensor]:
        """The tensors that gradients go to: the drift's, then the diffusion's."""
        return [*self.drift.params, *self.diffusion.params]

    def constants(self) -> tuple[Any, Any]:
        return self.drift.constants(), self.diffusion.constants()

    def load(self, constants: tuple[Any, Any]) -> None:
        for model, values in zip((self.drift, self.diffusion), constants, strict=True):
            if values is not None:
                self.session.call("bridge_constants", model.handle, *addresses(values))


@dataclass(frozen=True)
class _Back:
    """What the stochastic adjoint runs on: the same equation in Stratonovich's form."""

    equation: StochasticEquation
    constants: tuple[Any, Any]
    checkpointing: bool


@dataclass(frozen=True)
class _Request:
    """What Julia is to solve on one stretch, besides the initial state and the parameters."""

    equation: StochasticEquation
    solver: StochasticSolver
    sensealg: str | None
    t0: float
    t1: float
    saves: tuple[float, ...]
    keep: str
    rtol: Tensor
    atol: Tensor
    max_steps: int
    stops: tuple[float, ...]
    seed: int
    grid: Grid | None
    options: int
    constants: tuple[Any, Any]
    back: _Back | None = None


class _Run:
    """What came of it."""

    def __init__(self, request: _Request, y0: Tensor, p: Tensor):
        session = request.equation.session
        request.equation.load(request.constants)
        saves, stops = (torch.tensor(x, dtype=torch.float64) for x in (request.saves, request.stops))
        self.last_y = torch.empty_like(y0)
        room = torch.empty(len(saves), y0.numel(), dtype=y0.dtype)
        known = request.grid
        handle, count, *how = session.call(
            "bridge_stochastic_solve",
            request.equation.handle,
            request.solver.handle,
            y0.data_ptr(),
            p.data_ptr(),
            request.t0,
            request.t1,
            saves.data_ptr(),
            len(saves),
            request.keep,
            request.rtol.data_ptr(),
            request.atol.data_ptr(),
            request.rtol.numel(),
            request.max_steps,
            stops.data_ptr(),
            len(stops),
            request.seed,
            0 if known is None else known.ts.data_ptr(),
            0 if known is None else len(known.ts),
            0 if known is None else known.w.data_ptr(),
            0 if known is None or known.z is None else known.z.data_ptr(),
            request.options,
            room.data_ptr() if len(saves) else 0,
            self.last_y.data_ptr(),
        )
        self.session, self.handle = session, handle
        weakref.finalize(self, session.drop, handle)
        self.retcode, self.last_t, self.nf, self.naccept, self.nreject, self.ng, self.finite = how
        if len(saves):
            self.ts, self.ys = list(request.saves[:count]), room[:count]
        else:
            ts = torch.empty(count, dtype=torch.float64)
            self.ys = torch.empty(count, y0.numel(), dtype=y0.dtype)
            session.call("bridge_states", handle, ts.data_ptr(), self.ys.data_ptr())
            self.ts = ts.tolist()


class _Job:
    """A request, and the run that it led to; the end is always saved, for it always matters."""

    def __init__(self, request: _Request):
        self.asked = request.saves
        if request.saves and request.saves[-1] != request.t1:
            request = replace(request, saves=(*request.saves, request.t1))
        self.request = request
        self.run: _Run | None = None


class _Solve(torch.autograd.Function):
    """``(job, y0, *params) -> (ys, y1)``: the states at the saved times, and where it ended."""

    @staticmethod
    def forward(job: _Job, y0: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        job.run = run = _Run(job.request, y0.detach().reshape(-1).contiguous(), _packed(params, y0.dtype))
        ys = run.ys.reshape(-1, *y0.shape)
        return ys[: len(job.asked)] if job.asked else ys, run.last_y.reshape(y0.shape).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.job, y0, *params = inputs
        ctx.save_for_backward(y0, *params)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and any(g.requires_grad for g in grads):
            raise GradientError(_NO_SECOND)
        y0, *params = ctx.saved_tensors
        job: _Job = ctx.job
        run, request = job.run, job.request
        assert run is not None and request.sensealg is not None
        seeds = torch.zeros(len(run.ts), y0.numel(), dtype=y0.dtype)
        seeds[: len(grads[0])] = grads[0].reshape(len(grads[0]), -1)
        seeds[-1] += grads[1].reshape(-1)
        to_y0 = torch.zeros(y0.numel(), dtype=y0.dtype)
        to_p = torch.zeros(sum(x.numel() for x in params), dtype=y0.dtype)
        if request.back is None:
            request.equation.load(request.constants)
            run.session.call(
                "bridge_stochastic_gradient",
                run.handle,
                request.solver.handle,
                request.sensealg,
                seeds.data_ptr(),
                to_y0.data_ptr(),
                to_p.data_ptr(),
            )
            split = to_p.split([x.numel() for x in params]) if params else ()
        else:
            split = _backsolved(run, request, request.back, seeds, to_y0, params)
        found = (g.reshape(x.shape).to(x) for g, x in zip(split, params, strict=True))
        return (None, *once(_NO_SECOND, (to_y0.reshape(y0.shape), *found), (y0, *params)))


def _backsolved(
    run: _Run, request: _Request, back: _Back, seeds: Tensor, to_y0: Tensor, params: list[Tensor]
) -> list[Tensor]:
    """The gradients of the parameters by the stochastic adjoint; that of the initial state is written to ``to_y0``."""
    own, mine = back.equation.params, request.equation.params
    # The values of the forward solve; the other form of the equation uses the same tensors, in another order.
    values = {id(x): value for x, value in zip(mine, params, strict=True)}
    p = _packed(tuple(values[id(x)] for x in own), to_y0.dtype)
    to_p = torch.zeros_like(p)
    back.equation.load(back.constants)
    run.session.call(
        "bridge_stochastic_backsolve",
        run.handle,
        back.equation.handle,
        p.data_ptr(),
        seeds.data_ptr(),
        to_y0.data_ptr(),
        to_p.data_ptr(),
        back.checkpointing,
    )
    found = {id(x): torch.zeros(x.numel(), dtype=p.dtype) for x in mine}
    for x, g in zip(own, to_p.split([x.numel() for x in own]) if own else (), strict=True):
        found[id(x)] += g
    # A tensor that drift and diffusion share is listed twice, and its gradient counted once.
    return [found.pop(id(x), torch.zeros(x.numel(), dtype=p.dtype)) for x in mine]


def _packed(params: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    return torch.cat([x.detach().reshape(-1).to(dtype) for x in params]) if params else torch.zeros(0, dtype=dtype)


class StochasticTools:
    """What is made once for a session."""

    def __init__(self, session: Session):
        self.session = session
        self.models = Models(session)
        self._options: dict[str, int] = {}
        self._solvers: dict[tuple[str, str, bool], StochasticSolver] = {}

    @staticmethod
    @functools.cache
    def of(session: Session) -> StochasticTools:
        return StochasticTools(session)

    def equation(self, problem: SDEProblem, sde: Sde, gradients: bool) -> StochasticEquation:
        y0 = problem.packed.detach()
        t0 = torch.scalar_tensor(problem.t0.value, dtype=y0.dtype)
        drift = self.models.get(problem.drift, sde.evaluate, t0, y0, "the drift")
        diffusion = self.models.get(problem.diffusion, problem.diffusion, t0, y0, "the diffusion")
        for model in (drift, diffusion):
            model.need("f", *(("vjp", "vjp_y") if gradients else ()))
        return StochasticEquation(self.session, drift, diffusion, sde, y0)

    def back(self, problem: SDEProblem, sde: Sde, forwards: StochasticEquation, checkpointing: bool) -> _Back:
        """The equation in Stratonovich's form."""
        drift = forwards.drift
        if problem.interpretation == "ito" and problem.noise != "additive":
            y0 = problem.packed.detach()
            t0 = torch.scalar_tensor(problem.t0.value, dtype=y0.dtype)
            form = _Stratonovich(problem.drift, problem.diffusion, sde)
            drift = self.models.get(form, form, t0, y0, "the drift in Stratonovich's form")
            drift.need("f", "vjp", "vjp_y")
        equation = StochasticEquation(self.session, drift, forwards.diffusion, sde, problem.packed)
        return _Back(equation, equation.constants(), checkpointing)

    def options(self, text: str) -> int:
        """The number of these keyword arguments; 0 of none."""
        if text and text not in self._options:
            self._options[text] = self.session.call("bridge_options", text)
        return self._options[text] if text else 0

    def solver(self, problem: SDEProblem, method: Method) -> StochasticSolver:
        """The solver for a method.

        Raises:
            UnsupportedError: a method of the catalogue that StochasticDiffEq does not have.
            UnknownNameError: a name that StochasticDiffEq does not know.
            MethodNoiseError: a solver for the other interpretation.
        """
        text = _written(method, problem)
        key = (text, problem.interpretation, method.adaptive)
        if key not in self._solvers:
            wanted = problem.interpretation == "stratonovich"
            try:
                handle, meant, adaptive, second = self.session.call("bridge_stochastic_algorithm", text, wanted)
            except JuliaError as why:
                if "unknown solver" not in str(why):
                    raise
                names = self.session.call("bridge_stochastic_names").split()
                raise UnknownNameError("method", text, [*names, *_NAMES]) from why
            if bool(meant) != wanted:
                has = "stratonovich" if meant else "ito"
                raise MethodNoiseError(
                    f"method={text} solves {has} equations, and this problem has"
                    f" interpretation={problem.interpretation!r}: take another solver, or rewrite the drift."
                )
            adaptive = adaptive if isinstance(method, SciMLSDEMethod) else method.adaptive
            self._solvers[key] = StochasticSolver(handle, bool(adaptive), bool(second))
        return self._solvers[key]


@dataclass(frozen=True)
class _Stratonovich:
    """The drift of an Ito equation in Stratonovich's form; equal for equal functions, so that it is traced once."""

    drift: Callable[[Tensor, Tensor], Tensor]
    diffusion: Callable[[Tensor, Tensor], Tensor]
    sde: Sde = field(compare=False, repr=False)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        _, correction = self.sde.along_itself(t, y, 0.5)
        return self.drift(t, y) - correction


def _written(method: Method, problem: SDEProblem) -> str:
    """A method as one writes it in Julia."""
    if isinstance(method, SciMLSDEMethod):
        return method.text
    name = _ADAPTIVE.get(method.name) if method.adaptive else None
    name = name or _NAMES.get(method.name)
    if name is None:
        raise UnsupportedError(
            f"method={method} does not exist in StochasticDiffEq: take one of {', '.join(sorted(_NAMES))}, any solver"
            f" of StochasticDiffEq by its own name, or backend='torch'."
        )
    # With additive noise there is nothing for Milstein's term to correct.
    return "EM(false)" if name == "RKMil" and problem.noise == "additive" else name


def _check_square(method: Method, equation: StochasticEquation, y0: Tensor) -> None:
    """StochasticDiffEq's SRA1 takes as many Brownian motions as states only, or one for each state."""
    if method.name == "sra1" and equation.width not in (0, y0.numel()):
        raise MethodNoiseError(
            f"method=sra1 on backend='julia' with {equation.width} Brownian motions for {y0.numel()} states: its SRA1"
            f" needs as many; take 'sra3' or 'sosra', or backend='torch'."
        )


def solve(
    session: Session, problem: SDEProblem, method: Method, options: SolveOptions, tolerances: tuple[Tensor, Tensor]
) -> Solution:
    """``backend="julia"`` for an :class:`SDEProblem`."""
    began = time.perf_counter()
    if transforming():
        raise UnsupportedError(
            "an SDEProblem on backend='julia' inside a torch.func transform does not exist: use backend='torch' there."
        )
    if options.fallback == "callback":
        raise UnsupportedError("fallback='callback' with an SDEProblem does not exist: use backend='torch'.")
    tools = StochasticTools.of(session)
    assert isinstance(method, SDEMethod)
    solver = tools.solver(problem, method)
    if not solver.adaptive and options.dt is None and options.saves is None:
        raise StepSizeRequiredError(
            f"method={method} takes fixed steps: give their size as dt, or the times to step along as saveat."
        )
    if solver.adaptive and problem.brownian is not None:
        raise UnsupportedError(
            f"brownian with method={method}, which chooses its steps: on backend='julia' a path is known at the ends of"
            f" fixed steps only. Take a method with fixed steps and dt, or backend='torch'."
        )
    sde = equation_of(problem, method, options)
    assert isinstance(sde, Sde)
    equation = tools.equation(problem, sde, torch.is_grad_enabled())
    if not session.call("bridge_stochastic_fits", equation.handle, solver.handle):
        raise MethodNoiseError(
            f"method={method} of StochasticDiffEq is not for noise={problem.noise!r}: take EM, EulerHeun, LambaEM or"
            f" another one for any noise."
        )
    _check_square(method, equation, problem.packed)
    sensealg, reason = _sensealg(problem, equation, options)
    request = _Request(
        equation,
        solver,
        sensealg,
        t0=problem.t0.value,
        t1=problem.t1.value,
        saves=(),
        keep=options.unsaved,
        rtol=tolerances[0],
        atol=tolerances[1],
        max_steps=options.max_steps,
        stops=tuple(options.stops),
        seed=1,
        grid=None,
        options=tools.options(_keywords(solver, options)),
        constants=equation.constants(),
    )
    if sensealg == "BacksolveAdjoint":
        assert isinstance(options.sensealg, sensealgs.BacksolveAdjoint)
        request = replace(request, back=tools.back(problem, sde, equation, options.sensealg.checkpointing))
    stretches = _Stretches(problem, sde, request, options)
    got, status, message = chain(problem, sde, stretches.run, options, None)
    solution = assemble(problem, options, got, status, None)
    solution.stats = Stats(
        nf=stretches.nf,
        ng=stretches.ng,
        naccept=stretches.naccept,
        nreject=stretches.nreject,
        time=time.perf_counter() - began,
        backend="julia",
        seed=sde.path.seed,
        method=str(method),
        sensealg=sensealg or "none",
        reason=reason,
    )
    if stretches.known:
        solution.brownian = sde.path.between
    if options.throw and not status.ok:
        raise failure(status, message, float(solution.ts[-1]), (problem.t0.value, problem.t1.value), method)
    return solution


class _Stretches:
    """Solves the stretches of one problem between doses, one after the other."""

    def __init__(self, problem: SDEProblem, sde: Sde, request: _Request, options: SolveOptions):
        self.problem, self.sde, self.request, self.options = problem, sde, request, options
        self.nf = self.ng = self.naccept = self.nreject = self.count = 0
        #: Whether the path is the native one of the seed, or the problem's own.
        self.known = not request.solver.adaptive

    def run(self, y0: Tensor, s: Stretch) -> Outcome:
        """Solve a stretch from ``y0``, as one node of the autograd graph."""
        saves = () if s.saves is None else s.saves.values
        known = None
        if self.known:
            marks = (*saves, *self.options.stops)
            times = step_times(s.t0.value, s.t1.value, self.options.dt, marks)
            known = grid(self.sde, times, y0.detach(), self.request.solver.second)
        # A path of its own for each stretch, all of the one seed.
        seed = 0 if self.sde.path.seed is None else self.sde.path.seed
        self.count += 1
        request = replace(
            self.request,
            t0=s.t0.value,
            t1=s.t1.value,
            saves=saves,
            keep="steps" if s.keep_steps else "end",
            seed=seed * 1_000_003 + self.count,
            grid=known,
            max_steps=max(1, self.options.max_steps - self.naccept - self.nreject),
        )
        job = _Job(request)
        ys, y1 = _Solve.apply(job, y0, *request.equation.params)
        run = job.run
        assert run is not None
        self.nf, self.ng = self.nf + run.nf, self.ng + run.ng
        self.naccept, self.nreject = self.naccept + run.naccept, self.nreject + run.nreject
        status, message = self._status(run)
        out = Outcome(status, y1, s.t1 if status.ok else TimePoint(run.last_t), message=message)
        if s.saves is not None:
            out.saved = list(ys.unbind(0))[: len(saves)]
        elif s.keep_steps:
            out.step_states, out.step_times = list(ys.unbind(0)), [*run.ts]
        return out


    def _status(self, run: _Run) -> tuple[Status, str]:
        if run.retcode == "Success":
            return (Status.SUCCESS, "") if run.finite else (Status.NON_FINITE, "the state became NaN or infinite")
        status, said = _STATUS.get(run.retcode, (Status.NOT_CONVERGED, "Julia's solver gave up"))
        return status, f"{said.format(max_steps=self.options.max_steps)} (Julia's return code: {run.retcode})"


def _sensealg(problem: SDEProblem, equation: StochasticEquation, options: SolveOptions) -> tuple[str | None, str]:
    """SciML's algorithm and why. None means that nothing is recorded."""
    if not torch.is_grad_enabled():
        return None, "gradients are disabled"
    if not equation.params and not problem.packed.requires_grad:
        return None, "nothing requires a gradient"
    chosen = options.sensealg
    if chosen is None:
        return "TrackerAdjoint", "DiffEqFlux's default for stochastic layers: the steps that were taken, on a tape"
    if isinstance(chosen, sensealgs.DiscreteAdjoint):
        if chosen.checkpoints is not None:
            raise UnsupportedError(
                f"sensealg={chosen}: a tape in Julia has no checkpoints; DiscreteAdjoint() is its TrackerAdjoint, or"
                f" use backend='torch'."
            )
        return "TrackerAdjoint", "asked for, as DiscreteAdjoint"
    if isinstance(chosen, sensealgs.BacksolveAdjoint):
        if chosen != sensealgs.BacksolveAdjoint(checkpointing=chosen.checkpointing):
            raise UnsupportedError(
                f"sensealg={chosen} of an SDEProblem on backend='julia': BacksolveAdjoint has no other options there"
                f" than checkpointing; leave them out, or use backend='torch'."
            )
        return "BacksolveAdjoint", "asked for"
    raise UnsupportedError(
        f"sensealg={chosen.name} of an SDEProblem does not exist on backend='julia': take DiscreteAdjoint (SciML's"
        f" TrackerAdjoint, the default there) or BacksolveAdjoint, or backend='torch'."
    )


def _keywords(solver: StochasticSolver, options: SolveOptions) -> str:
    """What was asked for beyond the defaults, as Julia writes keyword arguments."""
    said = []
    if solver.adaptive and options.dt is not None:
        said.append(f"dt = {options.dt!r}")
    if math.isfinite(options.dt_max):
        said.append(f"dtmax = {options.dt_max!r}")
    if options.dt_min > 0:
        said += [f"dtmin = {options.dt_min!r}", "force_dtmin = true"]
    return ", ".join(said)


