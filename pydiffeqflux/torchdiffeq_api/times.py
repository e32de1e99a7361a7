"""The times of a call: numbers for the loop, and the user's tensor where it carries a gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DtypeError, InvalidTimesError
from ..problem import TimePoint
from ..tracking import reading, recording, tracked


@dataclass(frozen=True)
class Times:
    """Strictly monotonic times, the first of them the initial one."""

    values: tuple[float, ...]
    #: The times as the user gave them; a grid constructor gets these, and results have their dtype.
    tensor: Tensor

    @property
    def differentiable(self) -> bool:
        return recording() and tracked(self.tensor)

    @property
    def sign(self) -> float:
        """1.0 forwards in time, -1.0 backwards."""
        return -1.0 if len(self.values) > 1 and self.values[1] < self.values[0] else 1.0

    def point(self, index: int) -> TimePoint:
        return TimePoint(self.values[index], self.tensor[index] if self.differentiable else None)

    @classmethod
    def of(cls, values: Sequence[float], like: Tensor) -> Times:
        """Constants, in the dtype and on the device of other times."""
        return cls(tuple(values), torch.tensor(values, dtype=like.dtype, device=like.device))


def check_times(t: Tensor, name: str = "t") -> Times:
    """``t`` as :class:`Times`.

    Raises:
        InvalidTimesError: not a tensor, not one-dimensional, empty, not finite, or not strictly monotonic.
        DtypeError: a tensor that is not floating point.
    """
    if not isinstance(t, Tensor):
        raise InvalidTimesError(f"{name} must be a torch.Tensor; got a {type(t).__name__}: torch.tensor({name}), say.")
    if not t.is_floating_point():
        raise DtypeError(f"{name} must be a floating point tensor; got {t.dtype}: {name}.double(), say.")
    if t.dim() != 1:
        raise InvalidTimesError(f"{name} must be one dimensional; got shape {tuple(t.shape)}.")
    with reading(name, "all samples are solved over the same times; map over y0 and parameters only"):
        values = tuple(t.detach().tolist())
    if not values:
        raise InvalidTimesError(f"{name} is empty; it must hold at least the initial time.")
    for i, v in enumerate(values):
        if not math.isfinite(v):
            raise InvalidTimesError(f"{name}[{i}]={v} is not finite.")
    sign = -1.0 if len(values) > 1 and values[1] < values[0] else 1.0
    for i, (a, b) in enumerate(itertools.pairwise(values)):
        if (b - a) * sign <= 0:
            raise InvalidTimesError(
                f"{name} must be strictly increasing or decreasing; {name}[{i}]={a} is followed by {name}[{i + 1}]={b}."
            )
    return Times(values, t)
