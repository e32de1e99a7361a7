"""A whole solve in per-sample mode: stretches between times that all rows share (doses, stops, the end)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....callbacks import Affect
from ....errors import DenseOutputError, InvalidTimesError, UnsupportedError
from ....problem import ODEProblem, TimePoint
from ....sensealg import DiscreteAdjoint, SenseAlg
from ....solution import EventRecord, Solution, Stats, Status
from ....state import State
from ...backend import SolveOptions
from ...common.autocast import as_called
from ...common.progress import progress_bar
from ...common.rhs import Rhs
from ...common.tolerances import Tolerances, row_norm
from ..stepper import Stepper
from .layout import layout_of
from .loop import RowLoop
from .record import rows_of_events
from .rows import CODES


def solve(
    problem: ODEProblem, stepper: Stepper, sensealg: SenseAlg | None, options: SolveOptions
) -> tuple[Solution, str]:
    """The solution, and (where some row failed) what went wrong on which rows, and when.

    The result's shapes: with ``saveat`` shared times ``ts (T,)`` and ``ys (T, B, ...)``. Without it every row has
    its own times, ``ts (T, B)``: those of its steps, the last one repeated for rows that took fewer; or only its
    end, ``T = 1``. After a terminal event a row keeps its state; after a failure its saved states are NaN (but its
    last step, where steps or ends are kept).

    Raises:
        UnsupportedError: a sensitivity algorithm other than autograd through the steps.
    """
    _check_sensealg(sensealg)
    layout = layout_of(problem)
    rhs = Rhs(layout.function(as_called(problem.func, problem.packed)), problem.spec, problem.packed)
    tol = Tolerances(options.rtol, options.atol, options.norm or row_norm)
    with progress_bar(options.progress, problem.t0.value, problem.t1.value) as report:
        loop = RowLoop(rhs, stepper, tol, options, layout, problem.t0, problem.packed, problem.direction, report)
        loop.begin()
        first, *shared = _shared_times(problem, options)
        for affect in first[1]:
            loop.apply(affect)
        fresh = True
        for point, affects in shared:
            loop.run_to(point, fresh=fresh)
            for affect in affects:
                loop.apply(affect)
            fresh = bool(affects)
        if fresh:
            loop.log_step()  # the state was changed at the very end
    rows = loop.rows
    message = _message(loop)
    rows.finish(rows.alive, Status.SUCCESS)
    solution = _assemble(problem, options, loop)
    solution.stats = Stats(nf=rhs.nf, naccept=loop.naccept, nreject=loop.nreject, njac=rhs.njac)
    return solution, message


def _check_sensealg(sensealg: SenseAlg | None) -> None:
    if sensealg is None or (isinstance(sensealg, DiscreteAdjoint) and sensealg.checkpoints is None):
        return
    raise UnsupportedError(
        f"sensealg={sensealg} with per_sample=True: rows that step for themselves are differentiated by"
        f" DiscreteAdjoint() without checkpoints only; use that (or None), or per_sample=False."
    )


def _shared_times(problem: ODEProblem, options: SolveOptions) -> list[tuple[TimePoint, list[Affect]]]:
    """The times at which all rows meet, in order, from t0 to t1, each with the doses that are due there."""
    sign = problem.direction
    low, high = problem.t0.value * sign, problem.t1.value * sign
    meet: dict[float, tuple[TimePoint, list[Affect]]] = {}
    doses = [(point, dose.affect) for dose in options.doses for point in dose.points()]
    stops = [(TimePoint(stop), None) for stop in options.stops]
    for point, affect in [(problem.t0, None), (problem.t1, None), *doses, *stops]:
        if not low <= point.value * sign <= high:
            continue
        known, affects = meet.setdefault(point.value, (point, []))
        if point.differentiable and not known.differentiable:
            meet[point.value] = (point, affects)
        if affect is not None:
            affects.append(affect)
    return sorted(meet.values(), key=lambda item: item[0].value * sign)


def _message(loop: RowLoop) -> str:
    """What went wrong on which rows; empty where nothing did."""
    codes = loop.rows.code.tolist()
    worst = CODES[max(codes)]
    if worst is None or worst.ok:
        return ""
    bad = [row for row, code in enumerate(codes) if (status := CODES[code]) is not None and not status.ok]
    first = next(row for row in bad if CODES[codes[row]] is worst)
    shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    what = {
        Status.MAX_STEPS: f"max_steps={loop.options.max_steps} steps were not enough",
        Status.NOT_CONVERGED: "an implicit stage equation has no solution at the smallest step",
        Status.STEP_UNDERFLOW: "the step size became too small to move the time",
        Status.NON_FINITE: "the right-hand side or the state became NaN or infinite",
    }[worst]
    return f"{len(bad)} of {len(codes)} rows failed ({shown}); row {first}: {what} at t={float(loop.rows.t[first]):.6g}"


def _assemble(problem: ODEProblem, options: SolveOptions, loop: RowLoop) -> Solution:
    rows, layout, spec = loop.rows, loop.layout, problem.spec
    codes = rows.code.tolist()
    statuses = [status for code in codes if (status := CODES[code]) is not None]
    hold = rows.code <= CODES.index(Status.EVENT)
    if options.saves is not None:
        known = options.saves.tensor
        ts = torch.tensor(options.saves.values, dtype=layout.wide) if known is None else known.to(layout.wide)
        ts = ts.to(layout.device)
        ys = loop.saver.found.gather(len(ts), rows.y, hold)
    elif loop.steps is not None:
        ts, ys = loop.steps.gather()
    else:
        ts, ys = rows.times.unsqueeze(0), rows.y.unsqueeze(0)
    events = []
    for index in range(len(options.events)):
        mine = [c for c in loop.crossings if c.index == index]
        events.append(EventRecord(*rows_of_events(mine, layout, problem.packed, spec)))
    worst = CODES[max(codes)]
    assert worst is not None
    unpacked = ys if spec is None else spec.unflatten(ys)
    return Solution(ts, unpacked, Stats(), worst, events, _dense(problem, loop, hold), statuses)


def _dense(problem: ODEProblem, loop: RowLoop, hold: Tensor) -> Callable[[Any], State] | None:
    """The dense output as :class:`pydiffeqflux.Solution` calls it."""
    log, rows, spec = loop.dense, loop.rows, problem.spec
    if log is None or not log.pieces:
        return None
    low, high = sorted((problem.t0.value, problem.t1.value))
    slack = 1e-9 * max(abs(low), abs(high), high - low)

    def evaluate(t: Any) -> State:
        number = functools.partial(torch.as_tensor, dtype=loop.layout.wide, device=loop.layout.device)
        try:
            times = torch.stack([number(x) for x in t]) if isinstance(t, tuple | list) and t else number(t)
        except (TypeError, ValueError, RuntimeError):
            raise InvalidTimesError(f"t={t!r} must be a real number, or a sequence or 1-D tensor of such.") from None
        if times.dim() > 1 or times.numel() == 0:
            raise InvalidTimesError(
                f"sol(t) takes one time or a 1-D tensor of times, shared by all rows; got shape {tuple(times.shape)}."
            )
        flat = times.reshape(-1)
        outside = ~((flat.detach() >= low - slack) & (flat.detach() <= high + slack))
        if bool(outside.any()):
            raise DenseOutputError(
                f"t={float(flat[outside][0])} lies outside the solved span [{low}, {high}]; solve further first."
            )
        states = log.at(flat, rows.y, rows.t, hold)
        states = states if times.dim() else states[0]
        return states if spec is None else spec.unflatten(states)

    return evaluate
