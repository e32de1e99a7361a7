"""What ``backend="julia"`` does not do with a state on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import DtypeError, UnsupportedError
from ...methods import Method
from ...problem import ODEProblem
from ...tracking import transforming
from ..backend import Problem, SolveOptions
from .places import Place, package_of
from .sensitivities import Sensitivity
from .solvers import Solver

#: The sensitivity algorithms of which every operation is one of whole arrays.
SENSEALGS = ("GaussAdjoint", "GaussKronrodAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint")


def check_problem(problem: Problem, options: SolveOptions) -> None:
    """
    Raises:
        DtypeError: no Julia package is known for this type of device.
        UnsupportedError: the problem, or an option, is solved on the CPU only.
    """
    device = problem.packed.device
    try:
        package = package_of(device)
    except KeyError:
        raise DtypeError(
            f"backend='julia' solves on the CPU and on CUDA devices; y0 is on {device}: move it (y0.cpu()), or use"
            f" backend='torch'."
        ) from None
    if package is None:
        return
    for what in _unsolved(problem, options):
        raise UnsupportedError(
            f"{what} with backend='julia' and a state on {device} does not exist: move the problem to the CPU"
            f" (y0.cpu() and the model's .cpu()), or use backend='torch'."
        )


def _unsolved(problem: Problem, options: SolveOptions) -> Iterator[str]:
    if not isinstance(problem, ODEProblem):
        yield type(problem).__name__
    elif problem.mass_matrix is not None:
        yield "a mass_matrix"
    if problem.packed.is_complex():
        yield "a complex state"
    if options.events:
        yield "an event"
    if options.doses:
        yield "a timed callback"
    if options.per_sample:
        yield "per_sample=True"
    if options.norm is not None:
        yield "a norm"
    if options.fallback == "callback":
        yield "fallback='callback'"
    if transforming():
        yield "a solve inside torch.func's transforms"


def check_solver(place: Place, method: Method, solver: Solver, sensitivity: Sensitivity | None) -> None:
    """
    Raises:
        UnsupportedError: the solver, or the sensitivity algorithm, looks at single elements.
    """
    if sensitivity is not None and not (sensitivity.name in SENSEALGS and sensitivity.plain):
        raise UnsupportedError(
            f"sensealg={sensitivity.name} with these options reads single numbers of the state, which lies on"
            f" {place}: take one of {', '.join(SENSEALGS)} with the traced products, or move the problem to the CPU."
        )
