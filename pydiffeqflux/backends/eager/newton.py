"""Implicit stages: solve ``M x = h f(t, base + x)``, and differentiate what solves it.

The equation is solved without a graph, by Newton's method with a frozen factorisation. The gradient comes from
the implicit function theorem afterwards: with ``r(x) = M x - h f(t, base + x)`` and W its Jacobian at the solution,
one further Newton correction ``x - W^-1 r(x)``, whose ``r`` carries the graph and whose W is a constant, has the
exact first derivative. (Each correction makes one more derivative exact, so two of them carry the second.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.implicit_function import corrected, refuse_forward_twice
from ..common.jacobian import Linearised, stage_jacobian
from ..common.rhs import Rhs, Scalar
from .convergence import NewtonSettings
from .linear import Factored, Flags, factorise, per_row


@dataclass(slots=True)
class Solved:
    """The outcome of a simplified Newton iteration. Entries that were not solved for are zero."""

    x: Tensor
    #: One flag; or one a row, where every row has its own step.
    solved: Flags
    iterations: int
    #: How fast the last corrections shrank; 0 where a single one was enough.
    rate: float

    @property
    def converged(self) -> bool:
        return bool(self.solved.all())


@torch.no_grad()
def solve_stage(
    rhs: Rhs, t: Scalar, base: Tensor, h: Scalar, guess: Tensor, w: Factored, settings: NewtonSettings
) -> Solved:
    """Solve ``M x = h f(t, base + x)`` with the frozen factors ``w`` of ``M - h df/dy``; no graph."""
    base, x = base.detach(), guess.detach()
    z = base + x
    scale = settings.scale(z)
    test = settings.test(z, w.regular, per_row(h))
    go_on = test.open
    while go_on:
        change = w.solve(rhs.defect(t, z, x, h))
        x = x + change
        go_on = test.judge(change / scale)
        if go_on:
            z = base + x
    rate = test.rate if test.converged else max(test.rate, 1.0)
    return Solved(keep_rows(x, test.solved), test.solved, test.iterations, rate)


def keep_rows(x: Tensor, solved: Flags) -> Tensor:
    """Zero for what is not solved: finite, so that other rows' derivatives stay clear of NaN."""
    if solved.all():
        return x
    if solved.size == 1:
        return torch.zeros_like(x)
    mask = torch.as_tensor(solved, device=x.device).reshape(-1, *[1] * (x.dim() - 1))
    return torch.where(mask, x, torch.zeros_like(x))


def attach_gradient(
    rhs: Rhs, t: Scalar, base: Tensor, h: Scalar, x: Tensor, *, batched: bool, second_order: bool
) -> tuple[Tensor, Factored, Linearised]:
    """The solution ``x`` with its derivatives, W at the solution, and the Jacobians in it (both constants)."""
    refuse_forward_twice()
    x = x.detach()
    with torch.no_grad():
        here = stage_jacobian(rhs, t, base + x, x, h, batched=batched)
        w = factorise(here.dfdy, h, batched=batched, leading=here.leading)

    def residual(x: Tensor) -> Tensor:
        return -rhs.defect(t, base + x, x, h)

    return corrected(x, residual, w.lu, w.pivots, batched=batched, order=2 if second_order else 1), w, here
