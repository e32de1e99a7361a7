"""A solve by Julia as one node of the autograd graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import GradientError
from ..once import once
from .calls import Request, Run, gradient, solve

_NO_SECOND = (
    "backend='julia' has no second derivative: differentiate twice with backend='torch' and sensealg=DiscreteAdjoint()."
)


class Job:
    """A request, and the run that it led to.

    The adjoint starts at the last saved time, and the end always matters (the next stretch begins there): so it is
    saved, whether or not it was asked for.
    """

    def __init__(self, request: Request):
        self.asked = request.saves
        if request.saves and request.saves[-1] != request.t1:
            request = replace(request, saves=(*request.saves, request.t1))
        self.request = request
        self.run: Run | None = None


class JuliaSolve(torch.autograd.Function):
    """``(job, y0, t0, t1, saves, *params) -> (ys, y1)``: the states at the saved times, and where it ended."""

    @staticmethod
    def forward(
        job: Job, y0: Tensor, t0: Tensor | None, t1: Tensor | None, saves: Tensor | None, *params: Tensor
    ) -> tuple[Tensor, Tensor]:
        job.run = run = solve(job.request, y0.detach().reshape(-1).contiguous(), packed(job.request, params))
        ys = run.ys.reshape(-1, *y0.shape)
        return ys[: len(job.asked)] if job.asked else ys, run.last_y.reshape(y0.shape).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        job, y0, t0, t1, saves, *params = inputs
        ctx.job, ctx.times = job, (t0, t1, saves)
        ctx.save_for_backward(y0, *output, *params)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and any(g.requires_grad for g in grads):
            raise GradientError(_NO_SECOND)
        g_ys, g_y1 = grads
        y0, ys, y1, *params = ctx.saved_tensors
        job: Job = ctx.job
        run, model = job.run, job.request.model
        assert run is not None
        with torch.no_grad():
            seeds = torch.zeros(len(run.ts), y0.numel(), dtype=y0.dtype)
            seeds[: len(ys)] = g_ys.reshape(len(ys), -1)
            seeds[-1] += g_y1.reshape(-1)
            to_y0, to_p = gradient(job.request, run, seeds)
            p = packed(job.request, params)
            pull = lambda t, y, g: torch.dot(g.reshape(-1), model.evaluate(t, y.reshape(-1), p))  # noqa: E731
            t0, t1, saves = ctx.times
            g_t0 = g_t1 = g_saves = None
            if t0 is not None:
                g_t0 = -pull(job.request.t0, y0, to_y0).to(t0)
            if t1 is not None:
                g_t1 = pull(run.last_t, y1, g_y1).to(t1)
            if saves is not None:
                g_saves = torch.zeros_like(saves)
                for k, t in enumerate(run.ts[: len(ys)]):
                    g_saves[k] = pull(t, ys[k], g_ys[k]).to(saves)
        to_params = to_p.split([x.numel() for x in params]) if params else ()
        found = (g.reshape(x.shape).to(x) for g, x in zip(to_params, params, strict=True))
        gradients = (to_y0.reshape(y0.shape), g_t0, g_t1, g_saves, *found)
        return (None, *once(_NO_SECOND, gradients, (y0, t0, t1, saves, *params)))


def packed(request: Request, params: Sequence[Tensor]) -> Tensor:
    """The flat vector of the parameters."""
    dtype = request.model.dtype
    return torch.cat([x.detach().reshape(-1).to(dtype) for x in params]) if params else torch.zeros(0, dtype=dtype)
