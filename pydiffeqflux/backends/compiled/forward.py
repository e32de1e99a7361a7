"""An explicit solve: buffers, the loop called on them, and what it left there."""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...methods import Method
from ...problem import ODEProblem
from ...solution import Status
from ..backend import SolveOptions
from . import toolchain
from .loops import explicit
from .loops import layout as at
from .model import Arguments, Model
from .plan import Plan, place, zeros
from .tableaus import Table

#: Time, step size, and the error ratios of the last two steps before there are any.
AT_START = (0.0, 0.0, 1.0, 1.0)


#: How a solve ended, by what the loop returned.
CODES = {
    at.DONE: Status.SUCCESS,
    at.OUT_OF_STEPS: Status.MAX_STEPS,
    at.UNDERFLOW: Status.STEP_UNDERFLOW,
    at.NON_FINITE: Status.NON_FINITE,
    at.NON_FINITE_SLOPE: Status.NON_FINITE,
    at.NON_FINITE_STATE: Status.NON_FINITE,
}


@functools.cache
def loop_of(single: bool) -> toolchain.Entry:
    """The explicit loop for a dtype."""
    return toolchain.loop(explicit.integrate, single)


@dataclass
class Buffers:
    """Room for some steps, as the loops take it (see ``loops.explicit.integrate``).

    Two pieces of memory: ``wide`` holds times, sizes and marks, ``y`` the states and after them their slopes, ``k``.
    """

    room: int
    n: int
    every: int
    wide: Tensor
    y: Tensor

    @classmethod
    def make(cls, room: int, n: int, every: int, dtype: torch.dtype) -> Buffers:
        return cls(
            room, n, every, torch.empty(3 * (room + 1), dtype=torch.float64),
            torch.empty((room + 1) * (every + 1) * n, dtype=dtype),
        )  # fmt: skip

    def grown(self, room: int) -> Buffers:
        """The same in more room."""
        new = Buffers.make(room, self.n, self.every, self.y.dtype)
        new.wide.view(3, -1)[:, : self.room + 1] = self.wide.view(3, -1)
        new.y[: len(self.states)] = self.states
        new.k[: len(self.k)] = self.k
        return new

    @property
    def t(self) -> Tensor:
        return self.wide[: self.room + 1]

    @property
    def h(self) -> Tensor:
        return self.wide[self.room + 1 : 2 * (self.room + 1)]

    @property
    def extras(self) -> Tensor:
        return self.wide[2 * (self.room + 1) :].view(torch.int64)

    @property
    def states(self) -> Tensor:
        return self.y[: (self.room + 1) * self.n]

    @property
    def k(self) -> Tensor:
        return self.y[(self.room + 1) * self.n :]

    @property
    def addresses(self) -> tuple[int, int, int, int, int]:
        """Of times, sizes, states, slopes and marks."""
        rows, wide, y = self.room + 1, self.wide.data_ptr(), self.y.data_ptr()
        k = y + rows * self.n * self.y.element_size()
        return wide, wide + 8 * rows, y, k, wide + 16 * rows


@dataclass
class Snapshot:
    """Where the solve stood before one of its steps: the state and its slope."""

    step: int
    y: Tensor
    k: Tensor


@dataclass
class Checkpoints:
    """Snapshots instead of every step: at most ``limit``, or about the square root of the number of steps."""

    limit: int | None
    spacing: int = 1
    shots: list[Snapshot] = field(default_factory=list)

    def add(self, shot: Snapshot) -> None:
        if shot.step % self.spacing == 0:
            self.shots.append(shot)
        if len(self.shots) > (self.limit if self.limit is not None else 2 * self.spacing):
            # Every other one goes, and the spacing doubles: the count stays between half and full.
            self.shots = self.shots[::2]
            self.spacing *= 2


