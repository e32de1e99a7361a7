"""``M y' = f(t, y)`` with a constant matrix M that may be singular: then a differential-algebraic equation.

With P the orthogonal projector onto the left null space of M, the algebraic equations are ``P f(t, y) = 0``. Of index
1 is a problem in which ``K = M + P df/dy`` has an inverse. That one matrix serves for everything here: the derivative
that belongs to a state, ``K y' = (I - P) f - P df/dt``, and the consistent state next to an inconsistent one, which
has the same ``M y`` (P. N. Brown, A. C. Hindmarsh & L. R. Petzold, "Consistent initial condition calculation for
differential-algebraic systems", SIAM J. Sci. Comput. 19 (1998) 1495-1512; Hairer & Wanner II, section VI.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import HighIndexError
from ...problem import ODEProblem
from ...state import StateSpec
from ...tracking import tracked
from ..backend import SolveOptions
from .autocast import as_called
from .jacobian import from_columns, jacobian, to_columns
from .reading import to_float
from .rhs import Rhs, Scalar
from .settle import Policy, policy_of, settled


@dataclass(frozen=True)
class Mass:
    """The matrix, and what follows from it.

    Attributes:
        matrix: ``(n, n)``, in the state's dtype, for the columns of :func:`to_columns`.
        left: P, the projector onto its left null space; None where it has an inverse.
        batched: each row of the state has this matrix.
    """

    matrix: Tensor
    left: Tensor | None
    batched: bool

    @classmethod
    def of(cls, matrix: Tensor, like: Tensor, batched: bool) -> Mass:
        """For states such as ``like``."""
        return cls(matrix.to(like.dtype), _left_null_space(matrix.detach(), like), batched)

    def times(self, y: Tensor) -> Tensor:
        """``M y``."""
        return from_columns(to_columns(y, self.batched) @ self.matrix.mT, y)

    def transposed_times(self, y: Tensor) -> Tensor:
        """``M^T y``."""
        return from_columns(to_columns(y, self.batched) @ self.matrix, y)

    def algebraic(self, f: Tensor) -> Tensor:
        """``P f``, the residual of the algebraic equations."""
        assert self.left is not None
        return from_columns(to_columns(f, self.batched) @ self.left, f)

    def pencil(self, dfdy: Tensor) -> Tensor:
        """K, ``(n, n)`` or one a row."""
        return self.matrix if self.left is None else self.matrix + self.left @ dfdy


def _left_null_space(matrix: Tensor, like: Tensor) -> Tensor | None:
    """The orthogonal projector onto ``{v: v^T M = 0}``; None where that is empty."""
    wide = matrix.cpu().double()
    u, s, _ = torch.linalg.svd(wide)
    eps = torch.finfo(matrix.dtype).eps
    rank = int((s > s[0] * eps * len(s)).sum())
    if rank == len(s):
        return None
    zero = (wide == 0).all(dim=1)
    # Rows of zeros are the usual case, and need no rounding.
    null = torch.diag(zero.double()) if int(zero.sum()) == len(s) - rank else u[:, rank:] @ u[:, rank:].mT
    return null.to(like)


@torch.no_grad()
def is_singular(matrix: Tensor) -> bool:
    """Whether it has no inverse (one of a batch has none), in units that make rows and columns comparable.

    NaN, of a state that is not finite, is somebody else's error.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    scaled = matrix / matrix.abs().amax(-1, keepdim=True).clamp_min(tiny)
    scaled = scaled / scaled.abs().amax(-2, keepdim=True).clamp_min(tiny)
    values = torch.linalg.svdvals(scaled)
    condition = to_float((values[..., 0] / values[..., -1]).max())
    return condition * values.shape[-1] * torch.finfo(matrix.dtype).eps > 1.0


def check_index(pencil: Tensor, t: float) -> None:
    """Whether the algebraic equations determine the algebraic variables.

    Raises:
        HighIndexError: K is singular.
    """
    if is_singular(pencil):
        raise HighIndexError(
            f"at t={t:.6g} the algebraic equations do not determine the algebraic variables: the matrix M + P df/dy is"
            f" singular, so the index of the problem is above 1. Replace constraints by their derivatives in time"
            f" until every algebraic variable appears in one of them."
        )


class MassRhs(Rhs):
    """``rhs(t, y)`` of ``M y' = f(t, y)``; what it returns is f.

    Args:
        policy: what to do with a state that is not consistent.
    """

    def __init__(
        self,
        func: Callable[[Tensor, Any], Any],
        spec: StateSpec | None,
        like: Tensor,
        mass: Mass,
        policy: Policy,
    ):
        super().__init__(func, spec, like)
        self.mass = mass
        self.policy = policy

    @property
    def leading(self) -> Tensor:
        return self.mass.matrix

    def weighed(self, x: Tensor) -> Tensor:
        return self.mass.times(x)

    def derivative(self, t: Scalar, y: Tensor) -> Tensor:
        mass = self.mass
        if mass.left is None:
            return _solved(mass.matrix, self(t, y), mass.batched)
        here = jacobian(self, t, y, batched=mass.batched, with_time=True)
        self.nf += 1
        known = here.f - mass.algebraic(here.f)
        if here.dfdt is not None:
            known = known - mass.algebraic(here.dfdt)
        return _solved(mass.pencil(here.dfdy), known, mass.batched)

    def settle(self, t: Scalar, y: Tensor) -> Tensor:
        mass = self.mass
        if mass.left is None:
            return y

        def equations(z: Tensor) -> Tensor:
            return mass.times(z - y) + mass.algebraic(self(t, z))

        def matrix(z: Tensor) -> Tensor:
            return mass.pencil(jacobian(self, t, z, batched=mass.batched).dfdy)

        return settled(y, equations, matrix, self.policy, to_float(t), batched=mass.batched, check=check_index)

    @property
    def models(self) -> Any:
        return (self.func, self.mass.matrix)

    def probe(self, t: Tensor, y: Tensor) -> Tensor:
        found = super().probe(t, y)
        return torch.cat([found.reshape(-1), self.mass.matrix.reshape(-1)]) if tracked(self.mass.matrix) else found


def mass_rhs(problem: ODEProblem, options: SolveOptions) -> MassRhs:
    """The right-hand side of a problem that has a mass matrix."""
    assert problem.mass_matrix is not None
    mass = Mass.of(problem.mass_matrix, problem.packed, problem.batched)
    func = as_called(problem.func, problem.packed)
    return MassRhs(func, problem.spec, problem.packed, mass, policy_of(options))


def _solved(matrix: Tensor, y: Tensor, batched: bool) -> Tensor:
    x = torch.linalg.solve_ex(matrix, to_columns(y, batched).unsqueeze(-1))[0]
    return from_columns(x.squeeze(-1), y)
