"""A run of training: what ``fit`` steps, saves, and reports on, whatever the family."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch

from .delayed import FittedDDE
from .model import FittedODE
from .options import FitOptions
from .series import Series
from .stochastic import FittedSDE


@dataclass
class History:
    """One entry an epoch; ``gap`` is None where there are none."""

    stage: list[str] = field(default_factory=list)
    misfit: list[float] = field(default_factory=list)
    gap: list[float | None] = field(default_factory=list)

    def append(self, stage: str, misfit: float, gap: float | None) -> None:
        self.stage.append(stage)
        self.misfit.append(misfit)
        self.gap.append(gap)

    def __len__(self) -> int:
        return len(self.stage)


class Run(ABC):
    """The state of a run between two epochs: everything that a checkpoint has to hold."""

    module: FittedODE | FittedDDE | FittedSDE
    optimizer: torch.optim.Optimizer

    def __init__(self, options: FitOptions):
        self.options = options
        self.epoch = 0
        self.history = History()
        self.nf = 0
        self.seconds = 0.0

    @property
    @abstractmethod
    def stage(self) -> str:
        """What the next epoch does."""

    @property
    def finished(self) -> bool:
        return self.epoch >= self.options.epochs

    @abstractmethod
    def begin(self) -> None:
        """What comes before the first epoch of a new run."""

    @abstractmethod
    def run_epoch(self) -> float:
        """One epoch; returns its loss."""

    @abstractmethod
    def findings(self, series: Series) -> dict[str, Any]:
        """What there is to report of the trained module: its quality, losses and cost, in plain types."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the epochs still to come depend on."""
        return {
            "epoch": self.epoch,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": vars(self.history),
            "nf": self.nf,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = History(**state["history"])
        self.nf, self.seconds = state["nf"], state["seconds"]


def solver_options(options: FitOptions, time_unit: float, spacing: float) -> dict[str, Any]:
    """Keyword arguments of ``solve``; the step of a fixed-step method, in scaled time, is ``spacing`` by default."""
    kept: dict[str, Any] = {
        "method": options.solver,
        "rtol": options.rtol,
        "atol": options.atol,
        "backend": options.backend,
    }
    if options.fixed_steps:
        kept["dt"] = spacing if options.dt is None else options.dt / time_unit
    return kept


def r2(residual: Any, values: Any) -> float | None:
    """R squared; None for values that never change."""
    total = float(((values - values.mean()) ** 2).sum())
    return 1.0 - float((residual**2).sum()) / total if total > 0 else None


def rmse(residual: Any) -> float:
    return math.sqrt(float((residual**2).mean()))
