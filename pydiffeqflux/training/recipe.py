"""The training recipe: three stages, each handing a better start to the next.

1. *Derivative matching*, before the first epoch: the right-hand side is regressed onto the rates of change of the
   smoothed data (no solver involved). This is the two-stage method: Varah, "A spline least squares method for
   numerical parameter estimation in differential equations" (1982); for neural ODEs, Roesch, Rackauckas &
   Stumpf, "Collocation based training of neural ordinary differential equations" (2021). Rates of
   unobserved states are pulled towards 0 meanwhile.
2. *Multiple shooting* (nine tenths of the epochs; see :mod:`.shooting`): Adam (Kingma & Ba 2015) on the right-hand side
   and nodes; the weight of the gaps grows geometrically from 1 to 10^4; the step size falls along half a cosine.
3. *One trajectory* (the last tenth): gradient descent by trial and error (see :mod:`.descent`) on the right-hand side
   and initial state, on the plain mean squared error of a single solve over the whole series.

Where there are known terms, the network could take over what they are to explain. In the first two stages its rates
have a cost, which falls geometrically beside that of the misfit, so that of all ways to share the work it is left the
least: Yin et al., "Augmenting physical models with deep networks for complex dynamics forecasting" (2021),
arXiv:2010.04456.

Everything is full-batch, so that nothing but the initial weights is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .delayed import FittedDDE
from .descent import TrialDescent
from .matching import half_cosine, match_rates, set_lr
from .model import FittedODE
from .options import FitOptions
from .run import Run, r2, rmse, solver_options
from .scaling import Scaling, scaling_of
from .series import Series
from .shooting import Shooting

#: Derivative matching: so many steps at this size, along half a cosine.
MATCHING_STEPS, MATCHING_LR = 300, 1e-2
#: How strongly the rates of unobserved states are pulled to 0 there.
MATCHING_PULL = 0.01
#: What the network's mean squared rate costs beside known terms, at the start (and while matching) and at the end of
#: multiple shooting.
RESIDUAL_COST = (1.0, 1e-3)
#: Share of the epochs spent on multiple shooting.
SHOOTING_SHARE = 0.9
#: The weight of the gaps, at the start and at the end of multiple shooting.
GAP_WEIGHT = (1.0, 1e4)
#: The first trial step of the last stage, as a share of ``lr``.
FINAL_STEP = 1e-3


class Trainer(Run):
    """Trains a :class:`FittedODE` in these three stages."""

    module: FittedODE | FittedDDE
    #: The first row that is fitted.
    first = 0

    def __init__(self, series: Series, options: FitOptions):
        super().__init__(options)
        scaling, self._levels, self._rates = scaling_of(
            series, options.transform, pairs=options.model == "hamiltonian"
        )
        times, states = scaling.times(series.times), scaling.states(series.values)
        self._at = torch.linspace(0.0, float(times[-1]), len(self._levels), dtype=times.dtype)
        self.solver = solver_options(options, scaling.time_unit, float(times.diff().median()) / 10)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left as they were
            torch.manual_seed(options.seed)
            self.module = self._build(scaling, series, options)
        self.module.prepare()
        self.times, self.states = times[self.first :], states[self.first :]
        self.shooting = Shooting(self.times, self.states, self.solver)
        self.nodes = self.shooting.nodes(options.unobserved)
        self.shooting_epochs = min(options.epochs, max(1, round(SHOOTING_SHARE * options.epochs)))
        self.matching_loss = math.nan
        self.optimizer = torch.optim.Adam([*self.module.trained_by_shooting(), self.nodes], lr=options.lr)
        self.descent = TrialDescent(self.module.parameters(), FINAL_STEP * options.lr)

    def _build(self, scaling: Scaling, series: Series, options: FitOptions) -> FittedODE | FittedDDE:
        return FittedODE(
            scaling,
            series.state_names,
            series.times.tolist(),
            width=options.width,
            depth=options.depth,
            augment=options.unobserved,
            solver=self.solver,
            model=options.model,
            known=options.known_terms,
        )

    @property
    def rhs(self) -> Callable[[Any, Tensor], Tensor]:
        """The rates of change that the first two stages train.

        It must not hold on to the trainer: what a right-hand side can reach is what it is compared by, and a trainer
        changes in every epoch.
        """
        assert isinstance(self.module, FittedODE)
        return self.module.rhs

    @property
    def stage(self) -> str:
        return "shooting" if self.epoch < self.shooting_epochs else "trajectory"

    def begin(self) -> None:
        """The first stage, all of it."""
        d, unobserved = self.states.shape[1], self.options.unobserved
        inputs = torch.cat([self._levels, self._levels.new_zeros(len(self._levels), unobserved)], dim=1)
        at = self._at[:, None]

        def loss() -> tuple[Tensor, Tensor]:
            rates = self.rhs(at, inputs)
            plain = (rates[:, :d] - self._rates).square().mean()
            minimised = plain + MATCHING_PULL * rates[:, d:].square().mean() if unobserved else plain
            return plain, minimised + self._residual_cost(inputs, RESIDUAL_COST[0])

        self.matching_loss = match_rates(self.module.trained_by_shooting(), loss, MATCHING_STEPS, MATCHING_LR)[-1]

    def _residual_cost(self, states: Tensor, weight: float) -> Tensor | float:
        module = self.module
        if not isinstance(module, FittedODE) or module.known is None:
            return 0.0
        cost: Tensor = weight * module.net(states).square().mean()
        return cost

    def run_epoch(self) -> float:
        """One epoch; returns its loss."""
        loss = self._shooting_epoch() if self.stage == "shooting" else self._trajectory_epoch()
        self.epoch += 1
        if self.epoch == self.shooting_epochs:
            self._enter_last_stage()
        return loss

    def _shooting_epoch(self) -> float:
        done = self.epoch / self.shooting_epochs
        weight, cost = (first * (last / first) ** done for first, last in (GAP_WEIGHT, RESIDUAL_COST))
        set_lr(self.optimizer, self.options.lr * half_cosine(done))
        self.optimizer.zero_grad()
        nodes = self._starts()
        shot = self.shooting.shoot(self.rhs, nodes)
        (shot.misfit + weight * shot.gap + self._residual_cost(nodes, cost)).backward()
        self.optimizer.step()
        self.nf += shot.nf
        misfit, gap = float(shot.misfit.detach()), float(shot.gap.detach())
        self.history.append("shooting", misfit, gap)
        return misfit + gap

    def _starts(self) -> Tensor:
        """The segments' starting states; the first one's is 0 in the states that begin at zero."""
        free = len(self.module.initial)
        if free == self.nodes.shape[1]:
            return self.nodes
        first = torch.cat([self.nodes[:1, :free], self.nodes.new_zeros(1, self.nodes.shape[1] - free)], dim=1)
        return torch.cat([first, self.nodes[1:]])

    def _enter_last_stage(self) -> None:
        with torch.no_grad():
            self.module.initial.copy_(self.nodes[0, : len(self.module.initial)])
        self.descent = TrialDescent(self.module.parameters(), FINAL_STEP * self.options.lr)

    def _trajectory_epoch(self) -> float:
        loss = self.descent.step(self.trajectory_loss)
        self.history.append("trajectory", loss, None)
        return loss

    def trajectory_loss(self) -> Tensor:
        """Mean squared error, in scaled units, of one solve over the whole series."""
        sol = self.module.solve(dense=False)
        self.nf += sol.stats.nf
        states: Tensor = sol.ys
        return (states[:, : self.states.shape[1]] - self.states).square().mean()

    def findings(self, series: Series) -> dict[str, Any]:
        sol = self.module.solve()
        states = sol.ys.detach()
        values = series.values[self.first :]
        residual = self.module.observed(states).numpy() - values
        last = self.shooting_epochs - 1
        return {
            "backend": sol.stats.backend,
            "method": sol.stats.method,
            "sensealg": sol.stats.sensealg,
            "objective": "mean squared error of one trajectory, in scaled units",
            "model": self.module.findings(states),
            "states": {
                name: {
                    "r2": r2(residual[:, i], values[:, i]),
                    "rmse": rmse(residual[:, i]),
                    "logarithm": self.module.scaling.logs[i],
                }
                for i, name in enumerate(series.state_names)
            },
            "losses": {
                "derivative_matching": self.matching_loss,
                "shooting_misfit": self.history.misfit[last],
                "shooting_gap": self.history.gap[last],
                "final": float((states[:, : self.states.shape[1]] - self.states).square().mean()),
            },
            "epochs": {"shooting": self.shooting_epochs, "trajectory": len(self.history) - self.shooting_epochs},
            "function_evaluations": {"training": self.nf, "trajectory": sol.stats.nf},
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "nodes": self.nodes.detach(),
            "descent": self.descent.state_dict(),
            "matching_loss": self.matching_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.descent.load_state_dict(state["descent"])
        with torch.no_grad():
            self.nodes.copy_(state["nodes"])
        self.matching_loss = state["matching_loss"]
