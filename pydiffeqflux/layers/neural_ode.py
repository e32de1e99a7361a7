"""``NeuralODE``: a model as the right-hand side of a differential equation, as a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ..methods import Method
from ..problem import TimeLike
from ..solution import Solution
from ..state import State
from .calling import as_rhs, takes_time
from .solver_layer import SolverLayer, check_callable


class NeuralODE(SolverLayer):
    """The flow of ``dy/dt = model(y)`` or ``model(t, y)`` as a layer.

    Args:
        model: an ``nn.Module`` or any callable; which of the two it is, is told by its signature.
        t_span: ``(t0, t1)``, numbers or tensors (an ``nn.Parameter`` among them is trained).
        method: as for :func:`pydiffeqflux.solve`.
        saveat: times to return; None returns the final state only.
        rtol, atol, sensealg, backend: as for :func:`pydiffeqflux.solve`.
        time_dependent: state it where the signature does not: True for ``model(t, y)``.
        batched: rows of the state are independent systems (see :class:`ODEProblem`).
        **options: further keyword arguments of :func:`pydiffeqflux.solve`, such as ``dt`` or ``max_steps``.

    Raises:
        InvalidArgumentError, InvalidTimesError, UnknownNameError: for ``model``, ``t_span`` and ``method``.
        SignatureError: the model's signature does not tell, and ``time_dependent`` was not stated.
        UnknownOptionError: an option that ``solve`` does not take.

    Shapes:
        ``node(y0)`` has the shape of ``y0`` (the final state), or ``(T, *y0.shape)`` with ``saveat``.

    Source: Chen et al., "Neural ordinary differential equations" (2018); DiffEqFlux.jl's layer of this name.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> node = pdf.NeuralODE(net, (0.0, 1.0), "tsit5")
        >>> torch.nn.Sequential(node, torch.nn.Linear(2, 1))(torch.ones(5, 2)).shape
        torch.Size([5, 1])
        >>> pdf.NeuralODE(net, (0.0, 1.0), saveat=[0.0, 0.5, 1.0])(torch.ones(5, 2)).shape
        torch.Size([3, 5, 2])
    """

    own_options: ClassVar[tuple[str, ...]] = ("time_dependent", "batched")

    def __init__(
        self,
        model: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        method: Method | str = "tsit5",
        *,
        time_dependent: bool | None = None,
        **options: Any,
    ):
        super().__init__(t_span, method, **options)
        check_callable(model, "model(y) or model(t, y)")
        self.time_dependent = takes_time(model) if time_dependent is None else time_dependent
        self.model = model

    @property
    def rhs(self) -> Callable[[Any, Any], Any]:
        """The model as ``func(t, y)``."""
        return as_rhs(self.model, self.time_dependent)

    def solve(self, y0: State) -> Solution:
        """The whole :class:`Solution` from ``y0``: times, states, statistics, dense output."""
        return self.solve_rhs(self.rhs, y0)

    def forward(self, y0: State) -> State:
        return self.states(self.rhs, y0)
