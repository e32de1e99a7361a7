"""``NeuralDDE``: a model of the present and the past as a layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..dde_problem import DDEProblem, LagLike, lags_of
from ..errors import InvalidArgumentError, ShapeError, SignatureError, UnknownNameError
from ..methods import Method
from ..problem import TimeLike
from ..solution import Solution
from ..state import State
from .solver_layer import SolverLayer, check_callable

#: The ways in which a model may want to be called: with states joined along their last dimension, one by one, or one
#: by one after the time.
INPUTS = ("joined", "separate", "timed")


class NeuralDDE(SolverLayer):
    """The flow of ``dy/dt = model(y(t), y(t - lag_1), ...)`` as a layer.

    Args:
        model: an ``nn.Module`` or any callable. One that takes a single argument, such as an ``nn.Sequential``, gets
            the state and the delayed states joined along their last dimension, ``(..., (1 + k) d)`` for k lags, as
            in DiffEqFlux. With 1 + k arguments it is ``model(y, y_1, ..., y_k)``, with 2 + k
            ``model(t, y, y_1, ..., y_k)``.
        t_span: ``(t0, t1)``, numbers or tensors (an ``nn.Parameter`` among them is trained).
        lags: as for :class:`DDEProblem`: positive numbers, tensors (an ``nn.Parameter`` is trained), functions or
            modules ``lag(t, y)``; one, or several in a tuple.
        history: the state before ``t0``, as for :class:`DDEProblem`: ``history(t)`` (a module is trained along), a
            state like ``y0``, or None for ``y0`` itself.
        method: as for :func:`pydiffeqflux.solve`.
        inputs: state how the model is called where its signature does not tell: ``"joined"``, ``"separate"`` or
            ``"timed"``, in the order above.
        saveat, rtol, atol, sensealg, backend, batched, **options: as for :class:`NeuralODE`.

    ``layer(y0)`` solves from ``y0``; ``layer(y0, history)`` with a history of this call alone.

    DiffEqFlux's layer is ``NeuralCDDE(model, tspan, hist, lags, alg)``: its ``hist(u, p, t)`` is ``history`` here, its
    ``MethodOfSteps(alg)`` is ``method``, and its lags are constants without a gradient.

    Raises:
        InvalidArgumentError, InvalidTimesError, UnknownNameError: for ``model``, ``t_span``, ``method``, ``inputs``.
        InvalidLagError: a lag that is not positive.
        SignatureError: the model's signature does not tell how it is called, and ``inputs`` was not stated.
        ShapeError: ``"joined"`` states that are no tensors of a dimension.
        UnknownOptionError: an option that ``solve`` does not take.

    Shapes:
        ``layer(y0)`` has the shape of ``y0`` (the final state), or ``(T, *y0.shape)`` with ``saveat``.

    Source: Zhu, Guo & Lin, "Neural delay differential equations" (2021), arXiv:2102.10801; DiffEqFlux.jl.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> tau = torch.nn.Parameter(torch.tensor(0.5))
        >>> layer = pdf.NeuralDDE(net, (0.0, 1.0), tau, saveat=[0.0, 0.5, 1.0])
        >>> layer(torch.ones(5, 2)).shape
        torch.Size([3, 5, 2])
        >>> [name for name, _ in layer.named_parameters()][:2]
        ['lag0', 'model.0.weight']
    """

    own_options: ClassVar[tuple[str, ...]] = ("inputs", "batched")

    def __init__(
        self,
        model: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        lags: LagLike | Sequence[LagLike],
        history: Callable[[Tensor], Any] | State | None = None,
        method: Method | str = "tsit5",
        *,
        inputs: str | None = None,
        **options: Any,
    ):
        super().__init__(t_span, method, **options)
        check_callable(model, "of the state and its delayed states")
        self._count = len(lags_of(lags))
        # Attributes of their own, so that Parameters and modules among them are registered.
        if isinstance(lags, Tensor) and lags.dim() == 1:
            self._together = True
            self.lag0 = lags
        else:
            self._together = False
            for i, lag in enumerate(lags if isinstance(lags, tuple | list | nn.ModuleList) else [lags]):
                setattr(self, f"lag{i}", lag)
        self.model = model
        if isinstance(history, str | Method):
            raise InvalidArgumentError(
                f"history={history!r} is a method; after lags comes the history: give it as method={history!r}."
            )
        self.history = history
        if inputs is not None and inputs not in INPUTS:
            raise UnknownNameError("inputs", inputs, INPUTS)
        self.inputs = told_inputs(model, self._count) if inputs is None else inputs

    @property
    def lags(self) -> Any:
        """The lags, as they are now."""
        if self._together:
            return self.lag0
        return tuple(getattr(self, f"lag{i}") for i in range(self._count))

    @property
    def rhs(self) -> Callable[..., Any]:
        """The model as ``func(t, y, y_1, ...)``."""
        if self.inputs == "timed":
            return self.model
        return _Joined(self.model) if self.inputs == "joined" else _Separate(self.model)

    def problem(self, rhs: Callable[..., Any], y0: State, t_span: Any) -> DDEProblem:
        """What this layer solves from ``y0``."""
        history = rhs.history if isinstance(rhs, _Call) else self.history
        func = rhs.rhs if isinstance(rhs, _Call) else rhs
        return DDEProblem(func, y0, t_span, lags=self.lags, history=history, batched=self.batched)

    def _call(self, history: Any) -> Callable[..., Any]:
        return self.rhs if history is None else _Call(self.rhs, history)

    def solve(self, y0: State, history: Any = None) -> Solution:
        """The whole :class:`Solution` from ``y0``: times, states, statistics, dense output."""
        return self.solve_rhs(self._call(history), y0)

    def forward(self, y0: State, history: Any = None) -> State:
        return self.states(self._call(history), y0)

    def extra_repr(self) -> str:
        lags = ", ".join("lag(t, y)" if not lag.constant else f"{lag.value:.6g}" for lag in lags_of(self.lags))
        return f"{super().extra_repr()}, lags=({lags})"


@dataclass(frozen=True)
class _Call:
    """A right-hand side with the history of one call."""

    rhs: Callable[..., Any]
    history: Any

    def __call__(self, *given: Any) -> Any:
        return self.rhs(*given)


@dataclass(frozen=True)
class _Joined:
    """``func(t, y, y_1, ...)`` for a model of all of them in one tensor."""

    model: Callable[[Tensor], Any]

    def __call__(self, t: Tensor, *states: Any) -> Any:
        if not isinstance(states[0], Tensor) or states[0].dim() == 0:
            raise ShapeError(
                "a model of one argument gets the state and the delayed states joined along their last dimension, and"
                f" y0 is {'a number' if isinstance(states[0], Tensor) else f'a {type(states[0]).__name__}'}: give a"
                f" model of {len(states)} arguments, or one tensor with a dimension as y0."
            )
        return self.model(torch.cat(states, dim=-1))


@dataclass(frozen=True)
class _Separate:
    """``func(t, y, y_1, ...)`` for a model without the time."""

    model: Callable[..., Any]

    def __call__(self, t: Tensor, *states: Any) -> Any:
        return self.model(*states)


def told_inputs(model: Callable[..., Any], lags: int) -> str:
    """How a model wants to be called, by its required positional parameters.

    Raises:
        SignatureError: they are neither one, nor 1 + lags, nor 2 + lags, or cannot be known.
    """
    target = model.forward if isinstance(model, nn.Module) else model
    name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model))
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        found = "a signature that cannot be read"
    else:
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        required = len([p for p in positional if p.default is p.empty])
        for count, way in ((1, "joined"), (1 + lags, "separate"), (2 + lags, "timed")):
            if required == count:
                return way
        found = f"{required} required positional arguments"
    raise SignatureError(
        f"model={name} has {found}; with {lags} lag{'s' if lags > 1 else ''} it takes one (all states joined),"
        f" {1 + lags} (the state and each delayed one) or {2 + lags} (the time first). Say which by inputs='joined',"
        f" 'separate' or 'timed'."
    )
