"""What is to be solved: ``residual(t, y, dy/dt) = 0``, ``y(t0) = y0`` on a time span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import DtypeError, InvalidArgumentError, ShapeError
from .problem import TimeLike, TimePoint, span_ends
from .state import State, StateSpec, leaves_of, map_state, pack


@dataclass(frozen=True)
class DAEProblem:
    """A fully implicit initial value problem ``residual(t, y, dy) = 0``, ``y(t_span[0]) = y0``, of index 1.

    Args:
        residual: ``residual(t, y, dy)``, any callable or ``nn.Module``; ``y``, ``dy`` and what it returns have the
            structure, shapes and dtypes of ``y0``.
        y0: real and floating: a tensor of any shape, or a (nested) tuple, list or dict of such tensors.
        dy0: the derivative at the start, in the same structure; with ``initialise="solve"`` a first guess.
        t_span: ``(t0, t1)``, numbers or tensors (which may require gradients).
        differential_vars: which entries of y appear in the equations with their derivatives: booleans in the
            structure of ``y0``, or (for a plain tensor) of a shape that broadcasts to it. The others are algebraic
            variables. All where None.
        batched: the rows of ``y0`` (dimension 0) are independent systems.

    It is solved by QNDF (``backend="julia"``: DFBDF, without a gradient). The gradient is ``DiscreteAdjoint``'s; it
    reaches y0's differential variables and everything that ``residual`` uses. That of ``dy0`` and of the algebraic
    part of ``y0`` is zero, for these are functions of the rest.

    Raises:
        InvalidStateError, InvalidTimesError, InvalidArgumentError, ShapeError, DtypeError

    Source: the problem is SciML's ``DAEProblem``; Brenan, Campbell & Petzold, "Numerical Solution of Initial-Value
    Problems in Differential-Algebraic Equations" (1996).

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> def residual(t, y, dy):  # y1' = -y2 and y2 = y1
        ...     return torch.stack([dy[0] + y[1], y[1] - y[0]])
        >>> ones = torch.ones(2, dtype=torch.float64)
        >>> dae = pdf.DAEProblem(residual, ones, -ones, (0.0, 1.0), [True, False])
        >>> bool((pdf.solve(dae, rtol=1e-6, atol=1e-8).ys[-1] - torch.exp(-ones)).abs().max() < 1e-5)
        True
    """

    residual: Callable[[Tensor, Any, Any], Any]
    y0: State
    dy0: State
    t_span: Sequence[TimeLike] | Tensor
    differential_vars: Any = None
    batched: bool = False
    t0: TimePoint = field(init=False, repr=False)
    t1: TimePoint = field(init=False, repr=False)
    #: The state, its derivative, and which entries are differential, each as one tensor.
    packed: Tensor = field(init=False, repr=False)
    packed_slope: Tensor = field(init=False, repr=False)
    mask: Tensor = field(init=False, repr=False)
    spec: StateSpec | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.residual):
            raise InvalidArgumentError(f"residual={self.residual!r} is not callable; give residual(t, y, dy).")
        packed, spec = pack(self.y0, batched=self.batched)
        if any(leaf.is_complex() for _, leaf in leaves_of(self.y0, "y0")[0]):
            raise DtypeError("y0 is complex; a DAEProblem has real states: keep real and imaginary parts.")
        t0, t1 = span_ends(self.t_span)
        slope = _slope(self.dy0, packed, spec)
        mask = _mask(self.differential_vars, self.y0, packed, spec)
        for name, value in (
            ("packed", packed), ("spec", spec), ("t0", t0), ("t1", t1), ("packed_slope", slope), ("mask", mask),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    @property
    def direction(self) -> float:
        """1.0 forwards in time, -1.0 backwards."""
        return math.copysign(1.0, self.t1.value - self.t0.value)

    @property
    def func(self) -> Callable[[Tensor, Any, Any], Any]:
        """The residual, under the name that the right-hand side of an :class:`ODEProblem` has."""
        return self.residual


def _slope(dy0: State, packed: Tensor, spec: StateSpec | None) -> Tensor:
    if spec is not None:
        return spec.flatten(dy0, "dy0")
    if not isinstance(dy0, Tensor) or dy0.shape != packed.shape:
        got = tuple(dy0.shape) if isinstance(dy0, Tensor) else type(dy0).__name__
        raise ShapeError(f"dy0 is {got}; it must be a tensor of y0's shape {tuple(packed.shape)}.")
    if dy0.dtype != packed.dtype or dy0.device != packed.device:
        raise DtypeError(f"dy0 is {dy0.dtype} on {dy0.device} where y0 is {packed.dtype} on {packed.device}.")
    return dy0


def _mask(given: Any, y0: State, packed: Tensor, spec: StateSpec | None) -> Tensor:
    """Booleans in the shape of the packed state."""
    if given is None:
        return torch.ones_like(packed, dtype=torch.bool)
    if spec is not None:
        found, skeleton = leaves_of(given, "differential_vars")
        if skeleton != spec.skeleton or any(leaf.dtype != torch.bool for _, leaf in found):
            raise ShapeError("differential_vars must have the structure of y0, a boolean tensor for each of its own.")
        flags = iter([leaf.expand(shape) for (_, leaf), shape in zip(found, spec.shapes, strict=True)])
        numbers = map_state(lambda leaf: next(flags).to(leaf.dtype), y0)
        return spec.flatten(numbers, "differential_vars") != 0
    try:
        mask = torch.as_tensor(given, device=packed.device)
        if mask.dtype != torch.bool:
            raise InvalidArgumentError(
                f"differential_vars={given!r} must be booleans: True for every entry of y whose derivative appears."
            )
        return mask.expand(packed.shape)
    except (RuntimeError, TypeError, ValueError) as why:
        if isinstance(why, InvalidArgumentError):
            raise
        raise ShapeError(
            f"differential_vars={given!r} must be booleans that broadcast to y0's shape {tuple(packed.shape)}."
        ) from why
