"""One stochastic solve by Julia as a node of the autograd graph: flat tensors in, flat tensors out."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import (
    GradientError,
)
from ..common.sde import Sde
from ..once import once
from .model import Model, addresses
from .noise import Grid
from .session import Session

_NO_SECOND = "backend='julia' has no second derivative of an SDE: differentiate twice with backend='torch'."


@dataclass(frozen=True)
class StochasticSolver:
    """A solver that Julia holds; whether it chooses its steps, and whether it asks for a second Brownian motion."""

    handle: int
    adaptive: bool
    second: bool


class StochasticEquation:
    """Drift and diffusion as Julia knows them."""

    def __init__(self, session: Session, drift: Model, diffusion: Model, sde: Sde, y0: Tensor):
        self.session, self.drift, self.diffusion = session, drift, diffusion
        d = y0.shape[-1]
        rows = y0.numel() // d
        shape = diffusion.kernels.graphs.shape
        # One Brownian motion a row multiplies entry by entry, too, if it is repeated.
        m = 0 if sde.elementwise or sde.noise == "scalar" else shape[-1]
        self.scalar, self.width = sde.noise == "scalar", rows * m
        self.handle: int = session.call("bridge_stochastic", drift.handle, diffusion.handle, rows, d, m, self.scalar)
        weakref.finalize(self, session.drop, self.handle)

    @property
    def params(self) -> list[Tensor]:
        """The tensors that gradients go to: the drift's, then the diffusion's."""
        return [*self.drift.params, *self.diffusion.params]

    def constants(self) -> tuple[Any, Any]:
        return self.drift.constants(), self.diffusion.constants()

    def load(self, constants: tuple[Any, Any]) -> None:
        for model, values in zip((self.drift, self.diffusion), constants, strict=True):
            if values is not None:
                self.session.call("bridge_constants", model.handle, *addresses(values))


@dataclass(frozen=True)
class Back:
    """What the stochastic adjoint runs on: the same equation in Stratonovich's form."""

    equation: StochasticEquation
    constants: tuple[Any, Any]
    checkpointing: bool


@dataclass(frozen=True)
class StochasticRequest:
    """What Julia is to solve on one stretch, besides the initial state and the parameters."""

    equation: StochasticEquation
    solver: StochasticSolver
    sensealg: str | None
    t0: float
    t1: float
    saves: tuple[float, ...]
    keep: str
    rtol: Tensor
    atol: Tensor
    max_steps: int
    stops: tuple[float, ...]
    seed: int
    grid: Grid | None
    options: int
    constants: tuple[Any, Any]
    back: Back | None = None


class StochasticRun:
    """What came of it."""

    def __init__(self, request: StochasticRequest, y0: Tensor, p: Tensor):
        session = request.equation.session
        request.equation.load(request.constants)
        saves, stops = (torch.tensor(x, dtype=torch.float64) for x in (request.saves, request.stops))
        self.last_y = torch.empty_like(y0)
        room = torch.empty(len(saves), y0.numel(), dtype=y0.dtype)
        known = request.grid
        handle, count, *how = session.call(
            "bridge_stochastic_solve",
            request.equation.handle,
            request.solver.handle,
            y0.data_ptr(),
            p.data_ptr(),
            request.t0,
            request.t1,
            saves.data_ptr(),
            len(saves),
            request.keep,
            request.rtol.data_ptr(),
            request.atol.data_ptr(),
            request.rtol.numel(),
            request.max_steps,
            stops.data_ptr(),
            len(stops),
            request.seed,
            0 if known is None else known.ts.data_ptr(),
            0 if known is None else len(known.ts),
            0 if known is None else known.w.data_ptr(),
            0 if known is None or known.z is None else known.z.data_ptr(),
            request.options,
            room.data_ptr() if len(saves) else 0,
            self.last_y.data_ptr(),
        )
        self.session, self.handle = session, handle
        weakref.finalize(self, session.drop, handle)
        self.retcode, self.last_t, self.nf, self.naccept, self.nreject, self.ng, self.finite = how
        if len(saves):
            self.ts, self.ys = list(request.saves[:count]), room[:count]
        else:
            ts = torch.empty(count, dtype=torch.float64)
            self.ys = torch.empty(count, y0.numel(), dtype=y0.dtype)
            session.call("bridge_states", handle, ts.data_ptr(), self.ys.data_ptr())
            self.ts = ts.tolist()


