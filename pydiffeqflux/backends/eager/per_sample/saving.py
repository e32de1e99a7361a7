"""The states at the shared save times, which every row passes in its own steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ....problem import SaveTimes, TimePoint
from ....tracking import recording
from ...common.dense import Interpolant
from .layout import Layout
from .record import Scattered, evaluate_rows
from .rows import Rows


class Saver:
    """Saves the columns that lie between two shared times, :meth:`open`\\ ed one stretch at a time."""

    def __init__(self, saves: SaveTimes | None, layout: Layout, direction: float):
        self.saves, self.layout, self.direction = saves, layout, direction
        self.found = Scattered()
        self._first = self._end = 0
        self._grid: Tensor | None = None

    def begin(self, rows: Rows, start: TimePoint) -> None:
        """The column at the very start."""
        if self.saves is not None and self.saves.values[0] == start.value:
            self._add(torch.ones_like(rows.alive), rows, 0)
            self._end = 1

    def open(self, end: TimePoint) -> None:
        """A new stretch: :meth:`take` gets the columns inside it, and :meth:`close` the one at its end."""
        if self.saves is None:
            return
        values, sign = self.saves.values, self.direction
        self._first = self._end
        while self._end < len(values) and values[self._end] * sign < end.value * sign:
            self._end += 1
        inside = slice(self._first, self._end)
        known = self.saves.tensor
        layout = self.layout
        times = torch.tensor(values[inside], dtype=layout.wide, device=layout.device)
        self._grid = times * sign if len(times) else None
        self._times = times if known is None else known[inside].to(layout.device, layout.wide)
        self._next = torch.zeros(layout.size, dtype=torch.long, device=layout.device)

    def upto(self, t: Tensor) -> Tensor | None:
        """How many columns of the stretch every row has passed at times ``t``."""
        if self._grid is None:
            return None
        return torch.searchsorted(self._grid, t * self.direction, right=True)

    def due(self, upto: Tensor) -> Tensor:
        """Rows with columns to be taken."""
        return upto > self._next

    def take(self, upto: Tensor, piece: Interpolant, y1: Tensor, t: Tensor, dt: Tensor, *, at_ends: bool) -> None:
        """The states of each row's due columns, from the step of size ``dt`` from ``t``.

        Args:
            at_ends: all of them lie at the very ends of the steps, ``y1``, and their times carry no gradient.
        """
        layout = self.layout
        count = upto - self._next
        rows = torch.repeat_interleave(torch.arange(layout.size, device=layout.device), count)
        within = torch.arange(len(rows), device=layout.device) - (count.cumsum(0) - count)[rows]
        columns = within + self._next[rows]
        if at_ends:
            values = y1.index_select(0, rows)
        else:
            values = evaluate_rows(piece, rows, (self._times[columns] - t[rows]) / dt[rows])
        self.found.add(rows, columns + self._first, values)
        self._next = upto

    def close(self, rows: Rows, end: TimePoint) -> None:
        """The column at the end of the stretch, for the rows that came there."""
        values = () if self.saves is None else self.saves.values
        if self._end < len(values) and values[self._end] == end.value:
            self._add(rows.alive, rows, self._end)
            self._end += 1

    @property
    def differentiable(self) -> bool:
        return self.saves is not None and self.saves.tensor is not None

    def _add(self, which: Tensor, rows: Rows, column: int) -> None:
        there = which.nonzero().squeeze(1)
        values = self._moved(rows, column).index_select(0, there)
        self.found.add(there, torch.full_like(there, column), values)

    def _moved(self, rows: Rows, column: int) -> Tensor:
        """The states at a shared time, as functions of the save time *and* of the rows' clocks.

        All have the same value, so this adds zero; but the save time's gradient is f there, and the clock's is
        less by as much (moving both together must move along the solution once, not twice).
        """
        assert self.saves is not None
        point = self.saves.point(column)
        base = rows.times
        if not recording() or not (rows.clock is not None or point is not None):
            return rows.y
        when = base.detach() if point is None else point.to(self.layout.device, self.layout.wide)
        shift = when - when.detach() - base + base.detach()
        return rows.y + rows.slope() * self.layout.spread(shift).to(rows.rhs.time_dtype)
