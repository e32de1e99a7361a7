"""The stages of a fully implicit method as one system of the form ``x = dt F(t, base + x)``.

The state of that system holds all stages, stacked along a dimension of their own (before the state's, or after
the batch's): ``F_i(Y) = sum_j a_ij f(t + c_j dt, Y_j)``. In this form it goes through the same Newton's method,
and gets its gradient in the same way, as a single stage of a diagonally implicit method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common.jacobian import Linearised, jacobian
from ...common.rhs import Rhs, Scalar

Matrix = Sequence[Sequence[float]] | np.ndarray[Any, np.dtype[np.float64]]


def couple(rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, c: Sequence[float], a: Matrix, dim: int) -> Rhs:
    """The right-hand side F of the stage system, its Jacobian put together from one small one a stage."""
    times = [t + dt if node == 1.0 else t + node * dt for node in c]

    def stages(_: Tensor, states: Tensor) -> Tensor:
        slopes = [rhs(time, state) for time, state in zip(times, states.unbind(dim), strict=True)]
        return mix(a, torch.stack(slopes, dim), dim)

    def linearise(_: Scalar, states: Tensor, batched: bool, with_time: bool) -> Linearised:
        found = [
            jacobian(rhs, time, state, batched=batched) for time, state in zip(times, states.unbind(dim), strict=True)
        ]
        blocks = torch.stack([part.dfdy for part in found], dim=-3)
        weights = torch.as_tensor(np.asarray(a), dtype=blocks.dtype, device=blocks.device)
        size = blocks.shape[-1] * len(found)
        dfdy = torch.einsum("ij,...jkl->...ikjl", weights, blocks).reshape(*blocks.shape[:-3], size, size)
        return Linearised(mix(a, torch.stack([part.f for part in found], dim), dim), dfdy, None)

    system = Rhs(stages, None, y)
    system.linearise = linearise
    return system


def kronecker(a: Matrix, dfdy: Tensor) -> Tensor:
    """The Jacobian of the stage system where every stage has the same one."""
    weights = torch.as_tensor(np.asarray(a), dtype=dfdy.dtype, device=dfdy.device)
    size = dfdy.shape[-1] * weights.shape[0]
    return torch.einsum("ij,...kl->...ikjl", weights, dfdy).reshape(*dfdy.shape[:-2], size, size)


def mix(weights: Matrix, stages: Tensor, dim: int) -> Tensor:
    """``sum_j weights[i, j] * stages[j]`` along the dimension of the stages."""
    matrix = torch.as_tensor(np.asarray(weights), dtype=stages.dtype, device=stages.device)
    return torch.einsum("ij,j...->i..." if dim == 0 else "ij,bj...->bi...", matrix, stages)
