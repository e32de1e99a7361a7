"""A smooth stretch of a solve, by Julia: what lies between two doses or events."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...dae_problem import DAEProblem
from ...dde_problem import DDEProblem
from ...problem import ODEProblem, TimePoint
from ...solution import Status
from ..backend import SolveOptions
from ..common.crossing import Crossing, link_crossing
from ..common.rhs import Rhs
from ..common.stretch import Outcome, Stretch
from .calls import Request, Run, solve
from .events import Watch
from .function import Job, JuliaSolve, packed

#: SciML's return codes that are not a success. Any other failure is reported with Julia's word for it.
_STATUS = {
    "MaxIters": (Status.MAX_STEPS, "max_steps={max_steps} steps were not enough"),
    "DtLessThanMin": (Status.STEP_UNDERFLOW, "the step size fell below what the time can resolve"),
    "DtNaN": (Status.NON_FINITE, "the step size became NaN"),
    "Unstable": (Status.NON_FINITE, "the state became NaN or infinite"),
    "ConvergenceFailure": (Status.NOT_CONVERGED, "an implicit equation could not be solved"),
}


class Stretches:
    """Solves the stretches of one problem, one after the other, and remembers their runs."""

    def __init__(
        self,
        problem: ODEProblem | DAEProblem | DDEProblem,
        rhs: Rhs,
        request: Request,
        options: SolveOptions,
        watch: Watch | None,
    ):
        self.problem, self.rhs, self.request, self.options, self.watch = problem, rhs, request, options, watch
        self.constants = request.model.constants()
        self.runs: list[Run] = []
        self.nf = self.naccept = self.nreject = self.njac = 0

    def whole(self) -> tuple[Run, Tensor, Tensor | None]:
        """The whole problem as one stretch: its run, the states at the save times, and after a failure the last one."""
        problem, saves = self.problem, self.options.saves
        assert saves is not None
        job = Job(self.request, self.constants, alone=True)
        found = JuliaSolve.apply(
            job, problem.packed, problem.t0.tensor, problem.t1.tensor, saves.tensor, *self.request.model.params
        )
        assert job.run is not None
        self._count(job.run)
        self.runs.append(job.run)
        return job.run, *(found if isinstance(found, tuple) else (found, None))

    def run(self, y0: Tensor, s: Stretch) -> Outcome:
        """Solve a stretch from ``y0``, as one node of the autograd graph."""
        saves = () if s.saves is None else s.saves.values
        used = self.naccept + self.nreject
        request = replace(
            self.request,
            t0=s.t0.value,
            t1=s.t1.value,
            saves=saves,
            keep="steps" if s.keep_steps else "end",
            max_steps=self.options.max_steps - used,
        )
        if request.max_steps <= 0:
            return Outcome(
                Status.MAX_STEPS, y0, s.t0, message=f"max_steps={self.options.max_steps} steps were not enough"
            )
        hit, seen = (None, []) if self.watch is None else self._first_event(request, y0)
        if hit is not None:
            when = hit.last_t
            if when == request.t0:  # at the very start: nothing to solve
                return self._ended_by(hit, y0, Outcome(Status.SUCCESS, y0, s.t0))
            saves = tuple(t for t in saves if (when - t) * self.problem.direction >= 0)
            request = replace(request, t1=when, saves=saves)
        job = Job(request, self.constants)
        tensor = None if s.saves is None or s.saves.tensor is None else s.saves.tensor[: len(saves)]
        end = s.t1.tensor if hit is None else None
        ys, y1 = JuliaSolve.apply(job, y0, s.t0.tensor, end, tensor, *self.request.model.params)
        run = job.run
        assert run is not None
        self._count(run)
        self.runs.append(run)
        out = self.outcome(run, ys, y1, s, request)
        if seen and out.status.ok:
            out.crossings = self._crossings(seen, request, y0, s)
        return out if hit is None or not out.status.ok else self._ended_by(hit, y1, out)

    def _first_event(self, request: Request, y0: Tensor) -> tuple[Run | None, list[tuple[int, float]]]:
        """The run that an event ends, if one does, and the events on the way, as (index, time).

        Only that is of interest: what is to be differentiated is solved once more, up to known times.
        """
        assert self.watch is not None
        watched = replace(request, sensitivity=None, saves=(), keep="end", dense=False, watch=self.watch)
        with torch.no_grad():
            run = solve(watched, y0.contiguous(), packed(request, self.request.model.params), self.constants)
        self.nf += run.came.nf
        self.njac += run.came.njac
        return (run if run.event else None), self.watch.seen()

    def _crossings(self, seen: list[tuple[int, float]], request: Request, y0: Tensor, s: Stretch) -> list[Crossing]:
        """The events that are only recorded, with their gradients."""
        times = tuple(dict.fromkeys(when for _, when in seen))
        job = Job(replace(request, t1=times[-1], saves=times, dense=False), self.constants)
        ys, _ = JuliaSolve.apply(job, y0, s.t0.tensor, None, None, *self.request.model.params)
        states = dict(zip(times, ys.unbind(0), strict=True))
        return [link_crossing(self.rhs, self.options.events, index, when, states[when]) for index, when in seen]

    def _ended_by(self, hit: Run, y1: Tensor, out: Outcome) -> Outcome:
        index = hit.event - 1
        out.stopped_by = link_crossing(self.rhs, self.options.events, index, hit.last_t, y1)
        out.y1, out.t1 = out.stopped_by.y, out.stopped_by.t
        return out

    def _count(self, run: Run) -> None:
        came = run.came
        self.nf += came.nf
        self.naccept += came.naccept
        self.nreject += came.nreject
        self.njac += came.njac

    def outcome(self, run: Run, ys: Tensor, y1: Tensor, s: Stretch, request: Request) -> Outcome:
        """A run as the chain of stretches takes it."""
        status, message = self.status(run)
        ended = s.t1 if status.ok and request.t1 == s.t1.value else TimePoint(run.last_t)
        out = Outcome(status, y1, ended, message=message)
        if s.saves is not None:
            out.saved = list(ys.unbind(0))[: len(request.saves)]
        elif s.keep_steps:
            out.step_states, out.step_times = list(ys.unbind(0)), [*run.ts]
            if status.ok and s.t1.tensor is not None and request.t1 == s.t1.value:
                out.step_states[-1], out.step_times[-1] = y1, s.t1.tensor
        return out

    def status(self, run: Run) -> tuple[Status, str]:
        """How a run went, and what to say of a failure."""
        if run.ok:
            return Status.SUCCESS, ""
        if run.retcode in ("Success", "Terminated"):
            return Status.NON_FINITE, "the state became NaN or infinite"
        status, said = _STATUS.get(run.retcode, (Status.NOT_CONVERGED, "Julia's solver gave up"))
        said = said.format(max_steps=self.options.max_steps)
        return status, f"{said} (Julia's return code: {run.retcode})"

    def at(self, t: float) -> Tensor:
        """The dense output at ``t``, as the problem's packed state; at a dose or event the state before it."""
        sign = self.problem.direction
        for run in self.runs:
            if sign * t <= sign * run.last_t or run is self.runs[-1]:
                return run.at(t).reshape(self.problem.packed.shape)
        raise AssertionError("no stretch was solved")
