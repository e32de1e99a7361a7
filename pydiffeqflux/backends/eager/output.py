"""The dense output as :class:`pydiffeqflux.Solution` calls it: in the user's times and structure."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidTimesError
from ...problem import TimePoint, time_point, time_points
from ...state import State, StateSpec
from ...tracking import recording
from .dense import Piecewise


def dense_output(pieces: Piecewise, spec: StateSpec | None) -> Callable[[Any], State]:
    """``t -> state``: a number or 0-dim tensor gives one state, a 1-D tensor or sequence several, time first."""

    def at(t: TimePoint) -> Tensor:
        if t.tensor is not None and recording():
            return pieces.at_tensor(t.tensor)
        return pieces(t.value)

    def evaluate(t: Any) -> State:
        single = isinstance(t, numbers.Real) or (isinstance(t, Tensor | np.ndarray) and t.ndim == 0)
        points = [time_point(t, "t")] if single else time_points(t, "t")
        if not points:
            raise InvalidTimesError("sol(t) was given no times at all.")
        states = torch.stack([at(point) for point in points])
        if single:
            states = states[0]
        return states if spec is None else spec.unflatten(states)

    return evaluate
