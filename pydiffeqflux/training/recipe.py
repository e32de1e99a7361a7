"""The training recipe: three stages, each handing a better start to the next.

1. *Derivative matching*, before the first epoch: the network is regressed onto the rates of change of the
   smoothed data (no solver involved). This is the two-stage method: Varah, "A spline least squares method for
   numerical parameter estimation in differential equations" (1982); for neural ODEs, Roesch, Rackauckas &
   Stumpf, "Collocation based training of neural ordinary differential equations" (2021). Rates of
   unobserved states are pulled towards 0 meanwhile.
2. *Multiple shooting* (nine tenths of the epochs; see :mod:`.shooting`): Adam (Kingma & Ba 2015) on network and
   nodes; the weight of the gaps grows geometrically from 1 to 10^4; the step size falls along half a cosine.
3. *One trajectory* (the last tenth): gradient descent by trial and error (see :mod:`.descent`) on network and
   initial state, on the plain mean squared error of a single solve over the whole series.

Everything is full-batch, so that nothing but the initial weights is random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..methods import resolve
from .descent import TrialDescent
from .matching import half_cosine, match_rates, set_lr
from .model import FittedODE, scaling_of
from .options import FitOptions
from .series import Series
from .shooting import Shooting

#: Derivative matching: so many steps at this size, along half a cosine.
MATCHING_STEPS, MATCHING_LR = 300, 1e-2
#: How strongly the rates of unobserved states are pulled to 0 there.
MATCHING_PULL = 0.01
#: Share of the epochs spent on multiple shooting.
SHOOTING_SHARE = 0.9
#: The weight of the gaps, at the start and at the end of multiple shooting.
GAP_WEIGHT = (1.0, 1e4)
#: The first trial step of the last stage, as a share of ``lr``.
FINAL_STEP = 1e-3


@dataclass
class History:
    """One entry an epoch; ``gap`` is None in the last stage, where there are none."""

    stage: list[str] = field(default_factory=list)
    misfit: list[float] = field(default_factory=list)
    gap: list[float | None] = field(default_factory=list)

    def append(self, stage: str, misfit: float, gap: float | None) -> None:
        self.stage.append(stage)
        self.misfit.append(misfit)
        self.gap.append(gap)

    def __len__(self) -> int:
        return len(self.stage)


class Trainer:
    """The state of a run between two epochs: everything that a checkpoint has to hold."""

    def __init__(self, series: Series, options: FitOptions):
        self.options = options
        scaling, self._levels, self._rates = scaling_of(series, options.transform)
        self.times, self.states = scaling.times(series.times), scaling.states(series.values)
        solver = {"method": options.method, "rtol": options.rtol, "atol": options.atol, "backend": options.backend}
        dt = options.dt / scaling.time_unit if options.dt is not None else float(self.times.diff().median()) / 10
        self.solver: dict[str, Any] = {**solver, **_fixed_step(options.method, dt)}
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left as they were
            torch.manual_seed(options.seed)
            self.module = FittedODE(
                scaling,
                series.state_names,
                series.times.tolist(),
                width=options.width,
                depth=options.depth,
                augment=options.augment,
                solver=self.solver,
            )
        self.shooting = Shooting(self.times, self.states, self.solver)
        self.nodes = self.shooting.nodes(options.augment)
        self.shooting_epochs = min(options.epochs, max(1, round(SHOOTING_SHARE * options.epochs)))
        self.epoch = 0
        self.history = History()
        self.matching_loss = math.nan
        self.nf = 0
        self.seconds = 0.0
        self.optimizer = torch.optim.Adam([*self.module.net.parameters(), self.nodes], lr=options.lr)
        self.descent = TrialDescent(self.module.parameters(), FINAL_STEP * options.lr)

    @property
    def stage(self) -> str:
        return "shooting" if self.epoch < self.shooting_epochs else "trajectory"

    @property
    def finished(self) -> bool:
        return self.epoch >= self.options.epochs

    def match_derivatives(self) -> None:
        """The first stage, all of it."""
        net, d = self.module.net, self.states.shape[1]
        inputs = torch.cat([self._levels, self._levels.new_zeros(len(self._levels), self.options.augment)], dim=1)

        def loss() -> tuple[Tensor, Tensor]:
            rates = net(inputs)
            plain = (rates[:, :d] - self._rates).square().mean()
            return plain, plain + MATCHING_PULL * rates[:, d:].square().mean() if self.options.augment else plain

        self.matching_loss = match_rates(net.parameters(), loss, MATCHING_STEPS, MATCHING_LR)[-1]

    def run_epoch(self) -> float:
        """One epoch; returns its loss."""
        loss = self._shooting_epoch() if self.stage == "shooting" else self._trajectory_epoch()
        self.epoch += 1
        if self.epoch == self.shooting_epochs:
            self._enter_last_stage()
        return loss

    def _shooting_epoch(self) -> float:
        done = self.epoch / self.shooting_epochs
        weight = GAP_WEIGHT[0] * (GAP_WEIGHT[1] / GAP_WEIGHT[0]) ** done
        set_lr(self.optimizer, self.options.lr * half_cosine(done))
        self.optimizer.zero_grad()
        shot = self.shooting.shoot(self.module.net, self.nodes)
        (shot.misfit + weight * shot.gap).backward()
        self.optimizer.step()
        self.nf += shot.nf
        misfit, gap = float(shot.misfit.detach()), float(shot.gap.detach())
        self.history.append("shooting", misfit, gap)
        return misfit + gap

    def _enter_last_stage(self) -> None:
        with torch.no_grad():
            self.module.initial.copy_(self.nodes[0])
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

    def state_dict(self) -> dict[str, Any]:
        """Everything that the epochs still to come depend on."""
        return {
            "epoch": self.epoch,
            "module": self.module.state_dict(),
            "nodes": self.nodes.detach(),
            "optimizer": self.optimizer.state_dict(),
            "descent": self.descent.state_dict(),
            "history": vars(self.history),
            "matching_loss": self.matching_loss,
            "nf": self.nf,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.descent.load_state_dict(state["descent"])
        self.module.load_state_dict(state["module"])
        with torch.no_grad():
            self.nodes.copy_(state["nodes"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = History(**state["history"])
        self.matching_loss = state["matching_loss"]
        self.nf, self.seconds = state["nf"], state["seconds"]


def _fixed_step(method: str, dt: float) -> dict[str, float]:
    return {} if resolve(method).adaptive else {"dt": dt}
