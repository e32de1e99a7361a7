"""What a gradient of the loss at one time does to an adjoint, with and without a mass matrix.

Without one it is added. With ``M y' = f`` the adjoint solves ``M^T lambda' = -(df/dy)^T lambda``, and ``lambda M dy``
is what is conserved. Where M is singular the algebraic variables follow the others and the parameters, and a gradient
g with respect to all of them is taken apart, ``g = M^T q + (P df/dy)^T q``: the first part jumps into lambda's
differential components, the second is a gradient of the parameters at once, ``-(P q) df/dp``. Lambda's algebraic
components are solved for where the next backward stretch begins.

Source: Y. Cao, S. Li, L. Petzold & R. Serban, "Adjoint sensitivity analysis for differential-algebraic equations",
SIAM J. Sci. Comput. 24 (2003) 1076-1089, for index 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....errors import UnsupportedError
from ....sensealg import BacksolveAdjoint, ForwardSensitivity, SenseAlg
from ....tracking import tracked
from ...common.jacobian import from_columns, jacobian, to_columns
from ...common.rhs import Rhs
from .job import Job
from .sweep import add


class Jumps:
    """How seeds enter the adjoint of one job, and what its gradient at the start is."""

    def __init__(self, job: Job):
        self.job = job
        self.mass = job.rhs.mass

    def take(self, t: float, y: Tensor, lam: Tensor, mu: list[Tensor], seed: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The adjoint and the parameter gradient, with the loss's gradient ``seed`` at ``y(t)`` taken in."""
        mass = self.mass
        if mass is None:
            return lam + seed, mu
        if mass.left is None:
            return lam + self._transposed_solve(mass.matrix, seed), mu
        here = jacobian(self.job.rhs, t, y, batched=mass.batched)
        q = self._transposed_solve(mass.pencil(here.dfdy), seed)
        held = mass.algebraic(q)
        if mu:
            _, _, of_params = self.job.vjp(t, y, -held, state=False)
            mu = add(mu, of_params)
        return lam + q - held, mu

    def at_start(self, lam: Tensor) -> Tensor:
        """The gradient with respect to the initial state."""
        return lam if self.mass is None else self.mass.transposed_times(lam)

    def _transposed_solve(self, matrix: Tensor, g: Tensor) -> Tensor:
        columns = to_columns(g, self.mass.batched).unsqueeze(-1)
        return from_columns(torch.linalg.solve(matrix.mT, columns).squeeze(-1), g)

    def matrix(self, parameters: int = 0) -> Tensor | None:
        """The mass matrix of the adjoint equation, flat: of lambda and, behind it, so many entries of mu."""
        if self.mass is None:
            return None
        block = self.mass.matrix.detach().mT
        if self.mass.batched:
            rows = self.job.outcome.y1.shape[0]
            block = torch.kron(torch.eye(rows, dtype=block.dtype, device=block.device), block.contiguous())
        eye = torch.eye(parameters, dtype=block.dtype, device=block.device)
        return torch.block_diag(block, eye)


def check_mass(rhs: Rhs, sensealg: SenseAlg) -> None:
    """Whether a continuous adjoint can do with the mass matrix (if there is one).

    Raises:
        UnsupportedError: it cannot.
    """
    if rhs.mass is None:
        return
    if isinstance(sensealg, BacksolveAdjoint | ForwardSensitivity):
        raise UnsupportedError(
            f"sensealg={sensealg.name} with a mass_matrix does not exist: use DiscreteAdjoint(), GaussAdjoint(),"
            f" QuadratureAdjoint() or InterpolatingAdjoint()."
        )
    if tracked(rhs.mass.matrix):
        raise UnsupportedError(
            f"sensealg={sensealg.name} has no gradient with respect to mass_matrix: use DiscreteAdjoint() or detach it."
        )
