"""The reversible Heun method: its state before a step can be had from that after it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...common.rhs import Rhs, Scalar
from ...common.sde import Sde
from .scheme import Move, Scheme


class Companion(NamedTuple):
    """What the method carries along: a second state ``z``, and drift and diffusion there."""

    f: Tensor
    g: Tensor
    z: Tensor


class ReversibleHeunScheme(Scheme):
    """``z1 = 2 y - z + f dt + g dW``; then y moves by the mean of drift and diffusion at z and z1."""

    order = 2

    def __init__(self, given: Companion | None = None):
        #: What to start from, where a solve goes on from another one.
        self.given = given

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> Companion:
        assert isinstance(rhs, Sde)
        if self.given is not None:
            return self.given
        f, g = rhs.both(t, y)
        return Companion(f, g, y)

    def move(self, sde: Sde, t: float, dt: float, y: Tensor, carry: Any) -> Move:
        y1, carried = forth(sde, t + dt, dt, sde.path.increment(t, dt), y, carry)
        return y1, None, carried


def forth(sde: Sde, t1: float, dt: float, w: Tensor, y: Tensor, carry: Companion) -> tuple[Tensor, Companion]:
    """One step, which ends at ``t1``."""
    z = 2 * y - carry.z + carry.f * dt + sde.times(carry.g, w)
    f, g = sde.both(t1, z)
    y1 = y + 0.5 * ((carry.f + f) * dt + sde.times(carry.g + g, w))
    return y1, Companion(f, g, z)


def back(sde: Sde, t: float, dt: float, w: Tensor, y1: Tensor, carry: Companion) -> tuple[Tensor, Companion]:
    """What :func:`forth` came from: the state and companion at ``t``, where the step began."""
    z = 2 * y1 - carry.z - carry.f * dt - sde.times(carry.g, w)
    f, g = sde.both(t, z)
    y = y1 - 0.5 * ((carry.f + f) * dt + sde.times(carry.g + g, w))
    return y, Companion(f, g, z)
