"""Stochastic equations on Julia: drift and diffusion traced, solved by StochasticDiffEq, differentiated by SciML."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ... import sensealg as sensealgs
from ...errors import (
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
from ..common.chain import assemble, chain
from ..common.equation import equation_of
from ..common.failure import failure
from ..common.sde import Sde
from ..common.stretch import Outcome, Stretch
from .model import Models
from .noise import grid, step_times
from .session import Session
from .stochastic_calls import (
    Back,
    StochasticEquation,
    StochasticJob,
    StochasticRequest,
    StochasticRun,
    StochasticSolve,
    StochasticSolver,
)
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
        drift = self.models.get(problem.drift, sde.evaluate, t0, y0, "the drift", problem.spec)
        diffusion = self.models.get(problem.diffusion, problem.diffusion, t0, y0, "the diffusion", problem.spec)
        for model in (drift, diffusion):
            model.need("f", *(("vjp", "vjp_y") if gradients else ()))
        return StochasticEquation(self.session, drift, diffusion, sde, y0)

    def back(self, problem: SDEProblem, sde: Sde, forwards: StochasticEquation, checkpointing: bool) -> Back:
        """The equation in Stratonovich's form."""
        drift = forwards.drift
        if problem.interpretation == "ito" and problem.noise != "additive":
            y0 = problem.packed.detach()
            t0 = torch.scalar_tensor(problem.t0.value, dtype=y0.dtype)
            form = _Stratonovich(problem.drift, problem.diffusion, sde)
            drift = self.models.get(form, form, t0, y0, "the drift in Stratonovich's form", problem.spec)
            drift.need("f", "vjp", "vjp_y")
        equation = StochasticEquation(self.session, drift, forwards.diffusion, sde, problem.packed)
        return Back(equation, equation.constants(), checkpointing)

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
    if name == "LambaEulerHeun" and problem.noise != "diagonal":
        raise MethodNoiseError(
            f"method={method} with steps of its own choice takes noise='diagonal' only on backend='julia', and this"
            f" problem has noise={problem.noise!r}: fix its steps (adaptive=False, dt=...), or use backend='torch'."
        )
    # With additive noise there is nothing for Milstein's term to correct.
    return "EM(false)" if name == "RKMil" and problem.noise == "additive" else name


def check_noise(method: Method, solver: StochasticSolver, problem: SDEProblem, equation: StochasticEquation) -> None:
    """Whether a solver is for the noise of a problem.

    Raises:
        MethodNoiseError: it is not.
    """
    y0 = problem.packed
    if not equation.session.call("bridge_stochastic_fits", equation.handle, solver.handle):
        raise MethodNoiseError(
            f"method={method} of StochasticDiffEq is not for noise={problem.noise!r}: take EM, EulerHeun, LambaEM or"
            f" another one for any noise."
        )
    # Its SRA1 takes as many Brownian motions as states only, or one for each state.
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
    check_noise(method, solver, problem, equation)
    sensealg, reason = _sensealg(problem, equation, options)
    if method.name == "sra1" and sensealg is not None and equation.width:
        raise MethodNoiseError(
            "method=sra1 on backend='julia' has no gradient with noise that is a matrix: take 'sra3' or 'sosra', or"
            " backend='torch'."
        )
    request = StochasticRequest(
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

    def __init__(self, problem: SDEProblem, sde: Sde, request: StochasticRequest, options: SolveOptions):
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
        job = StochasticJob(request)
        ys, y1 = StochasticSolve.apply(job, y0, *request.equation.params)
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

    def _status(self, run: StochasticRun) -> tuple[Status, str]:
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
