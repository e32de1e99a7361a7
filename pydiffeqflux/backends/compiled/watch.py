"""Events of a compiled solve: their conditions as kernels, and who is asked where the loop has seen a sign change.

The loop sees whether a condition changes its sign within a step, and is left there; when exactly, and what comes first,
``EventWatch`` finds out as it does for the eager loop.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...callbacks import Event
from ...errors import UntraceableError
from ...graph.reach import reach
from ...problem import ODEProblem
from ..anchor import anchor_of
from ..common.crossing import condition
from ..common.events import EventWatch
from ..common.rhs import Rhs
from .dense import piece_of
from .loops import layout as at
from .model import Arguments, Model, remembered, state_of, traced_kernels, walked
from .plan import place, zeros

if TYPE_CHECKING:
    from .forward import Forward


@dataclass
class Seen:
    """A crossing, where it lies: in which step, how far in it, and when."""

    index: int
    step: int
    theta: float
    when: float


def condition_of(problem: ODEProblem, event: Event) -> tuple[Model | str, list[Tensor]]:
    """The compiled condition of an event, and the tensors it reaches; in place of the model why there is none."""
    found, state = walked(event.condition), ("condition", state_of(problem))
    model = found.models.get(state)
    if model is None:
        key = tuple(found.reach.facts), state
        model = found.models[state] = remembered(key, found.reach.held, lambda: _trace(problem, event))
    return model, found.reach.tensors


def _trace(problem: ODEProblem, event: Event) -> Model:
    y = problem.packed.detach()
    rhs = Rhs(problem.func, problem.spec, y)
    with torch.no_grad():
        condition(rhs, event, problem.t0.value, y)  # what is wrong with it is said here
    traced = traced_kernels(lambda t, x: condition(rhs, event, t, x), rhs.time(problem.t0.value), y)
    traced.program("f")
    found = reach(anchor_of(event.condition))
    known = {id(x): k for k, x in enumerate(found.tensors)}
    places = tuple(known.get(id(x), x) for x in traced.graphs.externals)
    if any(isinstance(x, Tensor) and x.requires_grad for x in places):
        raise UntraceableError("it uses a tensor that could not be found among its attributes, closure and globals")
    return Model(traced, places, y.dtype == torch.float32)


def uncovered(problem: ODEProblem, events: Sequence[Event]) -> str | None:
    """Why these events are not compiled."""
    for event in events:
        model, _ = condition_of(problem, event)
        if isinstance(model, str):
            return f"an event's condition is not compiled: {model}"
    return None


class Watch:
    """The events of one solve."""

    def __init__(self, problem: ODEProblem, events: Sequence[Event]):
        self.rhs = Rhs(problem.func, problem.spec, problem.packed)
        self.events = events
        dtype, n = problem.packed.dtype, problem.packed.numel()
        words, room, total, self._held = [], 1, 0, []
        for event in events:
            model, tensors = condition_of(problem, event)
            assert isinstance(model, Model)
            with torch.no_grad():
                given = model.arguments(tensors)
            address, count = model.address("f", ("f",)), model.traced.graphs.shape[0]
            work = torch.empty(model.work, dtype=dtype)
            words += [address, count, event.interp_points, total, *given.addresses, work.data_ptr()]
            self._held.append((model, given, work))
            total, room = total + count, max(room, count)
        self.sizes = [model.traced.graphs.shape[0] for model, _, _ in self._held]
        self._held_room = torch.empty(n + room, dtype=dtype)
        self.signs, self._after = zeros("d", total), zeros("d", total)
        state = self._held_room.data_ptr()
        values = state + n * self._held_room.element_size()
        self._words = array("q", [len(events), state, values, place(self.signs), place(self._after), *words])
        self.address = place(self._words)

    _held: list[tuple[Model, Arguments, Tensor]]

    def begin(self, problem: ODEProblem) -> None:
        """Start a stretch."""
        self.closer = EventWatch(self.rhs, self.events, problem.direction)
        self.closer.begin(problem.t0.value, problem.packed.detach())
        self._note()
        self.passed: list[Seen] = []
        self.stopped: Seen | None = None

    def _note(self) -> None:
        """Tell the loop the signs."""
        self.signs[:] = array("d", torch.cat([x.double() for x in self.closer._signs]).tolist() or [0.0])

    def look(self, run: Forward) -> bool:
        """Look closer at the last step; whether the solve stops within."""
        step, b, n = run.accepted - 1, run.buffers, run.ints[at.N]
        t, h, t_next = float(b.t[step]), float(b.h[step]), float(b.t[step + 1])
        signs = torch.tensor(self.signs, dtype=run.given.p.dtype)
        self.closer._signs = list(signs.split(self.sizes))
        shape = run.problem.packed.shape
        y1 = b.y[(step + 1) * n : (step + 2) * n].view(shape)
        hit = self.closer.check(t, h, t_next, y1, piece_of(run, step), None)
        seen = [Seen(c.index, step, (c.t.value - t) / h, c.t.value) for c in self.closer.passed()]
        self.passed += seen
        self._note()
        if hit is not None:
            self.stopped = Seen(hit.index, step, (hit.t.value - t) / h, hit.t.value)
        return hit is not None

