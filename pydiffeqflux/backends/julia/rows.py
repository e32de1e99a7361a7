"""Per-sample mode: every row of a batch is a solve of its own."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...callbacks import Affect
from ...errors import DenseOutputError, InvalidTimesError, PyDiffEqFluxError, ShapeError
from ...methods import Method
from ...problem import ODEProblem, time_point, time_points
from ...solution import EventRecord, Solution, Status
from ...state import State, StateSpec
from ..backend import SolveOptions
from ..common.failure import WORST_LAST, failure

#: Solves a problem that is not in per-sample mode.
Solve = Callable[[ODEProblem, SolveOptions], Solution]


@dataclass(frozen=True)
class OneRow:
    """A user's function of a packed row, ``(1, n)``; times get a dimension for each of the user's tensors.

    The same of all rows at once, ``(size, n)``.
    """

    model: Callable[[Tensor, Any], Any]
    spec: StateSpec | None
    rank: int
    size: int
    #: From what the model returns to a tensor with an entry for each row.
    pack: Callable[[Any, StateSpec | None, int], Tensor]

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.reshape([1] * self.rank).expand([self.size] + [1] * (self.rank - 1))
        return self.pack(self.model(time, y if self.spec is None else self.spec.unflatten(y)), self.spec, self.size)


class OneOfAll:
    """The same of a function that tells its rows apart (by tensors with one entry a row): all of them, and one taken.

    Which one is a tensor, so that all rows have the same code.
    """

    def __init__(self, whole: OneRow, row: int):
        self.whole, self.row = whole, torch.tensor([row])

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        every = self.whole(t, y.expand(self.whole.size, *y.shape[1:]))
        return every.index_select(0, self.row)


Function = Callable[[Tensor, Tensor], Tensor]


def packed_state(out: Any, spec: StateSpec | None, size: int) -> Tensor:
    """What a right-hand side returned."""
    found: Tensor = out if spec is None else spec.flatten(out)
    return found


def affected_state(out: Any, spec: StateSpec | None, size: int) -> Tensor:
    """What an affect returned.

    Raises:
        ShapeError: it is not a batch of states.
    """
    if spec is not None:
        return spec.flatten(out, "affect's return value")
    if not isinstance(out, Tensor) or out.dim() == 0 or len(out) != size:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ShapeError(f"affect returned {got}; with per_sample=True it must return the states of all {size} rows.")
    return out


def condition_values(out: Any, spec: StateSpec | None, size: int) -> Tensor:
    """What an event's condition returned, ``(size,)``.

    Raises:
        ShapeError: it is not one real number a row.
    """
    if not isinstance(out, Tensor) or out.is_complex() or out.numel() != size:
        got = f"{out.dtype}, {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ShapeError(
            f"with per_sample=True an event's condition must return one real number a row, shape ({size},); got {got}."
        )
    return out.reshape(size)


class Rows:
    """From functions of a batch to functions of one row of it."""

    def __init__(self, problem: ODEProblem):
        packed, spec = problem.packed, problem.spec
        self.problem, self.size = problem, len(packed)
        ranks = {packed.dim()} if spec is None else {len(shape) for shape in spec.shapes}
        self.rank = ranks.pop() if len(ranks) == 1 else 2
        shapes = () if spec is None else tuple(torch.Size((1, *shape[1:])) for shape in spec.shapes)
        self.one = None if spec is None else replace(spec, shapes=shapes)

    def each(self, model: Callable[[Tensor, Any], Any], pack: Callable[..., Tensor] = packed_state) -> list[Function]:
        """``model`` of each row; where it does not tell them apart one function for all."""
        y, t0, t1 = self.problem.packed.detach(), self.problem.t0.value, self.problem.t1.value
        alone, whole = OneRow(model, self.one, self.rank, 1, pack), self._whole(model, pack)
        # At the start, and a little off it.
        if _agree(alone, whole, t0, y) and _agree(alone, whole, t0 + (t1 - t0) / 128, y * (1 + 1 / 128) + 1 / 128):
            return [alone] * self.size
        return [OneOfAll(whole, row) for row in range(self.size)]

    def affects(self, affect: Affect) -> list[Affect]:
        """What changes the state of each row: called in Python, and for states only at which it is meant to be."""
        return [OneOfAll(self._whole(affect, affected_state), row) for row in range(self.size)]

    def _whole(self, model: Callable[[Tensor, Any], Any], pack: Callable[..., Tensor]) -> OneRow:
        return OneRow(model, self.problem.spec, self.rank, self.size, pack)

    def interruptions(self, options: SolveOptions) -> list[dict[str, Any]]:
        """The events and doses of each row, as fields of its options."""
        none: list[Affect | None] = [None] * self.size
        events = [
            [
                replace(event, condition=condition, affect=affect)
                for condition, affect in zip(
                    self.each(event.condition, condition_values),
                    none if event.affect is None else self.affects(event.affect),
                    strict=True,
                )
            ]
            for event in options.events
        ]
        doses = [[replace(dose, affect=affect) for affect in self.affects(dose.affect)] for dose in options.doses]
        return [
            {"events": tuple(e[row] for e in events), "doses": tuple(d[row] for d in doses)}
            for row in range(self.size)
        ]


def solve_rows(problem: ODEProblem, method: Method, options: SolveOptions, solve: Solve) -> Solution:
    """Solve the rows one after the other; shapes as in the native backend's per-sample mode."""
    packed, spec = problem.packed, problem.spec
    rows = Rows(problem)
    functions, interruptions = rows.each(problem.func), rows.interruptions(options)
    found: list[Solution] = []
    for row, func in enumerate(functions):
        mine = replace(
            options, per_sample=False, throw=False, rtol=_of_row(options.rtol, packed, row),
            atol=_of_row(options.atol, packed, row), **interruptions[row],
        )  # fmt: skip
        found.append(solve(ODEProblem(func, packed[row : row + 1], problem.t_span), mine))
    statuses = [s.status for s in found]
    bad = [row for row, status in enumerate(statuses) if not status.ok]
    worst = max(statuses, key=WORST_LAST.index)
    if bad and options.throw:
        first = statuses.index(worst)
        message = f"{len(bad)} of {len(found)} rows failed, the first of them row {first}"
        t = float(found[first].ts[-1].detach())
        raise failure(worst, message, t, (problem.t0.value, problem.t1.value), method)
    unpack: Callable[[Tensor], State] = (lambda x: x) if spec is None else spec.unflatten
    ts, ys = _together(problem, options, found)
    stats = replace(
        found[0].stats, nf=sum(s.stats.nf for s in found), njac=sum(s.stats.njac for s in found),
        naccept=torch.tensor([s.stats.naccept for s in found]), nreject=torch.tensor([s.stats.nreject for s in found]),
    )  # fmt: skip
    dense = None if any(s.dense is None for s in found) else _Dense(problem, found, unpack)
    return Solution(ts, unpack(ys), stats, worst, _events(options, found, spec), dense, statuses)


