"""How a delay equation is fitted: with the past taken from the data first, then from its own solution.

The stages are those of :mod:`.recipe`. In the first two, the delayed states are those of the smoothed data: what is
left is an ordinary equation that the data drive, and segments of it can be solved side by side, which segments that
need each other's solution could not be. (Methods that put the data in the place of delayed states: Ellner, Kendall,
Wood, McCauley & Briggs, "Inferring mechanism from time-series data: delay-differential equations", 1997, Physica D 110,
182-194.) In the last stage the equation's own past takes their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..interpolation import natural
from .delayed import FittedDDE
from .options import FitOptions
from .recipe import Trainer
from .scaling import Scaling
from .series import MIN_ROWS, Series


class DelayTrainer(Trainer):
    """Trains a :class:`FittedDDE`."""

    module: FittedDDE

    def _build(self, scaling: Scaling, series: Series, options: FitOptions) -> FittedDDE:
        assert options.lags is not None
        first = self.first = _first_row(series, options.lags)
        begin = float(scaling.times(series.times[first]))
        knots = torch.linspace(0.0, float(scaling.times(series.times[-1])), len(self._levels), dtype=self._levels.dtype)
        self._observed = natural(knots, self._levels)
        count = max(8, int((knots < begin).sum()) + 1)
        module = FittedDDE(
            scaling,
            series.state_names,
            series.times.tolist(),
            width=options.width,
            depth=options.depth,
            solver=self.solver,
            lags=options.lags,
            start=float(series.times[first]),
            count=count,
        )
        with torch.no_grad():
            module.past.copy_(self._observed(torch.linspace(0.0, begin, count, dtype=knots.dtype)))
        late = knots >= begin
        self._at, self._levels, self._rates = knots[late], self._levels[late], self._rates[late]
        return module

    @property
    def rhs(self) -> Callable[[Any, Tensor], Tensor]:
        """The rates where the delayed states are the data's."""
        return _WithObservedPast(self.module.net, self._observed, tuple(self.module.scaled_lags))

    def begin(self) -> None:
        """One short solve first: a method or backend that cannot do this is found out now, not after training."""
        with torch.no_grad():
            self.module.solve(self.module.times[self.first : self.first + 2])
        super().begin()


@dataclass(frozen=True)
class _WithObservedPast:
    net: Callable[[Tensor], Tensor]
    observed: Callable[[Tensor], Tensor]
    lags: tuple[Any, ...]

    def __call__(self, t: Any, z: Tensor) -> Tensor:
        now = torch.as_tensor(t, dtype=z.dtype)
        delayed = [self.observed(now - lag).reshape(z.shape) for lag in self.lags]
        return self.net(torch.cat([z, *delayed], -1))


def _first_row(series: Series, lags: tuple[float, ...]) -> int:
    """The first row that has all the past it needs.

    Raises:
        InvalidArgumentError: there are too few rows after it.
    """
    first = int(np.searchsorted(series.times, series.times[0] + max(lags)))
    if len(series) - first < MIN_ROWS:
        raise InvalidArgumentError(
            f"lags={list(lags)}: the series, from {series.times[0]:g} to {series.times[-1]:g}, begins with a history of"
            f" {max(lags):g}, and {len(series) - first} rows are left to fit; at least {MIN_ROWS} are needed."
        )
    return first
