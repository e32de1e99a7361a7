"""Splines as layers: functions of time with trained values at their knots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, ShapeError
from ..interpolation import interpolate, kind_of


class SplineLayer(nn.Module):
    """A function of one variable that passes through trained points on a grid: an unknown input, say, or a rate.

    Args:
        in_dims: the shape of a value; ``()`` for a number.
        grid_min, grid_max, grid_step: the knots; outside of them the value is that of the nearest end.
        basis: ``"constant"``, ``"linear"``, ``"quadratic"``, ``"hermite"`` or ``"cubic"`` (a natural spline).
        train_grid: whether the knots are parameters, too.
        init_saved_points: fills the points in place; uniform in [0, 1) where None.

    Raises:
        InvalidArgumentError: a grid with too few knots, or a shape that is none.
        UnknownNameError: another basis.

    Shapes:
        ``(...)`` to ``(..., *in_dims)``; ``saved_points`` is ``(knots, *in_dims)``.

    Source: Boltz.jl's layer of this name.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> ramp = pdf.SplineLayer((), 0.0, 1.0, 0.25, "linear")
        >>> with torch.no_grad():
        ...     _ = ramp.saved_points.copy_(ramp.grid)
        >>> ramp(torch.tensor([0.1, 0.6, 2.0])).tolist()
        [0.10000000149011612, 0.6000000238418579, 1.0]
    """

    #: Boltz.jl's layer that is the same: ``backend="diffeqflux"`` takes it, where values are numbers.
    theirs: ClassVar[str] = "SplineLayer"

    grid: Tensor

    def __init__(
        self,
        in_dims: int | Sequence[int],
        grid_min: float,
        grid_max: float,
        grid_step: float,
        basis: str = "cubic",
        *,
        train_grid: bool = False,
        init_saved_points: Callable[[Tensor], Any] | None = None,
    ):
        super().__init__()
        _, fewest = kind_of(basis, "basis")
        self.basis = basis.lower()
        shape = (in_dims,) if isinstance(in_dims, int) else tuple(in_dims)
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
            raise InvalidArgumentError(f"in_dims={in_dims!r} must be a shape: positive integers, or () for a number.")
        ends = (grid_min, grid_max, grid_step)
        if not all(math.isfinite(x) for x in ends) or not (grid_max > grid_min and grid_step > 0):
            raise InvalidArgumentError(
                f"grid_min={grid_min}, grid_max={grid_max}, grid_step={grid_step}: the grid must go up by a positive"
                f" step."
            )
        count = math.floor((grid_max - grid_min) / grid_step * (1 + 1e-12)) + 1
        if count < fewest:
            raise InvalidArgumentError(f"grid_step={grid_step} gives {count} knots; {basis!r} needs {fewest} or more.")
        grid = grid_min + grid_step * torch.arange(count, dtype=torch.get_default_dtype())
        if train_grid:
            self.grid = nn.Parameter(grid)
        else:
            self.register_buffer("grid", grid)
        self.saved_points = nn.Parameter(torch.empty(count, *shape))
        with torch.no_grad():
            (nn.init.uniform_ if init_saved_points is None else init_saved_points)(self.saved_points)

    def forward(self, t: Tensor) -> Tensor:
        if not isinstance(t, Tensor):
            raise ShapeError(f"t is a {type(t).__name__}; give a tensor of times: torch.tensor({t!r}).")
        inside = torch.maximum(torch.minimum(t.to(self.grid.dtype), self.grid[-1]), self.grid[0])
        found = interpolate(self.basis, self.grid, self.saved_points)(inside)
        if self.basis == "constant":  # its pieces know the knots before them; the last knot begins none
            late = (inside >= self.grid[-1]).reshape((*inside.shape, *(1,) * (self.saved_points.dim() - 1)))
            found = torch.where(late, self.saved_points[-1], found)
        return found

    def extra_repr(self) -> str:
        return f"{tuple(self.saved_points.shape[1:])}, {len(self.grid)} knots, basis={self.basis}"
