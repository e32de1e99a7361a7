"""``NeuralODE``: a model as the right-hand side of a differential equation, as a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..methods import Method, resolve
from ..problem import ODEProblem, TimeLike
from ..sensealg import SenseAlg
from ..solution import Solution
from ..solve import solve
from ..state import State, map_state
from .calling import as_rhs


class NeuralODE(nn.Module):
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

    def __init__(
        self,
        model: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        method: Method | str = "tsit5",
        *,
        saveat: Tensor | Sequence[float] | float | None = None,
        rtol: float | Tensor = 1e-3,
        atol: float | Tensor = 1e-6,
        sensealg: SenseAlg | str | None = None,
        backend: str = "auto",
        time_dependent: bool | None = None,
        batched: bool = False,
        **options: Any,
    ):
        super().__init__()
        self.model = model
        if isinstance(t_span, Tensor):
            self.t_span: Any = t_span  # registered, and so trained, where it is a Parameter
        else:
            self.t_span = tuple(t_span)
            self._t_span_parameters = nn.ParameterList([t for t in self.t_span if isinstance(t, nn.Parameter)])
        self.saveat = saveat
        self.method = resolve(method)
        self.rtol, self.atol = rtol, atol
        self.sensealg, self.backend = sensealg, backend
        self.batched = batched
        self.options = options
        self._rhs = as_rhs(model, time_dependent)

    def _solve(self, y0: State, **options: Any) -> Solution:
        problem = ODEProblem(self._rhs, y0, self.t_span, batched=self.batched)
        return solve(
            problem,
            self.method,
            saveat=self.saveat,
            rtol=self.rtol,
            atol=self.atol,
            sensealg=self.sensealg,
            backend=self.backend,
            **{**self.options, **options},
        )

    def solve(self, y0: State) -> Solution:
        """The whole :class:`Solution` from ``y0``: times, states, statistics, dense output."""
        return self._solve(y0)

    def forward(self, y0: State) -> State:
        sol = self._solve(y0, **{"dense": False, "save_everystep": False, **self.options})
        return sol.ys if self.saveat is not None else map_state(lambda y: y[-1], sol.ys)

    def extra_repr(self) -> str:
        return f"t_span={tuple(self.t_span)}, method={self.method}, rtol={self.rtol}, atol={self.atol}"
