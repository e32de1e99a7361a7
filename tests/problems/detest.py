"""DETEST: the 25 non-stiff problems of classes A to E, each on t in [0, 20].

T. E. Hull, W. H. Enright, B. M. Fellen, A. E. Sedgwick, "Comparing numerical methods for ordinary differential
equations", SIAM J. Numer. Anal. 9 (1972) 603-637.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

D = torch.float64
END = 20.0


@dataclass(frozen=True)
class Problem:
    """``y' = f(t, y)`` from ``y0`` at t = 0, and the solution in closed form where there is one."""

    title: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    exact: Callable[[float], list[float]] | None = None


def _problem(
    title: str,
    f: Callable[[Tensor, Tensor], Tensor],
    y0: list[float],
    exact: Callable[[float], list[float]] | None = None,
) -> Problem:
    return Problem(title, f, torch.tensor(y0, dtype=D), exact)


# -- A: single equations ------------------------------------------------------------------------

A1 = _problem("decay", lambda t, y: -y, [1.0], lambda t: [math.exp(-t)])
A2 = _problem("a Riccati equation", lambda t, y: -(y**3) / 2, [1.0], lambda t: [(t + 1) ** -0.5])
A3 = _problem("an oscillation", lambda t, y: y * torch.cos(t), [1.0], lambda t: [math.exp(math.sin(t))])
A4 = _problem("logistic growth", lambda t, y: y / 4 * (1 - y / 20), [1.0], lambda t: [20 / (1 + 19 * math.exp(-t / 4))])
A5 = _problem("a spiral", lambda t, y: (y - t) / (y + t), [4.0])


# -- B: small systems ---------------------------------------------------------------------------


def _predators(t: Tensor, y: Tensor) -> Tensor:
    meetings = y[0] * y[1]
    return torch.stack([2 * (y[0] - meetings), meetings - y[1]])


