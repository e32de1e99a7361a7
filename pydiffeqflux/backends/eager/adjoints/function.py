"""A smooth stretch of a solve as one node of the autograd graph, with an adjoint of the user's choice behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...common.autocast import without_autocast
from ...common.capture import partial
from ...common.crossing import link_crossing
from ...common.stretch import Outcome
from ...once import once
from .adjoint import Adjoint
from .job import Seeds


class _Solve(torch.autograd.Function):
    """``(y0, t0, t1, saves, *params) -> (ys, y1)``."""

    @staticmethod
    def forward(
        adjoint: Adjoint, y0: Tensor, t0: Tensor | None, t1: Tensor | None, saves: Tensor | None, *params: Tensor
    ) -> tuple[Tensor, Tensor]:
        job = adjoint.job
        job.outcome = out = adjoint.forward(y0)
        states = out.saved or out.step_states
        if job.stretch.saves is not None:
            job.ts = list(job.stretch.saves.values[: len(states)])
        else:
            job.ts = [float(t) for t in out.step_times]
        ys = torch.stack(states) if states else y0.new_zeros(0, *y0.shape)
        return ys, out.y1.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        adjoint, y0, t0, t1, saves, *params = inputs
        ctx.adjoint = adjoint
        ctx.times = (t0, t1, saves)
        ctx.save_for_backward(y0, *output, *params)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g_ys, g_y1 = grads
        y0, ys, y1, *params = ctx.saved_tensors
        adjoint: Adjoint = ctx.adjoint
        job = adjoint.job
        t0, t1, saves = ctx.times
        with torch.no_grad():
            lam0, mu = adjoint.backward(y0, ys, y1, Seeds(g_ys, g_y1))
            mu = partial(params, mu)
            g_t0 = g_t1 = g_saves = None
            if t0 is not None:
                g_t0 = -_dot(lam0, job.rhs.derivative(job.t0, y0)).to(t0)
            if t1 is not None and job.outcome.stopped_by is None:
                g_t1 = _dot(g_y1, job.rhs.derivative(job.t1, y1)).to(t1)
            if saves is not None:
                g_saves = torch.zeros_like(saves)
                for i, t in enumerate(job.ts):
                    g_saves[i] = _dot(g_ys[i], job.rhs.derivative(t, ys[i])).to(saves)
        message = _no_second_derivative(adjoint)
        return (None, *once(message, (lam0, g_t0, g_t1, g_saves, *mu), (y0, t0, t1, saves, g_ys, g_y1, *params)))


def _no_second_derivative(adjoint: Adjoint) -> str:
    return f"{adjoint.job.sensealg.name} has no second derivative: differentiate twice with sensealg=DiscreteAdjoint()."


def _dot(g: Tensor, f: Tensor) -> Tensor:
    """The real inner product, also of complex tensors (torch's convention for their gradients)."""
    if g.is_complex():
        g, f = torch.view_as_real(g), torch.view_as_real(f.resolve_conj())
    return (g * f).sum()


def run_stretch(adjoint: Adjoint, y0: Tensor) -> Outcome:
    """Solve the adjoint's stretch as one autograd node and present it as an ordinary outcome."""
    job = adjoint.job
    s = job.stretch
    saves = None if s.saves is None else s.saves.tensor
    ys, y1 = _Solve.apply(adjoint, y0, s.t0.tensor, s.t1.tensor, saves, *job.params)
    out = job.outcome
    linked = Outcome(out.status, y1, out.t1, message=out.message, crossings=out.crossings)
    if s.saves is not None:
        linked.saved = list(ys.unbind(0))
    else:
        linked.step_states, linked.step_times = list(ys.unbind(0)), list(out.step_times)
    if out.stopped_by is not None:
        linked.stopped_by = link_crossing(job.rhs, job.events, out.stopped_by.index, out.t1.value, y1)
        linked.y1, linked.t1 = linked.stopped_by.y, linked.stopped_by.t
    elif out.status.ok:
        linked.t1 = s.t1
    return linked
