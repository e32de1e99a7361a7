"""DiffEqFlux's layers for stochastic equations: NeuralDSDE, and NeuralSDE for noise that is a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....sde_problem import SDEProblem
from ...common.sde import Sde
from .call import Layer, torch_part
from .forms import Form, Tracer, ticking, timed, with_clock

#: What differentiates them: a tape over the steps that were taken.
SENSEALGS = ("TrackerAdjoint",)


def layer_of(problem: SDEProblem, sde: Sde, trace: Tracer) -> Layer:
    """The layer for a stochastic equation."""
    y0, shape = problem.packed, problem.packed.shape
    rows, n = y0.numel() // shape[-1], y0.numel()
    matrix = not sde.elementwise

    def noise(t: Tensor, y: Tensor) -> Tensor:
        """The diffusion; as a matrix that of all rows together, ``(rows * m, n)`` (Julia's order is the other)."""
        values = problem.diffusion(t, y)
        if not matrix:
            return values
        values = values.reshape(rows, shape[-1], 1, -1)
        blocks = torch.eye(rows, dtype=y.dtype)[:, None, :, None] * values
        return blocks.reshape(n, -1).T

    drift = trace(problem.drift, sde.evaluate, y0, "the drift")
    key = Form(problem.diffusion, ("matrix", rows)) if matrix else problem.diffusion
    diffusion = trace(key, noise, y0, "the diffusion")
    start = y0.reshape(-1)
    if timed(drift) or timed(diffusion):
        start = ticking(start, problem.t0.value)
        drift = trace(Form(problem.drift, "clock"), with_clock(sde.evaluate, shape, 1.0), start, "the drift")
        diffusion = trace(Form(key, "clock"), with_clock(noise, shape, 0.0), start, "the diffusion")
    size = start.numel()
    motions = math.prod(diffusion.kernels.graphs.shape) // size if matrix else 0
    return Layer(
        "NeuralSDE" if matrix else "NeuralDSDE",
        (torch_part(drift, [size]), torch_part(diffusion, [size, motions] if matrix else [size])),
        start,
        (size,),
        lambda numbers: numbers[:, :n].reshape(-1, *shape),
        SENSEALGS,
        more=[motions] if matrix else [],
        width=size,
        seed=sde.path.seed,
    )
