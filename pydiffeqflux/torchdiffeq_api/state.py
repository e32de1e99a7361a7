"""States, right-hand sides and tolerances as torchdiffeq takes them: more forgiving than ``ODEProblem``.

A right-hand side for a tuple may return any sequence of tensors with the right numbers of entries; one for a
tensor may return what broadcasts to the state; and results are cast to the state's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DtypeError, InvalidToleranceError, ShapeError
from ..state import StateSpec, pack


class TupleSpec(StateSpec):
    """A flat tuple (or list) of tensors, rebuilt from whatever sequence of tensors has the right sizes."""

    def flatten(self, state: Any, where: str = "the right-hand side's return value") -> Tensor:
        parts = None if isinstance(state, Tensor) and len(self.shapes) > 1 else _listed(state)
        if parts is None or len(parts) != len(self.shapes) or not all(isinstance(p, Tensor) for p in parts):
            raise ShapeError(
                f"{where} must be a tuple of {len(self.shapes)} tensors, as y0 is; got"
                f" {type(state).__name__ if parts is None else [type(p).__name__ for p in parts]}."
            )
        rows = []
        for i, (part, shape, dtype) in enumerate(zip(parts, self.shapes, self.dtypes, strict=True)):
            if part.numel() != shape.numel():
                raise ShapeError(
                    f"{where}[{i}] has shape {tuple(part.shape)}; y0[{i}] has shape {tuple(shape)}, and the two must"
                    f" have the same number of entries."
                )
            if part.dtype != dtype:
                part = _cast(part, dtype)
            if dtype.is_complex and not self.dtype.is_complex:
                part = torch.view_as_real(part.resolve_conj())
            rows.append(part.reshape(-1))
        return torch.cat(rows).to(self.dtype)


def _listed(state: Any) -> list[Any] | None:
    try:
        return list(state)
    except TypeError:
        return None


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.is_complex() and not dtype.is_complex:
        raise DtypeError(f"the right-hand side returned {x.dtype} for a state of {dtype}; make y0 complex.")
    return x.to(dtype)


def pack_state(y0: Any) -> tuple[Tensor, StateSpec | None]:
    """As :func:`pydiffeqflux.state.pack`, with the forgiving spec for tuples."""
    packed, spec = pack(y0)
    if spec is not None and isinstance(spec.skeleton, tuple | list) and all(isinstance(s, int) for s in spec.skeleton):
        spec = TupleSpec(spec.skeleton, spec.shapes, spec.dtypes, spec.dtype, False)
    return packed, spec


@dataclass(frozen=True)
class Conforming:
    """A function of a tensor state, its result brought to the state's shape and dtype where that is harmless."""

    model: Callable[[Tensor, Any], Any]

    def __call__(self, t: Tensor, y: Tensor) -> Any:
        out = self.model(t, y)
        if isinstance(out, Tensor):
            if out.dtype != y.dtype:
                out = _cast(out, y.dtype)
            if out.shape != y.shape:
                out = _broadcast(out, y)
        return out


def _broadcast(out: Tensor, y: Tensor) -> Tensor:
    while out.dim() > y.dim() and out.shape[0] == 1:
        out = out[0]
    try:
        return out.expand(y.shape)
    except RuntimeError:
        raise ShapeError(
            f"the right-hand side returned shape {tuple(out.shape)} for a state of shape {tuple(y.shape)}; dy/dt must"
            f" have the shape of y."
        ) from None


def tolerance(name: str, tol: Any, packed: Tensor, spec: StateSpec | None) -> float | Tensor:
    """A number, or one value for each entry of the packed state.

    A tuple state may have a tuple of tolerances, one (a number, or a tensor) for each of its tensors.

    Raises:
        InvalidToleranceError: it requires a gradient, is negative or not finite, or does not fit the state.
    """
    if isinstance(tol, Tensor) and tol.requires_grad:
        raise InvalidToleranceError(f"{name} cannot require gradient: none flows through a tolerance; detach it.")
    parts = _listed(tol)
    try:
        if parts is None:
            value: Any = float(tol)
        elif spec is None:
            value = torch.as_tensor(tol)
            value.expand(torch.broadcast_shapes(value.shape, packed.shape))
        else:
            value = _by_tensor(name, parts, spec)
    except (TypeError, ValueError, RuntimeError) as why:
        if isinstance(why, InvalidToleranceError):
            raise
        raise InvalidToleranceError(f"{name}={tol!r} does not fit the state: {why}.") from None
    found = torch.as_tensor(value, dtype=torch.float64)
    if not bool((found >= 0).all()) or not bool(found.isfinite().all()):
        raise InvalidToleranceError(f"{name}={tol!r} must not be negative, and must be finite.")
    if parts is None:
        return float(value)
    real = packed.real.dtype if packed.is_complex() else packed.dtype
    return found.to(packed.device, real)


def _by_tensor(name: str, parts: list[Any], spec: StateSpec) -> Tensor:
    if len(parts) != len(spec.shapes):
        raise InvalidToleranceError(
            f"{name} is a tuple of {len(parts)} and y0 one of {len(spec.shapes)} tensors; they must have the same"
            f" length (or give one number for all)."
        )
    rows = []
    for part, shape, dtype in zip(parts, spec.shapes, spec.dtypes, strict=True):
        value = torch.as_tensor(part, dtype=torch.float64)
        flat = value.expand(shape).reshape(-1) if value.dim() != 1 else value.expand(shape.numel())
        doubled = dtype.is_complex and not spec.dtype.is_complex
        rows.append(flat.repeat_interleave(2) if doubled else flat)
    return torch.cat(rows)
