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

    Args:
        alone: there is no next stretch; where it ended is of interest only if that is not where it should.
    """

    def __init__(self, request: Request, constants: Constants, *, alone: bool = False):
        self.asked = len(request.saves)
        if request.saves and request.saves[-1] != request.t1:
            request = replace(request, saves=(*request.saves, request.t1))
        self.request, self.constants, self.alone = request, constants, alone
        self.run: Run | None = None

    def solve(self, y0: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The states at the times that were asked for, and at the end."""
        run = solve(self.request, y0.contiguous(), packed(self.request, params), self.constants)
        self.run, ys = run, run.ys
        if self.asked and len(ys) > self.asked:
            ys = ys[: self.asked]
        return ys, None if self.alone and run.ok else run.last_y


class JuliaSolve(torch.autograd.Function):
    """``(job, y0, t0, t1, saves, *params) -> (ys, y1)``: the states at the saved times, and where it ended.

    Of a job that is ``alone`` and went well, only the former.
    """

    @staticmethod
    def forward(
        ctx: Any, job: Job, y0: Tensor, t0: Tensor | None, t1: Tensor | None, saves: Tensor | None, *params: Tensor
    ) -> Any:
        ys, y1 = job.solve(y0, params)
        ctx.set_materialize_grads(False)
        # The parameters' values are Julia's own by now; only times need more than the shapes.
        ctx.job, ctx.inputs, ctx.times = job, (y0, *params), None
        if t0 is not None or t1 is not None or saves is not None:
            ctx.times = t0, t1, saves
            ctx.save_for_backward(y0, ys, ys if y1 is None else y1, *params)
        return ys if y1 is None else (ys, y1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return (None, *_gradients(ctx, *grads))
        if any(g is not None and g.requires_grad for g in grads):
            raise GradientError(_NO_SECOND)
        with torch.no_grad():
            found = _gradients(ctx, *grads)
        y0, *params = ctx.inputs
        return (None, *once(_NO_SECOND, found, (y0, *(ctx.times or ()), *params)))


def _gradients(ctx: Any, g_ys: Tensor | None, g_y1: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """The gradients of the state, of the times, and of the parameters."""
    job: Job = ctx.job
    flat = gradient(job.request, _run(job), _seeds(job, g_ys, g_y1), job.constants)
    to_y0, *to_params = _unpacked(flat, ctx.inputs)
    of_times: Times = (None, None, None)
    if ctx.times is not None:
        y0, ys, y1, *params = ctx.saved_tensors
        states, grads = (y0, ys, y1), (to_y0, g_ys, g_y1)
        of_times = _times(job, ctx.times, states, grads, packed(job.request, params))
    return (to_y0, *of_times, *to_params)


def _run(job: Job) -> Run:
    assert job.run is not None
    return job.run


def _seeds(job: Job, g_ys: Tensor | None, g_y1: Tensor | None) -> Tensor:
    """The gradient with respect to the states that Julia saved."""
    ys = _run(job).ys
    if g_ys is not None and g_y1 is None and len(g_ys) == len(ys):
        return g_ys
    seeds = torch.zeros_like(ys)
    if g_ys is not None:
        seeds[: len(g_ys)] = g_ys
    if g_y1 is not None:
        seeds[-1] += g_y1
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
    model, form, run = job.request.model, job.request.form, _run(job)

    def pull(t: float, y: Tensor, g: Tensor) -> Tensor:
        if form is not None:
            return torch.dot(g.reshape(-1), form.derivative(t, y).reshape(-1))
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


def _unpacked(flat: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of the initial state and of the parameters out of a flat vector."""
    dtype, device = flat.dtype, flat.device
    if all([x.dtype is dtype and x.device == device for x in inputs]):
        return torch._C._nn.unflatten_dense_tensors(flat, list(inputs))
    parts = flat.split([x.numel() for x in inputs])
    return [g.reshape(x.shape).to(x) for g, x in zip(parts, inputs, strict=True)]


def packed(request: Request, params: Sequence[Tensor]) -> Tensor:
    """The flat vector of the parameters; where no gradient is recorded."""
    dtype, place = request.model.dtype, request.model.place
    device = torch.device("cpu") if place is None else place.device
    if not params:
        return torch.zeros(0, dtype=dtype, device=device)
    alike = [x if x.dtype is dtype and x.device == device else x.to(device, dtype) for x in params]
    return torch._C._nn.flatten_dense_tensors(alike)
