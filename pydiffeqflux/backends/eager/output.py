"""The dense output as :class:`pydiffeqflux.Solution` calls it: in the user's times and structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidTimesError
from ...state import State, StateSpec
from .dense import Piecewise


def dense_output(pieces: Piecewise, spec: StateSpec | None) -> Callable[[Any], State]:
    """``t -> state``: a number or 0-dim tensor gives one state, a 1-D tensor or sequence several, time first."""

    def at(t: Tensor | float) -> Tensor:
        if isinstance(t, Tensor) and t.requires_grad and torch.is_grad_enabled():
            return pieces.at_tensor(t)
        return pieces(float(t))

    def evaluate(t: Any) -> State:
        single = isinstance(t, int | float) or (isinstance(t, Tensor) and t.dim() == 0)
        if isinstance(t, Tensor) and t.dim() > 1:
            raise InvalidTimesError(f"sol(t) takes one time or a 1-D tensor of times; got shape {tuple(t.shape)}.")
        times = [t] if single else list(t)
        if not times:
            raise InvalidTimesError("sol(t) was given no times at all.")
        states = torch.stack([at(x) for x in times])
        if single:
            states = states[0]
        return states if spec is None else spec.unflatten(states)

    return evaluate
