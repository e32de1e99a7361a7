"""``backend="diffeqflux"``: DiffEqFlux.jl's own ``NeuralODE`` around a traced module, differentiated by Zygote.

The same equation as on ``backend="julia"``, by the way that a Julia program goes: the module is a Lux layer with a
ChainRules rule made of the traced products. That way is slower by far; it is there to compare with.
"""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import sensealg as sensealgs
from ...controllers import PIDController
from ...errors import GradientError, UnsupportedError
from ...methods import Method
from ...problem import ODEProblem
from ...sensealg import SenseAlg
from ...solution import Solution, Stats, Status
from ...tracking import transforming
from ..backend import Problem, SolveOptions
from ..common.failure import failure
from ..common.rhs import Rhs
from ..once import once
from .engine import _keywords, _require, _stops, _tolerances, _Tools
from .model import Model, addresses
from .session import session
from .stretches import _STATUS

_NO_SECOND = "backend='diffeqflux' has no second derivative: differentiate twice with backend='torch'."
_KNOWN = (
    sensealgs.InterpolatingAdjoint,
    sensealgs.GaussAdjoint,
    sensealgs.QuadratureAdjoint,
    sensealgs.BacksolveAdjoint,
)


class DiffEqFluxBackend:
    """``backend="diffeqflux"``."""

    name = "diffeqflux"

    def solve(self, problem: Problem, method: Method, options: SolveOptions) -> Solution:
        began = time.perf_counter()
        assert_layer(problem, options)
        assert isinstance(problem, ODEProblem)
        tools = _Tools.of(session())
        rhs = Rhs(problem.func, problem.spec, problem.packed)
        t0 = torch.scalar_tensor(problem.t0.value, dtype=problem.packed.dtype)
        model = tools.models.get(problem.func, rhs.evaluate, t0, problem.packed.detach(), "the right-hand side")
        model.need("vjp")
        solver = tools.solvers.get(method)
        keywords = _keywords(problem, method, options)
        stops = _stops(method, options)
        if stops:
            raise UnsupportedError("tstops on backend='diffeqflux' do not exist: use backend='julia'.")
        saves = (problem.t1.value,) if options.saves is None else options.saves.values
        call = _Call(
            model,
            solver.handle,
            _sensealg(options.sensealg),
            _depends_on_time(model),
            problem.t0.value,
            problem.t1.value,
            saves,
            *_tolerances(problem.packed, options),
            options.max_steps,
            tools.session.call("bridge_options", keywords) if keywords else 0,
        )
        ys: Tensor = _Layer.apply(call, problem.packed, *model.params)
        status, message = call.status()
        states = ys if problem.spec is None else problem.spec.unflatten(ys)
        solution = Solution(torch.tensor(saves[: len(ys)], dtype=torch.float64), states, Stats(), status)
        solution.stats = Stats(
            nf=call.nf,
            time=time.perf_counter() - began,
            backend=self.name,
            method=str(method),
            sensealg=(call.sensealg or "InterpolatingAdjoint") if torch.is_grad_enabled() else "none",
            reason="the layer's default" if not call.sensealg else "asked for",
        )
        if options.throw and not status.ok:
            span = problem.t0.value, problem.t1.value
            raise failure(status, message, saves[max(len(ys) - 1, 0)], span, method)
        return solution


def assert_layer(problem: Problem, options: SolveOptions) -> None:
    """Raise for what a layer of DiffEqFlux does not take, or take from here."""
    _require(problem, options)
    if not isinstance(problem, ODEProblem):
        raise UnsupportedError(
            f"a {type(problem).__name__} on backend='diffeqflux' does not exist: use backend='julia' or 'torch'."
        )
    ends = (problem.t0.tensor, problem.t1.tensor, None if options.saves is None else options.saves.tensor)
    missing = {
        "a gradient of times": torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in ends),
        "event": bool(options.events),
        "callbacks": bool(options.doses),
        "fallback": options.fallback is not None,
        "progress": options.progress,
        "controller": options.controller != PIDController(),
        "a torch.func transform": transforming(),
        "every step (saveat=None with save_everystep=True)": options.saves is None and options.unsaved == "steps",
    }
    for name, wanted in missing.items():
        if wanted:
            raise UnsupportedError(f"{name} on backend='diffeqflux' does not exist: use backend='julia'.")


