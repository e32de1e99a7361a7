"""Tolerances, and the norms that errors are measured in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Norm = Callable[[Tensor], Any]


#: An absolute tolerance that is as good as zero, and a normal number in single precision.
_TINY = 1e-37


def rms_norm(x: Tensor) -> Tensor:
    """Root mean square of all entries: the norm of Hairer, Norsett & Wanner I, equation (II.4.11)."""
    if x.is_complex():
        x = torch.view_as_real(x)
        return torch.linalg.vector_norm(x) * math.sqrt(2.0 / max(x.numel(), 1))
    return torch.linalg.vector_norm(x) * (1.0 / math.sqrt(max(x.numel(), 1)))


def row_norm(x: Tensor) -> Tensor:
    """:func:`rms_norm` of every row on its own: shape ``(B,)``."""
    rows = x.reshape(x.shape[0], -1)
    return torch.linalg.vector_norm(rows, dim=1) * (1.0 / math.sqrt(rows.shape[1]))


@dataclass(frozen=True)
class Tolerances:
    """``atol + rtol * |y|``, per entry. Both may be tensors that broadcast against the packed state."""

    rtol: float | Tensor
    atol: float | Tensor
    norm: Norm = rms_norm

    def __post_init__(self) -> None:
        # With atol=0 an entry that is and stays zero would have the scaled error 0 / 0.
        least = self.atol.clamp_min(_TINY) if isinstance(self.atol, Tensor) else max(self.atol, _TINY)
        object.__setattr__(self, "atol", least)

    def scale(self, size: Tensor) -> Tensor:
        return size * self.rtol + self.atol

    @torch.no_grad()
    def ratio(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """Norm of the error in units of the tolerance: a step is accepted up to 1."""
        return self.norm(error / self.scale(torch.maximum(y0.abs(), y1.abs())))
