"""The right-hand side of the adjoint equation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.common.rhs import Rhs


class Augmented:
    """``d/dt (vjp_t, y, adj_y, *vjp_params) = (-adj_y df/dt, f, -adj_y df/dy, *(-adj_y df/dp))``.

    Args:
        params: the tensors p that f depends on.
        timed: whether the derivative with respect to the time is wanted.
    """

    def __init__(self, rhs: Rhs, params: tuple[Tensor, ...], timed: bool):
        self.rhs, self.params, self.timed = rhs, params, timed

    def __call__(self, t: Tensor, state: Any) -> tuple[Tensor, ...]:
        _, y, adj = state[:3]
        # An implicit method differentiates this function once more, in y and adj.
        nested = torch.is_grad_enabled() and (y.requires_grad or adj.requires_grad or t.requires_grad)
        with torch.enable_grad():
            at = y if nested and y.requires_grad else y.detach().requires_grad_()
            when = t if nested and t.requires_grad else t.detach().requires_grad_(self.timed)
            f = self.rhs.evaluate(when, at)
            inputs = (at, *((when,) if self.timed else ()), *self.params)
            grads: tuple[Tensor | None, ...] = (None,) * len(inputs)
            if f.requires_grad:
                grads = torch.autograd.grad(f, inputs, -adj, create_graph=nested, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]
        v_t = filled.pop(1) if self.timed else torch.zeros_like(state[0])
        return (v_t.reshape(()), f if nested else f.detach(), filled[0], *filled[1:])