class StochasticJob:
    """A request, and the run that it led to; the end is always saved, for it always matters."""

    def __init__(self, request: StochasticRequest):
        self.asked = request.saves
        if request.saves and request.saves[-1] != request.t1:
            request = replace(request, saves=(*request.saves, request.t1))
        self.request = request
        self.run: StochasticRun | None = None


class StochasticSolve(torch.autograd.Function):
    """``(job, y0, *params) -> (ys, y1)``: the states at the saved times, and where it ended."""

    @staticmethod
    def forward(job: StochasticJob, y0: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        job.run = run = StochasticRun(job.request, y0.detach().reshape(-1).contiguous(), _packed(params, y0.dtype))
        ys = run.ys.reshape(-1, *y0.shape)
        return ys[: len(job.asked)] if job.asked else ys, run.last_y.reshape(y0.shape).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.job, y0, *params = inputs
        ctx.save_for_backward(y0, *params)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and any(g.requires_grad for g in grads):
            raise GradientError(_NO_SECOND)
        y0, *params = ctx.saved_tensors
        job: StochasticJob = ctx.job
        run, request = job.run, job.request
        assert run is not None and request.sensealg is not None
        seeds = torch.zeros(len(run.ts), y0.numel(), dtype=y0.dtype)
        seeds[: len(grads[0])] = grads[0].reshape(len(grads[0]), -1)
        seeds[-1] += grads[1].reshape(-1)
        to_y0 = torch.zeros(y0.numel(), dtype=y0.dtype)
        to_p = torch.zeros(sum(x.numel() for x in params), dtype=y0.dtype)
        if request.back is None:
            request.equation.load(request.constants)
            run.session.call(
                "bridge_stochastic_gradient",
                run.handle,
                request.solver.handle,
                request.sensealg,
                seeds.data_ptr(),
                to_y0.data_ptr(),
                to_p.data_ptr(),
            )
            split = to_p.split([x.numel() for x in params]) if params else ()
        else:
            split = _backsolved(run, request, request.back, seeds, to_y0, params)
        found = (g.reshape(x.shape).to(x) for g, x in zip(split, params, strict=True))
        return (None, *once(_NO_SECOND, (to_y0.reshape(y0.shape), *found), (y0, *params)))


def _backsolved(
    run: StochasticRun, request: StochasticRequest, back: Back, seeds: Tensor, to_y0: Tensor, params: list[Tensor]
) -> list[Tensor]:
    """The gradients of the parameters by the stochastic adjoint; that of the initial state is written to ``to_y0``."""
    own, mine = back.equation.params, request.equation.params
    # The values of the forward solve; the other form of the equation uses the same tensors, in another order.
    values = {id(x): value for x, value in zip(mine, params, strict=True)}
    p = _packed(tuple(values[id(x)] for x in own), to_y0.dtype)
    to_p = torch.zeros_like(p)
    back.equation.load(back.constants)
    run.session.call(
        "bridge_stochastic_backsolve",
        run.handle,
        back.equation.handle,
        p.data_ptr(),
        seeds.data_ptr(),
        to_y0.data_ptr(),
        to_p.data_ptr(),
        back.checkpointing,
    )
    found = {id(x): torch.zeros(x.numel(), dtype=p.dtype) for x in mine}
    for x, g in zip(own, to_p.split([x.numel() for x in own]) if own else (), strict=True):
        found[id(x)] += g
    # A tensor that drift and diffusion share is listed twice, and its gradient counted once.
    return [found.pop(id(x), torch.zeros(x.numel(), dtype=p.dtype)) for x in mine]


def _packed(params: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    return torch.cat([x.detach().reshape(-1).to(dtype) for x in params]) if params else torch.zeros(0, dtype=dtype)
