"""One number a row, in the shapes in which steppers and the user's functions want it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....problem import ODEProblem, TimePoint


@dataclass(frozen=True)
class Layout:
    """The batch of a problem: how many rows, of how many dimensions.

    Attributes:
        size: number of rows.
        rank: dimensions of the packed state, rows included.
        user_rank: dimensions of the user's tensors; 2 where they differ among themselves.
        wide: dtype in which times are kept, whatever the state's.
    """

    size: int
    rank: int
    user_rank: int
    wide: torch.dtype
    device: torch.device

    def spread(self, rows: Tensor) -> Tensor:
        """``(B,)`` as ``(B, 1, ..., 1)``, to broadcast against the packed state."""
        return rows.reshape(self.size, *[1] * (self.rank - 1))

    def user_time(self, t: Tensor) -> Tensor:
        """One time a row, to broadcast against the user's tensors."""
        return t.reshape(self.size, *[1] * (self.user_rank - 1))

    def where(self, mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """Row by row ``new`` or ``old``, tensors with the rows in front."""
        return torch.where(mask.reshape(self.size, *[1] * (new.dim() - 1)), new, old)

    def full(self, value: float) -> Tensor:
        return torch.full((self.size,), value, dtype=self.wide, device=self.device)

    def time(self, point: TimePoint) -> Tensor:
        """A point in time as a 0-dim tensor, with its graph where it has one."""
        if point.tensor is not None:
            return point.tensor.to(self.device, self.wide)
        return torch.tensor(point.value, dtype=self.wide, device=self.device)

    def function(self, func: Callable[[Tensor, Any], Any]) -> Callable[[Tensor, Any], Any]:
        """``func`` with its time in the shape that the user's tensors ask for."""
        if self.user_rank == self.rank:
            return func
        return lambda t, y: func(self.user_time(t), y)


def layout_of(problem: ODEProblem) -> Layout:
    """The layout of a batched problem."""
    packed, spec = problem.packed, problem.spec
    ranks = {packed.dim()} if spec is None else {len(shape) for shape in spec.shapes}
    return Layout(
        size=packed.shape[0],
        rank=packed.dim(),
        user_rank=ranks.pop() if len(ranks) == 1 else 2,
        wide=torch.float32 if packed.device.type == "mps" else torch.float64,
        device=packed.device,
    )
