"""Lagrangian neural networks: a learnt Lagrangian, and the accelerations that follow from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..dynamical import halves
from ..errors import SingularMassError
from ..tracking import tracing, transforming
from .hamiltonian import _checked, energy


class LagrangianNN(nn.Module):
    """The motion of a learnt Lagrangian ``L = net(y)``, with positions and velocities ``y = (q, v)``.

    The Euler-Lagrange equations, solved for the acceleration:
    ``a = (d2L/dv2)^-1 (dL/dq - (d2L/dv dq) v)``. No canonical momenta are needed, unlike for :class:`HamiltonianNN`.

    Args:
        net: ``(..., 2n)`` to one number for each state; twice differentiable (tanh or softplus, not relu).

    Raises:
        InvalidArgumentError, PhaseSpaceError, ShapeError: as for :class:`HamiltonianNN`.
        SingularMassError: ``d2L/dv2`` has no inverse.

    Shapes:
        ``(..., 2n)``, positions then velocities, to their rates ``(v, a)``.

    Source: Cranmer et al., "Lagrangian neural networks" (2020), arXiv:2003.04630.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> spring = pdf.LagrangianNN(lambda y: 0.5 * (y[..., 1] ** 2 - y[..., 0] ** 2))
        >>> spring(torch.tensor([1.0, 0.0])).tolist()
        [0.0, -1.0]
    """

    def __init__(self, net: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net = _checked(net, "net")

    def energy(self, y: Tensor) -> Tensor:
        """The conserved energy ``v . dL/dv - L``, of shape ``(...)``."""
        rows = y.reshape(-1, y.shape[-1])
        slopes = torch.vmap(torch.func.grad(self._lagrangian))(rows).reshape(y.shape)
        return (halves(y)[1] * halves(slopes)[1]).sum(-1) - energy(self.net, y, "a Lagrangian")

    def _lagrangian(self, y: Tensor) -> Tensor:
        return energy(self.net, y, "a Lagrangian")

    def forward(self, y: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():  # nothing is recorded there, and a derivative needs a record
            with torch.inference_mode(False), torch.no_grad():
                return self(y.clone())
        halves(y)
        rows = y.reshape(-1, y.shape[-1])
        _, v = halves(rows)
        n = v.shape[-1]
        slopes = torch.func.grad(self._lagrangian)

        def both(row: Tensor) -> tuple[Tensor, Tensor]:
            found = slopes(row)
            return found, found

        curvature, slope = torch.vmap(torch.func.jacrev(both, has_aux=True))(rows)
        mass, mixed = curvature[:, n:, n:], curvature[:, n:, :n]
        push = slope[:, :n] - (mixed @ v[..., None])[..., 0]
        a, info = torch.linalg.solve_ex(mass, push[..., None])
        if not (transforming() or tracing()) and bool((info != 0).any()):
            at = rows[int((info != 0).nonzero()[0, 0])].tolist()
            raise SingularMassError(
                f"the Lagrangian's second derivative in the velocities is singular at (q, v)={at}: it must depend on"
                f" every velocity, with curvature (add |v|^2 / 2 to the network's output, say)."
            )
        return torch.cat([v, a[..., 0]], -1).reshape(y.shape)
