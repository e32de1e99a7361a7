"""A layer that moves a dimension: from time first to where the next layer wants it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, ShapeError


class DimMover(nn.Module):
    """Moves dimension ``source`` to ``destination``: by default ``(T, B, ...)``, as solutions are, to ``(B, T, ...)``.

    Args:
        source, destination: dimensions, from the front or (negative) from the back.

    Raises:
        InvalidArgumentError: they are not integers.
        ShapeError: an input without such dimensions.

    Source: DiffEqFlux.jl's layer of this name, whose time comes last.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> node = pdf.NeuralODE(torch.nn.Linear(2, 2), (0.0, 1.0), saveat=[0.0, 0.5, 1.0])
        >>> torch.nn.Sequential(node, pdf.DimMover())(torch.ones(5, 2)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(self, source: int = 0, destination: int = 1):
        super().__init__()
        for name, dim in (("source", source), ("destination", destination)):
            if isinstance(dim, bool) or not isinstance(dim, int):
                raise InvalidArgumentError(f"{name}={dim!r} must be an integer: a dimension.")
        self.source, self.destination = source, destination

    def forward(self, x: Tensor) -> Tensor:
        for name, dim in (("source", self.source), ("destination", self.destination)):
            if not -x.dim() <= dim < x.dim():
                raise ShapeError(f"x has shape {tuple(x.shape)}, which has no dimension {name}={dim}.")
        return torch.movedim(x, self.source, self.destination)

    def extra_repr(self) -> str:
        return f"source={self.source}, destination={self.destination}"
