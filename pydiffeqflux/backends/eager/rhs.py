"""The right-hand side as the steppers see it: one tensor in, one tensor out, counted and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import DtypeError, ShapeError
from ...state import StateSpec

Scalar = float | Tensor


class Rhs:
    """``rhs(t, y)`` for a packed state.

    Args:
        func: the user's ``func(t, y)``.
        spec: how the state was packed; None for a plain tensor.
        like: a packed state, for dtype and device.
    """

    def __init__(self, func: Callable[[Tensor, Any], Any], spec: StateSpec | None, like: Tensor):
        self.func = func
        self.spec = spec
        self.time_dtype = like.real.dtype if like.is_complex() else like.dtype
        self.device = like.device
        self.nf = 0
        self.njac = 0
        #: Replaces the general Jacobian where a better one is known (the adjoint equation's).
        self.linearise: Callable[[Scalar, Tensor, bool, bool], Any] | None = None
        self._checked = False

    def time(self, t: Scalar) -> Tensor:
        """``t`` as the tensor that the user's function gets: the state's device and real dtype."""
        if isinstance(t, Tensor):
            return t.to(self.time_dtype)
        return torch.tensor(t, dtype=self.time_dtype, device=self.device)

    def __call__(self, t: Scalar, y: Tensor) -> Tensor:
        self.nf += 1
        return self.evaluate(t, y)

    def evaluate(self, t: Scalar, y: Tensor) -> Tensor:
        """As calling, without counting (for Jacobians and vector-Jacobian products)."""
        if self.spec is not None:
            return self.spec.flatten(self.func(self.time(t), self.spec.unflatten(y)))
        out = self.func(self.time(t), y)
        if not self._checked:
            self._check(out, y)
        return out

    def _check(self, out: Any, y: Tensor) -> None:
        if not isinstance(out, Tensor):
            raise ShapeError(
                f"the right-hand side returned a {type(out).__name__}; for a tensor state it must return a tensor of"
                f" the state's shape {tuple(y.shape)}."
            )
        if out.shape != y.shape:
            raise ShapeError(
                f"the right-hand side returned shape {tuple(out.shape)} for a state of shape {tuple(y.shape)}; dy/dt"
                f" must have the shape of y."
            )
        if out.dtype != y.dtype or out.device != y.device:
            raise DtypeError(
                f"the right-hand side returned {out.dtype} on {out.device} for a state of {y.dtype} on {y.device};"
                f" convert the model (model.to(y0)) or y0 (y0.to({out.dtype}))."
            )
        self._checked = True
