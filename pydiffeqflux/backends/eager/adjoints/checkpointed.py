"""DiscreteAdjoint(checkpoints=...): the discrete adjoint in the memory of a few states.

The forward solve records the sequence of accepted steps (two numbers each) and keeps a snapshot now and
then. Each segment between two snapshots is one autograd node, whose backward pass takes the same steps
again, recorded this time. Because that backward pass is made of differentiable operations on the node's own
inputs, it can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ....errors import GradientError
from ....instead import Instead, depends_on, origins_of
from ....problem import SaveTimes, TimePoint
from ....sensealg import DiscreteAdjoint
from ....solution import Status
from ...common.autocast import without_autocast
from ...common.capture import partial
from ...common.crossing import link_crossing
from ...common.stretch import Outcome
from ..integrate import Counts, Integration
from .job import Job

Rebuild = Callable[[list[Tensor]], Any]


@dataclass
class Snapshot:
    """Where the solve stood before one of its steps."""

    step: int
    t: float
    y: Tensor
    carry: Any
    next_save: int
    #: States collected so far: saved ones, or (without save times) one a step.
    rows: int


@dataclass
class Recorder:
    """Accepted steps, and snapshots: at most ``limit`` of them, or about the square root of the steps."""

    limit: int | None
    steps: list[tuple[float, float | None]] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    spacing: int = 1

    def __call__(self, now: Integration, dt: float, target: float | None) -> None:
        if len(self.steps) % self.spacing == 0:
            rows = len(now.out.saved) + len(now.out.step_states)
            self.snapshots.append(Snapshot(len(self.steps), now.t, now.y, now.carry, now.next_save, rows))
            if len(self.snapshots) > (self.limit if self.limit is not None else 2 * self.spacing):
                # Every other one goes, and the spacing doubles: the count stays between half and full.
                self.snapshots = self.snapshots[::2]
                self.spacing *= 2
        self.steps.append((dt, target))


@dataclass
class Segment:
    """The steps from one snapshot to the next."""

    job: Job
    start: Snapshot
    steps: list[tuple[float, float | None]]
    #: What the forward solve found at the end, without a graph: state, carry, and the states collected.
    y1: Tensor
    carry1: Any
    rows: list[Tensor]
    #: Where an event cut the last step short.
    crossing: float | None

    def replay(self, y: Tensor, carry: Any, clock: Tensor | None, end: Tensor | None, saves: Tensor | None) -> Replay:
        """Take the steps again; the loop that did holds where it arrived."""
        s, job = self.job.stretch, self.job
        times = None if s.saves is None else SaveTimes(s.saves.values, saves)
        loop = Replay(
            job.rhs,
            job.stepper,
            replace(job.settings, progress=None, on_step=None, on_accept=None),
            TimePoint(self.start.t, clock),
            TimePoint(s.t1.value, end),
            times,
            counts=Counts(),
            keep_steps=s.keep_steps,
        )
        loop.replay(self, y, carry)
        return loop


class Replay(Integration):
    """Takes recorded steps again, without judging them."""

    def replay(self, segment: Segment, y: Tensor, carry: Any) -> None:
        start = segment.start
        self.t, self.y, self.carry, self.next_save = start.t, y, carry, start.next_save
        self.out = Outcome(Status.SUCCESS, y, self.t0)
        self.dt = None
        self.plan_stops()
        if start.step == 0:
            self.next_save = 0
            self.carry = self.stepper.start(self.rhs, self.now(), y)
            self.save_start(y)
        for i, (dt, target) in enumerate(segment.steps):
            size = self.size(dt, target)
            step = self.stepper.step(self.rhs, self.now(), size, self.y, self.carry)
            if segment.crossing is not None and i == len(segment.steps) - 1:
                piece = step.interpolant()
                self.save_inside(piece, segment.crossing, size)
                self.y, self.carry = piece.at([(segment.crossing - self.t) / dt])[0], None
            else:
                self.advance(step, dt, size, target)
        self.rhs.fence()

    @property
    def rows(self) -> list[Tensor]:
        return self.out.saved or self.out.step_states


class _Segment(torch.autograd.Function):
    """``(y, clock, end, saves, *carry, *params) -> (y1, clock1, *carry1, *rows)``."""

    @staticmethod
    def forward(ctx: Any, segment: Segment, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.segment = segment
        ctx.present = [x is not None for x in inputs]
        ctx.save_for_backward(*(x for x in inputs if x is not None))
        clock1 = None
        if inputs[1] is not None:
            clock1 = inputs[1].new_tensor(segment.start.t + sum(dt for dt, _ in segment.steps))
        outputs = (segment.y1, clock1, *carry_tensors(segment.carry1)[0], *segment.rows)
        return tuple(None if x is None else x.clone() for x in outputs)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if here else None for here in ctx.present]
        if torch.is_grad_enabled():
            return (None, *_SegmentGradient.apply(ctx.segment, len(inputs), *inputs, *grads))
        found, _ = _differentiate(ctx.segment, inputs, grads, create_graph=False)
        return (None, *found)


class _SegmentGradient(torch.autograd.Function):
    """The backward pass of a segment as a function of its own, so that it has a derivative too."""

    @staticmethod
    def forward(ctx: Any, segment: Segment, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.segment, ctx.count = segment, count
        ctx.present = [x is not None for x in tensors]
        ctx.save_for_backward(*(x for x in tensors if x is not None))
        found, _ = _differentiate(segment, tensors[:count], tensors[count:], create_graph=False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise GradientError(
                "DiscreteAdjoint(checkpoints=...) has two derivatives; a third needs DiscreteAdjoint() without"
                " checkpoints."
            )
        saved = iter(ctx.saved_tensors)
        tensors = [next(saved) if here else None for here in ctx.present]
        seeds = [
            None if g is None else g.detach().requires_grad_(g.is_floating_point() or g.is_complex())
            for g in tensors[ctx.count :]
        ]
        found, at = _differentiate(ctx.segment, tensors[: ctx.count], seeds, create_graph=True)
        inputs = [*at, *seeds]
        wanted = [i for i, x in enumerate(inputs) if x is not None and x.requires_grad]
        pairs = [
            (f, g) for f, g in zip(found, grads, strict=True) if f is not None and g is not None and f.requires_grad
        ]
        result: list[Tensor | None] = [None] * len(inputs)
        if pairs and wanted:
            values = torch.autograd.grad(
                [f for f, _ in pairs],
                [inputs[i] for i in wanted],  # type: ignore[arg-type]
                [g for _, g in pairs],
                retain_graph=True,
                allow_unused=True,
            )
            for i, value in zip(wanted, values, strict=True):
                result[i] = value
        return (None, None, *result)


def _differentiate(
    segment: Segment, inputs: Sequence[Tensor | None], seeds: Sequence[Tensor | None], *, create_graph: bool
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradients of the segment's inputs for those of its outputs, and the inputs they were taken at.

    Those are fresh leaves, cut off from the segments before; only the parameters are themselves, because the
    function holds on to them. Where one of these was computed from another one, and a second derivative is wanted,
    leaves stand for them, too: their own history is not to be differentiated here.
    """
    first = len(inputs) - len(segment.job.params)
    params = segment.job.params
    origins = origins_of(params) if create_graph else set()
    ours = [x.detach().requires_grad_() if origins else x for x in params]
    instead = Instead({id(x): mine for x, mine in zip(params, ours, strict=True)}) if origins else nullcontext()
    with torch.enable_grad(), instead:
        at = [None if x is None else x.detach().requires_grad_() for x in inputs[:first]]
        at += ours
        _, rebuild = carry_tensors(segment.start.carry)
        y, clock, end, saves, *carry = at[:first]
        assert y is not None
        loop = segment.replay(y, rebuild([c for c in carry if c is not None]), clock, end, saves)
        carry1 = [] if segment.carry1 is None else carry_tensors(loop.carry)[0]
        outputs = (loop.y, loop.clock, *carry1, *loop.rows)
        pairs = [
            (o, g) for o, g in zip(outputs, seeds, strict=True) if o is not None and g is not None and o.requires_grad
        ]
        if any(depends_on(o, origins) for o, _ in pairs):
            raise GradientError(
                "the second derivative of DiscreteAdjoint(checkpoints=...) with a computed tensor that func passes to"
                " an autograd.Function: take DiscreteAdjoint() without checkpoints, or pass a leaf."
            )
        wanted = [i for i, x in enumerate(at) if x is not None and x.requires_grad]
        values = torch.autograd.grad(
            [o for o, _ in pairs],
            [at[i] for i in wanted],  # type: ignore[arg-type]
            [g for _, g in pairs],
            create_graph=create_graph,
            retain_graph=True,
            allow_unused=True,
        )
    found: list[Tensor | None] = [None] * len(at)
    for i, value in zip(wanted, values, strict=True):
        found[i] = value
    if not create_graph:
        mine, totals = [x for x in at[first:] if x is not None], found[first:]
        filled = [torch.zeros_like(x) if g is None else g for x, g in zip(mine, totals, strict=True)]
        found[first:] = partial(mine, filled)
    return found, at


