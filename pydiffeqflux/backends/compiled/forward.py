"""An explicit solve: buffers, the loop called on them, and what it left there."""

from __future__ import annotations

import functools
import math
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
from .tableaus import Table

#: Steps that fit into the first buffers.
ROOM = 64
#: As in ``eager.control``: an absolute tolerance that is as good as zero.
_TINY = 1e-37


@functools.cache
def loop_of(single: bool) -> Callable[..., int]:
    """The explicit loop for a dtype."""
    return toolchain.loop(explicit.integrate, single)


def zeros(kind: str, count: int) -> array[Any]:
    """``count`` zeros of eight bytes: ``"q"`` for integers, ``"d"`` for numbers."""
    return array(kind, bytes(8 * max(count, 1)))


def place(a: array[Any]) -> int:
    return a.buffer_info()[0]


@dataclass
class Buffers:
    """Room for some steps, as the loops take it (see ``loops.explicit.integrate``)."""

    t: Tensor
    h: Tensor
    y: Tensor
    k: Tensor
    extras: Tensor

    @classmethod
    def make(cls, room: int, n: int, every: int, dtype: torch.dtype) -> Buffers:
        return cls(
            torch.empty(room + 1, dtype=torch.float64),
            torch.empty(room + 1, dtype=torch.float64),
            torch.empty((room + 1) * n, dtype=dtype),
            torch.empty((room + 1) * every * n, dtype=dtype),
            torch.empty(room + 1, dtype=torch.int64),
        )

    def grown(self, room: int, n: int, every: int) -> Buffers:
        """The same in more room."""
        new = Buffers.make(room, n, every, self.y.dtype)
        for name in ("t", "h", "y", "k", "extras"):
            old = getattr(self, name)
            getattr(new, name)[: len(old)] = old
        return new

    @property
    def addresses(self) -> tuple[int, ...]:
        return (self.t.data_ptr(), self.h.data_ptr(), self.y.data_ptr(), self.k.data_ptr(), self.extras.data_ptr())


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
    table: Table
    model: Model
    given: Arguments
    keep: bool
    checkpoints: Checkpoints | None = None
    status: Status = Status.SUCCESS
    message: str = ""
    accepted: int = 0
    rejected: int = 0
    nf: int = 0
    saved: int = 0
    t: float = 0.0
    ints: array[Any] = field(init=False)
    buffers: Buffers = field(init=False)
    states: Tensor = field(init=False)
    where: array[Any] = field(init=False)
    thetas: array[Any] = field(init=False)

    def run(self, y0: Tensor) -> None:
        """Solve from ``y0``."""
        n, dtype, options = y0.numel(), y0.dtype, self.options
        saves = () if options.saves is None else options.saves.values
        floats = self._settings(n, len(saves))
        self.where, self.thetas = zeros("q", len(saves)), zeros("d", len(saves))
        self.states = torch.empty(max(len(saves), 1), n, dtype=dtype)
        state_ints, state_floats = zeros("q", at.STATE_INTS), array("d", [0.0, 0.0, 1.0, 1.0])
        times = array("d", saves or (0.0,))
        address = self.model.address("f")
        self.work = torch.empty(2 * n + self.model.work, dtype=dtype)
        work = self.work.data_ptr()
        scratch = work + self.model.work * self.work.element_size()
        tolerances = self._tolerances(y0)
        given = self.given.addresses
        loop = loop_of(self.model.single)
        room = 1 if not self.keep or self.checkpoints is not None else self.model.room
        self.buffers = b = Buffers.make(room, n, self.table.every, dtype)
        b.y[:n] = y0.reshape(-1)
        while True:
            self.ints[at.CAPACITY] = room
            code = loop(
                address, place(self.ints), place(floats), self.table.address, place(times),
                tolerances[0].data_ptr(), tolerances[1].data_ptr(), *given, work, place(state_ints),
                place(state_floats), *b.addresses, self.states.data_ptr(), place(self.where), place(self.thetas),
                scratch,
            )  # fmt: skip
            self.accepted = state_ints[at.ACCEPTED]
            if self.checkpoints is not None:
                room = self._checkpoint(n)
                b = self.buffers
            elif code == at.FULL:
                room *= 2
                self.buffers = b = b.grown(room, n, self.table.every)
            if code != at.FULL:
                break
        self.rejected, self.nf = state_ints[at.REJECTED], state_ints[at.EVALUATIONS]
        self.saved, self.t = state_ints[at.NEXT_SAVE], state_floats[at.NOW]
        self.model.room = max(self.model.room, min(self.accepted, 4096))
        self._ending(code, state_floats[at.SIZE])

    def _settings(self, n: int, saves: int) -> array[Any]:
        options, problem, c = self.options, self.problem, self.options.controller
        k = self.table.error_order + 1
        self.ints = array("q", self.table.ints)
        self.ints[at.N], self.ints[at.SAVES], self.ints[at.KEEP] = n, saves, self.keep
        self.ints[at.MAX_STEPS], self.ints[at.DENSE] = options.max_steps, options.dense
        return array("d", [
            problem.t0.value, problem.t1.value, math.nan if options.dt is None else options.dt, options.dt_min,
            options.dt_max, c.safety, c.factor_min, c.factor_max, -(c.icoeff + c.pcoeff + c.dcoeff) / k,
            (c.pcoeff + 2 * c.dcoeff) / k, -c.dcoeff / k, -1.0 / k, 1.0 / k,
        ])  # fmt: skip

    def _tolerances(self, y0: Tensor) -> list[Tensor]:
        found = []
        for tol, least in ((self.options.rtol, 0.0), (self.options.atol, _TINY)):
            if isinstance(tol, Tensor):
                found.append(tol.to(y0.dtype).expand(y0.shape).reshape(-1).contiguous().clamp_min(least))
            else:
                found.append(torch.full((y0.numel(),), max(tol, least), dtype=y0.dtype))
        return found

    def _checkpoint(self, n: int) -> int:
        """Take note of the steps that the buffers hold, and begin them anew; how many they have room for now."""
        assert self.checkpoints is not None
        b, base, every = self.buffers, self.ints[at.BASE], self.table.every
        count = self.accepted - base
        if base == 0:
            self.times, self.sizes, self.extras = array("d", [self.problem.t0.value]), array("d"), array("q")
        self.times.extend(b.t[1 : count + 1].tolist())
        self.sizes.extend(b.h[:count].tolist())
        self.extras.extend(b.extras[:count].tolist())
        self.checkpoints.add(Snapshot(base, b.y[:n].clone(), b.k[:n].clone()))
        # The next buffers end where the next snapshot is due.
        room = self.checkpoints.spacing - self.accepted % self.checkpoints.spacing
        new = Buffers.make(room, n, every, b.y.dtype)
        new.y[:n] = b.y[count * n : (count + 1) * n]
        new.k[:n] = b.k[count * every * n : count * every * n + n]
        self.buffers = new
        self.ints[at.BASE] = self.accepted
        return room

    def _ending(self, code: int, dt: float) -> None:
        """The status and message for what the loop returned, in the eager loop's words."""
        self.status, self.message = {
            at.DONE: (Status.SUCCESS, ""),
            at.OUT_OF_STEPS: (Status.MAX_STEPS, f"max_steps={self.options.max_steps} steps were not enough"),
            at.UNDERFLOW: (Status.STEP_UNDERFLOW, f"the step size fell to {dt:.3g}"),
            at.NON_FINITE: (Status.NON_FINITE, "the right-hand side or the state became NaN or infinite"),
            at.NON_FINITE_SLOPE: (Status.NON_FINITE, "the right-hand side is NaN or infinite at the initial state"),
            at.NON_FINITE_STATE: (Status.NON_FINITE, "the initial state is NaN or infinite"),
        }[code]

    @property
    def final(self) -> Tensor:
        """The state that the solve ended with."""
        n = self.ints[at.N]
        row = self.accepted - self.ints[at.BASE] if self.keep else self.accepted & 1
        return self.buffers.y[row * n : (row + 1) * n]
