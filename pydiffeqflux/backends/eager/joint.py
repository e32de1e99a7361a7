"""A whole solve in joint mode: smooth stretches, joined at doses and events."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...dde_problem import DDEProblem
from ...methods import Method
from ...sde_problem import SDEProblem
from ...sensealg import DiscreteAdjoint, SenseAlg
from ...solution import Solution, Stats, Status
from ..backend import Problem, SolveOptions
from ..common.chain import Collected, assemble, chain
from ..common.dense import Piecewise
from ..common.equation import equation_of
from ..common.progress import progress_bar
from ..common.reading import all_finite
from ..common.rhs import Rhs
from ..common.sde import Sde
from ..common.stretch import Outcome, Runner, Stretch
from ..common.tolerances import Tolerances, rms_norm
from .delay.equation import DelayRhs
from .delay.integrate import DelayedIntegration
from .integrate import Counts, Integration, Settings
from .stepper import Stepper


def solve(
    problem: Problem, method: Method, stepper: Stepper, sensealg: SenseAlg | None, options: SolveOptions
) -> tuple[Solution, str]:
    """The solution, and (where it failed) what went wrong."""
    rhs = DelayRhs(problem, method.order) if isinstance(problem, DDEProblem) else equation_of(problem, method, options)
    counts = Counts()
    pieces = Piecewise(problem.direction) if options.dense else None
    with progress_bar(options.progress, problem.t0.value, problem.t1.value) as report:
        settings = Settings(
            tol=Tolerances(options.rtol, options.atol, options.norm or rms_norm),
            controller=options.controller,
            max_steps=options.max_steps,
            dt=_first_step(problem, stepper, options),
            dt_min=options.dt_min,
            dt_max=options.dt_max,
            stops=options.stops,
            land=isinstance(rhs, Sde),
            resolution=rhs.path.resolution if isinstance(rhs, Sde) else 0.0,
            progress=report,
        )
        run = _runner(problem, rhs, method, stepper, sensealg, settings, counts, options)
        got, status, message = chain(problem, rhs, run, options, pieces)
    if status.ok and not stepper.adaptive and not all_finite(got.states[-1]):
        status, message = Status.NON_FINITE, "the state became NaN or infinite"
        _keep_finite(got)
    dense = None
    if pieces is not None and pieces.steps:
        from ..common.output import DenseOutput

        dense = DenseOutput(pieces, problem.spec)
    solution = assemble(problem, options, got, status, dense)
    solution.stats = Stats(nf=rhs.nf, ng=rhs.ng, naccept=counts.naccept, nreject=counts.nreject, njac=rhs.njac)
    if isinstance(rhs, Sde):
        solution.brownian, solution.stats.seed = rhs.path.between, rhs.path.seed
    return solution, message


def _first_step(problem: Problem, stepper: Stepper, options: SolveOptions) -> float | None:
    """The step that the loop is to begin with; None leaves it to the loop.

    The loop's own guess knows the drift only. With noise a hundredth of the span is tried: where that is too much,
    the error estimate says so, and the path is none the worse for it.
    """
    if options.dt is None and isinstance(problem, SDEProblem) and stepper.adaptive:
        return (problem.t1.value - problem.t0.value) / 100
    return options.dt


def _runner(
    problem: Problem,
    rhs: Rhs,
    method: Method,
    stepper: Stepper,
    sensealg: SenseAlg | None,
    settings: Settings,
    counts: Counts,
    options: SolveOptions,
) -> Runner:
    """How a stretch is solved: recorded by autograd as it is, or inside an adjoint's autograd function."""

    loop: Any = DelayedIntegration if isinstance(rhs, DelayRhs) else Integration

    def plain(y0: Tensor, s: Stretch) -> Outcome:
        out: Outcome = loop(
            rhs,
            stepper,
            settings,
            s.t0,
            s.t1,
            s.saves,
            counts=counts,
            pieces=s.pieces,
            events=options.events,
            keep_steps=s.keep_steps,
        ).run(y0)
        return out

    if sensealg is None or (isinstance(sensealg, DiscreteAdjoint) and sensealg.checkpoints is None):
        return plain
    from .adjoints import adjoint_runner  # most solves never need them

    return adjoint_runner(rhs, method, stepper, sensealg, settings, counts, options.events, problem.batched)


def _keep_finite(got: Collected) -> None:
    """Drop the states from the first that is not finite on (but for the very first: something has to be left)."""
    finite = [all_finite(state) for state in got.states]
    keep = max(finite.index(False), 1)
    before = len(got.states) - len(got.times)
    del got.states[keep:], got.times[max(keep - before, 0) :]
