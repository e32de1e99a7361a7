"""Complex states as Julia solves for them: pairs of real numbers."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from ...problem import ODEProblem
from ...state import StateSpec
from ..backend import SolveOptions


def in_pairs(problem: ODEProblem, options: SolveOptions) -> tuple[ODEProblem, SolveOptions]:
    """The same problem, its state packed into real numbers; what the user sees stays complex."""
    packed, known = problem.packed, problem.spec
    real = packed.real.dtype
    if known is None:
        spec = StateSpec(0, (packed.shape,), (packed.dtype,), real, problem.batched)
    else:
        spec = StateSpec(known.skeleton, known.shapes, known.dtypes, real, known.batched)
    twin = copy.copy(problem)
    object.__setattr__(twin, "packed", spec.flatten(problem.y0, "y0"))
    object.__setattr__(twin, "spec", spec)
    rtol, atol = (_both(tol, packed, twin.packed) for tol in (options.rtol, options.atol))
    return twin, replace(options, rtol=rtol, atol=atol)


def _both(tol: float | Tensor, packed: Tensor, pairs: Tensor) -> float | Tensor:
    """A tolerance of each entry, for its real and its imaginary part."""
    if not isinstance(tol, Tensor) or tol.numel() == 1:
        return tol
    return torch.repeat_interleave(tol.expand(packed.shape), 2, dim=-1).reshape(pairs.shape)
