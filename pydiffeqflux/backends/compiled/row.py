"""A single row of a batch as a problem of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...problem import ODEProblem


def row_of(problem: ODEProblem) -> ODEProblem:
    """The problem of a single row, whose function sees times as the whole batch's does."""
    y0 = problem.packed.detach()[:1]
    return ODEProblem(RowFunction(problem.func), y0, (problem.t0.value, problem.t1.value))


@dataclass(frozen=True)
class RowFunction:
    """``func`` of one row; times get a dimension for each of the state's."""

    model: Callable[[Tensor, Any], Any]

    def __call__(self, t: Tensor, y: Tensor) -> Any:
        return self.model(t.reshape([1] * y.dim()), y)
