"""Tensor product layers: linear in their weights, and universal in few variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, ShapeError
from .basis import Basis, basis


class TensorProductLayer(nn.Module):
    """``z = W [B_1(x_1) (x) B_2(x_2) (x) ... (x) B_d(x_d)]``: all products of one function from each basis.

    Args:
        bases: one basis a variable, as an object such as ``ChebyshevBasis(5)`` or as a pair ``("chebyshev", 5)``.
        out_dim: size of the output.
        init: fills the weight in place; from the standard normal distribution where None.

    Raises:
        InvalidArgumentError, UnknownNameError: for ``bases`` and ``out_dim``.
        ShapeError: an input that has not one variable a basis.

    Shapes:
        ``(..., d)`` to ``(..., out_dim)``; ``weight`` is ``(out_dim, n_1 * ... * n_d)``, the last basis fastest.

    Source: Boltz.jl's layer of this name; DiffEqFlux.jl's ``TensorLayer``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> layer = pdf.TensorProductLayer([pdf.LegendreBasis(3), ("sine", 4)], 2)
        >>> layer(torch.zeros(5, 2)).shape, layer.weight.shape
        (torch.Size([5, 2]), torch.Size([2, 12]))
    """

    #: Boltz.jl's layer that is the same: ``backend="diffeqflux"`` takes it.
    theirs: ClassVar[str] = "TensorProductLayer"

    def __init__(
        self,
        bases: Sequence[Basis | tuple[str, int]],
        out_dim: int,
        *,
        init: Callable[[Tensor], Any] | None = None,
    ):
        super().__init__()
        if isinstance(bases, str) or not isinstance(bases, Sequence) or not bases:
            raise InvalidArgumentError(f"bases={bases!r} must be a list with a basis for each variable.")
        self.bases = tuple(_basis(b) for b in bases)
        if isinstance(out_dim, bool) or not isinstance(out_dim, int) or out_dim < 1:
            raise InvalidArgumentError(f"out_dim={out_dim!r} must be a positive integer.")
        self.weight = nn.Parameter(torch.empty(out_dim, math.prod(b.n for b in self.bases)))
        with torch.no_grad():
            (nn.init.normal_ if init is None else init)(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if not x.dim() or x.shape[-1] != len(self.bases):
            raise ShapeError(
                f"x has shape {tuple(x.shape)}; this layer has {len(self.bases)} bases, one for each entry of the last"
                f" dimension."
            )
        product = self.bases[0](x[..., 0])
        for i, b in enumerate(self.bases[1:], 1):
            product = (product[..., None] * b(x[..., i])[..., None, :]).flatten(-2)
        return nn.functional.linear(product, self.weight)

    def extra_repr(self) -> str:
        return f"{list(self.bases)}, out_dim={len(self.weight)}"


def _basis(given: Any) -> Basis:
    if isinstance(given, Basis):
        return given
    if isinstance(given, tuple | list) and len(given) == 2:
        return basis(*given)
    raise InvalidArgumentError(f"bases holds {given!r}: give a basis such as ChebyshevBasis(5), or ('chebyshev', 5).")
