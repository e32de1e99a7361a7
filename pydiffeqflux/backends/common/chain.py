"""Smooth stretches joined at doses and events into a solution, whoever solves the stretches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...callbacks import Affect
from ...problem import SaveTimes, TimePoint
from ...solution import EventRecord, Solution, Stats, Status
from ...state import State
from ...tracking import recording
from ..backend import Problem, SolveOptions
from .affect import affected
from .crossing import Crossing
from .dense import Piecewise
from .rhs import Rhs
from .stretch import Outcome, Runner, Stretch


@dataclass
class Collected:
    """What the stretches have come to so far."""

    times: list[Any] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    crossings: list[Crossing] = field(default_factory=list)


def chain(
    problem: Problem, rhs: Rhs, run: Runner, options: SolveOptions, pieces: Piecewise | None
) -> tuple[Collected, Status, str]:
    """Stretch after stretch until the end, a terminal event, or a failure; whoever ``run`` solves them with."""
    doses = _doses_ahead(problem, options)
    t = problem.t0
    y = rhs.settle(_stamp(t), problem.packed)
    got, taken = Collected(), 0
    keep_steps = options.saves is None and options.unsaved == "steps"
    if doses and doses[0][0].value == t.value:
        taken = _save_before_doses(problem, rhs, options, y, got)
        y, doses = _apply_due(rhs, doses, t, y)
    while True:
        end = doses[0][0] if doses else problem.t1
        saves = _saves_of(options.saves, taken, end, problem.direction)
        out = run(y, Stretch(t, end, saves, pieces, keep_steps))
        got.crossings.extend(out.crossings)
        got.states.extend(out.saved or out.step_states)
        got.times.extend(out.step_times)
        taken += len(out.saved)
        if not out.status.ok:
            _close(got, out, options)
            return got, out.status, out.message
        y, t = out.y1, out.t1
        hit = out.stopped_by
        if hit is not None:
            got.crossings.append(hit)
            event = options.events[hit.index]
            if event.terminal:
                _close(got, out, options)
                return got, Status.EVENT, ""
            assert event.affect is not None
            y = rhs.settle(_stamp(t), affected(rhs, event.affect, rhs.time(_stamp(t)), y))
            if t.value == problem.t1.value:
                break
            continue
        if not doses:
            break
        y, doses = _apply_due(rhs, doses, t, y)
        if t.value == problem.t1.value:
            break
    if options.saves is None and options.unsaved == "end":
        got.states, got.times = [y], [_stamp(problem.t1)]
    elif keep_steps and y is not out.y1:  # changed at the very end
        got.states.append(y)
        got.times.append(_stamp(problem.t1))
    return got, Status.SUCCESS, ""


def _save_before_doses(problem: Problem, rhs: Rhs, options: SolveOptions, y0: Tensor, got: Collected) -> int:
    """Save the state at the start, where doses are about to change it; how many save times that takes."""
    saves, t0 = options.saves, problem.t0
    if saves is None or saves.values[0] != t0.value:
        return 0
    point = saves.point(0)
    if recording() and (point is not None or t0.tensor is not None):
        # Adds zero: moving the save time moves along the solution, and moving the start as far takes that back.
        shift = torch.zeros((), dtype=torch.float64, device=rhs.device)
        if point is not None:
            shift = shift + (point - point.detach())
        if t0.tensor is not None:
            shift = shift - (t0.tensor - t0.tensor.detach())
        y0 = y0 + rhs.derivative(_stamp(t0), y0) * shift.to(rhs.time_dtype)
    got.states.append(y0)
    return 1


def _close(got: Collected, out: Outcome, options: SolveOptions) -> None:
    """A solve that ended early returns the state it ended with as its last one."""
    if options.saves is None and options.unsaved == "end":
        got.states.clear()
        got.times.clear()
    if not out.status.ok and got.states:
        times = got.times or (options.saves.values[: len(got.states)] if options.saves is not None else ())
        last = times[-1].detach() if isinstance(times[-1], Tensor) else times[-1]
        if float(last) == out.t1.value:  # it failed in the very next step
            return
    got.states.append(out.y1)
    got.times.append(_stamp(out.t1))


def _stamp(t: TimePoint) -> float | Tensor:
    return t.value if t.tensor is None else t.tensor


def _doses_ahead(problem: Problem, options: SolveOptions) -> list[tuple[TimePoint, Affect]]:
    sign = problem.direction
    low, high = problem.t0.value * sign, problem.t1.value * sign
    due = [(p, dose.affect) for dose in options.doses for p in dose.points() if low <= p.value * sign <= high]
    return sorted(due, key=lambda d: d[0].value * sign)


def _apply_due(
    rhs: Rhs, doses: list[tuple[TimePoint, Affect]], t: TimePoint, y: Tensor
) -> tuple[Tensor, list[tuple[TimePoint, Affect]]]:
    while doses and doses[0][0].value == t.value:
        y = affected(rhs, doses[0][1], rhs.time(_stamp(t)), y)
        doses = doses[1:]
    return rhs.settle(_stamp(t), y), doses


def _saves_of(saves: SaveTimes | None, taken: int, end: TimePoint, sign: float) -> SaveTimes | None:
    """The save times of the stretch that ends at ``end``: those not taken yet, up to and including it."""
    if saves is None:
        return None
    upto = taken
    while upto < len(saves.values) and (end.value - saves.values[upto]) * sign >= 0:
        upto += 1
    tensor = None if saves.tensor is None else saves.tensor[taken:upto]
    return SaveTimes(saves.values[taken:upto], tensor)


def assemble(
    problem: Problem,
    options: SolveOptions,
    got: Collected,
    status: Status,
    dense: Callable[[Any], State] | None,
) -> Solution:
    """The solution in the user's structure."""
    spec = problem.spec
    ys = torch.stack(got.states) if got.states else problem.packed[None][:0]
    ts = _times(problem, options, got, ys)
    unpack = (lambda x: x) if spec is None else spec.unflatten
    events = []
    for index in range(len(options.events)):
        mine = [c for c in got.crossings if c.index == index]
        states = torch.stack([c.y for c in mine]) if mine else problem.packed[None][:0]
        when = [torch.as_tensor(_stamp(c.t), dtype=torch.float64) for c in mine]
        events.append(EventRecord(torch.stack(when) if when else torch.zeros(0, dtype=torch.float64), unpack(states)))
    return Solution(ts, unpack(ys), Stats(), status, events, dense)


def _times(problem: Problem, options: SolveOptions, got: Collected, ys: Tensor) -> Tensor:
    """The saved times: the user's own where there are any, with those that an early end added."""
    dtype = ys.real.dtype if ys.is_complex() else ys.dtype
    wide = torch.float64 if ys.device.type != "mps" else dtype
    as_tensor = lambda t: torch.as_tensor(t, dtype=wide, device=ys.device).reshape(1)  # noqa: E731
    parts = [as_tensor(t) for t in got.times]
    if options.saves is not None:
        count = len(ys) - len(got.times)
        known = options.saves.tensor
        first = (
            torch.tensor(options.saves.values[:count], dtype=wide, device=ys.device)
            if known is None
            else known[:count].to(ys.device, wide)
        )
        parts.insert(0, first)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=wide, device=ys.device)
