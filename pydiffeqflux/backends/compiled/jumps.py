"""A compiled solve with events and doses: compiled stretches, joined as the eager ones are.

What happens between two stretches (``affect``, and the gradient of an event's time) is a few torch operations.
"""

from __future__ import annotations

import copy
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...methods import Method
from ...problem import ODEProblem, TimePoint
from ...sensealg import SenseAlg
from ...solution import Solution, Stats, Status
from ..backend import SolveOptions
from ..common.chain import assemble, chain
from ..common.crossing import Crossing, differentiable_crossing
from ..common.rhs import Rhs
from ..common.stretch import Outcome, Stretch
from .again import solve_again
from .dense import DenseOutput, Part, piece_of
from .forward import Forward
from .loops import layout as at
from .model import Arguments, Model
from .observed import Observation, observe
from .plan import make
from .watch import Seen, Watch


@dataclass
class Jumping:
    """One solve, stretch by stretch; ``run`` is the chain's runner."""

    problem: ODEProblem
    method: Method
    options: SolveOptions
    model: Model
    given: Arguments
    sensealg: SenseAlg | None
    parts: list[Part] = field(default_factory=list)
    steps: list[int] = field(default_factory=lambda: [0, 0])
    nf: int = 0
    njac: int = 0

    def __post_init__(self) -> None:
        self.rhs = Rhs(self.problem.func, self.problem.spec, self.problem.packed)
        self.watch = Watch(self.problem, self.options.events) if self.options.events else None

    @property
    def records(self) -> bool:
        return self.sensealg is not None

    def run(self, y0: Tensor, stretch: Stretch) -> Outcome:
        """Solve one stretch."""
        left = self.options.max_steps - sum(self.steps)
        if left <= 0:
            message = f"max_steps={self.options.max_steps} steps were not enough"
            return Outcome(Status.MAX_STEPS, y0, stretch.t0, message=message)
        problem = _stretch_of(self.problem, y0, stretch)
        options = replace(
            self.options, saves=stretch.saves, events=(), doses=(), max_steps=left,
            unsaved="steps" if stretch.keep_steps else "end",
        )  # fmt: skip
        plan = make(problem, self.method, options)
        run = Forward(problem, self.method, options, plan, self.model, self.given, True)
        run.dense = self.watch is not None
        with torch.no_grad():
            if self.watch is not None:
                self.watch.begin(problem)
                run.watch = self.watch
            run.run(y0.detach().contiguous())
        self.steps = [self.steps[0] + run.accepted, self.steps[1] + run.rejected]
        self.nf, self.njac = self.nf + run.nf, self.njac + run.njac
        return Solved(self, run, y0, stretch).outcome()


