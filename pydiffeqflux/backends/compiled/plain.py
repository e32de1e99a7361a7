"""A solve of which nothing is wanted but its states at the save times, or at its end: no gradient, no dense output.

What such a solve works in is kept by its plan and taken again by the next one, so little is done around the loop.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from typing import Any

import torch

from ...problem import ODEProblem
from ...solution import Solution, Stats, Status
from ..backend import SolveOptions
from .forward import AT_START, Buffers, loop_of
from .loops import layout as at
from .model import Arguments, Model
from .plan import Plan, place, zeros


class Room:
    """Everything that the loop writes to but for the states it saves, and the arguments that it is called with."""

    def __init__(self, plan: Plan, model: Model, dtype: torch.dtype):
        n, saves = plan.ints[at.N], plan.ints[at.SAVES]
        ints = array("q", plan.ints)
        ints[at.KEEP], ints[at.CAPACITY] = 0, 1
        address = model.address("f")
        space = 0
        if plan.table.implicit:
            space = 2 * n * n + 2 * n
            ints[at.JACOBIAN] = model.address("jac", ("jac",))
            ints[at.SPACE] = model.work
        work = torch.empty(plan.table.scratch * n + model.work + space, dtype=dtype)
        where, thetas = zeros("q", saves), zeros("d", saves)
        self.state_ints, self.state_floats = zeros("q", at.STATE_INTS), zeros("d", at.STATE_FLOATS)
        self.buffers = Buffers.make(1, n, plan.table.every, dtype)
        own = work.data_ptr()
        scratch = own + (model.work + space) * work.element_size()
        self.held = ints, work, where, thetas
        self.enter = loop_of(model.single).enter
        self.arguments = array("q", [
            address, place(ints), *plan.addresses, 0, 0, 0, own, place(self.state_ints), place(self.state_floats),
            *self.buffers.addresses, self.buffers.states.data_ptr(), place(where), place(thetas), scratch,
        ])  # fmt: skip
        #: Where those are, and the initial state; its size in bytes.
        self.address, self.start, self.width = place(self.arguments), self.buffers.y.data_ptr(), n * work.element_size()


#: Where among the arguments those are that a solve brings with it: p, c and i, and the states it saves.
_GIVEN, _STATES = 7, 18
_FRESH = array("q", bytes(8 * at.STATE_INTS))
_START = array("d", AT_START)


def solve(
    problem: ODEProblem, options: SolveOptions, plan: Plan, model: Model, given: Arguments,
    finish: Callable[[Stats], None],
) -> Solution | None:  # fmt: skip
    """The solution, without a word on the method; None where the solve did not reach its end.

    Args:
        finish: called with the statistics when somebody looks at them, and completes them.
    """
    y0 = problem.packed
    n, saves = plan.ints[at.N], plan.ints[at.SAVES]
    try:
        room = plan.rooms.pop()  # another thread may be solving the same
    except IndexError:
        room = Room(plan, model, y0.dtype)
    words = room.arguments
    words[_GIVEN], words[_GIVEN + 1], words[_GIVEN + 2] = given.addresses
    if saves:
        states = torch.empty((saves, *y0.shape), dtype=y0.dtype)
        words[_STATES] = states.data_ptr()
    room.state_ints[:], room.state_floats[:] = _FRESH, _START
    if not y0.is_contiguous():
        y0 = y0.contiguous()
    ctypes.memmove(room.start, y0.data_ptr(), room.width)
    code = room.enter(room.address)
    found, end = room.state_ints[:], room.state_floats[at.NOW]
    if not saves:
        last = found[at.ACCEPTED] & 1
        states = room.buffers.y[last * n : (last + 1) * n].clone().view(1, *y0.shape)
    plan.rooms.append(room)
    if code != at.DONE or not (plan.table.adaptive or bool(torch.isfinite(states[-1:]).all())):
        return None

    times = options.saves
    own = None if times is None or times.tensor is None else times.tensor.double()

    def later(name: str) -> Any:
        if name == "ts":
            if times is None:
                return torch.tensor([end], dtype=torch.float64)
            return plan.saves.clone() if own is None else own
        stats = Stats(
            nf=found[at.EVALUATIONS], naccept=found[at.ACCEPTED], nreject=found[at.REJECTED],
            njac=found[at.JACOBIANS],
        )  # fmt: skip
        finish(stats)
        return stats

    spec = problem.spec
    return Solution.later(states if spec is None else spec.unflatten(states), Status.SUCCESS, later)
