"""Per-sample mode: every row of a batch is a solve of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import PyDiffEqFluxError, UnsupportedError
from ...methods import Method
from ...problem import ODEProblem
from ...solution import Solution
from ...state import State, StateSpec
from ..backend import SolveOptions
from ..common.failure import WORST_LAST, failure

#: Solves a problem that is not in per-sample mode.
Solve = Callable[[ODEProblem, SolveOptions], Solution]


@dataclass(frozen=True)
class OneRow:
    """``func`` of a packed row, ``(1, n)``; times get a dimension for each of the user's tensors."""

    model: Callable[[Tensor, Any], Any]
    spec: StateSpec | None
    rank: int

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        out = self.model(t.reshape([1] * self.rank), y if self.spec is None else self.spec.unflatten(y))
        found: Tensor = out if self.spec is None else self.spec.flatten(out)
        return found


class OneOfAll:
    """The same of a function that tells its rows apart (by tensors with one entry a row): all of them, and one taken.

    Which one is a tensor, so that all rows have the same code.
    """

    def __init__(self, whole: OneRow, size: int, row: int):
        self.whole, self.size, self.row = whole, size, torch.tensor([row])

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        every = self.whole(t, y.expand(self.size, *y.shape[1:]))
        return every.index_select(0, self.row)


def solve_rows(problem: ODEProblem, method: Method, options: SolveOptions, solve: Solve) -> Solution:
    """Solve the rows one after the other; shapes as in the native backend's per-sample mode.

    Raises:
        UnsupportedError: events and callbacks.
    """
    if options.events or options.doses:
        raise UnsupportedError(
            "per_sample=True on backend='julia' has no events and callbacks: solve row by row, one ODEProblem each, or"
            " use backend='torch'."
        )
    packed, spec = problem.packed, problem.spec
    found: list[Solution] = []
    for row, func in enumerate(_functions(problem)):
        mine = replace(
            options, per_sample=False, throw=False, rtol=_of_row(options.rtol, packed, row),
            atol=_of_row(options.atol, packed, row),
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
    dense = None if any(s.dense is None for s in found) else _Dense(found, packed.dim(), unpack)
    return Solution(ts, unpack(ys), stats, worst, [], dense, statuses)


def _functions(problem: ODEProblem) -> Sequence[Callable[[Tensor, Tensor], Tensor]]:
    """A function for each row."""
    packed, spec = problem.packed, problem.spec
    ranks = {packed.dim()} if spec is None else {len(shape) for shape in spec.shapes}
    rank = ranks.pop() if len(ranks) == 1 else 2
    shapes = () if spec is None else tuple(torch.Size((1, *shape[1:])) for shape in spec.shapes)
    one = None if spec is None else replace(spec, shapes=shapes)
    alone, whole = OneRow(problem.func, one, rank), OneRow(problem.func, spec, rank)
    y, t0, t1 = packed.detach(), problem.t0.value, problem.t1.value
    # At the start, and a little off it.
    same = _agree(alone, whole, t0, y) and _agree(alone, whole, t0 + (t1 - t0) / 128, y * (1 + 1 / 128) + 1 / 128)
    return [alone] * len(y) if same else [OneOfAll(whole, len(y), k) for k in range(len(y))]


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
    """Times and states of all rows: NaN where a row did not get to a save time; ends repeated where steps are kept."""
    saves = options.saves
    longest = len(saves.values) if saves is not None else max(len(s.ts) for s in found)
    rows = []
    for s in found:
        ys = s.ys[:longest] if s.status.ok or saves is None else s.ys[: len(s.ys) - 1]
        missing = longest - len(ys)
        if missing:
            last = torch.full_like(s.ys[:1], torch.nan) if saves is not None else s.ys[-1:]
            ys = torch.cat([ys, *[last] * missing])
        rows.append(ys)
    if saves is not None:
        ts = saves.tensor.double() if saves.tensor is not None else torch.tensor(saves.values, dtype=torch.float64)
        return ts, torch.cat(rows, 1)
    padded = [torch.cat([s.ts, *[s.ts[-1:]] * (longest - len(s.ts))]) for s in found]
    return torch.stack(padded, 1), torch.cat(rows, 1)


@dataclass
class _Dense:
    """``sol(t)`` of all rows."""

    found: Sequence[Solution]
    rank: int
    unpack: Callable[[Tensor], State]

    def __call__(self, t: Any) -> State:
        each = [s(t) for s in self.found]
        return self.unpack(torch.cat(each, each[0].dim() - self.rank))
