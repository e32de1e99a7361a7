"""What the host has to know of a tensor: each of these waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Reduce(torch.autograd.Function):
    """The largest entry, also over dimensions that ``torch.func.vmap`` hides: there steps are joint."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.amax()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, None]:
        return _Reduce.apply(x), None


def to_float(x: Any) -> float:
    """A tensor's value as a number; under ``vmap`` the largest over the mapped dimension."""
    if not isinstance(x, Tensor):
        return float(x)
    try:
        return float(x.detach().item())
    except RuntimeError:  # vmap refuses item() on the samples it maps over
        return float(_Reduce.apply(x.detach()).item())


def all_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite; under ``vmap`` in none of the samples."""
    return to_float(torch.isfinite(x.detach()).all().logical_not().to(torch.float32)) == 0.0
