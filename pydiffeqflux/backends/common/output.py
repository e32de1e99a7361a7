"""The dense output as :class:`pydiffeqflux.Solution` calls it: in the user's times and structure."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidTimesError
from ...problem import TimePoint, time_point, time_points
from ...state import State, StateSpec
from ...tracking import recording
from .dense import Piecewise


@dataclass(frozen=True)
class DenseOutput:
    """``t -> state``: a number or 0-dim tensor gives one state, a 1-D tensor or sequence several, time first."""

    pieces: Piecewise
    spec: StateSpec | None

    def _at(self, t: TimePoint) -> Tensor:
        if t.tensor is not None and recording():
            return self.pieces.at_tensor(t.tensor)
        return self.pieces(t.value)

    def __call__(self, t: Any) -> State:
        single = isinstance(t, numbers.Real) or (isinstance(t, Tensor | np.ndarray) and t.ndim == 0)
        points = [time_point(t, "t")] if single else time_points(t, "t")
        if not points:
            raise InvalidTimesError("sol(t) was given no times at all.")
        states = torch.stack([self._at(point) for point in points])
        if single:
            states = states[0]
        return states if self.spec is None else self.spec.unflatten(states)
