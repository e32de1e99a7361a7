"""Stage equations of methods that cannot make their step smaller.

The simplified Newton iteration of the adaptive methods comes first. Where it fails, they shrink the step; a
fixed-step method goes on with full Newton steps, damped so that they do not overshoot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.jacobian import jacobian, to_columns
from ...common.reading import to_float
from ...common.rhs import Rhs, Scalar
from ...common.tolerances import rms_norm, row_norm
from ..convergence import NewtonSettings
from ..linear import Factored, factorise
from ..newton import solve_stage

#: The shortest part of a Newton step that is tried.
SHORTEST = 1 / 64


@dataclass(slots=True)
class Attempt:
    """The solution of a stage equation, or where the search for one ended."""

    x: Tensor
    converged: bool
    #: How fast the simplified iteration converged; 1 where it did not.
    rate: float


@torch.no_grad()
def solve_robustly(
    rhs: Rhs, t: Scalar, base: Tensor, h: Scalar, guess: Tensor, w: Factored, settings: NewtonSettings
) -> Attempt:
    """Solve ``x = h f(t, base + x)``, in at most ``settings.max_iterations`` iterations of either kind; no graph.

    The damping is Deuflhard's natural monotonicity test ("Newton Methods for Nonlinear Problems", section 3.3):
    the next correction, by the same matrix, must be smaller.
    """
    quick = solve_stage(rhs, t, base, h, guess, w, settings)
    if quick.converged:
        return Attempt(quick.x, True, quick.rate)
    base, x = base.detach(), guess.detach()
    scale = settings.scale(base + x)
    enough = settings.limit(scale.dtype)

    def size_of(change: Tensor) -> float:
        scaled = change / scale
        return to_float(row_norm(to_columns(scaled, True)).max() if settings.batched else rms_norm(scaled))

    for _ in range(settings.max_iterations):
        here = jacobian(rhs, t, base + x, batched=w.batched)
        w = factorise(here.dfdy, h, batched=w.batched)
        change = w.solve(here.f * h - x)
        size = size_of(change)
        if not (w.regular.all() and size < float("inf")):
            return Attempt(x, False, 1.0)
        if size < enough:
            return Attempt(x + change, True, 1.0)
        part = 1.0
        trial = x + change
        while not size_of(w.solve(rhs(t, base + trial) * h - trial)) < size * (1.0 - part / 4):
            part /= 2
            if part < SHORTEST:  # no shorter step helps either: at the rounding level, or stuck
                return Attempt(x, size < 1e3 * enough, 1.0)
            trial = x + change * part
        x = trial
    return Attempt(x, False, 1.0)
