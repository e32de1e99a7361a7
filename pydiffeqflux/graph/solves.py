"""Small linear systems, taken apart into the operators of the table: elimination, every step written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import UntraceableError

#: Elimination grows with the cube of this; a trace of more would take longer to compile than anybody waits.
LARGEST = 16


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix^-1 right`` by Gauss-Jordan elimination, the largest pivot of each column first.

    Args:
        matrix: ``(*, n, n)``; one without an inverse gives infinities or NaN.
        right: ``(*, n, k)``.

    Raises:
        UntraceableError: n is larger than ``LARGEST``.
    """
    n = matrix.shape[-1]
    if n > LARGEST:
        raise UntraceableError(
            f"a linear system of {n} unknowns is too large to be traced (up to {LARGEST} are): solve with"
            f" backend='torch'."
        )
    rows = list(torch.cat([matrix, right], -1).unbind(-2))
    for k in range(n):
        for i in range(k + 1, n):
            larger = (rows[i][..., k].abs() > rows[k][..., k].abs())[..., None]
            rows[k], rows[i] = torch.where(larger, rows[i], rows[k]), torch.where(larger, rows[k], rows[i])
        rows[k] = rows[k] / rows[k][..., k : k + 1]
        for i in range(n):
            if i != k:
                rows[i] = rows[i] - rows[i][..., k : k + 1] * rows[k]
    return torch.stack([row[..., n:] for row in rows], -2)


def _solve_ex(
    a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For ``aten._linalg_solve_ex``, which also returns factors of the matrix: the matrix itself stands for them."""
    vector = a.dim() == b.dim() + 1
    found = _sided(a, b[..., None] if vector else b, left or vector)
    none = torch.zeros(a.shape[:-1], dtype=torch.int32)
    return found[..., 0] if vector else found, a, none, none[..., 0]


def _lu_solve(lu: Tensor, pivots: Tensor, b: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    """For ``aten.linalg_lu_solve``, which comes after the one above only (and gets its matrix)."""
    return _sided(lu.mT if adjoint else lu, b, left)


def _sided(a: Tensor, b: Tensor, left: bool) -> Tensor:
    return solved(a, b) if left else solved(a.mT, b.mT).mT


def _inv_ex(a: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    found = solved(a, torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape))
    return found, torch.zeros(a.shape[:-2], dtype=torch.int32)


def _unchecked(info: Tensor, api_name: str, *, is_matrix: bool) -> None:
    """Nobody can be told in the middle of a solve; infinities and NaN are what is seen of it."""


RULES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._linalg_solve_ex.default: _solve_ex,
    torch.ops.aten.linalg_lu_solve.default: _lu_solve,
    torch.ops.aten.linalg_inv_ex.default: _inv_ex,
    torch.ops.aten._linalg_check_errors.default: _unchecked,
}
