"""Events of a batch whose rows stand at different times: found, and differentiated, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....callbacks import Event
from ....errors import NonFiniteError, ShapeError
from ....tracking import recording
from ...common.dense import Interpolant
from ...common.rhs import Rhs
from .layout import Layout
from .roots import find_roots

Path = Callable[[Tensor], Tensor]


@dataclass
class RowCrossing:
    """One event that happened on some rows: when, and the state just before anything was done about it."""

    index: int
    rows: Tensor
    t: Tensor
    y: Tensor


@dataclass
class Segment:
    """An attempted step, as the search for events sees it."""

    #: Rows whose step was accepted.
    accept: Tensor
    #: Start and signed size of every row's step, shape ``(B,)``; with their graphs where they have one.
    t: Tensor
    dt: Tensor
    t_next: Tensor
    y1: Tensor
    piece: Interpolant


class RowWatch:
    """Watches the conditions of a solve, step by step."""

    def __init__(self, rhs: Rhs, events: Sequence[Event], layout: Layout, direction: float):
        self.rhs, self.events, self.layout, self.direction = rhs, events, layout, direction
        blank = torch.zeros(layout.size, device=layout.device)
        self._signs = [blank for _ in events]

    def condition(self, event: Event, t: Tensor, y: Tensor) -> Tensor:
        """The event's condition on every row, shape ``(B,)``.

        Raises:
            ShapeError: it returns something else.
        """
        layout = self.layout
        state = y if self.rhs.spec is None else self.rhs.spec.unflatten(y)
        value = event.condition(layout.user_time(self.rhs.time(t)), state)
        if not isinstance(value, Tensor) or value.is_complex() or value.numel() != layout.size:
            got = f"{value.dtype}, {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(
                f"with per_sample=True an event's condition must return one real number a row, shape"
                f" ({layout.size},); got {got}."
            )
        return value.reshape(layout.size)

    @torch.no_grad()
    def begin(self, t: Tensor, y: Tensor, rows: Tensor | None = None) -> None:
        """Signs at the start (on some rows). Within rounding of zero a sign means nothing: the next probe decides."""
        for index, event in enumerate(self.events):
            value = self.condition(event, t, y)
            size = y.abs().reshape(self.layout.size, -1).amax(1)
            noise = 64 * torch.finfo(value.dtype).eps * (1.0 + size)
            sign = torch.where(value.abs() <= noise, 0.0, value.sign()).to(self._signs[index].dtype)
            self._signs[index] = sign if rows is None else torch.where(rows, sign, self._signs[index])

    def check(self, step: Segment) -> tuple[list[RowCrossing], list[RowCrossing]]:
        """The crossings in the step that end or jump their rows (one a row), and those only to be recorded."""
        changes = self._changes(step)
        flagged = torch.stack([change for _, _, _, change in changes]).any(1).tolist()
        found = [change for change, any_row in zip(changes, flagged, strict=True) if any_row]
        if not found:
            return [], []
        located = [(index, rows, self._locate(index, step, left, right, rows)) for index, left, right, rows in found]
        # Where a row's step ends early: at the first of its stopping events.
        stop = torch.full_like(step.t_next, torch.inf)
        by = torch.full_like(step.t_next, -1, dtype=torch.long)
        for index, rows, theta in located:
            if self._stops(index):
                first = rows & (theta < stop)
                stop, by = torch.where(first, theta, stop), by.masked_fill(first, index)
        stopping, passing = [], []
        for index, rows, theta in located:
            if self._stops(index):
                mine = rows & (by == index) & (theta == stop)
                by = by.masked_fill(mine, -1)
                if bool(mine.any()):
                    stopping.append(self._crossing(index, mine, theta, step))
            elif bool((rows & (theta <= stop)).any()):
                passing.append(self._crossing(index, rows & (theta <= stop), theta, step))
        return stopping, passing

    def _stops(self, index: int) -> bool:
        return self.events[index].terminal or self.events[index].affect is not None

    @torch.no_grad()
    def _changes(self, step: Segment) -> list[tuple[int, float, float, Tensor]]:
        """For every event and every gap between probes: the rows whose condition changes its sign in it."""
        changes = []
        t, dt = step.t.detach(), step.dt.detach()
        for index, event in enumerate(self.events):
            n = event.interp_points
            thetas = [(i + 1) / (n + 1) for i in range(n)]
            states = [*step.piece.at(thetas).unbind(0), step.y1] if thetas else [step.y1]
            left, sign = 0.0, self._signs[index]
            for theta, state in zip([*thetas, 1.0], states, strict=True):
                when = step.t_next if theta == 1.0 else t + theta * dt
                new = self.condition(event, when, state).sign().to(sign.dtype)
                change = (new != sign) & (sign != 0) & step.accept
                if event.direction != 0:  # up or down along the direction in which the solve runs
                    change &= ~(new * event.direction < 0)  # NaN stays in, to be complained of
                changes.append((index, left, theta, change))
                left, sign = theta, torch.where(step.accept, new, sign)
            self._signs[index] = sign
        return changes

    def _locate(self, index: int, step: Segment, left: float, right: float, rows: Tensor) -> Tensor:
        event, layout = self.events[index], self.layout
        t, dt = step.t.detach(), step.dt.detach()

        def value(theta: Tensor) -> Tensor:
            found = self.condition(event, t + theta * dt, step.piece.at_tensor(layout.spread(theta))).detach()
            if bool((rows & found.isnan()).any()):
                near = float(t[rows & found.isnan()][0])
                raise NonFiniteError(
                    f"an event's condition is NaN near t={near:.6g}; it must be a number on both sides of its zero (a"
                    f" square root or logarithm is not)."
                )
            return found

        return find_roots(value, layout.full(left), layout.full(right), rows)

    def _crossing(self, index: int, rows: Tensor, theta: Tensor, step: Segment) -> RowCrossing:
        layout = self.layout
        # The other rows are looked at where their step starts.
        when = step.t.detach() + torch.where(rows, theta, 0.0) * step.dt.detach()
        if not recording():
            return RowCrossing(index, rows, when, step.piece.at_tensor(layout.spread(theta)))

        def path(time: Tensor) -> Tensor:
            return step.piece.at_tensor(layout.spread((time - step.t) / step.dt))

        time = self._differentiable(self.events[index], rows, when, path)
        return RowCrossing(index, rows, time, path(time))

    def _differentiable(self, event: Event, rows: Tensor, when: Tensor, path: Path) -> Tensor:
        """The crossing times with their gradients, by the implicit function theorem on every row.

        Two Newton steps on ``condition(t, path(t)) = 0`` from the known root: they do not move it, but their
        derivatives are the root's, up to the third order.
        """

        def gap(time: Tensor) -> tuple[Tensor, Tensor]:
            value = self.condition(event, time, path(time))
            return value.sum(), value  # rows are independent: the gradient of the sum is every row's own slope

        time = when
        for _ in range(2):
            slope, value = torch.func.grad(gap, has_aux=True)(time)
            # A tangential touch has no derivative; leave the time constant rather than divide by zero.
            regular = rows & (slope != 0)
            move = torch.where(regular, value, 0.0) / torch.where(regular, slope, 1.0)
            time = time - (move - move.detach())
        return time
