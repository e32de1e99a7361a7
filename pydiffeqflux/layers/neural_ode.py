"""``NeuralODE``: a model as the right-hand side of a differential equation, as a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .. import sensealg as sensealgs
from ..errors import InvalidArgumentError, UnknownOptionError
from ..methods import Method, resolve
from ..problem import ODEProblem, TimeLike, span_ends
from ..sensealg import SenseAlg
from ..solution import Solution
from ..solve import OPTIONS, solve
from ..state import State, map_state
from .calling import as_rhs, takes_time


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

    def __init__(
        self,
        model: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        method: Method | str = "tsit5",
        *,
        saveat: Tensor | Sequence[TimeLike] | float | None = None,
        rtol: float | Tensor = 1e-3,
        atol: float | Tensor = 1e-6,
        sensealg: SenseAlg | str | None = None,
        backend: str = "auto",
        time_dependent: bool | None = None,
        batched: bool = False,
        **options: Any,
    ):
        super().__init__()
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise UnknownOptionError("NeuralODE", unknown[0], [*OPTIONS, "time_dependent", "batched"])
        if not callable(model):
            raise InvalidArgumentError(f"model={model!r} is not callable; give an nn.Module, model(y) or model(t, y).")
        self.time_dependent = takes_time(model) if time_dependent is None else time_dependent
        self.model = model
        span_ends(t_span)
        # Set as attributes of their own, so that a Parameter among them is registered (and moved, and trained).
        if isinstance(t_span, Tensor):
            self.span = t_span
        else:
            self.t0, self.t1 = t_span
        self.saveat = saveat
        self.method = resolve(method, backend)
        self.rtol, self.atol = rtol, atol
        self.sensealg, self.backend = sensealgs.resolve(sensealg), backend
        self.batched = batched
        self.options = options

    @property
    def t_span(self) -> Any:
        """``(t0, t1)`` as it was given."""
        return self.span if hasattr(self, "span") else (self.t0, self.t1)

    @property
    def rhs(self) -> Callable[[Any, Any], Any]:
        """The model as ``func(t, y)``."""
        return as_rhs(self.model, self.time_dependent)

    def _solve(self, y0: State, **options: Any) -> Solution:
        problem = ODEProblem(self.rhs, y0, self.t_span, batched=self.batched)
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
        ends = tuple(end.value for end in span_ends(self.t_span))
        return f"t_span={ends}, method={self.method}, rtol={self.rtol}, atol={self.atol}"
