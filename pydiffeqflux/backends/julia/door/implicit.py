"""DiffEqFlux's layer for fully implicit equations: NeuralDAE.

DiffEqFlux differentiates one by Tracker, and its own tests of that are marked as broken; dual numbers run through it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....dae_problem import DAEProblem
from ....errors import UnsupportedError
from ...common.implicit_rhs import ImplicitRhs
from .call import Layer, torch_part
from .forms import Form, Tracer, ticking, timed

#: What differentiates it: dual numbers through the layer.
SENSEALGS = ("ForwardDiffSensitivity",)


def layer_of(problem: DAEProblem, rhs: ImplicitRhs, start: Tensor, trace: Tracer) -> Layer:
    """The layer for a residual whose consistent initial state is ``start``, with the derivative ``rhs.near``.

    Raises:
        UnsupportedError: the residual is not known to have a constraint of the state alone in the place of each
            algebraic variable, which DiffEqFlux asks for.
    """
    if not hasattr(problem.residual, "constraint"):
        raise UnsupportedError(
            "a DAEProblem on backend='diffeqflux' must be that of a NeuralDAE, which has its constraints in the places"
            " of the algebraic variables: use the layer, or backend='julia' or 'torch'."
        )
    residual: Any = problem.residual
    shape, n = start.shape, start.numel()
    what, slope = "the residual", rhs.near.reshape(-1)

    def rows(t: Tensor, both: Tensor) -> Tensor:
        y, dy = (part.reshape(shape) for part in both.chunk(2))
        found: Tensor = residual.model(t, torch.cat([y, dy], -1))
        return found.reshape(-1)

    def rows_with_clock(t: Tensor, both: Tensor) -> Tensor:
        z, dz = both.chunk(2)
        return torch.cat([rows(z[-1], torch.cat([z[:-1], dz[:-1]])), dz[-1:] - 1.0])

    def algebraic(t: Tensor, y: Tensor) -> Tensor:
        found: Tensor = residual.constraint(t, y.reshape(shape))
        return found.reshape(-1)

    flat = start.reshape(-1)
    mask = problem.mask.expand(shape).reshape(-1)
    model = trace(Form(residual, "rows"), rows, aside(torch.cat([flat, slope])), what)
    constraint = trace(Form(residual, "constraint"), algebraic, aside(flat), "the constraint")
    if timed(model) or timed(constraint):
        flat, slope, mask = ticking(flat, problem.t0.value), ticking(slope, 1.0), torch.cat([mask, mask.new_ones(1)])
        model = trace(Form(residual, "rows, clock"), rows_with_clock, aside(torch.cat([flat, slope])), what)
        constraint = trace(
            Form(residual, "constraint, clock"), lambda t, z: algebraic(z[-1], z[:-1]), aside(flat), "the constraint"
        )
    parts = (torch_part(m, [math.prod(m.kernels.graphs.shape)]) for m in (model, constraint))
    both = torch.cat([flat, slope])
    return Layer(
        "NeuralDAE",
        tuple(parts),
        both,
        (both.numel(),),
        lambda numbers: numbers[:, :n].reshape(-1, *shape),
        SENSEALGS,
        more=mask.tolist(),
        width=flat.numel(),
        reason="DiffEqFlux's own choice, TrackerAdjoint, is broken there",
    )


def aside(x: Tensor) -> Tensor:
    """A point beside a consistent one, whose residual is more than rounding: traces are compared there."""
    return x + 0.01 * (1 + x.abs())
