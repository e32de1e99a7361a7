"""What a mass matrix has to be."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .errors import MassMatrixError
from .tracking import reading


def check_mass_matrix(matrix: Any, packed: Tensor, batched: bool) -> None:
    """Whether ``matrix`` is one for this (packed) state.

    Raises:
        MassMatrixError: it is not.
    """
    if not isinstance(matrix, Tensor):
        raise MassMatrixError(
            f"mass_matrix is a {type(matrix).__name__}; give a square tensor, torch.diag(torch.tensor([1.0, 0])), say."
        )
    if matrix.is_complex() or packed.is_complex() or not matrix.is_floating_point():
        raise MassMatrixError(
            f"mass_matrix is {matrix.dtype} for a state of {packed.dtype}; both must be real and floating: keep a"
            f" complex state as its real and its imaginary part."
        )
    n = packed[0].numel() if batched else packed.numel()
    if tuple(matrix.shape) != (n, n):
        whose = "a row of the state" if batched else "the flattened state"
        hint = ""
        if not batched and matrix.dim() == 2 and matrix.shape == (packed.shape[-1],) * 2 and packed.dim() > 1:
            hint = "; for a matrix of one row of the state say batched=True"
        raise MassMatrixError(
            f"mass_matrix has shape {tuple(matrix.shape)}, and {whose} has {n} entries: it must be ({n}, {n}){hint}."
        )
    if matrix.device != packed.device:
        raise MassMatrixError(f"mass_matrix is on {matrix.device} and y0 on {packed.device}: move it there.")
    with reading("mass_matrix", "all samples share it; map over y0 and parameters only"):
        finite = bool(matrix.detach().isfinite().all())
    if not finite:
        raise MassMatrixError("mass_matrix holds NaN or infinite entries.")
