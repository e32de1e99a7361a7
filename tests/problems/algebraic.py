"""Differential-algebraic problems of index 1, with mass matrices and, where there is one, their exact solution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

D = torch.float64
#: Of ROBER, and of :func:`product`.
LAST_IS_ALGEBRAIC = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=D))
PRODUCT_MASS = torch.diag(torch.tensor([1.0, 0.0], dtype=D))


def rober(t: Tensor, y: Tensor) -> Tensor:
    """Robertson's reaction: two of its equations, and the law that mass is conserved."""
    a, b, c = y.unbind(-1)
    slow, fast, middle = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack([middle - slow, slow - middle - fast, a + b + c - 1], -1)


def product(t: Tensor, u: Tensor) -> Tensor:
    """y' = -z y, 0 = z - (1 + t^2) (y exp(t + t^3 / 3))^2: neither linear nor autonomous."""
    y, z = u.unbind(-1)
    return torch.stack([-z * y, z - (1 + t * t) * (y * torch.exp(t + t**3 / 3)) ** 2], -1)


def product_solution(t: float) -> Tensor:
    return torch.tensor([math.exp(-(t + t**3 / 3)), 1 + t * t], dtype=D)


GRAVITY = 9.81
#: The pendulum's state: position, velocity, and the tension that keeps it on the circle.
PENDULUM_MASS = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0], dtype=D))


def pendulum(t: Tensor, u: Tensor) -> Tensor:
    """A pendulum in the plane, its constraint differentiated twice: index 1."""
    x, y, v, w, tension = u.unbind(-1)
    kept = v * v + w * w - tension * (x * x + y * y) - GRAVITY * y
    return torch.stack([v, w, -tension * x, -tension * y - GRAVITY, kept], -1)


def pendulum_index_3(t: Tensor, u: Tensor) -> Tensor:
    """The same with the constraint itself."""
    x, y, v, w, tension = u.unbind(-1)
    return torch.stack([v, w, -tension * x, -tension * y - GRAVITY, x * x + y * y - 1], -1)


def pendulum_start(angle: float) -> Tensor:
    """At rest, by this angle from hanging straight down."""
    x, y = math.sin(angle), -math.cos(angle)
    return torch.tensor([x, y, 0.0, 0.0, -GRAVITY * y], dtype=D)


def pendulum_period(angle: float) -> float:
    """4 sqrt(l / g) K(sin(angle / 2)), K the complete elliptic integral."""
    from scipy.special import ellipk

    return float(4.0 / math.sqrt(GRAVITY) * ellipk(math.sin(angle / 2) ** 2))


def rober_by_scipy(t_end: float, rtol: float = 1e-10, atol: float = 1e-14) -> Tensor:
    """Radau on the three differential equations."""
    from problems.stiff import rober as ode
    from scipy.integrate import solve_ivp

    def func(t: float, y: Any) -> Any:
        return ode(torch.tensor(t), torch.tensor(y)).numpy()

    found = solve_ivp(func, (0.0, t_end), [1.0, 0.0, 0.0], method="Radau", rtol=rtol, atol=atol)
    return torch.tensor(found.y[:, -1], dtype=D)
