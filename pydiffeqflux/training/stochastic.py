"""A stochastic differential equation that was fitted: its paths, and how likely it finds each step of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.neural_sde import NeuralDSDE
from ..solution import Solution
from .model import Fitted
from .networks import Positive, network
from .scaling import DTYPE, Scaling

#: The least that the noise can be, in scaled units: what data repeat exactly would otherwise be infinitely likely.
NOISE_FLOOR = 1e-2


class FittedSDE(Fitted):
    """``dz = drift(z) ds + diffusion(z) dW`` for the scaled states, with diagonal noise: :class:`NeuralDSDE`, fitted.

    Made by ``fit(model="sde")``, read back by ``load``.

    Args:
        scaling, state_names, times, width, depth, solver: as for all families (see :class:`Fitted`).

    Shapes:
        ``module()`` is ``(n, d)``: the mean of 256 simulated paths in data units, from the first datum, at the series'
        own times; ``module(times)`` at others. ``module.paths(count)`` are the paths, ``(n, count, d)``.

    Source: Xu, Chen, Li & Duvenaud (2022) call such a pair of networks a neural SDE; how it is fitted is written in
    :mod:`pydiffeqflux.training.likelihood`.
    """

    initial: Tensor

    def __init__(
        self,
        scaling: Scaling,
        state_names: Sequence[str],
        times: Sequence[float],
        *,
        width: int,
        depth: int,
        solver: dict[str, Any],
        model: str = "sde",
    ):
        super().__init__(scaling, state_names, times, width=width, depth=depth, solver=solver, model=model)
        size = len(self.state_names)
        self.drift = network(size, size, width, depth)
        self.diffusion = Positive(network(size, size, width, depth), NOISE_FLOOR)
        self.register_buffer("initial", torch.zeros(size, dtype=DTYPE))

    def solve(
        self, times: Tensor | Sequence[float] | None = None, *, count: int = 256, seed: int = 0, **options: Any
    ) -> Solution:
        """The :class:`Solution` in scaled units: ``count`` paths from the first datum.

        Args:
            times: increasing times in data units, none before the series' first; its own where None.
            count: how many paths.
            seed: of their Brownian motions.
            **options: of :func:`pydiffeqflux.solve`, over those that the module was fitted with.

        Raises:
            InvalidTimesError: other times.
        """
        saves = self.saves(times)
        kept = {**self.solver, "saveat": saves, "dense": False, **options}
        layer = NeuralDSDE(self.drift, self.diffusion, (0.0, saves[-1]), seed=seed, **kept)
        return layer.solve(self.initial.expand(count, -1))

    def paths(self, count: int, times: Tensor | Sequence[float] | None = None, *, seed: int = 0) -> Tensor:
        """``count`` simulated paths in data units, ``(n, count, d)``."""
        return self.observed(self.solve(times, count=count, seed=seed).ys)

    def forward(self, times: Tensor | Sequence[float] | None = None) -> Tensor:
        return self.paths(256, times).mean(dim=1)

    def one_step(self, states: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the state one step later, by Euler and Maruyama.

        Shapes:
            ``states (n, d)`` and ``steps (n, 1)``, scaled, to two of ``(n, d)``.
        """
        return states + self.drift(states) * steps, self.diffusion(states) * steps.sqrt()

    def surprise(self, states: Tensor, steps: Tensor, later: Tensor) -> Tensor:
        """Minus the logarithm of the density of ``later``, a number for each, ``(n, d)``."""
        mean, deviation = self.one_step(states, steps)
        return 0.5 * ((later - mean) / deviation).square() + deviation.log() + 0.5 * math.log(2 * math.pi)