def _sensealg(chosen: SenseAlg | None) -> str:
    """A sensitivity algorithm by its name; empty leaves it to the layer."""
    if chosen is None:
        return ""
    if type(chosen) not in _KNOWN or chosen != type(chosen)():
        raise UnsupportedError(
            f"sensealg={chosen} on backend='diffeqflux' does not exist: the layer takes"
            f" {', '.join(kind.__name__ for kind in _KNOWN)} without options; backend='julia' takes more."
        )
    return chosen.name


def _depends_on_time(model: Model) -> bool:
    first = next(n for n in model.kernels.graphs.forward.nodes if n.op == "placeholder")
    return bool(first.users)


@dataclass
class _Call:
    """A layer's call, and what came of it."""

    model: Model
    solver: int
    sensealg: str
    timed: bool
    t0: float
    t1: float
    saves: tuple[float, ...]
    rtol: Tensor
    atol: Tensor
    max_steps: int
    options: int
    handle: int = 0
    retcode: str = ""
    nf: int = 0
    finite: bool = True

    def run(self, y0: Tensor, p: Tensor) -> Tensor:
        """The states ``(T, n)``."""
        running = self.model.session
        constants = self.model.constants()
        if constants is not None:
            running.call("bridge_constants", self.model.handle, *addresses(constants))
        saves = torch.tensor(self.saves, dtype=torch.float64)
        self.handle, count, self.retcode, self.nf = running.call(
            "bridge_layer",
            self.model.handle,
            self.timed,
            self.solver,
            self.sensealg,
            y0.data_ptr(),
            p.data_ptr(),
            self.t0,
            self.t1,
            saves.data_ptr(),
            len(saves),
            self.rtol.data_ptr(),
            self.atol.data_ptr(),
            self.rtol.numel(),
            self.max_steps,
            self.options,
        )
        weakref.finalize(self, running.drop, self.handle)
        ys = torch.empty(count, y0.numel(), dtype=y0.dtype)
        running.call("bridge_layer_states", self.handle, ys.data_ptr())
        self.finite = bool(ys.isfinite().all())
        return ys

    def status(self) -> tuple[Status, str]:
        """How it went, and what to say of a failure."""
        if self.retcode == "Success":
            return (Status.SUCCESS, "") if self.finite else (Status.NON_FINITE, "the state became NaN or infinite")
        status, said = _STATUS.get(self.retcode, (Status.NOT_CONVERGED, "Julia's solver gave up"))
        return status, f"{said.format(max_steps=self.max_steps)} (Julia's return code: {self.retcode})"


class _Layer(torch.autograd.Function):
    """``(call, y0, *params) -> ys``."""

    @staticmethod
    def forward(call: _Call, y0: Tensor, *params: Tensor) -> Tensor:
        flat = [x.detach().reshape(-1).to(y0.dtype) for x in params]
        p = torch.cat(flat) if flat else torch.zeros(0, dtype=y0.dtype)
        return call.run(y0.detach().reshape(-1).contiguous(), p).reshape(-1, *y0.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.call, y0, *params = inputs
        ctx.save_for_backward(y0, *params)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and any(g.requires_grad for g in grads):
            raise GradientError(_NO_SECOND)
        y0, *params = ctx.saved_tensors
        call: _Call = ctx.call
        seeds = grads[0].reshape(len(grads[0]), -1).to(y0.dtype).contiguous()
        to_y0 = torch.zeros(y0.numel(), dtype=y0.dtype)
        to_p = torch.zeros(sum(x.numel() for x in params), dtype=y0.dtype)
        call.model.session.call(
            "bridge_layer_gradient", call.handle, seeds.data_ptr(), to_y0.data_ptr(), to_p.data_ptr(), to_p.numel()
        )
        split = to_p.split([x.numel() for x in params]) if params else ()
        found = (g.reshape(x.shape).to(x) for g, x in zip(split, params, strict=True))
        return (None, *once(_NO_SECOND, (to_y0.reshape(y0.shape), *found), (y0, *params)))
