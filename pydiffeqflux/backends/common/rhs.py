"""The right-hand side as the steppers see it: one tensor in, one tensor out, counted and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import DtypeError, PyDiffEqFluxError, ShapeError
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
        #: Evaluations of the diffusion, where there is one.
        self.ng = 0
        #: The constant matrix M of ``M y' = f``, where there is one.
        self.mass: Any = None
        #: Replaces the general Jacobian where a better one is known (the adjoint equation's).
        self.linearise: Callable[[Scalar, Tensor, bool, bool], Any] | None = None
        #: Of an implicit equation, whose derivatives depend on dy/dt too: its Jacobians at ``(t, y, dy)``.
        self.linearise_implicit: Callable[[Scalar, Tensor, Tensor, bool], Any] | None = None
        self._checked = False
        self._inside: tuple[float, float] | None = None
        self._made: tuple[Tensor | None, float] = None, 0.0

    def fence(self, low: float = -math.inf, high: float = math.inf) -> None:
        """Evaluate strictly between these two times from now on; without arguments, anywhere.

        Where f jumps, a step that ends or starts there has to see it from its own side: times that reach a
        bound are moved inside by the least that the time's dtype can hold.
        """
        if low == -math.inf and high == math.inf:
            self._inside = None
            return
        bounds = torch.tensor([low, high], dtype=self.time_dtype)
        first, last = torch.nextafter(bounds, bounds.flip(0)).tolist()
        self._inside = first, last

    def time(self, t: Scalar) -> Tensor:
        """``t`` as the tensor that the user's function gets: the state's device and real dtype."""
        if isinstance(t, Tensor):
            t = t.to(self.time_dtype)
            if self._inside is None:
                return t
            # The value is moved, the gradient is not.
            return t + (t.clamp(*self._inside) - t).detach()
        if self._inside is not None:
            t = min(max(t, self._inside[0]), self._inside[1])
        made = torch.scalar_tensor(t, dtype=self.time_dtype, device=self.device)
        self._made = made, t
        return made

    def number(self, t: Tensor) -> float:
        """The value of a time that this right-hand side was given: reading it off a GPU would wait for the device."""
        made, value = self._made
        return value if made is t else float(t)

    def __call__(self, t: Scalar, y: Tensor) -> Tensor:
        self.nf += 1
        return self.evaluate(t, y)

    def evaluate(self, t: Scalar, y: Tensor) -> Tensor:
        """As calling, without counting (for Jacobians and vector-Jacobian products)."""
        if not self._checked:
            return self._first(t, y, self.func)
        if self.spec is not None:
            return self.spec.flatten(self.func(self.time(t), self.spec.unflatten(y)))
        return self.func(self.time(t), y)

    @property
    def leading(self) -> Tensor | None:
        """The matrix in front of the derivative, over columns; None for the identity."""
        return None

    def weighed(self, x: Tensor) -> Tensor:
        """That matrix times ``x``."""
        return x

    def defect(self, t: Scalar, y: Tensor, x: Tensor, h: Scalar) -> Tensor:
        """What is zero where the derivative at ``(t, y)`` is ``x / h``: the equation of an implicit stage, times h."""
        return self(t, y) * h - self.weighed(x)

    def derivative(self, t: Scalar, y: Tensor) -> Tensor:
        """dy/dt at a (consistent) state."""
        return self(t, y)

    def settle(self, t: Scalar, y: Tensor) -> Tensor:
        """The consistent state for ``y``, where it begins and after every jump.

        Raises:
            InconsistentStateError, InitialisationError, HighIndexError: there is none (or solving was not asked for).
        """
        return y

    def probe(self, t: Tensor, y: Tensor) -> Tensor:
        """Everything that the model computes at one point, as one tensor: what its parameters are found by."""
        return self.evaluate(t, y)

    @property
    def models(self) -> Any:
        """What the user gave: searched for parameters that one evaluation may not show."""
        return self.func

    def _first(self, t: Scalar, y: Tensor, func: Callable[[Tensor, Any], Any]) -> Tensor:
        """The first evaluation: its result is checked, and its failure explained."""
        out = self._guarded(func, "the right-hand side", self.time(t), y)
        if self.spec is not None:
            out = self.spec.flatten(out)
        self._check(out, y)
        self._checked = True
        return out

    def _guarded(self, func: Callable[[Tensor, Any], Any], what: str, when: Tensor, y: Tensor) -> Any:
        """What ``func`` returns; where it fails because of its arguments, our error in place of torch's."""
        try:
            return func(when, y if self.spec is None else self.spec.unflatten(y))
        except RuntimeError as error:
            if isinstance(error, PyDiffEqFluxError):
                raise
            explained = _explain(error, what, when, y)
            if explained is None:
                raise
            raise explained from error

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


def _explain(error: RuntimeError, what: str, t: Tensor, y: Tensor) -> DtypeError | ShapeError | None:
    """Our error for torch's, where the model and the state that it was given do not go together."""
    said = f"{what} failed at its first evaluation: {str(error).splitlines()[0]}. It was given"
    if re.search(r"dtype|scalar type|input type|same device", str(error), re.IGNORECASE):
        return DtypeError(
            f"{said} a state of {y.dtype} on {y.device}: convert the model (model.to(y0)), or y0 to the model's dtype"
            f" and device."
        )
    if re.search(r"shape|size|dimension|channels", str(error)):
        return ShapeError(
            f"{said} a state of shape {tuple(y.shape)} and a time of shape {tuple(t.shape)}: y0 must have the shape"
            f" that the model takes."
        )
    return None
