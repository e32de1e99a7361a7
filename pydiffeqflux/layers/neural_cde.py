"""Neural controlled differential equations: recurrent networks in continuous time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InvalidArgumentError, ShapeError, UnsupportedError
from ..methods import Method
from ..problem import TimeLike, span_ends
from ..solution import Solution
from .calling import as_rhs, takes_time
from .control import SplineControl
from .solver_layer import SolverLayer, check_callable


@dataclass(frozen=True)
class _Driven:
    """``f(t, z) dX/dt``."""

    func: Callable[[Any, Tensor], Tensor]
    control: SplineControl

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        matrix = self.func(t, z)
        channels, shape = self.control.channels, (*z.shape, self.control.channels)
        if matrix.shape == (*z.shape[:-1], z.shape[-1] * channels):
            matrix = matrix.reshape(shape)
        if matrix.shape != shape:
            raise ShapeError(
                f"model returned shape {tuple(matrix.shape)}; for a state of shape {tuple(z.shape)} and a control with"
                f" {channels} channels it must be {shape}, or that with its last two dimensions as one."
            )
        slope = self.control.rate(t)
        return (matrix @ slope[..., None])[..., 0]


class NeuralCDE(SolverLayer):
    """``dz = model(z) dX(t)``: a hidden state that is driven by a path ``X`` through data.

    Args:
        model: ``model(z)`` or ``model(t, z)``, a matrix ``(..., hidden, channels)`` for states ``(..., hidden)``
            (or with these two dimensions as one).
        t_span, method, time_dependent, **options: as for :class:`NeuralODE`, but for ``per_sample``.

    At the observations of a ``"linear"`` control every solve stops and starts. Other controls bend there less sharply;
    where high accuracy is wanted, give their times as ``tstops``.

    ``layer(z0, control)`` solves along a :class:`SplineControl`. Where the data start matters to the result only
    through ``z0``: make it of the first observation, ``z0 = embed(control(t0))``.

    Raises:
        InvalidArgumentError: ``control`` is not a :class:`SplineControl`.
        UnsupportedError: ``per_sample``.
        InvalidTimesError: ``t_span`` goes beyond the control.
        ShapeError: a model that does not return such a matrix.

    Shapes:
        ``(..., hidden)`` and a control over ``(..., n, channels)`` to ``(..., hidden)``, or ``(T, ..., hidden)``
        with ``saveat``.

    Source: Kidger et al., "Neural controlled differential equations for irregular time series" (2020),
    arXiv:2005.08926.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> x = torch.randn(5, 10, 3)  # 5 series, 10 times, 3 channels
        >>> control = pdf.SplineControl(torch.linspace(0, 1, 10), x)
        >>> layer = pdf.NeuralCDE(torch.nn.Sequential(torch.nn.Linear(4, 12), torch.nn.Tanh()), (0.0, 1.0))
        >>> layer(torch.zeros(5, 4), control).shape
        torch.Size([5, 4])
    """

    own_options = ("time_dependent", "batched")

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
        check_callable(model, "model(z) or model(t, z)")
        if self.options.get("per_sample"):
            raise UnsupportedError("the series of a NeuralCDE share their times: leave per_sample out.")
        self.time_dependent = takes_time(model) if time_dependent is None else time_dependent
        self.model = model

    def _prepared(self, control: SplineControl) -> tuple[_Driven, dict[str, Any]]:
        if not isinstance(control, SplineControl):
            raise InvalidArgumentError(f"control={control!r} is not a SplineControl; make one of times and values.")
        ends = sorted(end.value for end in span_ends(self.t_span))
        control.check(ends[0], ends[1])
        stops = [*self.options.get("tstops", ()), *control.jumps]
        return _Driven(as_rhs(self.model, self.time_dependent), control), {"tstops": stops}

    def solve(self, z0: Tensor, control: SplineControl) -> Solution:
        """The whole :class:`Solution` from ``z0`` along ``control``."""
        rhs, options = self._prepared(control)
        return self.solve_rhs(rhs, z0, **options)

    def forward(self, z0: Tensor, control: SplineControl) -> Tensor:
        rhs, options = self._prepared(control)
        found: Tensor = self.states(rhs, z0, **options)
        return found
