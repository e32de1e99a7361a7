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
from .model import Constants

_NO_SECOND = (
    "backend='julia' has no second derivative: differentiate twice with backend='torch' and sensealg=DiscreteAdjoint()."
)

#: Both ends of the span and the save times, where these are differentiable; or their gradients.
Times = tuple[Tensor | None, Tensor | None, Tensor | None]


class Job:
    """A request, the constants at the time, and the run that it led to.

    The adjoint starts at the last saved time, and the end always matters (the next stretch begins there): so it is
    saved, whether or not it was asked for.
    """

    def __init__(self, request: Request, constants: Constants):
        self.asked = len(request.saves)
        if request.saves and request.saves[-1] != request.t1:
            request = replace(request, saves=(*request.saves, request.t1))
        self.request, self.constants = request, constants
        self.run: Run | None = None

    def solve(self, y0: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The states at the times that were asked for, and at the end."""
        start = y0.detach().reshape(-1).contiguous()
        self.run = run = solve(self.request, start, packed(self.request, params), self.constants)
        ys = run.ys.view(len(run.ys), *y0.shape)
        return ys[: self.asked] if self.asked and len(ys) > self.asked else ys, run.last_y.view(y0.shape)


class JuliaSolve(torch.autograd.Function):
    """``(job, y0, t0, t1, saves, *params) -> (ys, y1)``: the states at the saved times, and where it ended."""

    @staticmethod
    def forward(
        ctx: Any, job: Job, y0: Tensor, t0: Tensor | None, t1: Tensor | None, saves: Tensor | None, *params: Tensor
    ) -> tuple[Tensor, Tensor]:
        ys, y1 = job.solve(y0, params)
        ctx.job, ctx.times = job, (t0, t1, saves)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y0, ys, y1, *params)
        return ys, y1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and any(g is not None and g.requires_grad for g in grads):
            raise GradientError(_NO_SECOND)
        y0, ys, y1, *params = ctx.saved_tensors
        job: Job = ctx.job
        with torch.no_grad():
            g_ys, g_y1 = grads
            to_y0, to_p = gradient(job.request, _run(job), _seeds(job, y0.numel(), g_ys, g_y1), job.constants)
            of_times: Times = (None, None, None)
            if any(ctx.needs_input_grad[2:5]):
                of_times = _times(job, ctx.times, (y0, ys, y1), (to_y0, g_ys, g_y1), packed(job.request, params))
        gradients = (to_y0.view(y0.shape), *of_times, *_unpacked(to_p, params))
        return (None, *once(_NO_SECOND, gradients, (y0, *ctx.times, *params)))


def _run(job: Job) -> Run:
    assert job.run is not None
    return job.run


def _seeds(job: Job, n: int, g_ys: Tensor | None = None, g_y1: Tensor | None = None) -> Tensor:
    """The gradient with respect to the states that Julia saved."""
    rows = len(_run(job).ts)
    if g_ys is not None and g_y1 is None and len(g_ys) == rows:
        return g_ys.reshape(rows, n)
    like = g_ys if g_ys is not None else g_y1
    seeds = torch.zeros(rows, n, dtype=job.request.model.dtype if like is None else like.dtype)
    if g_ys is not None:
        seeds[: len(g_ys)] = g_ys.reshape(len(g_ys), n)
    if g_y1 is not None:
        seeds[-1] += g_y1.reshape(-1)
    return seeds


def _times(
    job: Job,
    times: Times,
    states: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor, Tensor | None, Tensor | None],
    p: Tensor,
) -> Times:
    """The gradients of both ends and of the save times: moving a time moves along the solution."""
    (t0, t1, saves), (y0, ys, y1), (to_y0, g_ys, g_y1) = times, states, grads
    model, run = job.request.model, _run(job)

    def pull(t: float, y: Tensor, g: Tensor) -> Tensor:
        return torch.dot(g.reshape(-1), model.evaluate(t, y.reshape(-1), p, job.constants))  # type: ignore[arg-type]

    g_t0 = g_t1 = g_saves = None
    if t0 is not None:
        g_t0 = -pull(job.request.t0, y0, to_y0).to(t0)
    if t1 is not None and g_y1 is not None:
        g_t1 = pull(run.last_t, y1, g_y1).to(t1)
    if saves is not None and g_ys is not None:
        g_saves = torch.zeros_like(saves)
        for k, t in enumerate(run.ts[: len(ys)]):
            g_saves[k] = pull(t, ys[k], g_ys[k]).to(saves)
    return g_t0, g_t1, g_saves


def _unpacked(flat: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor]:
    """The parameters' gradients out of a flat vector."""
    if all(x.dtype == flat.dtype for x in params):
        return torch._C._nn.unflatten_dense_tensors(flat, list(params)) if params else ()
    parts = flat.split([x.numel() for x in params])
    return [g.reshape(x.shape).to(x) for g, x in zip(parts, params, strict=True)]


def packed(request: Request, params: Sequence[Tensor]) -> Tensor:
    """The flat vector of the parameters."""
    dtype = request.model.dtype
    if not params:
        return torch.zeros(0, dtype=dtype)
    flat = [x.detach() if x.dtype == dtype else x.detach().to(dtype) for x in params]
    return torch._C._nn.flatten_dense_tensors(flat)
