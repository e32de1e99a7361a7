"""Augmented neural ODEs: extra channels that start at zero give trajectories room to pass each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, InvalidStateError, ShapeError
from ..methods import Method
from ..problem import TimeLike
from ..solution import Solution
from .neural_ode import NeuralODE


def augment(y0: Tensor, extra_dims: int, dim: int) -> Tensor:
    """``y0`` with ``extra_dims`` zeros appended along dimension ``dim``.

    Raises:
        InvalidStateError: not a tensor.
        ShapeError: it has no dimension ``dim``.
    """
    if not isinstance(y0, Tensor):
        raise InvalidStateError(f"y0 is a {type(y0).__name__}; the channels are appended to a tensor.")
    if not -y0.dim() <= dim < y0.dim():
        raise ShapeError(f"y0 has shape {tuple(y0.shape)}, which has no dimension dim={dim} to append channels to.")
    shape = list(y0.shape)
    shape[dim] = extra_dims
    return torch.cat([y0, y0.new_zeros(shape)], dim)


def _checked(extra_dims: Any, name: str) -> int:
    if isinstance(extra_dims, bool) or not isinstance(extra_dims, int) or extra_dims < 1:
        raise InvalidArgumentError(f"{name}={extra_dims!r} must be a positive integer: how many zeros to append.")
    return extra_dims


@dataclass(frozen=True)
class Augmented:
    """``func(t, y)`` for a model of augmented states; says which channels were appended."""

    model: Callable[..., Any]
    timed: bool
    extra_dims: int
    dim: int

    def __call__(self, t: Any, y: Any) -> Any:
        return self.model(t, y) if self.timed else self.model(y)

    @property
    def separable(self) -> Any:
        """The model's two halves, if it says that it has them."""
        return getattr(self.model, "separable", None)


class AugmentedNeuralODE(NeuralODE):
    """A :class:`NeuralODE` on the state with ``extra_dims`` zero channels appended.

    In its own dimension a flow cannot tear or cross itself (it is a homeomorphism); with room beside it can undo
    what lies nested.

    Args:
        model: takes and returns states with the extra channels.
        t_span, method: as for :class:`NeuralODE`.
        extra_dims: how many channels.
        dim: the dimension they are appended to: the last one, or 1 for images ``(B, C, H, W)``.
        **options: as for :class:`NeuralODE`.

    Raises:
        InvalidArgumentError: ``extra_dims`` is not a positive integer.
        InvalidStateError, ShapeError: a state that channels cannot be appended to.

    Shapes:
        ``(..., d)`` to ``(..., d + extra_dims)``; ``(T, ..., d + extra_dims)`` with ``saveat``.

    Source: Dupont, Doucet & Teh, "Augmented neural ODEs" (2019), arXiv:1904.01681.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
        >>> pdf.AugmentedNeuralODE(net, (0.0, 1.0), 3)(torch.ones(7, 2)).shape
        torch.Size([7, 5])
    """

    own_options = ("time_dependent", "batched", "dim")

    def __init__(
        self,
        model: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        extra_dims: int,
        method: Method | str = "tsit5",
        *,
        dim: int = -1,
        **options: Any,
    ):
        super().__init__(model, t_span, method, **options)
        self.extra_dims, self.dim = _checked(extra_dims, "extra_dims"), dim

    @property
    def rhs(self) -> Callable[[Any, Any], Any]:
        """The model as ``func(t, y)``."""
        return Augmented(self.model, self.time_dependent, self.extra_dims, self.dim)

    def solve(self, y0: Tensor) -> Solution:
        return super().solve(augment(y0, self.extra_dims, self.dim))

    def forward(self, y0: Tensor) -> Tensor:
        found: Tensor = super().forward(augment(y0, self.extra_dims, self.dim))
        return found

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, extra_dims={self.extra_dims}"


class AugmentedNDELayer(nn.Module):
    """Any layer whose input is a state, with ``adim`` zero channels appended to it first.

    Args:
        nde: the layer: a :class:`NeuralODE`, or one around a stochastic or delay equation.
        adim: how many channels.
        dim: the dimension they are appended to.

    Raises:
        InvalidArgumentError, InvalidStateError, ShapeError: as for :class:`AugmentedNeuralODE`.

    Source: as for :class:`AugmentedNeuralODE`; DiffEqFlux.jl's function of this name.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> node = pdf.NeuralODE(torch.nn.Linear(5, 5), (0.0, 1.0))
        >>> pdf.AugmentedNDELayer(node, 3)(torch.ones(7, 2)).shape
        torch.Size([7, 5])
    """

    def __init__(self, nde: nn.Module, adim: int, *, dim: int = -1):
        super().__init__()
        if not isinstance(nde, nn.Module):
            raise InvalidArgumentError(f"nde={nde!r} is not an nn.Module; give a layer such as NeuralODE.")
        self.nde, self.adim, self.dim = nde, _checked(adim, "adim"), dim

    def forward(self, y0: Tensor, *args: Any, **keywords: Any) -> Any:
        return self.nde(augment(y0, self.adim, self.dim), *args, **keywords)

    def extra_repr(self) -> str:
        return f"adim={self.adim}"
