"""The rows of a batch: where each one stands, and how it ended."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....problem import TimePoint
from ....solution import Status
from ....tracking import reading, recording
from ...common.failure import WORST_LAST
from ...common.rhs import Rhs
from ..stepper import Stepper
from .layout import Layout

#: A row's status as a number; the worst has the largest.
CODES: tuple[Status | None, ...] = (None, *WORST_LAST)  # None: under way


class Rows:
    """Time, state, carry and status of every row.

    Attributes:
        t: ``(B,)`` times without a graph.
        clock: the same times with their graph; None where nobody can ask for its gradient.
        y: the states.
        now, start: time and state as the stepper gets them. The same objects as long as no row moves:
            implicit methods recognise a repeated attempt by that. Rows that failed where the right-hand side
            has no value have another row's state in ``start``, so that NaN cannot reach the others' gradients
            or linear solves.
        code: ``(B,)`` indices into :data:`CODES`.
    """

    def __init__(self, rhs: Rhs, stepper: Stepper, layout: Layout, t: TimePoint, y: Tensor):
        self.rhs, self.stepper, self.layout = rhs, stepper, layout
        self.code = torch.zeros(layout.size, dtype=torch.long, device=layout.device)
        self.carry: Any = None
        self._void: Tensor | None = None
        self._substitute = y.detach()[:1]
        wound = t.differentiable and recording()
        self.move(layout.full(t.value), y, layout.time(t).expand(layout.size) if wound else None)

    def move(self, t: Tensor, y: Tensor, clock: Tensor | None) -> None:
        self.t, self.y, self.clock = t, y, clock
        self.now = self.layout.spread(t if clock is None else clock)
        self.start = y if self._void is None else self.layout.where(self._void, self._substitute, y)

    def wind(self) -> None:
        """Let the clock run from here on."""
        if self.clock is None:
            self.move(self.t, self.y, self.t)

    @property
    def times(self) -> Tensor:
        """``(B,)`` times, with their graph where there is one."""
        return self.t if self.clock is None else self.clock

    @property
    def alive(self) -> Tensor:
        """Rows that have not ended."""
        return self.code == 0

    def finish(self, rows: Tensor, status: Status) -> None:
        """Those of the rows that have not ended yet end like this."""
        self.code = torch.where(rows & self.alive, CODES.index(status), self.code)

    def finite(self, x: Tensor) -> Tensor:
        """``(B,)``: no entry of the row is NaN or infinite."""
        return x.detach().isfinite().reshape(self.layout.size, -1).all(1)

    def slope(self) -> Tensor:
        """f where every row stands."""
        if self.carry is None:
            self.carry = self.stepper.start(self.rhs, self.now, self.start)
        known = self.stepper.slope(self.carry)
        return self.rhs(self.now, self.start) if known is None else known

    def restart(self) -> None:
        """A new carry for all rows; those where the right-hand side has no value fail."""
        self.carry = None
        while True:
            fine = self._defined()
            with reading("rows that step for themselves", "use batched=True instead of vmap, or per_sample=False"):
                if bool(fine.all()):
                    return
            self._set_aside(~fine, fine)

    def set_aside_undefined(self, rows: Tensor) -> bool:
        """Let those of the rows fail where the right-hand side has no value; whether there was any."""
        fine = self._defined()
        undefined = rows & ~fine
        if not bool(undefined.any()):
            return False
        self._set_aside(undefined, fine)
        return True

    def _defined(self) -> Tensor:
        slope = self.slope()
        fine = self.finite(slope)
        return fine if self._void is None else fine | self._void

    def _set_aside(self, rows: Tensor, fine: Tensor) -> None:
        self.finish(rows, Status.NON_FINITE)
        fine = fine & self.alive
        donor = fine.to(torch.uint8).argmax().reshape(1)
        self._substitute = self.start.detach().index_select(0, donor)
        self._void = rows if self._void is None else self._void | rows
        self.move(self.t, self.y, self.clock)
        self.carry = None

    def merge_carry(self, rows: Tensor, new: Any, old: Any) -> Any:
        """``new`` on these rows, ``old`` on the others; None where that needs a fresh start."""
        if isinstance(new, Tensor) and isinstance(old, Tensor):
            return self.layout.where(rows, new, old)
        if isinstance(new, tuple) and isinstance(old, tuple):
            parts = [self.merge_carry(rows, n, o) for n, o in zip(new, old, strict=True)]
            return type(new)(*parts) if hasattr(new, "_fields") else tuple(parts)
        return None if new is None or old is None else new