@torch.no_grad()
def _agree(alone: OneRow, whole: OneRow, t: float, y: Tensor) -> bool:
    """Whether every row alone is what it is among the others."""
    time = torch.full((), t, dtype=y.dtype)
    wanted = whole(time, y).split(1)
    try:
        found = [alone(time, row) for row in y.split(1)]
    except (PyDiffEqFluxError, RuntimeError, IndexError):
        return False
    return all(
        one.shape == other.shape and torch.allclose(one, other, equal_nan=True)
        for one, other in zip(found, wanted, strict=True)
    )


def _of_row(tolerance: Any, packed: Tensor, row: int) -> Any:
    """A row's own tolerance, where there is one for each."""
    if not isinstance(tolerance, Tensor) or tolerance.dim() == 0:
        return tolerance
    return tolerance.expand(packed.shape)[row : row + 1]


def _together(problem: ODEProblem, options: SolveOptions, found: Sequence[Solution]) -> tuple[Tensor, Tensor]:
    """Times and states of all rows.

    Where a row did not get to a save time it has NaN, or the state that an event ended it with; where steps are kept
    ends are repeated.
    """
    saves = options.saves
    longest = len(saves.values) if saves is not None else max(len(s.ts) for s in found)
    rows = []
    for s in found:
        early = saves is not None and s.status is not Status.SUCCESS  # its end is behind the saved states
        ys = s.ys[: len(s.ys) - 1] if early else s.ys[:longest]
        missing = longest - len(ys)
        if missing:
            last = s.ys[-1:] if s.status.ok or saves is None else torch.full_like(s.ys[:1], torch.nan)
            ys = torch.cat([ys, *[last] * missing])
        rows.append(ys)
    if saves is not None:
        ts = saves.tensor.double() if saves.tensor is not None else torch.tensor(saves.values, dtype=torch.float64)
        return ts, torch.cat(rows, 1)
    padded = [torch.cat([s.ts, *[s.ts[-1:]] * (longest - len(s.ts))]) for s in found]
    return torch.stack(padded, 1), torch.cat(rows, 1)


def _events(options: SolveOptions, found: Sequence[Solution], spec: StateSpec | None) -> list[EventRecord]:
    """Each event's times and states, a list with an entry for each row."""

    def unpacked(states: Tensor) -> State:
        if spec is None:
            return states
        return replace(spec, shapes=tuple(torch.Size((len(states), *x[1:])) for x in spec.shapes)).unflatten(states)

    records = [[s.events[index] for s in found] for index in range(len(options.events))]
    return [EventRecord([e.ts for e in record], [unpacked(e.ys[:, 0]) for e in record]) for record in records]


class _Dense:
    """``sol(t)`` of all rows: after an event that ended it a row keeps its state, after a failure it has NaN."""

    def __init__(self, problem: ODEProblem, found: Sequence[Solution], unpack: Callable[[Tensor], State]):
        self.problem, self.found, self.unpack = problem, found, unpack
        self.ends = [float(s.ts[-1].detach()) if s.status is not Status.SUCCESS else problem.t1.value for s in found]

    def __call__(self, t: Any) -> State:
        single = isinstance(t, numbers.Real) or (isinstance(t, Tensor | np.ndarray) and t.ndim == 0)
        points = [time_point(t, "t")] if single else time_points(t, "t")
        if not points:
            raise InvalidTimesError("sol(t) was given no times at all.")
        times = [p.value for p in points]
        low, high = sorted((self.problem.t0.value, self.problem.t1.value))
        for time in times:
            if not low <= time <= high:
                raise DenseOutputError(f"t={time!r} lies outside the solved span [{low}, {high}]; solve further first.")
        states = torch.cat([self._row(s, end, times) for s, end in zip(self.found, self.ends, strict=True)], 1)
        return self.unpack(states[0] if single else states)

    def _row(self, solved: Solution, end: float, times: Sequence[float]) -> Tensor:
        sign = self.problem.direction
        states: Tensor = solved([x if x * sign <= end * sign else end for x in times])
        if solved.status.ok:
            return states
        lost = torch.tensor([x * sign > end * sign for x in times]).reshape(-1, *[1] * (states.dim() - 1))
        return states.masked_fill(lost, torch.nan)
