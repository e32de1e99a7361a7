"""How a stochastic equation is fitted: the likelihood of the steps from each datum to the next.

Euler's and Maruyama's approximation makes each step a normal random number, of mean ``z + drift(z) h`` and variance
``diffusion(z)^2 h``, so that the likelihood of the whole series is a product of densities that can be written down: no
path is simulated while training. Florens-Zmirou, "Approximate discrete-time schemes for statistics of diffusion
processes" (1989), Statistics 20, 547-557, shows that drift and diffusion are found as the spacing of the data becomes
small (and the time long); with networks, Dietrich et al., "Learning effective stochastic differential equations from
microscopic simulations: linking stochastic numerics to deep learning" (2023), arXiv:2106.09004.

A few data would be explained by a drift that goes through all of them and no noise at all, which is infinitely likely.
Two things are against that: the noise has a floor (:data:`.stochastic.NOISE_FLOOR`), and the weights a normal prior of
variance 1 (MacKay, "A practical Bayesian framework for backpropagation networks", 1992).

Adam (Kingma & Ba 2015) on all of the data at once, its step size along half a cosine: nothing but the initial weights
is random.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .matching import half_cosine, set_lr
from .options import FitOptions
from .run import Run, r2, rmse, solver_options
from .scaling import scaling_of
from .series import Series
from .stochastic import FittedSDE

#: 95 % of a normal random number are within so many standard deviations.
TWO_SIDED_95 = 1.959964


class LikelihoodTrainer(Run):
    """Trains a :class:`FittedSDE`."""

    module: FittedSDE

    def __init__(self, series: Series, options: FitOptions):
        super().__init__(options)
        scaling, _, _ = scaling_of(series, options.transform)
        times, self.states = scaling.times(series.times), scaling.states(series.values)
        self.steps = times.diff()[:, None]
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left as they were
            torch.manual_seed(options.seed)
            self.module = FittedSDE(
                scaling,
                series.state_names,
                series.times.tolist(),
                width=options.width,
                depth=options.depth,
                solver=solver_options(options, scaling.time_unit, float(times.diff().median()) / 4),
            )
        self.module.initial.copy_(self.states[0])
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=options.lr)

    @property
    def stage(self) -> str:
        return "likelihood"

    def begin(self) -> None:
        """A step of a path: a solver or backend that cannot do this is found out now, not after training."""
        with torch.no_grad():
            self.module.solve(self.module.times[:2], count=1)

    def surprise(self) -> Tensor:
        """Minus the logarithm of the likelihood, a number of the data."""
        self.nf += 1
        return self.module.surprise(self.states[:-1], self.steps, self.states[1:]).mean()

    def run_epoch(self) -> float:
        set_lr(self.optimizer, self.options.lr * half_cosine(self.epoch / self.options.epochs))
        self.optimizer.zero_grad()
        surprise = self.surprise()
        (surprise + self._prior()).backward()
        self.optimizer.step()
        self.epoch += 1
        loss = float(surprise.detach())
        self.history.append("likelihood", loss, None)
        return loss

    def _prior(self) -> Tensor:
        weights = [p for name, p in self.module.named_parameters() if name.endswith("weight")]
        return 0.5 * torch.stack([w.square().sum() for w in weights]).sum() / (self.states[1:].numel())

    def findings(self, series: Series) -> dict[str, Any]:
        with torch.no_grad():
            mean, deviation = self.module.one_step(self.states[:-1], self.steps)
            predicted = self.module.observed(mean).numpy()
            within = ((self.states[1:] - mean).abs() < TWO_SIDED_95 * deviation).double().mean(dim=0)
            sol = self.module.solve(count=1)
            final = float(self.surprise())
            noise = self.module.diffusion(self.states).mean(dim=0)
        residual = predicted - series.values[1:]
        return {
            "backend": sol.stats.backend,
            "method": sol.stats.method,
            "sensealg": None,
            "objective": "minus the log-likelihood of a step (Euler-Maruyama), a number of the data, in scaled units;"
            " r2 and rmse are those of predictions one step ahead",
            # Euler and Maruyama's step should be a short one: how far the states are carried by it.
            "model": {"family": "sde", "unobserved": 0, "step": rmse(mean - self.states[:-1])},
            "states": {
                name: {
                    "r2": r2(residual[:, i], series.values[1:, i]),
                    "rmse": rmse(residual[:, i]),
                    "logarithm": self.module.scaling.logs[i],
                    "within_95": float(within[i]),
                    "mean_diffusion": float(noise[i]),
                }
                for i, name in enumerate(series.state_names)
            },
            "losses": {"final": final},
            "epochs": {"likelihood": len(self.history)},
            "function_evaluations": {"training": self.nf - 1, "trajectory": sol.stats.nf},
        }
