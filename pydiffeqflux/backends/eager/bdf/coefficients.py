"""Numerical differentiation formulas of orders 1 to 5, over backward differences.

L. F. Shampine & M. W. Reichelt, "The MATLAB ODE suite", SIAM J. Sci. Comput. 18 (1997) 1-22, section 2.

A table holds the backward differences ``D_0 = y_n, D_1, ..., D_(order+2)`` of the solution at equal steps. What
the method does with it is linear: predict, move on by one step, change the step size. So each is a small matrix.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_ORDER = 5
#: Differences in a table: one more than the order for the error of this order, two for that of the next.
ROWS = MAX_ORDER + 3

Matrix = np.ndarray[Any, np.dtype[np.float64]]

_KAPPA = np.array([0.0, -0.1850, -1.0 / 9.0, -0.0823, -0.0415, 0.0])
_GAMMA = np.concatenate(([0.0], np.cumsum(1.0 / np.arange(1, MAX_ORDER + 1))))
#: The implicit equation's leading coefficient: ``y - (dt / ALPHA[order]) f = known``.
ALPHA = (1.0 - _KAPPA) * _GAMMA
#: Local error of each order in units of the next difference.
ERROR = _KAPPA * _GAMMA + 1.0 / np.arange(1, MAX_ORDER + 2)


@cache
def predictor(order: int) -> Matrix:
    """``(2, ROWS)``: the prediction of y, and what it exceeds the known part of the implicit equation by."""
    weights = np.zeros((2, ROWS))
    weights[0, : order + 1] = 1.0
    weights[1, 1 : order + 1] = _GAMMA[1 : order + 1] / ALPHA[order]
    return weights


@cache
def advance(order: int) -> Matrix:
    """``(ROWS, ROWS + 1)``: the table after a step from the one before it and the correction, its last column."""
    weights = np.zeros((ROWS, ROWS + 1))
    for i in range(order + 1):
        weights[i, i : order + 1] = 1.0
    weights[: order + 3, -1] = 1.0
    weights[order + 2, order + 1] = -1.0
    return weights


def rescale(order: int, factor: float | Tensor) -> Matrix | Tensor:
    """``(ROWS, ROWS)``: the table for steps ``factor`` times as long, of the same interpolating polynomial."""
    change = _interpolation(order, factor)
    unit = _interpolation(order, 1.0)
    if isinstance(change, Tensor):
        mixed = (change @ torch.as_tensor(unit).to(change)).mT
        return torch.nn.functional.pad(mixed, (0, ROWS - order - 1, 0, ROWS - order - 1))
    weights = np.zeros((ROWS, ROWS))
    weights[: order + 1, : order + 1] = (change @ unit).T
    return weights


def _interpolation(order: int, factor: float | Tensor) -> Any:
    """The paper's R: row i holds ``prod_(m=1..i) (m - 1 - factor j) / m`` for column j."""
    m = np.arange(1, order + 1)[:, None]
    j = np.arange(0, order + 1)[None, :]
    if isinstance(factor, Tensor):
        shift, share = ((torch.as_tensor(x).to(factor)) for x in ((m - 1.0) / m, j / m))
        return torch.cat([torch.ones_like(share[:1]), (shift - factor * share).cumprod(0)])
    return np.concatenate([np.ones((1, order + 1)), np.cumprod((m - 1.0 - factor * j) / m, axis=0)])


@cache
def dense(order: int) -> Matrix:
    """``(order, order)``: the interpolating polynomial on the last step, weights of ``D_1, ..., D_order``.

    With ``theta = 1`` at the new point the basis is ``prod_(m<j) (theta - 1 + m) / (m + 1)``; its first one, theta
    - 1, becomes theta by counting from the old point, ``D_0 - D_1``.
    """
    rows = np.zeros((order, order))
    product = np.poly1d([1.0, -1.0])
    rows[0, 0] = 1.0
    for j in range(2, order + 1):
        product = product * np.poly1d([1.0, j - 2.0]) / j
        powers = product.coeffs[::-1]
        rows[j - 1, : len(powers) - 1] = powers[1:]
    return rows
