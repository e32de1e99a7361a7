"""Consistent states: Newton's method on the equations that one has to satisfy, and the derivative of what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InconsistentStateError, InitialisationError
from ..backend import SolveOptions
from .implicit_function import corrected, refuse_forward_twice
from .jacobian import from_columns, to_columns
from .reading import to_float
from .tolerances import Tolerances, rms_norm, row_norm

#: Newton's method stops at this part of the tolerances; it converges quadratically, so much less than that is left.
ENOUGH = 1e-2
ITERATIONS = 50
#: The shortest part of a Newton step that is tried.
SHORTEST = 2.0**-12


@dataclass(frozen=True)
class Policy:
    """What to do with a state that is not consistent: solve for one that is, or refuse it.

    Attributes:
        tol: the tolerances of the solve; a state that is off by less than that is consistent.
        solve: False refuses all others.
    """

    tol: Tolerances
    solve: bool

    def size(self, change: Tensor, y: Tensor, batched: bool) -> float:
        """A correction in units of the tolerance (of the worst row)."""
        scaled = change / self.tol.scale(y.abs())
        return to_float(row_norm(to_columns(scaled, True)).max() if batched else rms_norm(scaled))


def policy_of(options: SolveOptions) -> Policy:
    """What the options of a solve say."""
    return Policy(Tolerances(options.rtol, options.atol), options.initialise == "solve")


def settled(
    y: Tensor,
    equations: Callable[[Tensor], Tensor],
    matrix: Callable[[Tensor], Tensor],
    policy: Policy,
    t: float,
    *,
    batched: bool,
    check: Callable[[Tensor, float], None],
) -> Tensor:
    """The state z near ``y`` with ``equations(z) = 0``, with its derivatives up to the second.

    Args:
        equations: state-shaped, as their argument.
        matrix: their Jacobian over columns.
        check: raises where that says that the equations cannot be solved.

    Raises:
        InconsistentStateError: ``y`` is further off than the tolerances, and ``policy`` does not say to solve.
        InitialisationError: Newton's method finds no solution.
    """
    z, lu, pivots = _newton(y, equations, matrix, policy, t, batched, check)
    refuse_forward_twice()
    return corrected(z, equations, lu, pivots, batched=batched, order=2)


@torch.no_grad()
def _newton(
    y: Tensor,
    equations: Callable[[Tensor], Tensor],
    matrix: Callable[[Tensor], Tensor],
    policy: Policy,
    t: float,
    batched: bool,
    check: Callable[[Tensor, float], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """The solution, and the factors of the Jacobian there. Damped as in ``fixed.robust``."""
    z = y.detach()
    residual = equations(z)
    first = to_float(residual.abs().max())
    for iteration in range(ITERATIONS):
        found = matrix(z)
        if iteration == 0:
            check(found, t)
        lu, pivots = torch.linalg.lu_factor_ex(found)[:2]

        def step(r: Tensor, lu: Tensor = lu, pivots: Tensor = pivots) -> Tensor:
            columns = to_columns(r, batched).unsqueeze(-1)
            return from_columns(-torch.linalg.lu_solve(lu, pivots, columns).squeeze(-1), r)

        change = step(residual)
        size = policy.size(change, z, batched)
        if iteration == 0 and size > 1.0 and not policy.solve:
            raise InconsistentStateError(
                f"the state at t={t:.6g} does not satisfy the algebraic equations: their residual is {first:.3g}, and"
                f" the nearest consistent state is {size:.3g} tolerances away. Give a consistent one, or pass"
                f" initialise='solve' to have the algebraic variables solved for.",
                first,
                t,
            )
        if size < ENOUGH:
            return z + change, lu, pivots
        part = 1.0
        while True:
            trial = z + part * change
            residual = equations(trial)
            if policy.size(step(residual), z, batched) < size * (1.0 - part / 4):
                break
            part /= 2
            if part < SHORTEST:
                if size < 1.0:  # rounding errors are all that is left
                    return z, lu, pivots
                raise _lost(t, first, to_float(equations(z).abs().max()))
        z = trial
    raise _lost(t, first, to_float(residual.abs().max()))


def _lost(t: float, first: float, last: float) -> InitialisationError:
    return InitialisationError(
        f"no consistent state was found near the one given at t={t:.6g}: Newton's method brought the residual of the"
        f" algebraic equations from {first:.3g} to {last:.3g} and no further. Start closer to a consistent state."
    )
