"""When a Newton iteration counts as solved, and when as hopeless.

The test is that of Hairer & Wanner II, section IV.8: the ratio of successive corrections estimates the error that
remains, and an iteration that will not make it is given up early. The limit on that error, in units of the
solve's tolerance, is SciPy's (its Radau and BDF): ``min(0.03, sqrt(rtol))``, but never below what the dtype
resolves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.jacobian import to_columns
from ..common.reading import to_float
from ..common.tolerances import Tolerances, rms_norm, row_norm
from .linear import Flags

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class NewtonSettings:
    """The tolerances of a solve as Newton's method sees them."""

    tol: Tolerances
    batched: bool
    max_iterations: int = 10

    def limit(self, dtype: torch.dtype) -> float:
        rtol = self.tol.rtol
        smallest = to_float(rtol.detach().min() if isinstance(rtol, Tensor) else rtol)
        eps = torch.finfo(dtype).eps
        return max(10.0 * eps / max(smallest, eps), min(0.03, math.sqrt(smallest)))

    def scale(self, y: Tensor) -> Tensor:
        """The tolerance of each entry, kept away from zero (an ``atol`` of 0 is allowed)."""
        scale = self.tol.scale(y.abs())
        return scale.clamp_min(torch.finfo(scale.dtype).tiny ** 0.5)

    def test(self, y: Tensor, regular: Flags, each: bool) -> Together | RowByRow:
        """The test for a stage near ``y``: of the whole state, or of each row where rows step for themselves."""
        limit = self.limit((y.real if y.is_complex() else y).dtype)
        if each:
            return RowByRow(limit, self.max_iterations, regular)
        return Together(limit, self.max_iterations, self.batched, bool(regular[0]))


class Together:
    """One test for the whole state; of independent rows the worst counts, so that they do not hide each other."""

    def __init__(self, limit: float, iterations: int, batched: bool, regular: bool):
        self.limit, self.left, self.batched = limit, iterations, batched
        self.open, self.converged = regular and iterations > 0, False
        self.iterations, self.rate, self._previous = 0, 0.0, math.inf

    @property
    def solved(self) -> Flags:
        return np.array([self.converged])

    def judge(self, scaled: Tensor) -> bool:
        """Take note of a correction in units of the tolerance; whether to go on."""
        size = to_float(row_norm(to_columns(scaled, True)).max() if self.batched else rms_norm(scaled))
        self.iterations += 1
        self.left -= 1
        if size == 0.0:
            self.converged, self.open = True, False
            return False
        if self.iterations > 1:
            self.rate = size / self._previous
            if not self.rate < 1.0:
                # Small corrections that shrink no further are rounding errors: nothing is left to solve.
                self.converged, self.open = size < self.limit, False
                return False
            remaining = size / (1.0 - self.rate)
            self.converged = self.rate * remaining < self.limit
            self.open = not self.converged and self.rate**self.left * remaining <= self.limit
        self._previous = size
        self.open = self.open and size < math.inf and self.left > 0
        return self.open


class RowByRow:
    """A test for every row: one that fails, or needs longer, is nothing to the others."""

    def __init__(self, limit: float, iterations: int, regular: Flags):
        self.limit, self.left = limit, iterations
        self.solved: Flags = np.zeros_like(regular)
        self.iterations = 0
        self._hopeless: Flags = ~regular
        self._previous: Numbers = np.full(regular.shape, np.inf)
        self._rates: Numbers = np.zeros(regular.shape)

    @property
    def open(self) -> bool:
        return self.left > 0 and not bool((self.solved | self._hopeless).all())

    @property
    def converged(self) -> bool:
        return bool(self.solved.all())

    @property
    def rate(self) -> float:
        return float(np.max(self._rates))

    def judge(self, scaled: Tensor) -> bool:
        """As :meth:`Together.judge`."""
        size: Numbers = row_norm(to_columns(scaled, True)).double().cpu().numpy()
        self.iterations += 1
        self.left -= 1
        waiting = ~(self.solved | self._hopeless)
        zero = size == 0.0
        with np.errstate(all="ignore"):  # rows that diverge overflow, and fail the comparisons for it
            rate = np.where(zero, 0.0, size / self._previous)
            remaining = size / (1.0 - rate)
            fine = rate < 1.0
            done = zero | ((self.iterations > 1) & (np.where(fine, rate * remaining, size) < self.limit))
            late = (self.iterations > 1) & ~(fine & (rate**self.left * remaining <= self.limit))
        self.solved = self.solved | (waiting & done)
        self._hopeless = self._hopeless | (waiting & ~done & (late | ~(size < np.inf)))
        if self.iterations > 1:
            self._rates = np.where(waiting, np.where(fine, rate, 1.0), self._rates)
        self._previous = size
        return self.open
