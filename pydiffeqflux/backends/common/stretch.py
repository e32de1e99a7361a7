"""A smooth stretch of a solve: what lies between two jumps of the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ...problem import SaveTimes, TimePoint
from ...solution import Status
from .crossing import Crossing
from .dense import Piecewise
from .rhs import Scalar


@dataclass
class Outcome:
    """What one smooth stretch of a solve (no jump of the state inside) came to."""

    status: Status
    y1: Tensor
    t1: TimePoint
    #: Saved times that were reached, as indices into the save times, and the states there.
    saved: list[Tensor] = field(default_factory=list)
    #: Every accepted step's end, where no save times were given.
    step_times: list[Scalar] = field(default_factory=list)
    step_states: list[Tensor] = field(default_factory=list)
    #: The terminal or state-changing event that ended the stretch, and the others seen on the way.
    stopped_by: Crossing | None = None
    crossings: list[Crossing] = field(default_factory=list)
    message: str = ""


@dataclass
class Stretch:
    """One smooth stretch, as it is handed to whatever solves (and differentiates) it."""

    t0: TimePoint
    t1: TimePoint
    saves: SaveTimes | None
    pieces: Piecewise | None
    keep_steps: bool


Runner = Callable[[Tensor, Stretch], Outcome]
