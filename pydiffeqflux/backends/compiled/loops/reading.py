"""States between two steps: the interpolant, and the same as a polynomial for several points of one step."""

from __future__ import annotations

from ..lang.words import Ints, Reals, Wide, real
from . import layout as at


def interpolate(ic: Ints, tab: Wide, theta: float, h: float, y: Reals, yr: int, k: Reals, kr: int, out: Reals,
                o: int) -> None:  # fmt: skip
    """The interpolant at ``theta`` in [0, 1] of the step."""
    n, every, degree = ic[at.N], ic[at.STAGES] + ic[at.EXTRA], ic[at.DEGREE]
    first = 4 * every + every * every
    if ic[at.FAMILY] == 1:
        h = 1.0
    for m in range(n):
        out[o + m] = 0.0
    for j in range(every):
        weight, power = 0.0, 1.0
        for d in range(degree):
            power *= theta
            weight += tab[first + j * degree + d] * power
        if weight != 0.0:
            scale = real(weight * h)
            for m in range(n):
                out[o + m] += scale * k[kr + j * n + m]
    for m in range(n):
        out[o + m] += y[yr + m]


def polynomial(ic: Ints, tab: Wide, h: float, k: Reals, kr: int, out: Reals) -> None:
    """The step's interpolant as a polynomial: coefficients of ``theta``, ``theta ** 2``, ..., ``n`` numbers each."""
    n, every, degree = ic[at.N], ic[at.STAGES] + ic[at.EXTRA], ic[at.DEGREE]
    first = 4 * every + every * every
    if ic[at.FAMILY] == 1:
        h = 1.0
    for m in range(n):
        for d in range(degree):
            total = 0.0
            for j in range(every):
                weight = tab[first + j * degree + d]
                if weight != 0.0:
                    total += weight * k[kr + j * n + m]
            out[d * n + m] = real(total * h)


def evaluate(n: int, degree: int, theta: float, coefficients: Reals, y: Reals, yr: int, out: Reals, o: int) -> None:
    """That polynomial at ``theta``, added to the state at the step's start; summed up in double precision."""
    for m in range(n):
        total = 0.0
        for back in range(degree):
            total = (total + coefficients[(degree - 1 - back) * n + m]) * theta
        out[o + m] = y[yr + m] + real(total)
