"""A solve of which nothing is wanted but its states at the save times, or at its end: no gradient, no dense output.

What such a solve works in is kept by its plan and taken again by the next one, so little is done around the loop.
"""

from __future__ import annotations

import ctypes
from array import array
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...problem import ODEProblem
from ...solution import Solution, Stats, Status
from ..backend import SolveOptions
from .forward import AT_START, Buffers, loop_of
from .loops import layout as at
from .model import Arguments, Model
from .plan import Plan, place, zeros


@dataclass
class Room:
    """Everything that the loop writes to but for the states it saves, and the arguments that never change."""

    buffers: Buffers
    ints: array[Any]
    state_ints: array[Any]
    state_floats: array[Any]
    held: tuple[Any, ...]
    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def make(cls, plan: Plan, model: Model, dtype: torch.dtype) -> Room:
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
        state_ints, state_floats = zeros("q", at.STATE_INTS), zeros("d", at.STATE_FLOATS)
        buffers = Buffers.make(1, n, plan.table.every, dtype)
        own = work.data_ptr()
        scratch = own + (model.work + space) * work.element_size()
        return cls(
            buffers, ints, state_ints, state_floats, (work, where, thetas), (address, place(ints), *plan.addresses),
            (own, place(state_ints), place(state_floats), *buffers.addresses), (place(where), place(thetas), scratch),
        )  # fmt: skip


_FRESH = array("q", bytes(8 * at.STATE_INTS))
_START = array("d", AT_START)


def solve(problem: ODEProblem, options: SolveOptions, plan: Plan, model: Model, given: Arguments) -> Solution | None:
    """The solution, without a word on the method; None where the solve did not reach its end."""
    y0 = problem.packed
    n, dtype, saves = plan.ints[at.N], y0.dtype, plan.ints[at.SAVES]
    try:
        room = plan.rooms.pop()  # another thread may be solving the same
    except IndexError:
        room = Room.make(plan, model, dtype)
    states = torch.empty((saves, *y0.shape), dtype=dtype) if saves else room.buffers.y
    room.state_ints[:], room.state_floats[:] = _FRESH, _START
    if not y0.is_contiguous():
        y0 = y0.contiguous()
    width = n * y0.element_size()
    ctypes.memmove(room.buffers.y.data_ptr(), y0.data_ptr(), width)
    code = loop_of(model.single)(
        *room.before, *given.addresses, *room.between, states.data_ptr(), *room.after
    )  # fmt: skip
    found = room.state_ints
    accepted = found[at.ACCEPTED]
    if not saves:
        last = accepted & 1
        states = room.buffers.y[last * n : (last + 1) * n].clone().view(1, *y0.shape)
    stats = Stats(
        nf=found[at.EVALUATIONS], naccept=accepted, nreject=found[at.REJECTED], njac=found[at.JACOBIANS]
    )  # fmt: skip
    end = room.state_floats[at.NOW]
    plan.rooms.append(room)
    if code != at.DONE or not (plan.table.adaptive or bool(torch.isfinite(states[-1:]).all())):
        return None
    spec = problem.spec
    ts = _times(options, plan, end)
    return Solution(ts, states if spec is None else spec.unflatten(states), stats, Status.SUCCESS, [])


def _times(options: SolveOptions, plan: Plan, end: float) -> Tensor:
    saves = options.saves
    if saves is None:
        return torch.tensor([end], dtype=torch.float64)
    return plan.saves.clone() if saves.tensor is None else saves.tensor.double()
