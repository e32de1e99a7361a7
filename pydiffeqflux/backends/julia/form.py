"""Equations that are not ``y' = f``, as Julia knows them: a mass matrix, or a residual."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ... import sensealg as sensealgs
from ...dae_problem import DAEProblem
from ...errors import MassMatrixMethodError, UnsupportedError
from ...methods import Method
from ...problem import ODEProblem
from ...sensealg import SenseAlg
from ...tracking import tracked
from ..common.implicit_rhs import ImplicitRhs
from ..common.mass import Mass, MassRhs
from ..common.rhs import Rhs
from .callback import CalledBack
from .held import Held
from .model import Model
from .solvers import Solver

_MASS_SOLVERS = "'rodas5p', 'rosenbrock23', 'qndf', 'FBDF' or another implicit solver of OrdinaryDiffEq"


class Form(Held, ABC):
    """An equation, in Julia and in torch."""

    rhs: Rhs

    def derivative(self, t: float, y: Tensor) -> Tensor:
        """dy/dt at a consistent state."""
        return self.rhs.derivative(t, y)

    def start(self, y0: Tensor) -> Tensor:
        """What Julia begins with."""
        return y0

    @abstractmethod
    def check_solver(self, method: Method, solver: Solver) -> None:
        """Raises MassMatrixMethodError for a solver of other equations."""


class MassForm(Form):
    """``M y' = f``."""

    def __init__(self, model: Model | CalledBack, rhs: MassRhs, like: Tensor):
        self.rhs, self.matrix = rhs, whole_mass(rhs.mass, like)
        super().__init__(model.session, model.session.call("bridge_mass", model.handle, self.matrix.data_ptr()))
        self._mass = rhs.mass

    def check_solver(self, method: Method, solver: Solver) -> None:
        check_massive(method, solver)

    def check_sensealg(self, sensealg: SenseAlg) -> None:
        """Whether SciMLSensitivity's adjoints can do with the matrix.

        Raises:
            UnsupportedError: they cannot.
        """
        # InterpolatingAdjoint's backward solve leaves the algebraic part of the adjoint at zero, and its gradient is
        # wrong without a word (SciMLSensitivity as pinned); BacksolveAdjoint refuses singular matrices.
        fine = isinstance(sensealg, sensealgs.GaussAdjoint | sensealgs.QuadratureAdjoint)
        if not fine or getattr(sensealg, "products", "") != "traced":
            raise UnsupportedError(
                f"sensealg={sensealg} with a mass_matrix does not exist on backend='julia': use GaussAdjoint() or"
                f" QuadratureAdjoint(), or backend='torch'."
            )
        check_mass(self._mass, self.matrix, "julia")


def check_mass(mass: Mass, matrix: Tensor, backend: str) -> None:
    """Whether SciMLSensitivity's adjoints can do with a mass matrix; ``matrix`` is that of the whole state.

    Raises:
        UnsupportedError: they cannot.
    """
    if tracked(mass.matrix):
        raise UnsupportedError(
            f"backend={backend!r} has no gradient with respect to mass_matrix: detach it, or use backend='torch'."
        )
    if mass.left is None:
        return
    rows, columns = ((matrix == 0).all(dim) for dim in (1, 0))
    kept = matrix[~rows][:, ~columns]
    if not torch.equal(rows, columns) or not bool(torch.linalg.matrix_rank(kept) == len(kept)):
        raise UnsupportedError(
            f"backend={backend!r} differentiates with a singular mass_matrix only where it is semi-explicit: rows of"
            f" zeros for the algebraic equations, columns of zeros at the same places, and an invertible rest. Write"
            f" the problem so, or use backend='torch'."
        )


def check_massive(method: Method, solver: Solver) -> None:
    """Raises MassMatrixMethodError for a solver that takes no mass matrix."""
    if not solver.massive:
        raise MassMatrixMethodError(f"method={method} cannot take a mass_matrix: use {_MASS_SOLVERS}.")


def check_fully(method: Method, solver: Solver) -> None:
    """Raises MassMatrixMethodError for a solver of explicit equations."""
    if not solver.fully:
        raise MassMatrixMethodError(
            f"method={method} cannot solve a DAEProblem on backend='julia': use 'DFBDF', 'DABDF2' or"
            f" 'DImplicitEuler' there, or backend='torch'."
        )


def whole_mass(mass: Mass, like: Tensor) -> Tensor:
    """The matrix for a whole state: a block for each row of a batch."""
    matrix = mass.matrix.detach()
    if mass.batched:
        matrix = torch.kron(torch.eye(like.shape[0], dtype=matrix.dtype), matrix.contiguous())
    return matrix.contiguous()


class ResidualForm(Form):
    """``F(t, y, y') = 0``."""

    rhs: ImplicitRhs

    def __init__(self, model: Model | CalledBack, rhs: ImplicitRhs):
        self.rhs = rhs
        flags = rhs.mask.reshape(-1).to(torch.uint8).contiguous()
        super().__init__(model.session, model.session.call("bridge_implicit", model.handle, flags.data_ptr()))

    def start(self, y0: Tensor) -> Tensor:
        return torch.cat([y0.reshape(-1), self.rhs.near.reshape(-1)])

    def check_solver(self, method: Method, solver: Solver) -> None:
        check_fully(method, solver)


def form_of(
    problem: ODEProblem | DAEProblem, rhs: Rhs, model: Model | CalledBack, sensealg: SenseAlg | None
) -> Form | None:
    """The form of a problem's equation; None for ``y' = f``.

    Raises:
        UnsupportedError: a gradient is wanted that SciMLSensitivity does not have.
    """
    if isinstance(rhs, ImplicitRhs):
        if sensealg is not None and not isinstance(sensealg, sensealgs.ForwardDiffSensitivity):
            raise UnsupportedError(
                f"sensealg={sensealg} with a DAEProblem does not exist on backend='julia', as SciMLSensitivity's"
                f" adjoints are for explicit equations: leave it out for ForwardDiffSensitivity() (cost grows with the"
                f" number of parameters), use backend='torch', or an ODEProblem with a mass_matrix."
            )
        return ResidualForm(model, rhs)
    if not isinstance(rhs, MassRhs):
        return None
    form = MassForm(model, rhs, problem.packed)
    if sensealg is not None:
        form.check_sensealg(sensealg)
    return form
