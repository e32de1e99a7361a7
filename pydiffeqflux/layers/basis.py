"""Bases of functions of one variable: what tensor product layers are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, UnknownNameError


@dataclass(frozen=True)
class Basis:
    """``n`` functions of one variable.

    Args:
        n: how many.

    Raises:
        InvalidArgumentError: ``n`` is not a positive integer.

    Shapes:
        ``(...)`` to ``(..., n)``.

    Source: the bases of Boltz.jl (the ``Basis`` module), with the numbering that its documentation states.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> pdf.PolynomialBasis(4)(torch.tensor(2.0))
        tensor([1., 2., 4., 8.])
    """

    n: int
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise InvalidArgumentError(f"n={self.n!r} must be a positive integer: how many functions the basis has.")

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _recurrence(self, x: Tensor, following: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """1, x, and what ``following(j, f[j], f[j - 1])`` makes of two functions in a row."""
        found = [torch.ones_like(x), x]
        for j in range(1, self.n - 1):
            found.append(following(j, found[j], found[j - 1]))
        return torch.stack(found[: self.n], -1)

    def _multiples(self, x: Tensor) -> Tensor:
        """x, 2x, ..., nx."""
        return x[..., None] * torch.arange(1, self.n + 1, dtype=x.dtype, device=x.device)


class ChebyshevBasis(Basis):
    """``T_0(x), ..., T_(n-1)(x)``: Chebyshev polynomials of the first kind, for any real x.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> pdf.ChebyshevBasis(4)(torch.tensor(0.5)).tolist()
        [1.0, 0.5, -0.5, -1.0]
    """

    name = "chebyshev"

    def __call__(self, x: Tensor) -> Tensor:
        return self._recurrence(x, lambda j, f, before: 2 * x * f - before)


class LegendreBasis(Basis):
    """``P_0(x), ..., P_(n-1)(x)``: Legendre polynomials.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> pdf.LegendreBasis(3)(torch.tensor(0.5)).tolist()
        [1.0, 0.5, -0.125]
    """

    name = "legendre"

    def __call__(self, x: Tensor) -> Tensor:
        return self._recurrence(x, lambda j, f, before: ((2 * j + 1) * x * f - j * before) / (j + 1))


class PolynomialBasis(Basis):
    """``1, x, ..., x^(n-1)``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> pdf.PolynomialBasis(3)(torch.tensor([2.0, 3.0])).tolist()
        [[1.0, 2.0, 4.0], [1.0, 3.0, 9.0]]
    """

    name = "polynomial"

    def __call__(self, x: Tensor) -> Tensor:
        return self._recurrence(x, lambda j, f, before: x * f)


class SinBasis(Basis):
    """``sin x, sin 2x, ..., sin nx``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> pdf.SinBasis(2)(torch.tensor(torch.pi / 2)).round(decimals=6).abs().tolist()
        [1.0, 0.0]
    """

    name = "sine"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sin(self._multiples(x))


class CosBasis(Basis):
    """``cos x, cos 2x, ..., cos nx``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> pdf.CosBasis(2)(torch.tensor(0.0)).tolist()
        [1.0, 1.0]
    """

    name = "cosine"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cos(self._multiples(x))


class FourierBasis(Basis):
    """``sin x/2, cos x, sin 3x/2, cos 2x, ...``: for j from 1 to n ``cos jx/2`` where j is even, ``sin jx/2`` else.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> pdf.FourierBasis(3)(torch.tensor(0.0)).tolist()
        [0.0, 1.0, 0.0]
    """

    name = "fourier"

    def __call__(self, x: Tensor) -> Tensor:
        angle = self._multiples(x) / 2
        even = torch.arange(1, self.n + 1, device=x.device) % 2 == 0
        return torch.where(even, torch.cos(angle), torch.sin(angle))


BASES: tuple[type[Basis], ...] = (
    ChebyshevBasis,
    LegendreBasis,
    PolynomialBasis,
    SinBasis,
    CosBasis,
    FourierBasis,
)


def basis(name: Any, n: int) -> Basis:
    """The basis of this name with ``n`` functions.

    Raises:
        UnknownNameError: no such basis (the nearest one is in the message).
        InvalidArgumentError: ``n`` is not a positive integer.

    Example:
        >>> import pydiffeqflux as pdf
        >>> pdf.basis("legendre", 3)
        LegendreBasis(n=3)
    """
    for kind in BASES:
        if isinstance(name, str) and name.lower() in (kind.name, kind.__name__.lower(), kind.__name__.lower()[:-5]):
            return kind(n)
    raise UnknownNameError("basis", name, [kind.name for kind in BASES])
