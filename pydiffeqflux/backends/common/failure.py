"""What a failed solve says: which error, where, and the way out."""

from __future__ import annotations

from ...errors import ConvergenceError, MaxStepsError, NonFiniteError, SolveError, StepUnderflowError
from ...methods import Method
from ...sde_methods import SDEMethod
from ...solution import Status

#: How a row of a batch may have ended, from the best to the worst.
WORST_LAST = (
    Status.SUCCESS,
    Status.EVENT,
    Status.MAX_STEPS,
    Status.NOT_CONVERGED,
    Status.STEP_UNDERFLOW,
    Status.NON_FINITE,
)

_ERRORS: dict[Status, tuple[type[SolveError], str]] = {
    Status.MAX_STEPS: (MaxStepsError, "raise max_steps, loosen rtol/atol, or try a stiff method such as 'rodas5p'"),
    Status.STEP_UNDERFLOW: (
        StepUnderflowError,
        "the solution may blow up there, or be stiff (try method='rodas5p'), or the tolerances may be too tight for"
        " the state's dtype",
    ),
    Status.NON_FINITE: (NonFiniteError, "check the model for overflow and division by zero near that time"),
    Status.NOT_CONVERGED: (ConvergenceError, "try a smaller dt_max or a Rosenbrock method such as 'rodas5p'"),
}
_STOCHASTIC: dict[Status, str] = {
    Status.MAX_STEPS: "raise max_steps, loosen rtol/atol, or take a larger dt",
    Status.STEP_UNDERFLOW: "loosen rtol/atol, or give a finer path as brownian; or the solution blows up there",
}


def failure(
    status: Status,
    message: str,
    t: float | None,
    span: tuple[float, float],
    method: Method | str,
    *,
    partial: bool = True,
) -> SolveError:
    """The exception for a solve that stopped at time ``t``; None where the message says when.

    Args:
        partial: whether the caller could have had the part that was solved.
    """
    kind, way_out = _ERRORS[status]
    if isinstance(method, SDEMethod):
        way_out = _STOCHASTIC.get(status, way_out)
    where = "" if t is None else f" at t={t:.6g}"
    rest = "; or pass throw=False to get the part that was solved" if partial else ""
    return kind(f"{message}{where} (of t_span={span}, method={method}); {way_out}{rest}.")