def _linear_reaction(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind()
    return torch.stack([b - a, a - 2 * b + c, b - c])


def _nonlinear_reaction(t: Tensor, y: Tensor) -> Tensor:
    squared = y[1] ** 2
    return torch.stack([-y[0], y[0] - squared, squared])


def _torus(t: Tensor, y: Tensor) -> Tensor:
    x1, x2, x3 = y.unbind()
    r = torch.hypot(x1, x2)
    return torch.stack([-x2 - x1 * x3 / r, x1 - x2 * x3 / r, x1 / r])


def _rigid_body(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind()
    return torch.stack([b * c, -a * c, -0.51 * a * b])


B1 = _problem("two populations in conflict", _predators, [1.0, 3.0])
B2 = _problem("a linear chemical reaction", _linear_reaction, [2.0, 0.0, 1.0])
B3 = _problem("a nonlinear chemical reaction", _nonlinear_reaction, [1.0, 0.0, 0.0])
B4 = _problem("the integral surface of a torus", _torus, [3.0, 0.0, 0.0])
B5 = _problem("Euler's equations of a rigid body", _rigid_body, [0.0, 1.0, 1.0])


# -- C: moderate systems ------------------------------------------------------------------------


def _chain(rates: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """Each species decays into the next, the last into nothing more."""
    k = torch.tensor([*rates, 0.0], dtype=D)
    into = torch.diag(k[:-1], -1) - torch.diag(k)
    return lambda t, y: into @ y


def _diffusion(n: int) -> Callable[[Tensor, Tensor], Tensor]:
    ones = torch.ones(n - 1, dtype=D)
    laplacian = torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(n, dtype=D)
    return lambda t, y: laplacian @ y


#: Gravitation, the sun's mass with the inner planets', and Jupiter, Saturn, Uranus, Neptune, Pluto.
GRAVITY, SUN = 2.95912208286, 1.00000597682
MASSES = torch.tensor(
    [0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778], dtype=D
)
_PLACES = [
    [3.42947415189, 3.35386959711, 1.35494901715],
    [6.64145542550, 5.97156957878, 2.18231499728],
    [11.2630437207, 14.6952576794, 6.27960525067],
    [-30.1552268759, 1.65699966404, 1.43785752721],
    [-21.1238353380, 28.4465098142, 15.3882659679],
]
_SPEEDS = [
    [-0.557160570446, 0.505696783289, 0.230578543901],
    [-0.415570776342, 0.365682722812, 0.169143213293],
    [-0.325325669158, 0.189706021964, 0.0877265322780],
    [-0.0240476254170, -0.287659532608, -0.117219543175],
    [-0.176860753121, -0.216393453025, -0.0148647893090],
]


def _planets(t: Tensor, y: Tensor) -> Tensor:
    """Five bodies around the sun, in its frame: each drawn by the sun, by the others, and by what draws the sun."""
    places, speeds = y.reshape(2, 5, 3)
    by_sun = places / places.norm(dim=1, keepdim=True) ** 3
    apart = places[None] - places[:, None]
    cubed = apart.norm(dim=2, keepdim=True) ** 3 + torch.eye(5, dtype=y.dtype)[:, :, None]
    by_others = (MASSES[None, :, None] * (apart / cubed)).sum(1)
    of_sun = MASSES[:, None] * by_sun
    on_sun = of_sun.sum(0) - of_sun  # the sum over the others
    pull = GRAVITY * (by_others - on_sun - (SUN + MASSES[:, None]) * by_sun)
    return torch.stack([speeds, pull]).flatten()


_FIRST = [1.0] + [0.0] * 9
C1 = _problem("a radioactive decay chain", _chain([1.0] * 9), _FIRST)
C2 = _problem("another", _chain([float(k) for k in range(1, 10)]), _FIRST)
C3 = _problem("a parabolic equation in 10 points", _diffusion(10), _FIRST)
C4 = _problem("and in 51", _diffusion(51), [1.0] + [0.0] * 50)
C5 = _problem("five outer planets", _planets, [x for part in (_PLACES, _SPEEDS) for body in part for x in body])


# -- D: orbits ----------------------------------------------------------------------------------


def _orbit(eccentricity: float) -> Problem:
    def f(t: Tensor, y: Tensor) -> Tensor:
        place, speed = y[:2], y[2:]
        return torch.cat([speed, -place / place.norm() ** 3])

    def exact(t: float) -> list[float]:
        """By Kepler's equation ``u - e sin u = t``."""
        u = t
        for _ in range(200):
            u -= (u - eccentricity * math.sin(u) - t) / (1 - eccentricity * math.cos(u))
        flat, slow = math.sqrt(1 - eccentricity**2), 1 - eccentricity * math.cos(u)
        return [math.cos(u) - eccentricity, flat * math.sin(u), -math.sin(u) / slow, flat * math.cos(u) / slow]

    start = [1 - eccentricity, 0.0, 0.0, math.sqrt((1 + eccentricity) / (1 - eccentricity))]
    return _problem(f"an orbit of eccentricity {eccentricity}", f, start, exact)


D1, D2, D3, D4, D5 = (_orbit(e) for e in (0.1, 0.3, 0.5, 0.7, 0.9))


# -- E: equations of higher order ---------------------------------------------------------------


def _second_order(acceleration: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: torch.stack([y[1], acceleration(t, y[0], y[1])])


def _bessel(t: float) -> list[float]:
    """J of order one half at t + 1, and its derivative."""
    x = t + 1
    size = math.sqrt(2 / (math.pi * x))
    return [size * math.sin(x), size * (math.cos(x) - math.sin(x) / (2 * x))]


def _falling(t: float) -> list[float]:
    last = math.sqrt(0.032 / 0.4)  # the speed at which drag balances weight
    return [30 + math.log(math.cosh(0.4 * last * t)) / 0.4, last * math.tanh(0.4 * last * t)]


E1 = _problem(
    "Bessel's equation",
    _second_order(lambda t, y, v: -(v / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y)),
    [0.671396707141803, 0.0954005144474744],
    _bessel,
)
E2 = _problem("van der Pol's equation", _second_order(lambda t, y, v: (1 - y**2) * v - y), [2.0, 0.0])
E3 = _problem(
    "Duffing's equation", _second_order(lambda t, y, v: y**3 / 6 - y + 2 * torch.sin(2.78535 * t)), [0.0, 0.0]
)
E4 = _problem("a falling body", _second_order(lambda t, y, v: 0.032 - 0.4 * v**2), [30.0, 0.0], _falling)
E5 = _problem("linear pursuit", _second_order(lambda t, y, v: torch.sqrt(1 + v**2) / (25 - t)), [0.0, 0.0])

PROBLEMS: dict[str, Problem] = {name: value for name, value in sorted(globals().items()) if isinstance(value, Problem)}
