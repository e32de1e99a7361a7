"""Gradient descent that never ends up higher than it started.

A long trajectory is touchy: one step too large puts the second cycle out of phase, and the loss up by a
factor of a hundred. So each step is a trial. A trial that lowers the loss is kept and the next one is bolder; any
other is taken back and the next one is shorter ("bold driver": Battiti 1989, Complex Systems 3, 331-342).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SolveError

#: How the step size changes after a trial that was kept, and after one that was taken back.
BOLDER, SHORTER = 1.5, 0.3


class TrialDescent:
    """The best point so far, its gradient, and the size of the next step.

    Args:
        parameters: what is trained; they hold a trial, or the best point after :meth:`restore`.
        step: the first step's size: the typical change of one number.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], step: float):
        self.parameters = list(parameters)
        self.step_size = step
        self.best_loss = math.inf
        self.best = [p.detach().clone() for p in self.parameters]
        self.directions = [torch.zeros_like(p) for p in self.parameters]

    def step(self, loss: Callable[[], Tensor]) -> float:
        """Try one step; returns the best loss so far. The parameters are left at the best point.

        Raises:
            SolveError: the very first point cannot be solved from (a trial that cannot is just taken back).
        """
        with torch.no_grad():
            for p, best, direction in zip(self.parameters, self.best, self.directions, strict=True):
                p.copy_(best - self.step_size * direction)
        try:
            value = loss()
        except SolveError:
            if math.isinf(self.best_loss):
                raise
            value = None
        if value is not None and float(value.detach()) < self.best_loss:
            first = math.isinf(self.best_loss)
            self._accept(value)
            self.step_size *= 1.0 if first else BOLDER
        else:
            self.step_size *= SHORTER
        self.restore()
        return self.best_loss

    def _accept(self, value: Tensor) -> None:
        # What only shifts an energy has no part in the motion.
        gradients = torch.autograd.grad(value, self.parameters, materialize_grads=True)
        self.best_loss = float(value.detach())
        self.best = [p.detach().clone() for p in self.parameters]
        size = math.sqrt(sum(float(g.square().sum()) for g in gradients) / sum(g.numel() for g in gradients))
        self.directions = [g / size if size > 0 else torch.zeros_like(g) for g in gradients]

    def restore(self) -> None:
        """Put the best point into the parameters."""
        with torch.no_grad():
            for p, best in zip(self.parameters, self.best, strict=True):
                p.copy_(best)

    def state_dict(self) -> dict[str, Any]:
        names = ("step_size", "best_loss", "best", "directions")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