@dataclass
class Solved:
    """A stretch that has run."""

    whole: Jumping
    run: Forward
    y0: Tensor
    stretch: Stretch

    def outcome(self) -> Outcome:
        run, watch = self.run, self.whole.watch
        passed, hit = ([], None) if watch is None else (watch.passed, watch.stopped)
        if run.accepted:
            self.whole.parts.append(Part(run, self.y0, None if hit is None else hit.when))
        saved = self._saved(hit)
        if self.stretch.keep_steps:
            times, states = self._steps(hit)
        else:
            times, states = [], []
        seen = [*passed, *([] if hit is None else [hit])]
        thetas = [self._around(s.theta) for s in seen]
        states_around, last = self._marks(seen, thetas)
        crossings = [self._crossing(*given) for given in zip(seen, thetas, states_around, strict=True)]
        stopped = None if hit is None else crossings.pop()
        out = Outcome(run.status, last, self._end(), saved, times, states, stopped, crossings, run.message)
        if stopped is not None:
            out.y1, out.t1 = stopped.y, stopped.t
        return out

    def _around(self, theta: float) -> list[float]:
        """Places in a step whose states determine its interpolant, the first of them ``theta``; that one alone where no
        derivative is wanted."""
        if not self.whole.records:
            return [theta]
        count = int(self.run.table.dense.shape[1]) + 1
        others = [0.5 - 0.5 * math.cos((k + 0.5) * math.pi / count) for k in range(count)]
        others.remove(min(others, key=lambda x: abs(x - theta)))
        return [theta, *others]

    def _end(self) -> TimePoint:
        return self.stretch.t1 if self.run.landed else TimePoint(self.run.t)

    def _observed(self, rows: Tensor, where: array[Any], thetas: array[Any], times: list[float], moved: bool) -> Tensor:
        """States of the solve, with their gradient where one is wanted."""
        run, count = self.run, len(rows)
        if not self.whole.records or not count:
            return rows.view(count, *self.y0.shape)

        def again() -> Tensor:
            found = solve_again(run, self.whole.sensealg, dense=not moved)
            if moved:
                assert isinstance(found.ys, Tensor)
                return found.ys[:count].flatten(1)
            if not times:
                return self.y0.reshape(1, -1).expand(count, -1)
            assert found.dense is not None
            return torch.stack([found.dense(t) for t in times]).flatten(1)

        saves = self.stretch.saves
        tensor = saves.tensor if moved and saves is not None else None
        inputs = (self.y0, run.problem.t0.tensor, run.problem.t1.tensor, tensor, *run.given.params)
        if not any(x is not None and x.requires_grad for x in inputs):
            return rows.view(count, *self.y0.shape)
        return observe(Observation(run, rows, where, thetas, moved, again), self.y0, tensor)

    def _saved(self, hit: Seen | None) -> list[Tensor]:
        """The states at save times, up to an event."""
        run, saves, sign = self.run, self.stretch.saves, self.run.problem.direction
        if saves is None:
            return []
        count = run.saved
        if hit is not None:
            end = self.stretch.t1.value
            count = sum((hit.when - s) * sign >= 0 and s != end for s in saves.values[:count])
        rows = run.states[:count]
        return list(self._observed(rows, run.where[:count], run.thetas[:count], [], True))

    def _steps(self, hit: Seen | None) -> tuple[list[Any], list[Tensor]]:
        """Every step's end (but for that of a step that an event cut short), and the start."""
        run, n = self.run, self.run.ints[at.N]
        count = run.accepted + (1 if hit is None else 0)
        values = run.buffers.t[:count].tolist()
        rows = run.buffers.y[: count * n].clone().view(count, n)
        where = array("q", range(-1, -1 - count, -1))
        states = self._observed(rows, where, array("d", bytes(8 * count)), values, False)
        t0, t1 = (x.tensor if self.whole.records else None for x in (self.stretch.t0, self.stretch.t1))
        times: list[Any] = list(values)
        if t0 is not None or t1 is not None:  # steps keep their sizes, but for the last one, which ends at t1
            shift = 0.0 if t0 is None else t0.double() - self.stretch.t0.value
            times = [torch.tensor(t, dtype=torch.float64) + shift for t in values]
            if run.landed and hit is None:
                times[-1] = torch.tensor(values[-1], dtype=torch.float64) if t1 is None else t1.double()
        return times, list(states)

    def _marks(self, seen: Sequence[Seen], thetas: Sequence[list[float]]) -> tuple[list[Tensor], Tensor]:
        """The states around each of these events, and that of the solve's end."""
        run, n = self.run, self.run.ints[at.N]
        each = [(s.step, theta) for s, own in zip(seen, thetas, strict=True) for theta in own]
        rows = [piece_of(run, s.step).at(own).reshape(len(own), n) for s, own in zip(seen, thetas, strict=True)]
        where, places = array("q", [step for step, _ in each]), array("d", [theta for _, theta in each])
        t, h = run.buffers.t.tolist(), run.buffers.h.tolist()
        times = [t[step] + theta * h[step] for step, theta in each]
        rows.append(run.final.clone().view(1, n))
        where.append(-1 - run.accepted)
        places.append(0.0)
        found = self._observed(torch.cat(rows), where, places, [*times, run.t] if run.accepted else [], False)
        *around, last = found.split([*(len(own) for own in thetas), 1])
        return around, last[0]

    def _crossing(self, seen: Seen, thetas: list[float], states: Tensor) -> Crossing:
        """An event and (where that is wanted) its gradient, along the interpolant through these states of its step."""
        whole, run = self.whole, self.run
        if not whole.records:
            return Crossing(seen.index, TimePoint(seen.when), states[0])
        h = float(run.buffers.h[seen.step])
        times = [seen.when + (theta - seen.theta) * h for theta in thetas]

        def path(time: Tensor) -> Tensor:
            weights = []
            for i, own in enumerate(times):
                weight = torch.ones_like(time)
                for j, other in enumerate(times):
                    if j != i:
                        weight = weight * ((time - other) / (own - other))
                weights.append(weight)
            flat = torch.stack(weights).to(states.dtype) @ states.reshape(len(times), -1)
            return flat.view(self.y0.shape)

        return differentiable_crossing(whole.rhs, whole.options.events[seen.index], seen.index, seen.when, path)


def _stretch_of(problem: ODEProblem, y0: Tensor, stretch: Stretch) -> ODEProblem:
    """The problem of one stretch."""
    new = copy.copy(problem)
    for name, value in (("packed", y0), ("t0", stretch.t0), ("t1", stretch.t1)):
        object.__setattr__(new, name, value)
    return new


def solve(
    problem: ODEProblem, method: Method, options: SolveOptions, model: Model, given: Arguments,
    sensealg: SenseAlg | None,
) -> tuple[Solution, str]:  # fmt: skip
    """The solution, and (where it failed) what went wrong."""
    rhs = Rhs(problem.func, problem.spec, problem.packed)
    jumping = Jumping(problem, method, options, model, given, sensealg)
    got, status, message = chain(problem, rhs, jumping.run, options, None)
    if status.ok and not method.adaptive and not bool(torch.isfinite(got.states[-1]).all()):
        status, message = Status.NON_FINITE, "the state became NaN or infinite"
        keep = max([bool(torch.isfinite(x).all()) for x in got.states].index(False), 1)
        before = len(got.states) - len(got.times)
        del got.states[keep:], got.times[max(keep - before, 0) :]
    dense: Callable[[Any], Any] | None = None
    if options.dense and jumping.parts:
        dense = DenseOutput(jumping.parts, jumping.records, sensealg)
    solution = assemble(problem, options, got, status, dense)
    accepted, rejected = jumping.steps
    solution.stats = Stats(nf=rhs.nf + jumping.nf, naccept=accepted, nreject=rejected, njac=jumping.njac)
    return solution, message
