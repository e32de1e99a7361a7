"""Delay equations by DelayDiffEq, and gradients by dual numbers through its solver."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...dde_problem import DDEProblem, checked_lag
from ...errors import DelaySensitivityError, GradientError, UnsupportedError
from ..backend import SolveOptions
from ..common.rhs import Rhs
from ..common.stretch import Outcome, Stretch
from ..once import once
from .calls import Request, Run
from .direct import Came
from .model import Constants, Model, Models, addresses
from .session import Session
from .stretches import Stretches

#: What gradients come from: Julia's name for it.
SENSITIVITY = "ForwardDiffSensitivity"

_NO_SECOND = (
    "backend='julia' has no second derivative: differentiate twice with backend='torch', whose gradient of a DDEProblem"
    " can be."
)


def check(problem: DDEProblem, options: SolveOptions) -> None:
    """Whether Julia solves, and differentiates, this.

    Raises:
        UnsupportedError: a constant lag that requires a gradient, or a time that does; events, callbacks.
        DelaySensitivityError: another algorithm than the one there is.
    """
    instead = "solve with backend='torch'."
    for lag in problem.delays:
        if lag.tensor is not None and torch.is_grad_enabled():
            raise UnsupportedError(
                f"{lag.name}={lag.value} requires a gradient, and constant lags of SciML's have none: detach it, or"
                f" {instead}"
            )
    times = {"t_span": (problem.t0.tensor, problem.t1.tensor), "saveat": (options.saves and options.saves.tensor,)}
    for name, tensors in times.items():
        if torch.is_grad_enabled() and any(x is not None for x in tensors):
            raise UnsupportedError(
                f"{name} requires a gradient, which a DDEProblem has in its state and parameters only on"
                f" backend='julia': detach it, or {instead}"
            )
    for name, given in (("event", options.events), ("callbacks", options.doses)):
        if given:
            raise UnsupportedError(f"{name} with a DDEProblem does not exist on backend='julia' yet: {instead}")
    chosen = options.sensealg
    if chosen is not None and chosen.name != SENSITIVITY:
        raise DelaySensitivityError(
            f"sensealg={chosen} does not exist for a DDEProblem on backend='julia', where {SENSITIVITY} differentiates"
            f" it: leave sensealg out; or take backend='torch', which has DiscreteAdjoint()."
        )


class Equation:
    """A delay equation as Julia knows it: its right-hand side, its history, and the tensors that both use."""

    def __init__(self, session: Session, models: Models, problem: DDEProblem):
        y0, spec, count = problem.packed.detach(), problem.spec, len(problem.delays)
        t0 = torch.scalar_tensor(problem.t0.value, dtype=y0.dtype)
        unpack: Callable[[Tensor], Any] = (lambda x: x) if spec is None else spec.unflatten
        history = problem.past

        def side(t: Tensor, z: Tensor) -> Tensor:
            out: Any = problem.func(t, *(unpack(state) for state in z.unbind(0)))
            return out if spec is None else spec.flatten(out)

        checked = Rhs(lambda t, y: problem.func(t, y, *[y] * count), spec, y0)
        with torch.no_grad():
            checked(problem.t0.value, y0)  # its result is checked, and its failure explained
        self.model: Model = models.get(
            problem.func, side, t0, torch.stack([y0] * (1 + count)), "the right-hand side of the DDEProblem", spec
        )
        self.before: Model | None = None
        last = y0 if history.state is None else history.state.detach()
        if history.func is not None:
            with torch.no_grad():
                last = history.at(t0)

            def before(t: Tensor, unused: Tensor) -> Tensor:
                out: Any = history.func(t)
                return out if spec is None else spec.flatten(out)

            self.before = models.get(history.func, before, t0, y0.new_zeros(1), "the history of the DDEProblem", spec)
        self.moving = [
            models.get(lag.func, self._lag(lag.name, lag.func, unpack), t0, y0, f"{lag.name}(t, y)", spec)
            for lag in problem.delays
            if lag.func is not None
        ]
        #: The state that held before the start, where it was one.
        self.state = history.state
        close = torch.isclose(last, y0, rtol=8 * torch.finfo(y0.dtype).eps, atol=0.0)
        if self.moving and not bool(close.all()) and sensealg_for(self, problem)[0] != "none":
            raise UnsupportedError(
                "history ends elsewhere than y0 begins, and lags that are functions of time and state move the times at"
                " which that jump comes back, of which backend='julia' has no derivatives: let history(t0) be y0, or"
                " solve with backend='torch'."
            )
        lags = torch.tensor([lag.value if lag.constant else math.nan for lag in problem.delays], dtype=torch.float64)
        self.session, self.n = session, y0.numel()
        self.handle: int = session.call(
            "bridge_delayed",
            self.model.handle,
            0 if self.before is None else self.before.handle,
            lags.data_ptr(),
            count,
            self.n,
            1 if bool(close.all()) else 0,
            *(m.handle for m in self.moving),
        )
        weakref.finalize(self, session.drop, self.handle)

    @property
    def tensors(self) -> list[Tensor]:
        """What gradients go to besides the initial state, in the order in which Julia has them."""
        rest = self.before.params if self.before is not None else [] if self.state is None else [self.state]
        return [*self.model.params, *rest, *(x for m in self.moving for x in m.params)]

    def constants(self) -> list[Constants]:
        """The values of the tensors that are not differentiated, as they are now."""
        return [model.constants() for model in self._models()]

    def _models(self) -> list[Model]:
        return [self.model, *([] if self.before is None else [self.before]), *self.moving]

    @staticmethod
    def _lag(name: str, func: Any, unpack: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
        def value(t: Tensor, y: Tensor) -> Tensor:
            return checked_lag(name, func(t, unpack(y))).reshape(1)

        return value


def sensealg_for(equation: Equation, problem: DDEProblem) -> tuple[str, str]:
    """The name of the algorithm, or "none", and why."""
    if not torch.is_grad_enabled():
        return "none", "gradients are disabled"
    if not any(x.requires_grad for x in (problem.packed, *equation.tensors)):
        return "none", "nothing requires a gradient"
    return SENSITIVITY, "what differentiates delay equations in Julia"


@dataclass
class Job:
    """A request, and the run that it led to; see :class:`.function.Job`."""

    equation: Equation
    request: Request
    constants: list[Constants]
    chunk: int
    asked: tuple[float, ...]
    run: Run | None = None

    @property
    def kept(self) -> int:
        """How many of the states that came back are those asked for; behind them may be the last one."""
        assert self.run is not None
        return sum(t in self.asked for t in self.run.ts) if self.asked else len(self.run.ts)

    @property
    def addresses(self) -> list[int]:
        """Of the constants, as Julia takes them."""
        return [address for each in self.constants for address in addresses(each)]


class DelayedStretches(Stretches):
    """Solves a delay equation as one stretch."""

    request: Request

    def __init__(self, problem: DDEProblem, rhs: Rhs, equation: Equation, request: Request, options: SolveOptions):
        super().__init__(problem, rhs, request, options, None)
        self.equation, self.values = equation, equation.constants()
        self.chunk = getattr(options.sensealg, "chunk_size", None) or 0

    def run(self, y0: Tensor, s: Stretch) -> Outcome:
        asked = () if s.saves is None else s.saves.values
        # The end is returned, too: the loss may see it alone.
        saves = (*asked, s.t1.value) if asked and asked[-1] != s.t1.value else asked
        request = replace(self.request, saves=saves, keep="steps" if s.keep_steps else "end")
        job = Job(self.equation, request, self.values, self.chunk, asked)
        ys, y1 = DelayedSolve.apply(job, y0, *self.equation.tensors)
        assert job.run is not None
        self._count(job.run)
        self.runs.append(job.run)
        return self.outcome(job.run, ys, y1, s, replace(request, saves=asked))


class DelayedSolve(torch.autograd.Function):
    """``(job, y0, *tensors) -> (ys, y1)``: the states at the saved times, and where it ended."""

    @staticmethod
    def forward(job: Job, y0: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        job.run = run = _solve(job, y0.detach().reshape(-1).contiguous(), _flat(tensors, y0.dtype))
        ys = run.ys.reshape(-1, *y0.shape)
        return ys[: job.kept], run.last_y.reshape(y0.shape).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.job, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and any(g.requires_grad for g in grads):
            raise GradientError(_NO_SECOND)
        job: Job = ctx.job
        y0, *tensors = ctx.saved_tensors
        run, (g_ys, g_y1) = job.run, grads
        assert run is not None
        with torch.no_grad():
            seeds = torch.zeros(len(run.ts), y0.numel(), dtype=y0.dtype)
            seeds[: len(g_ys)] = g_ys.reshape(len(g_ys), -1)
            seeds[-1] += g_y1.reshape(-1)
            to_y0 = torch.zeros(y0.numel(), dtype=y0.dtype)
            to_p = torch.zeros(sum(x.numel() for x in tensors), dtype=y0.dtype)
            job.equation.session.call(
                "bridge_delayed_gradient",
                run.handle,
                seeds.data_ptr(),
                to_y0.data_ptr(),
                to_p.data_ptr(),
                job.chunk,
                *job.addresses,
            )
        parts = to_p.split([x.numel() for x in tensors]) if tensors else ()
        found = (g.reshape(x.shape).to(x) for g, x in zip(parts, tensors, strict=True))
        return (None, *once(_NO_SECOND, (to_y0.reshape(y0.shape), *found), (y0, *tensors)))


def _flat(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    flat = [x.detach().reshape(-1).to(dtype) for x in tensors]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=dtype)


def _solve(job: Job, y0: Tensor, p: Tensor) -> Run:
    """Solve from ``y0 (n,)`` with the parameters ``p``."""
    request, session = job.request, job.equation.session
    saves, stops = (torch.tensor(x, dtype=torch.float64) for x in (request.saves, request.stops))
    last = torch.empty_like(y0)
    handle, count, retcode, t, nf, naccept, nreject, finite = session.call(
        "bridge_delayed_solve",
        job.equation.handle,
        request.solver.handle,
        y0.data_ptr(),
        p.data_ptr(),
        p.numel(),
        request.t0,
        request.t1,
        saves.data_ptr(),
        len(saves),
        request.keep,
        request.dense,
        request.rtol.data_ptr(),
        request.atol.data_ptr(),
        request.rtol.numel(),
        request.max_steps,
        stops.data_ptr(),
        len(stops),
        0 if request.options is None else request.options.handle,
        last.data_ptr(),
        *job.addresses,
    )
    came = Came(
        run=handle, count=count, retcode=retcode, t=t, nf=nf, naccept=naccept, nreject=nreject, finite=finite
    )  # fmt: skip
    ts, ys = torch.empty(count, dtype=torch.float64), torch.empty(count, y0.numel(), dtype=y0.dtype)
    run = Run(session, came, (), ys, last)
    session.call("bridge_states", handle, ts.data_ptr(), ys.data_ptr())
    run.ts = tuple(ts.tolist())
    return run
