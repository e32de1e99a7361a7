"""One stretch to solve and differentiate: what every adjoint works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....callbacks import Event
from ....methods import Method
from ....problem import SaveTimes, TimePoint
from ....sensealg import SenseAlg
from ...common.dense import Piecewise
from ...common.rhs import Rhs
from ...common.stretch import Outcome, Stretch
from ..integrate import Counts, Integration, Settings
from ..stepper import Stepper
from .vjp import Vjp


@dataclass
class Job:
    """One stretch to solve and differentiate, and (after the forward pass) what the backward pass needs."""

    rhs: Rhs
    method: Method
    stepper: Stepper
    sensealg: SenseAlg
    settings: Settings
    counts: Counts
    stretch: Stretch
    events: Sequence[Event] = ()
    batched: bool = False
    params: tuple[Tensor, ...] = ()
    outcome: Outcome = field(init=False)
    #: The times of the rows of the solution that the function returns.
    ts: list[float] = field(init=False)

    @property
    def t0(self) -> float:
        return self.stretch.t0.value

    @property
    def t1(self) -> float:
        """Where the stretch really ended (an event may have cut it short)."""
        return self.outcome.t1.value

    @property
    def vjp(self) -> Vjp:
        return Vjp(self.rhs, self.params)

    def integrate(self, y0: Tensor, pieces: Piecewise | None) -> Outcome:
        """Solve forwards, recording nothing but (where given) the dense output."""
        s = self.stretch
        values = s.saves.values if s.saves is not None else None
        saves = None if values is None else SaveTimes(values)
        with torch.no_grad():
            return Integration(
                self.rhs,
                self.stepper,
                self.settings,
                TimePoint(s.t0.value),
                TimePoint(s.t1.value),
                saves,
                counts=self.counts,
                pieces=pieces,
                events=self.events,
                keep_steps=s.keep_steps,
            ).run(y0)


@dataclass
class Seeds:
    """What the backward pass starts from: the loss's gradient at the saved states and at the end."""

    at_saves: Tensor
    at_end: Tensor
