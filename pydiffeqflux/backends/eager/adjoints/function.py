"""A smooth stretch of a solve as one node of the autograd graph, with an adjoint of the user's choice behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....callbacks import Event
from ....errors import GradientError
from ....methods import Method
from ....problem import SaveTimes, TimePoint
from ....sensealg import SenseAlg
from ..dense import Piecewise
from ..events import differentiable_crossing
from ..integrate import Counts, Integration, Outcome, Settings
from ..joint import Stretch
from ..rhs import Rhs
from ..stepper import Stepper
from .vjp import Vjp


@dataclass
class Job:
    """One stretch to solve and differentiate, and (after the forward pass) what the backward pass needs."""

    rhs: Rhs
    method: Method
    stepper: Stepper
    sensealg: SenseAlg
    settings: Settings
    counts: Counts
    stretch: Stretch
    events: Sequence[Event] = ()
    batched: bool = False
    params: tuple[Tensor, ...] = ()
    adjoint: Adjoint = field(init=False)
    outcome: Outcome = field(init=False)
    #: The times of the rows of the solution that the function returns.
    ts: list[float] = field(init=False)

    @property
    def t0(self) -> float:
        return self.stretch.t0.value

    @property
    def t1(self) -> float:
        """Where the stretch really ended (an event may have cut it short)."""
        return self.outcome.t1.value

    @property
    def vjp(self) -> Vjp:
        return Vjp(self.rhs, self.params)

    def integrate(self, y0: Tensor, pieces: Piecewise | None) -> Outcome:
        """Solve forwards, recording nothing but (where given) the dense output."""
        s = self.stretch
        values = s.saves.values if s.saves is not None else None
        saves = None if values is None else SaveTimes(values)
        with torch.no_grad():
            return Integration(
                self.rhs,
                self.stepper,
                self.settings,
                TimePoint(s.t0.value),
                TimePoint(s.t1.value),
                saves,
                counts=self.counts,
                pieces=pieces,
                events=self.events,
                keep_steps=s.keep_steps,
            ).run(y0)


@dataclass
class Seeds:
    """What the backward pass starts from: the loss's gradient at the saved states and at the end."""

    at_saves: Tensor
    at_end: Tensor


class Adjoint(ABC):
    """One algorithm. Made for one job; keeps from the forward pass what its backward pass wants."""

    #: Whether the forward solve must keep its dense output for the backward pass.
    needs_dense = False

    def __init__(self, job: Job):
        self.job = job
        self.pieces: Piecewise | None = None

    def forward(self, y0: Tensor) -> Outcome:
        """Solve forwards."""
        wanted = self.job.stretch.pieces
        self.pieces = Piecewise(1.0 if self.job.stretch.t1.value > self.job.t0 else -1.0) if self.needs_dense else None
        mark = len(wanted.steps) if wanted is not None else 0
        outcome = self.job.integrate(y0, self.pieces if wanted is None else wanted)
        if wanted is not None and self.pieces is not None:  # the user's dense output serves both
            for t, dt, piece in wanted.steps[mark:]:
                self.pieces.append(t, dt, piece)
            self.pieces.end = wanted.end
        return outcome

    @abstractmethod
    def backward(self, y0: Tensor, ys: Tensor, y1: Tensor, seeds: Seeds) -> tuple[Tensor, list[Tensor]]:
        """The loss's gradient with respect to ``y0`` and to each of ``job.params``."""


class _Solve(torch.autograd.Function):
    """``(y0, t0, t1, saves, *params) -> (ys, y1)``."""

    @staticmethod
    def forward(
        job: Job, y0: Tensor, t0: Tensor | None, t1: Tensor | None, saves: Tensor | None, *params: Tensor
    ) -> tuple[Tensor, Tensor]:
        job.outcome = out = job.adjoint.forward(y0)
        states = out.saved or out.step_states
        if job.stretch.saves is not None:
            job.ts = list(job.stretch.saves.values[: len(states)])
        else:
            job.ts = [float(t) for t in out.step_times]
        ys = torch.stack(states) if states else y0.new_zeros(0, *y0.shape)
        return ys, out.y1.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        job, y0, t0, t1, saves, *params = inputs
        ctx.job = job
        ctx.times = (t0, t1, saves)
        ctx.save_for_backward(y0, *output, *params)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g_ys, g_y1 = grads
        if torch.is_grad_enabled() and (g_ys.requires_grad or g_y1.requires_grad):
            raise GradientError(
                f"{ctx.job.sensealg.name} has no second derivative: differentiate twice with"
                f" sensealg=DiscreteAdjoint()."
            )
        y0, ys, y1, *_ = ctx.saved_tensors
        job: Job = ctx.job
        t0, t1, saves = ctx.times
        with torch.no_grad():
            lam0, mu = job.adjoint.backward(y0, ys, y1, Seeds(g_ys, g_y1))
            g_t0 = g_t1 = g_saves = None
            if t0 is not None:
                g_t0 = -_dot(lam0, job.rhs(job.t0, y0)).to(t0)
            if t1 is not None and job.outcome.stopped_by is None:
                g_t1 = _dot(g_y1, job.rhs(job.t1, y1)).to(t1)
            if saves is not None:
                g_saves = torch.zeros_like(saves)
                for i, t in enumerate(job.ts):
                    g_saves[i] = _dot(g_ys[i], job.rhs(t, ys[i])).to(saves)
        return (None, lam0, g_t0, g_t1, g_saves, *mu)


def _dot(g: Tensor, f: Tensor) -> Tensor:
    """The real inner product, also of complex tensors (torch's convention for their gradients)."""
    if g.is_complex():
        g, f = torch.view_as_real(g), torch.view_as_real(f.resolve_conj())
    return (g * f).sum()


def run_stretch(job: Job, y0: Tensor) -> Outcome:
    """Solve the job's stretch as one autograd node and present it as an ordinary outcome."""
    s = job.stretch
    saves = None if s.saves is None else s.saves.tensor
    ys, y1 = _Solve.apply(job, y0, s.t0.tensor, s.t1.tensor, saves, *job.params)
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


def link_crossing(rhs: Rhs, events: Sequence[Event], index: int, when: float, y: Tensor) -> Any:
    """An event that a stretch ended with, its time made differentiable along the solution's tangent."""
    if not torch.is_grad_enabled():
        from ..events import Crossing

        return Crossing(index, TimePoint(when), y)
    slope = rhs(when, y)

    def path(time: Tensor) -> Tensor:
        return y + slope * (time - time.detach()).to(rhs.time_dtype)

    return differentiable_crossing(rhs, events[index], index, when, path)
