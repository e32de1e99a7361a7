"""SciML's return codes as the package's own statuses."""

from __future__ import annotations

from ...solution import Status

#: Those that are not a success. Any other failure is reported with Julia's word for it.
_STATUS = {
    "MaxIters": (Status.MAX_STEPS, "max_steps={max_steps} steps were not enough"),
    "DtLessThanMin": (Status.STEP_UNDERFLOW, "the step size fell below what the time can resolve"),
    "DtNaN": (Status.NON_FINITE, "the step size became NaN"),
    "Unstable": (Status.NON_FINITE, "the state became NaN or infinite"),
    "ConvergenceFailure": (Status.NOT_CONVERGED, "an implicit equation could not be solved"),
}


def status_of(retcode: str, finite: bool, max_steps: int) -> tuple[Status, str]:
    """The status of a run, and what went wrong.

    Args:
        finite: whether the last state is.
    """
    if retcode in ("Success", "Terminated"):
        return (Status.SUCCESS, "") if finite else (Status.NON_FINITE, "the state became NaN or infinite")
    status, said = _STATUS.get(retcode, (Status.NOT_CONVERGED, "Julia's solver gave up"))
    return status, f"{said.format(max_steps=max_steps)} (Julia's return code: {retcode})"
