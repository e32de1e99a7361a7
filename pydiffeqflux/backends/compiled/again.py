"""A compiled solve once more in eager torch, which records it: for derivatives of derivatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ...methods import Method
from ...problem import ODEProblem, TimeLike, TimePoint
from ...sensealg import SenseAlg
from ...solution import Solution
from ..backend import SolveOptions
from .forward import Forward


def solve_again(forward: Forward, sensealg: SenseAlg | None, *, dense: bool = False) -> Solution:
    """The same solve, with states packed; it takes the same steps to rounding."""
    from ..eager.engine import EagerBackend

    problem, spec = forward.problem, forward.problem.spec
    func = problem.func

    def packed(t: Tensor, y: Any) -> Any:
        return func(t, y) if spec is None else spec.flatten(func(t, spec.unflatten(y)))

    span = _given(problem.t0), _given(problem.t1)
    flat = ODEProblem(packed, problem.packed, span, batched=problem.batched)
    options = replace(forward.options, sensealg=sensealg, throw=False, dense=dense)
    return EagerBackend().solve(flat, forward.method, options)


def states_again(
    problem: ODEProblem, method: Method, options: SolveOptions, sensealg: SenseAlg | None, *, rows: bool
) -> Tensor:
    """The states of a solve whose state is one tensor: ``(T, n)``, or with ``rows`` ``(T, B, n)``."""
    from ..eager.engine import EagerBackend

    ys = EagerBackend().solve(problem, method, replace(options, sensealg=sensealg, throw=False, dense=False)).ys
    assert isinstance(ys, Tensor)
    return ys.flatten(2 if rows else 1)


def _given(t: TimePoint) -> TimeLike:
    return t.value if t.tensor is None else t.tensor