@dataclass
class Forward:
    """One solve by an explicit method.

    Attributes:
        keep: whether every step is kept, or (for nothing but the saved states) the last one.
        checkpoints: keep these instead of the steps.
        where, thetas: where each saved state lies (see ``loops.explicit.integrate``).
        times, sizes, extras: of all steps, where ``checkpoints`` took their place in the buffers.
    """

    problem: ODEProblem
    method: Method
    options: SolveOptions
    plan: Plan
    model: Model
    given: Arguments
    keep: bool
    checkpoints: Checkpoints | None = None
    #: The interpolant of every step is wanted, whether or not the user asked for dense output.
    dense: bool = False
    #: The events that the loop looks out for (see ``watch``).
    watch: Any = None
    status: Status = Status.SUCCESS
    message: str = ""
    accepted: int = 0
    rejected: int = 0
    nf: int = 0
    njac: int = 0
    saved: int = 0
    t: float = 0.0
    code: int = at.DONE
    ints: array[Any] = field(init=False)
    buffers: Buffers = field(init=False)
    states: Tensor = field(init=False)
    where: array[Any] = field(init=False)
    thetas: array[Any] = field(init=False)

    @property
    def landed(self) -> bool:
        """Whether the last step was cut so as to end at the end of the span."""
        return self.code == at.DONE

    def run(self, y0: Tensor, join: Callable[[array[Any]], None] | None = None) -> None:
        """Solve from ``y0``; ``join`` tells the loop of other threads that solve other parts of the state."""
        n, dtype, plan, model = y0.numel(), y0.dtype, self.plan, self.model
        saves = plan.ints[at.SAVES]
        self.ints = array("q", plan.ints)
        self.ints[at.KEEP] = self.keep
        self.ints[at.DENSE] |= self.dense
        if join is not None:
            join(self.ints)
        if self.watch is not None:
            self.ints[at.WATCH] = self.watch.address
        self.where, self.thetas = zeros("q", saves), zeros("d", saves)
        self.states = torch.empty(max(saves, 1), n, dtype=dtype)
        state_ints, state_floats = zeros("q", at.STATE_INTS), array("d", AT_START)
        address = model.address("f")
        space = (2 * n * n + 2 * n) if plan.table.implicit else 0
        if plan.table.implicit:
            self.ints[at.JACOBIAN] = model.address("jac", ("jac",))
            self.ints[at.SPACE] = model.work
        self.work = torch.empty(plan.table.scratch * n + model.work + space, dtype=dtype)
        work = self.work.data_ptr()
        scratch = work + (model.work + space) * self.work.element_size()
        before = place(self.ints), *plan.addresses, *self.given.addresses, work, place(state_ints), place(state_floats)
        after = self.states.data_ptr(), place(self.where), place(self.thetas), scratch
        loop = loop_of(model.single)
        room = 1 if not self.keep or self.checkpoints is not None else model.room
        self.buffers = Buffers.make(room, n, plan.table.every, dtype)
        ctypes.memmove(self.buffers.y.data_ptr(), y0.data_ptr(), n * y0.element_size())
        while True:
            self.ints[at.CAPACITY] = room
            code = loop(address, *before, *self.buffers.addresses, *after)
            self.accepted = state_ints[at.ACCEPTED]
            if self.checkpoints is not None:
                room = self._checkpoint(n)
            elif code == at.FULL:
                room *= 2
                self.buffers = self.buffers.grown(room)
            if state_ints[at.CHANGED]:
                state_ints[at.CHANGED] = 0
                if not self.watch.look(self) and code == at.EVENT:
                    continue
            if code != at.FULL:
                break
        if self.checkpoints is not None:
            self._restart(0, 0)  # the last state is all that anybody asks of them now
        self.njac = state_ints[at.JACOBIANS]
        self.rejected, self.nf = state_ints[at.REJECTED], state_ints[at.EVALUATIONS]
        self.saved, self.t = state_ints[at.NEXT_SAVE], state_floats[at.NOW]
        if self.keep:
            model.room = max(model.room, min(self.accepted, 4096))
        if code == at.EVENT:
            self.code = code
        elif code != at.DONE:
            self._ending(code, state_floats[at.SIZE])

    def _checkpoint(self, n: int) -> int:
        """Take note of the steps that the buffers hold, and begin them anew; how many they have room for now."""
        assert self.checkpoints is not None
        b, base = self.buffers, self.ints[at.BASE]
        count = self.accepted - base
        if base == 0:
            self.times, self.sizes, self.extras = array("d", [self.problem.t0.value]), array("d"), array("q")
        self.times.extend(b.t[1 : count + 1].tolist())
        self.sizes.extend(b.h[:count].tolist())
        self.extras.extend(b.extras[:count].tolist())
        self.checkpoints.add(Snapshot(base, b.y[:n].clone(), b.k[:n].clone()))
        # The next stretch ends where the next snapshot is due.
        room = self.checkpoints.spacing - self.accepted % self.checkpoints.spacing
        del b
        self._restart(count, room)
        self.ints[at.BASE] = self.accepted
        return room

    def _restart(self, row: int, room: int) -> None:
        """Let the buffers begin with this row; there are never two of them, that would be twice the memory."""
        b, n, wide = self.buffers, self.ints[at.N], self.ints[at.N] * self.table.every
        y, k = b.y[row * n : (row + 1) * n].clone(), b.k[row * wide : (row + 1) * wide].clone()
        if room > b.room or room == 0:
            dtype = b.y.dtype
            del b, self.buffers
            self.buffers = b = Buffers.make(room, n, self.table.every, dtype)
        b.y[:n], b.k[:wide] = y, k

    def _ending(self, code: int, dt: float) -> None:
        """The status and message for what the loop returned, in the eager loop's words."""
        self.code, self.status = code, CODES[code]
        self.message = {
            at.OUT_OF_STEPS: f"max_steps={self.options.max_steps} steps were not enough",
            at.UNDERFLOW: f"the step size fell to {dt:.3g}",
            at.NON_FINITE: "the right-hand side or the state became NaN or infinite",
            at.NON_FINITE_SLOPE: "the right-hand side is NaN or infinite at the initial state",
            at.NON_FINITE_STATE: "the initial state is NaN or infinite",
        }[code]

    @property
    def table(self) -> Table:
        return self.plan.table

    @property
    def final(self) -> Tensor:
        """The state that the solve ended with."""
        n = self.ints[at.N]
        row = self.accepted - self.ints[at.BASE] if self.keep else self.accepted & 1
        return self.buffers.y[row * n : (row + 1) * n]
