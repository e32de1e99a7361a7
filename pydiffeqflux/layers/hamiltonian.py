"""Hamiltonian neural networks: a learnt energy, and the motion that conserves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..dynamical import SeparableField, halves
from ..errors import InvalidArgumentError, ShapeError
from .calling import takes_time
from .derivatives import gradient
from .solver_layer import check_callable


def energy(net: Callable[[Tensor], Tensor], y: Tensor, what: str) -> Tensor:
    """``net(y)``, one number for each state: ``(...)`` for ``(..., n)``.

    Raises:
        ShapeError: the network returns something else.
    """
    out = net(y)
    if not isinstance(out, Tensor) or out.shape not in (y.shape[:-1], (*y.shape[:-1], 1)):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ShapeError(
            f"{what} must be one number for each state, of shape {(*y.shape[:-1], 1)} for states of shape"
            f" {tuple(y.shape)}; the network returned {got}."
        )
    return out.reshape(y.shape[:-1])


def _checked(net: Any, name: str) -> Any:
    check_callable(net, f"{name}(y)", name)
    if takes_time(net):
        raise InvalidArgumentError(
            f"{name} takes (t, y), but an energy that depends on time is not conserved: give a function of the state,"
            f" and add what drives the system in a right-hand side of your own."
        )
    return net


class SeparableHamiltonian(nn.Module):
    """``H(q, p) = kinetic(p) + potential(q)``: the form that explicit symplectic methods need.

    Args:
        kinetic: a network of ``p``, one number for each state; ``|p|^2 / 2`` (unit masses) where None.
        potential: a network of ``q``.

    Raises:
        PhaseSpaceError: called with a state of odd size.
        ShapeError: a network that returns more than one number for a state.

    Shapes:
        ``(..., 2n)`` to ``(...)``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> spring = pdf.SeparableHamiltonian(None, lambda q: 0.5 * (q**2).sum(-1))
        >>> spring(torch.tensor([3.0, 4.0])).item()
        12.5
    """

    def __init__(self, kinetic: Callable[[Tensor], Tensor] | None, potential: Callable[[Tensor], Tensor]):
        super().__init__()
        self.kinetic = None if kinetic is None else _checked(kinetic, "kinetic")
        self.potential = _checked(potential, "potential")

    def kinetic_energy(self, p: Tensor) -> Tensor:
        return 0.5 * p.square().sum(-1) if self.kinetic is None else energy(self.kinetic, p, "the kinetic energy")

    def potential_energy(self, q: Tensor) -> Tensor:
        return energy(self.potential, q, "the potential energy")

    def velocity(self, t: Any, p: Tensor) -> Tensor:
        """``dH/dp``."""
        return p if self.kinetic is None else gradient(self.kinetic_energy, p)

    def force(self, t: Any, q: Tensor) -> Tensor:
        """``-dH/dq``."""
        return -gradient(self.potential_energy, q)

    def forward(self, y: Tensor) -> Tensor:
        q, p = halves(y)
        return self.kinetic_energy(p) + self.potential_energy(q)


class HamiltonianNN(nn.Module):
    """The motion ``dq/dt = dH/dp``, ``dp/dt = -dH/dq`` of a learnt energy ``H = net(y)``, with ``y = (q, p)``.

    It is a model for :class:`NeuralODE`, and can be regressed on measured rates directly. Exact solutions conserve
    ``net``; so that computed ones do over long times, take a symplectic method: ``velocity_verlet`` and its like for a
    :class:`SeparableHamiltonian`, ``implicit_midpoint``, ``gl4`` or ``gl6`` for any other network.

    Args:
        net: ``(..., 2n)`` to one number for each state.

    Raises:
        InvalidArgumentError: ``net`` is not callable, or takes a time.
        PhaseSpaceError: a state of odd size.
        ShapeError: ``net`` returns more than one number for a state.

    Shapes:
        ``(..., 2n)``, positions then momenta, to the same.

    Source: Greydanus, Dzamba & Yosinski, "Hamiltonian neural networks" (2019), arXiv:1906.01563.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> spring = pdf.HamiltonianNN(lambda y: 0.5 * (y**2).sum(-1))
        >>> spring(torch.tensor([1.0, 0.0])).tolist()  # dq/dt = p, dp/dt = -q
        [0.0, -1.0]
    """

    #: Boltz.jl's layer that is the same: ``backend="diffeqflux"`` takes it.
    theirs: ClassVar[str] = "HamiltonianNN"

    def __init__(self, net: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net = _checked(net, "net")

    @property
    def separable(self) -> SeparableField | None:
        """The two halves of the field, where ``net`` is a :class:`SeparableHamiltonian`."""
        net = self.net
        return SeparableField(net.velocity, net.force) if isinstance(net, SeparableHamiltonian) else None

    def energy(self, y: Tensor) -> Tensor:
        """``H``, of shape ``(...)``."""
        halves(y)
        return energy(self.net, y, "an energy")

    def forward(self, y: Tensor) -> Tensor:
        halves(y)
        if isinstance(self.net, SeparableHamiltonian):
            q, p = halves(y)
            return torch.cat([self.net.velocity(None, p), self.net.force(None, q)], -1)
        dq, dp = halves(gradient(self.energy, y))
        return torch.cat([dp, -dq], -1)
