"""What the eager backend does not do with delay equations."""

from __future__ import annotations

import itertools

from .... import methods
from ....dde_problem import DDEProblem
from ....errors import DelayMethodError, DelaySensitivityError, InvalidArgumentError
from ....methods import Method
from ....sensealg import DiscreteAdjoint, SenseAlg
from ...backend import SolveOptions


def check(problem: DDEProblem, method: Method, options: SolveOptions) -> None:
    """Whether this can be solved and differentiated here.

    Raises:
        DelayMethodError, DelaySensitivityError, InvalidArgumentError: for the method, the sensealg and ``dt``.
    """
    _check_method(method)
    _check_sensealg(options.sensealg)
    constant = [lag.value for lag in problem.delays if lag.constant]
    if method.adaptive or not constant:
        return
    if options.dt is not None:
        longest, name = options.dt, f"dt={options.dt}"
    else:
        times = [problem.t0.value, *(options.saves.values if options.saves else ()), problem.t1.value]
        longest = max(b - a for a, b in itertools.pairwise(times))
        name = f"the longest of the steps between save times, {longest:.6g},"
    if longest > min(constant) * (1 + 1e-9):
        raise InvalidArgumentError(
            f"{name} is longer than the shortest lag, {min(constant)}, and method={method} takes fixed steps, which"
            f" read states from before their start only: give a dt up to that lag."
        )


def _check_method(method: Method) -> None:
    why = ""
    if isinstance(method, methods.Symplectic):
        why = "keeps the energy of systems whose halves drive each other, which a delayed state does not leave"
    elif isinstance(method, methods.AutoSwitch):
        why = "watches for stiffness in f(t, y) alone"
    elif isinstance(method, methods.QNDF | methods.ABM4):
        why = "builds on several steps behind it, and a delay breaks the solution too often for that"
    elif isinstance(method, methods.Kvaerno5):
        why = "has dense output of order 3 only, and delayed states are read off it"
    elif method.implicit and not method.adaptive:
        why = "solves for its stages together, some of which would have to read states not known yet"
    if why:
        raise DelayMethodError(
            f"method={method} {why}; a DDEProblem takes Tsit5, Dopri5, Dopri8, Vern7, Vern9, Bosh3, RK4 and the other"
            f" explicit Runge-Kutta methods, and, where it is stiff, Rosenbrock23, Rodas5P or KenCarp4."
        )


def _check_sensealg(chosen: SenseAlg | None) -> None:
    if chosen is None or (isinstance(chosen, DiscreteAdjoint) and chosen.checkpoints is None):
        return
    raise DelaySensitivityError(
        f"sensealg={chosen} does not exist for a DDEProblem, whose steps need those behind them: it has"
        f" DiscreteAdjoint() without checkpoints."
    )
