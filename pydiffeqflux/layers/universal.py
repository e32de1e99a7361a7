"""Universal differential equations: what is known, and a network for what is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ShapeError, UnknownNameError
from ..methods import Method
from ..problem import TimeLike
from ..solution import Solution
from ..state import State
from .calling import as_rhs, takes_time
from .solver_layer import SolverLayer, check_callable

Combine = Callable[[Any, Any], Any]


def _add(known: Tensor, unknown: Tensor) -> Tensor:
    return known + unknown


def _multiply(known: Tensor, unknown: Tensor) -> Tensor:
    return known * unknown


COMBINE: dict[str, Combine] = {"add": _add, "multiply": _multiply}


@dataclass(frozen=True)
class _Together:
    known: Callable[[Any, Any], Any]
    network: Callable[[Any, Any], Any]
    combine: Combine

    def __call__(self, t: Any, y: Any) -> Any:
        known, unknown = self.known(t, y), self.network(t, y)
        if self.combine in COMBINE.values():
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (known, unknown)]
            if shapes[0] != shapes[1] or not isinstance(known, Tensor):
                raise ShapeError(
                    f"the known terms are {shapes[0]} and the network's {shapes[1]}: to be added or multiplied they"
                    f" must be tensors of one shape; give combine(known, network) for anything else."
                )
        return self.combine(known, unknown)


class UniversalODE(SolverLayer):
    """``dy/dt = combine(known(t, y), network(t, y))``: known terms and a network, the parameters of both trained.

    Args:
        known: the terms that are known, ``known(y)`` or ``known(t, y)``. The numbers in it that are to be found are
            parameters of an ``nn.Module``.
        network: a module of ``(y)`` or ``(t, y)`` for the rest.
        t_span, method, **options: as for :class:`NeuralODE`.
        combine: ``"add"``, ``"multiply"``, or any function of the two results, ``combine(known, network)``.

    Raises:
        InvalidArgumentError, SignatureError: for ``known`` and ``network``.
        UnknownNameError: ``combine`` is another name.
        ShapeError: results of two shapes with ``"add"`` or ``"multiply"``.

    Shapes:
        As for :class:`NeuralODE`.

    Source: Rackauckas et al., "Universal differential equations for scientific machine learning" (2020),
    arXiv:2001.04385.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> class Decay(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.rate = torch.nn.Parameter(torch.tensor(0.5))
        ...     def forward(self, y):
        ...         return -self.rate * y
        >>> ude = pdf.UniversalODE(Decay(), torch.nn.Linear(2, 2), (0.0, 1.0))
        >>> [name for name, _ in ude.named_parameters()]
        ['known.rate', 'network.weight', 'network.bias']
        >>> ude(torch.ones(3, 2)).shape
        torch.Size([3, 2])
    """

    own_options = ("batched", "combine")

    def __init__(
        self,
        known: Callable[..., Any],
        network: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        method: Method | str = "tsit5",
        *,
        combine: str | Combine = "add",
        **options: Any,
    ):
        super().__init__(t_span, method, **options)
        for name, part in (("known", known), ("network", network)):
            check_callable(part, f"{name}(y) or {name}(t, y)", name)
        if not callable(combine) and combine not in COMBINE:
            raise UnknownNameError("combine", combine, COMBINE)
        self.known, self.network = known, network
        self.combine = combine

    @property
    def rhs(self) -> Callable[[Any, Any], Any]:
        """Both together, as ``func(t, y)``."""
        combine = COMBINE[self.combine] if isinstance(self.combine, str) else self.combine
        known, network = (as_rhs(part, takes_time(part)) for part in (self.known, self.network))
        return _Together(known, network, combine)

    @property
    def time_dependent(self) -> bool:
        return takes_time(self.known) or takes_time(self.network)

    def solve(self, y0: State) -> Solution:
        """The whole :class:`Solution` from ``y0``."""
        return self.solve_rhs(self.rhs, y0)

    def forward(self, y0: State) -> State:
        return self.states(self.rhs, y0)
