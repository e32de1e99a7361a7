"""A delay differential equation that was fitted, with the stretch of the data that is its history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidTimesError
from ..interpolation import PiecewisePolynomial, natural
from ..layers.neural_dde import NeuralDDE
from ..solution import Solution
from .model import Fitted
from .networks import network
from .scaling import DTYPE, Scaling


class FittedDDE(Fitted):
    """``dz/ds = net(z(s), z(s - lag_1), ...)`` for the scaled states: :class:`pydiffeqflux.NeuralDDE`, fitted.

    Made by ``fit(model="dde")``, read back by ``load``. The data up to the first row that is the longest lag after the
    start are the history, smoothed; the equation takes over there, from a state that is trained.

    Args:
        scaling, state_names, times, width, depth, solver: as for all families (see :class:`Fitted`).
        lags: in the data's unit of time.
        start: where the equation takes over, in data units.
        count: how many points of the history are kept.

    Shapes:
        ``module()`` is ``(n, d)`` at the series' own times, history included; ``module(times)`` at others.

    Source: Zhu, Guo & Lin, "Neural delay differential equations" (2021), arXiv:2102.10801.
    """

    past: Tensor

    def __init__(
        self,
        scaling: Scaling,
        state_names: Sequence[str],
        times: Sequence[float],
        *,
        width: int,
        depth: int,
        solver: dict[str, Any],
        lags: Sequence[float],
        start: float,
        count: int,
        model: str = "dde",
    ):
        super().__init__(scaling, state_names, times, width=width, depth=depth, solver=solver, model=model)
        size = len(self.state_names)
        self.lags, self.start, self.count = tuple(lags), start, count
        self.scaled_lags = tuple(lag / scaling.time_unit for lag in lags)
        self.begin = float(scaling.times(start))
        self.initial = nn.Parameter(torch.zeros(size, dtype=DTYPE))
        self.net = network((1 + len(self.lags)) * size, size, width, depth)
        self.register_buffer("past", torch.zeros(count, size, dtype=DTYPE))

    def history(self) -> PiecewisePolynomial:
        """The smoothed data up to where the equation takes over, as a function of scaled time."""
        return natural(torch.linspace(0.0, self.begin, self.count, dtype=DTYPE), self.past)

    def layer(self, saves: Sequence[float], **options: Any) -> NeuralDDE:
        """The trajectory as a layer, from :attr:`initial` to the states at these scaled times."""
        kept = {**self.solver, "saveat": list(saves), **options}
        return NeuralDDE(self.net, (self.begin, float(saves[-1])), self.scaled_lags, self.history(), **kept)

    def solve(self, times: Tensor | Sequence[float] | None = None, **options: Any) -> Solution:
        """The :class:`Solution` in scaled units, from where the equation takes over.

        Args:
            times: increasing times in data units, none before that; the series' own from there on where None.
            **options: of :func:`pydiffeqflux.solve`, over those that the module was fitted with.

        Raises:
            InvalidTimesError: other times.
        """
        saves = [s for s in self.saves(times) if times is not None or s >= self.begin]
        if saves[0] < self.begin or saves[-1] <= self.begin:
            raise InvalidTimesError(
                f"times must not be before {self.start:g}, where the history ends and the equation takes over, and end"
                f" after it; module(times) returns the history too."
            )
        return self.layer(saves, **options).solve(self.initial)

    def forward(self, times: Tensor | Sequence[float] | None = None) -> Tensor:
        saves = torch.tensor(self.saves(times), dtype=DTYPE)
        early = saves[saves < self.begin]
        pieces = [self.history()(early)]
        if len(early) < len(saves):
            late = saves[len(early) :].tolist()
            if late[-1] > self.begin:
                pieces.append(self.layer(late, dense=False).solve(self.initial).ys)
            else:
                pieces.append(self.initial[None])
        return self.observed(torch.cat(pieces))

    def prepare(self) -> None:
        """Nothing to be chosen: delay equations have one engine."""

    def trained_by_shooting(self) -> list[nn.Parameter]:
        """Everything but the initial state, which is a node there."""
        return list(self.net.parameters())

    def findings(self, states: Tensor) -> dict[str, Any]:
        return {"family": "dde", "unobserved": 0, "lags": list(self.lags), "from": self.start}

    def config(self) -> dict[str, Any]:
        return {**super().config(), "lags": list(self.lags), "start": self.start, "count": self.count}