def run_checkpointed(job: Job, y0: Tensor) -> Outcome:
    """Solve a stretch, keeping snapshots, and chain its segments as autograd nodes."""
    sense = job.sensealg
    assert isinstance(sense, DiscreteAdjoint)
    recorder = Recorder(sense.checkpoints if isinstance(sense.checkpoints, int) else None)
    settings = job.settings
    job.settings = replace(settings, recorder=recorder)
    job.outcome = out = job.integrate(y0, job.stretch.pieces)
    job.settings = settings
    if not recorder.steps:
        return out
    return _chain(job, recorder, y0, out)


def _segments(job: Job, recorder: Recorder, out: Outcome) -> list[Segment]:
    states = out.saved or out.step_states
    shots = recorder.snapshots
    segments = []
    for i, shot in enumerate(shots):
        last = i == len(shots) - 1
        upto = len(recorder.steps) if last else shots[i + 1].step
        segments.append(
            Segment(
                job,
                shot,
                recorder.steps[shot.step : upto],
                out.y1 if last else shots[i + 1].y,
                None if last else shots[i + 1].carry,
                states[0 if i == 0 else shot.rows : len(states) if last else shots[i + 1].rows],
                job.t1 if last and out.stopped_by is not None else None,
            )
        )
    return segments


def _chain(job: Job, recorder: Recorder, y0: Tensor, out: Outcome) -> Outcome:
    s = job.stretch
    saves = None if s.saves is None else s.saves.tensor
    timed = s.t0.differentiable or s.t1.differentiable
    wide = torch.float32 if y0.device.type == "mps" else torch.float64
    as_clock = lambda p: (p.tensor if p.differentiable else torch.tensor(p.value)).to(y0.device, wide)  # noqa: E731
    clock, end = (as_clock(s.t0), as_clock(s.t1)) if timed else (None, None)
    y, rows = y0, []
    segments = _segments(job, recorder, out)
    carry: list[Tensor] = carry_tensors(segments[0].start.carry)[0]
    for segment in segments:
        outputs = _Segment.apply(segment, y, clock, end, saves, *carry, *job.params)
        width = len(carry_tensors(segment.carry1)[0])
        y, clock = outputs[:2]
        carry = list(outputs[2 : 2 + width])
        rows += outputs[2 + width :]
    linked = Outcome(out.status, y, out.t1 if out.stopped_by or not out.status.ok else s.t1, message=out.message)
    linked.crossings = out.crossings
    if s.saves is not None:
        linked.saved = rows
    else:
        linked.step_states, linked.step_times = rows, list(out.step_times)
    if out.stopped_by is not None:
        linked.stopped_by = link_crossing(job.rhs, job.events, out.stopped_by.index, job.t1, y)
        linked.y1, linked.t1 = linked.stopped_by.y, linked.stopped_by.t
    return linked


def carry_tensors(carry: Any) -> tuple[list[Tensor], Rebuild]:
    """The floating tensors of a method's carry, and how to put others in their places.

    Only tuples are looked into: what a carry keeps in other objects (a factorised Newton matrix, say) are
    constants that no gradient passes through.
    """
    found: list[Tensor] = []

    def walk(value: Any) -> Callable[[Any], Any]:
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            found.append(value)
            return next
        if isinstance(value, tuple | list):
            parts = [walk(v) for v in value]
            if hasattr(value, "_fields"):
                return lambda it: type(value)(*(p(it) for p in parts))
            return lambda it: type(value)(p(it) for p in parts)
        return lambda it: value

    build = walk(carry)
    return found, lambda tensors: build(iter(tensors))
