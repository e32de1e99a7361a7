"""Controls: paths through data, which a controlled differential equation is driven by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, InvalidStateError, InvalidTimesError, ShapeError, UnknownNameError
from ..interpolation import PiecewisePolynomial, check_knots, interpolate
from ..tracking import transforming

KINDS = ("linear", "cubic", "hermite")


class SplineControl(nn.Module):
    """A path ``X(t)`` through observations, with its derivative.

    Args:
        times: ``(n,)``, increasing.
        values: ``(..., n, channels)``: observations, a time at each row of the last but one dimension. Time itself
            is not added: make it a channel, so that the equation knows it.
        kind: ``"hermite"``, cubics with backward differences: smooth, and made of the past alone; ``"cubic"``, the
            natural spline: smoother, but a late observation moves all of it; ``"linear"``, whose derivative jumps
            at the observations (solves are stopped and started there).

    Raises:
        UnknownNameError: another kind.
        InvalidTimesError, ShapeError, InvalidStateError: times or values that do not make a path.
        DataError: values that are not finite: fill gaps first.

    Sources: Kidger et al., "Neural controlled differential equations for irregular time series" (2020),
    arXiv:2005.08926; Morrill et al., "On the choice of interpolation scheme for neural CDEs" (2022).

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> path = pdf.SplineControl([0.0, 1.0, 3.0], torch.tensor([[0.0], [2.0], [0.0]]), "linear")
        >>> path(torch.tensor(2.0)), path.derivative(torch.tensor(2.0))
        (tensor([1.]), tensor([-1.]))
    """

    def __init__(self, times: Any, values: Tensor, kind: str = "hermite"):
        super().__init__()
        if kind not in KINDS:
            raise UnknownNameError("kind", kind, KINDS)
        if not isinstance(values, Tensor) or not values.is_floating_point():
            got = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise InvalidStateError(f"values is {got}; observations are a floating tensor (..., n, channels).")
        if values.dim() < 2:
            raise ShapeError(f"values has shape {tuple(values.shape)}; observations are (..., n, channels).")
        knots = check_knots(times, values.shape[-2], 2, "times").to(values)
        if not transforming() and not bool(values.isfinite().all()):
            raise DataError("values has entries that are NaN or infinite; fill the gaps first (by interpolation, say).")
        self.kind = kind
        self._path = interpolate(kind, knots, values.movedim(-2, 0))

    def _apply(self, fn: Any, recurse: bool = True) -> SplineControl:
        """Moves and converts the path with the module."""
        super()._apply(fn, recurse)
        self._path = PiecewisePolynomial(fn(self._path.knots), [fn(c) for c in self._path.coeffs])
        return self

    @property
    def channels(self) -> int:
        return self._path.coeffs[0].shape[-1]

    @property
    def interval(self) -> tuple[float, float]:
        """The first and the last time."""
        return float(self._path.knots[0]), float(self._path.knots[-1])

    @property
    def jumps(self) -> list[float]:
        """Where the derivative jumps."""
        return self._path.knots[1:-1].tolist() if self.kind == "linear" else []

    def forward(self, t: Any) -> Tensor:
        """``X(t)``: ``(*t.shape, ..., channels)``."""
        return self._path(self._inside(t))

    def derivative(self, t: Any) -> Tensor:
        """``dX/dt``, in the same shape."""
        return self._path.derivative(self._inside(t))

    def rate(self, t: Tensor) -> Tensor:
        """:meth:`derivative` at one time that is known to be within the interval."""
        return self._path.derivative(t)

    def _inside(self, t: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=self._path.knots.dtype, device=self._path.knots.device)
        if not transforming():
            self.check(float(t.detach().min()), float(t.detach().max()))
        return t

    def check(self, low: float, high: float) -> None:
        """Whether these times are within the observations'.

        Raises:
            InvalidTimesError: they are not.
        """
        first, last = self.interval
        slack = 1e-6 * (last - first)
        if low < first - slack or high > last + slack:
            raise InvalidTimesError(
                f"the control is known from t={first:g} to t={last:g}, and was asked for at"
                f" t={low if low < first - slack else high:g}; shorten t_span, or observe for longer."
            )
