"""The conditions of events, traced, for Julia to watch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...callbacks import Event
from ..common.crossing import condition
from ..common.rhs import Rhs
from .model import Models, addresses
from .session import Session


class Watch:
    """What Julia needs to find the events of one solve."""

    def __init__(self, session: Session, models: Models, rhs: Rhs, events: Sequence[Event], t0: float, y0: Tensor):
        self.points = max(event.interp_points for event in events)
        at = torch.scalar_tensor(t0, dtype=y0.dtype)
        what = "an event's condition"
        found = [
            models.get(e.condition, functools.partial(condition, rhs, e), at, y0.detach(), what, rhs.spec)
            for e in events
        ]
        self._models = found  # alive as long as this is
        self.handle: int = session.call("bridge_events", *(m.handle for m in found))
        for number, (model, event) in enumerate(zip(found, events, strict=True), start=1):
            p, constants = model.values(), model.constants()
            halts = event.terminal or event.affect is not None
            c, i = addresses(constants)
            session.call("bridge_event", self.handle, number, p.data_ptr(), c, i, event.direction, halts)
        self._session = session

    def seen(self) -> list[tuple[int, float]]:
        """The events of the last solve that did not end it, as (index, time)."""
        flat = self._session.call("bridge_seen", self.handle)
        return [(int(number) - 1, float(when)) for number, when in zip(flat[::2], flat[1::2], strict=True)]
