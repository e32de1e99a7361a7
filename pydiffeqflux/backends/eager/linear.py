"""The linear systems ``(M - h df/dy) x = b`` of implicit methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...tracking import forwarding
from ..common.jacobian import from_columns, to_columns
from ..common.reading import to_float
from ..common.rhs import Scalar

#: One truth value for the whole state, or one a row where rows step for themselves.
Flags = np.ndarray[Any, np.dtype[np.bool_]]


class _Solve(torch.autograd.Function):
    """``W^-1 b`` (or ``W^-T b``) from W's factors, differentiable any number of times in W and b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, lu: Tensor, pivots: Tensor, b: Tensor, adjoint: bool) -> Tensor:
        x: Tensor = torch.linalg.lu_solve(lu, pivots, b, adjoint=adjoint)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        matrix, lu, pivots, _, ctx.adjoint = inputs
        ctx.save_for_backward(matrix, lu, pivots, output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, Tensor, None]:
        matrix, lu, pivots, x = ctx.saved_tensors
        grad_b = _solve(matrix, lu, pivots, grads[0], not ctx.adjoint)
        left, right = (x, grad_b) if ctx.adjoint else (grad_b, x)
        return -left @ right.mT, None, None, grad_b, None


# `apply` looks the signature up in every call; found here, that costs nothing.
_Solve.forward.__signature__ = inspect.signature(_Solve.forward)  # type: ignore[attr-defined]
_solve: Callable[..., Tensor] = _Solve.apply

#: Columns up to which torch's own derivative of a factorisation is the faster one; it grows with their cube a solve.
SMALL = 64


def _natively(matrix: Tensor) -> bool:
    """Whether torch differentiates the factorisation: always in forward mode, which nests only so."""
    return matrix.shape[-1] <= SMALL or forwarding()


def per_row(h: Scalar) -> bool:
    """Whether every row of the state has a step of its own."""
    return isinstance(h, Tensor) and h.dim() > 0


def as_converged(flags: Flags, like: Tensor) -> Any:
    """Flags as :attr:`Step.converged` has them: a bool, or a tensor of one a row."""
    return bool(flags[0]) if flags.size == 1 else torch.as_tensor(flags, device=like.device)


@dataclass(slots=True)
class Factored:
    """``W = M - h df/dy``, factorised once for many solves."""

    matrix: Tensor
    lu: Tensor
    pivots: Tensor
    batched: bool
    #: What LAPACK says of each matrix: 0 where it is regular.
    info: Tensor
    each: bool

    @property
    def regular(self) -> Flags:
        """False where W is singular: the step has to be tried with another h. One flag a row where each has its h."""
        return (self.info == 0).cpu().numpy() if self.each else np.array([to_float(self.info.any()) == 0.0])

    @property
    def converged(self) -> Tensor:
        """The same as :attr:`Step.converged` has it, left on its device: reading it would wait for a GPU."""
        return self.info == 0 if self.each else ~self.info.any()

    def solve(self, b: Tensor) -> Tensor:
        """``W^-1 b`` for a state-shaped b; its graph runs through W and b."""
        columns = to_columns(b, self.batched).unsqueeze(-1)
        if torch.is_grad_enabled() and not _natively(self.matrix):
            x = _solve(self.matrix, self.lu, self.pivots, columns, False)
        else:
            x = torch.linalg.lu_solve(self.lu, self.pivots, columns)
        return from_columns(x.squeeze(-1), b)


def factorise(dfdy: Tensor, h: Scalar, *, batched: bool, leading: Tensor | None = None) -> Factored:
    """Factorise ``M - h dfdy``; h is a number, a 0-dim tensor, or (when batched) one number a row.

    Args:
        leading: M; None for the identity.
    """
    if leading is None:
        leading = torch.eye(dfdy.shape[-1], dtype=dfdy.dtype, device=dfdy.device)
    if isinstance(h, Tensor):
        matrix = leading - (h.reshape(-1, 1, 1) if h.dim() else h).to(dfdy.dtype) * dfdy
    else:
        matrix = torch.add(leading, dfdy, alpha=-h)
    lu, pivots, info = torch.linalg.lu_factor_ex(matrix if _natively(matrix) else matrix.detach())
    return Factored(matrix, lu, pivots, batched, info, per_row(h))


def matrix_norm(dfdy: Tensor) -> float:
    """A bound of the spectral radius (the largest over the samples): the smaller of two induced norms."""
    size = dfdy.detach().abs()
    return to_float(torch.minimum(size.sum(-1).amax(-1), size.sum(-2).amax(-1)).max())
