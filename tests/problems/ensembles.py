"""What other processes have to be able to import: right-hand sides, and what is kept of a solution."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


def decay(t: Tensor, y: Tensor, rate: Any = 1.0) -> Tensor:
    return -rate * y


def oscillator(t: Tensor, y: Tensor, frequency: Any = 1.0) -> Tensor:
    """For one state only: it takes no batch."""
    assert y.dim() == 1
    return torch.stack([y[1], -(frequency**2) * y[0]])


def blow_up(t: Tensor, y: Tensor) -> Tensor:
    return y * y


def noise(t: Tensor, y: Tensor) -> Tensor:
    return 0.3 * y


def last(sol: Any, i: int) -> Tensor:
    return sol.ys[-1] * i


def process(sol: Any, i: int) -> int:
    """Where it was solved."""
    return os.getpid()


def net(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


def relaxing(t: Tensor, y: Tensor, dy: Tensor) -> Tensor:
    """y1' = -y2 and y2 = y1, as a residual."""
    return torch.stack([dy[0] + y[1], y[1] - y[0]])


class Field(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)
