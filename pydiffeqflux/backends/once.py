"""Values that cannot be differentiated (or not again), and say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import GradientError


def once(
    message: str, gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """``gradients`` of a solve with these inputs, as functions of the inputs whose derivative is an error.

    For ``create_graph=True``: whoever differentiates these gradients has to be told. Without it, as they are.
    """
    if not torch.is_grad_enabled():
        return tuple(gradients)
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    return tuple(None if g is None else _Once.apply(message, g, *wanted) for g in gradients)


class _Once(torch.autograd.Function):
    """A gradient that is a function of the solve's inputs, with a derivative that says that there is none."""

    @staticmethod
    def forward(ctx: Any, message: str, gradient: Tensor, *inputs: Tensor) -> Tensor:
        ctx.message = message
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise GradientError(ctx.message)


class WithoutGradient(torch.autograd.Function):
    """``(message, values, *origins) -> values``: they depend on ``origins``, and say so where somebody asks how."""

    @staticmethod
    def forward(ctx: Any, message: str, values: Tensor, *origins: Tensor) -> Tensor:
        ctx.message = message
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise GradientError(ctx.message)
