"""A smooth stretch of a solve: what lies between two jumps of the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...problem import SaveTimes, TimePoint
from .dense import Piecewise
from .integrate import Outcome


@dataclass
class Stretch:
    """One smooth stretch, as it is handed to whatever solves (and differentiates) it."""

    t0: TimePoint
    t1: TimePoint
    saves: SaveTimes | None
    pieces: Piecewise | None
    keep_steps: bool


Runner = Callable[[Tensor, Stretch], Outcome]
