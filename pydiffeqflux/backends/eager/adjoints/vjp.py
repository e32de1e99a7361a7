"""Vector-Jacobian products of the right-hand side, with respect to the state and the captured tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...common.rhs import Rhs, Scalar


class Vjp:
    """``v -> (v df/dy, v df/dp)`` at a time and a state, by autograd in eager torch."""

    def __init__(self, rhs: Rhs, params: Sequence[Tensor]):
        self.rhs = rhs
        self.params = tuple(params)

    def __call__(
        self, t: Scalar, y: Tensor, v: Tensor, *, state: bool = True, params: bool = True
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """``f(t, y)``, the product with df/dy (None unless ``state``), and those with df/dp (unless not wanted).

        Records a graph of its own where gradients are enabled and an argument has one: an implicit method
        needs the Jacobian of the adjoint equation.
        """
        nested = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (t, y, v))
        wanted = self.params if params else ()
        with torch.enable_grad():
            # A new node, so that only what passes through this evaluation is differentiated.
            at = y.view_as(y) if nested and y.requires_grad else y.detach().requires_grad_()
            f = self.rhs(t, at)
            inputs = ((at,) if state else ()) + wanted
            if not f.requires_grad or not inputs:
                grads: tuple[Tensor | None, ...] = (None,) * len(inputs)
            else:
                # The graph before the captured tensors is shared by all evaluations: it must survive.
                grads = torch.autograd.grad(f, inputs, v, create_graph=nested, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]
        out = f if nested else f.detach()
        return (out, filled[0], filled[1:]) if state else (out, None, filled)

    def rows(self, t: Scalar, y: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """``f``, the Jacobian ``(N, N)`` and df/dp ``(N, *p.shape)`` for each captured tensor (real states)."""
        nested = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (t, y))
        with torch.enable_grad():
            at = y.view_as(y) if nested and y.requires_grad else y.detach().requires_grad_()
            f = self.rhs(t, at)
            n = f.numel()
            inputs = (at, *self.params)
            if not f.requires_grad:
                rows: Sequence[Tensor | None] = (None,) * len(inputs)
            else:
                eye = torch.eye(n, dtype=f.dtype, device=f.device).reshape(n, *f.shape)
                rows = _batched_grad(f, inputs, eye, nested)
        filled = [x.new_zeros(n, *x.shape) if g is None else g for g, x in zip(rows, inputs, strict=True)]
        return f if nested else f.detach(), filled[0].reshape(n, n), filled[1:]


def _batched_grad(f: Tensor, inputs: Sequence[Tensor], eye: Tensor, create_graph: bool) -> Sequence[Tensor | None]:
    options = {"create_graph": create_graph, "retain_graph": True, "allow_unused": True}
    try:
        return torch.autograd.grad(f, inputs, eye, is_grads_batched=True, **options)
    except RuntimeError:  # an operator without a batching rule: one row after the other
        per_row = [torch.autograd.grad(f, inputs, e, **options) for e in eye]
        return [None if c[0] is None else torch.stack(c) for c in zip(*per_row, strict=True)]
