"""Explicit symplectic methods: kicks of the momenta and drifts of the positions, in turns.

For ``dq/dt = v(t, p)``, ``dp/dt = f(t, q)`` each kick ``p += b h f`` and each drift ``q += a h v`` is the exact flow of
one half of the system, and symplectic; so is what is composed of them. Of a system that depends on time, drifts carry
the clock that the force sees, and kicks the one that the velocity sees.

E. Hairer, C. Lubich, G. Wanner, "Geometric numerical integration", 2nd edition (2006), sections II.5, V.3 and VI.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ....dynamical import halves
from ....errors import NotSeparableError, PhaseSpaceError
from ....tracking import transforming
from ...common.dense import HERMITE, Interpolant
from ...common.rhs import Rhs, Scalar
from ..stepper import Step

KICK, DRIFT = 0, 1


@dataclass(frozen=True)
class Composition:
    """Kicks and drifts of a step, each with its share of it."""

    order: int
    parts: tuple[tuple[int, float], ...]


def alternate(order: int, first: int, *weights: Sequence[float]) -> Composition:
    """Parts of the ``first`` kind and of the other in turns, with the weights of each."""
    count = len(weights[0]) + len(weights[1])
    return Composition(order, tuple(((first + i) % 2, weights[i % 2][i // 2]) for i in range(count)))


def verlet(order: int, shares: Sequence[float]) -> Composition:
    """Velocity Verlet steps of these shares, their kicks joined."""
    ends = [0.0, *shares, 0.0]
    return alternate(order, KICK, [(a + b) / 2 for a, b in pairwise(ends)], shares)


@dataclass(frozen=True)
class _Part:
    """A kick or a drift: its share of the step, and where in the step its slope is taken."""

    kind: int
    share: float
    node: float


@dataclass
class Symplectic:
    """Steps a :class:`Composition`. The carry is the force at the current point, where a step begins with it."""

    composition: Composition
    adaptive: bool = False
    implicit: bool = False
    error_order: int = 0

    def __post_init__(self) -> None:
        self.order = self.composition.order
        parts, clocks = [], [0.0, 0.0]
        for kind, share in self.composition.parts:
            parts.append(_Part(kind, share, _rounded(clocks[1 - kind])))
            clocks[kind] += share
        self._parts = tuple(parts)
        #: A last kick at the new positions and a first one there have the same force.
        self._shared = parts[0].kind == parts[-1].kind == KICK

    def start(self, rhs: Rhs, t: Scalar, y: Tensor) -> tuple[Tensor, ...]:
        field = _field_of(rhs, y)
        f0 = rhs(t, y)  # checks what the right-hand side returns, too
        field.check(rhs, t, y, f0)
        return (halves(f0)[1],) if self._shared else ()

    def slope(self, carry: Any) -> None:
        return None

    def step(self, rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, carry: tuple[Tensor, ...] | None) -> Step:
        field = _field_of(rhs, y)
        state = list(halves(y))
        slope = None
        for i, part in enumerate(self._parts):
            if i == 0 and carry:
                slope = carry[0]
            else:
                slope = field.slope(rhs, part.kind, _at(t, dt, part.node), state)
            moved = 1 - part.kind
            state[moved] = state[moved] + slope * (part.share * dt)
        y1 = torch.cat(state, -1)
        assert slope is not None
        return Step(
            y1=y1,
            error=None,
            interpolant=lambda: _interpolant(rhs, t, dt, y, y1),
            carry=(slope,) if self._shared else (),
        )


def _rounded(node: float) -> float:
    """The end of the step to the last digit, whatever the shares add up to."""
    return 1.0 if abs(node - 1.0) < 1e-12 else node


def _at(t: Scalar, dt: Scalar, node: float) -> Scalar:
    return t + dt if node == 1.0 else t + node * dt


def _interpolant(rhs: Rhs, t: Scalar, dt: Scalar, y: Tensor, y1: Tensor) -> Interpolant:
    # With differences for vectors: rows of a batch that are done take steps of size 0.
    f0, f1 = rhs(t, y), rhs(t + dt, y1)
    return Interpolant(y, (y1 - y, f0 * dt, f1 * dt), HERMITE, None)


def _field_of(rhs: Rhs, y: Tensor) -> _Whole | _Separate:
    """How the halves of this right-hand side's state are stepped.

    Raises:
        PhaseSpaceError: its state has no two halves.
    """
    spec = rhs.spec
    pair = spec is None or (spec.skeleton in ([0, 1], (0, 1)) and spec.shapes[0] == spec.shapes[1])
    if not pair:
        raise PhaseSpaceError(
            f"y0 is a structure with tensors of the shapes {[tuple(s) for s in spec.shapes] if spec else ()}; a"
            f" symplectic method steps one tensor (..., 2n), or a pair (q, p) of one shape."
        )
    separable = getattr(rhs.func, "separable", None)
    return _Whole() if separable is None else _Separate(separable)


@dataclass(frozen=True)
class _Separate:
    """Each half is evaluated on its own."""

    field: Any

    def slope(self, rhs: Rhs, kind: int, t: Scalar, state: list[Tensor]) -> Tensor:
        rhs.nf += 1
        func = self.field.force if kind == KICK else self.field.velocity
        other = state[0] if kind == KICK else state[1]
        if rhs.spec is None:
            out: Tensor = func(rhs.time(t), other)
            return out
        shape, dtype = rhs.spec.shapes[0], rhs.spec.dtypes[0]
        return func(rhs.time(t), other.reshape(shape).to(dtype)).reshape(other.shape).to(other.dtype)

    def check(self, rhs: Rhs, t: Scalar, y: Tensor, f0: Tensor) -> None:
        """Nothing: it is separable by construction."""


@dataclass(frozen=True)
class _Whole:
    """The right-hand side is evaluated as a whole, and half of the result is used."""

    def slope(self, rhs: Rhs, kind: int, t: Scalar, state: list[Tensor]) -> Tensor:
        return halves(rhs(t, torch.cat(state, -1)))[1 - kind]

    @torch.no_grad()
    def check(self, rhs: Rhs, t: Scalar, y: Tensor, f0: Tensor) -> None:
        """Whether each half's rate really ignores that half: it is moved a little, and the rate must stay.

        Raises:
            NotSeparableError: it does not.
        """
        if transforming():  # values may be hidden there
            return
        for index, name, other in ((0, "dq/dt", "q"), (1, "dp/dt", "p")):
            parts = list(halves(y))
            wave = torch.arange(parts[index].numel(), device=y.device).cos().reshape(parts[index].shape)
            parts[index] = parts[index] + 0.01 * (1 + parts[index].abs()) * wave.to(y.dtype)
            before, after = halves(f0)[index], halves(rhs.evaluate(t, torch.cat(parts, -1)))[index]
            slack = 1e3 * torch.finfo(y.dtype).eps * (1 + before.abs().max())
            if bool(((after - before).abs() > slack).any()):
                raise NotSeparableError(
                    f"{name} depends on {other}, so kicks and drifts are not flows of this system's halves. Explicit"
                    f" symplectic methods need dq/dt = v(t, p) and dp/dt = f(t, q) (a Hamiltonian T(p) + V(q)); for any"
                    f" other one use an implicit symplectic method: 'implicit_midpoint', 'gl4' or 'gl6'."
                )


SYMPLECTIC_EULER = alternate(1, KICK, [1.0], [1.0])
VELOCITY_VERLET = verlet(2, [1.0])
LEAPFROG = alternate(2, DRIFT, [0.5, 0.5], [1.0])

# R. D. Ruth, "A canonical integration technique", IEEE Trans. Nucl. Sci. 30 (1983) 2669-2671.
RUTH3 = alternate(3, KICK, [7 / 24, 3 / 4, -1 / 24], [2 / 3, -2 / 3, 1.0])

# E. Forest, R. D. Ruth, Physica D 43 (1990) 105-117; J. Candy, W. Rozmus, J. Comput. Phys. 92 (1991) 230-256; the
# triple jump of H. Yoshida, Phys. Lett. A 150 (1990) 262-268.
_JUMP = 1 / (2 - 2 ** (1 / 3))
CANDY_ROZMUS4 = alternate(
    4, DRIFT, [_JUMP / 2, (1 - _JUMP) / 2, (1 - _JUMP) / 2, _JUMP / 2], [_JUMP, 1 - 2 * _JUMP, _JUMP]
)

# R. I. McLachlan, P. Atela, "The accuracy of symplectic integrators", Nonlinearity 5 (1992) 541-562: order 4 for
# quadratic kinetic energies.
MCLACHLAN_ATELA4 = alternate(
    4,
    KICK,
    [0.1344961992774310892, -0.2248198030794208058, 0.7563200005156682911, 0.3340036032863214255],
    [0.5153528374311229364, -0.085782019412973646, 0.4415830236164665242, 0.1288461583653841854],
)

# H. Yoshida, "Construction of higher order symplectic integrators", Phys. Lett. A 150 (1990) 262-268: solution A.
_Y6 = [0.784513610477557264, 0.235573213359358134, -1.17767998417887101]
YOSHIDA6 = verlet(6, [*_Y6, 1 - 2 * sum(_Y6), *_Y6[::-1]])

# W. Kahan, R.-C. Li, "Composition constants for raising the orders of unconventional schemes for ordinary differential
# equations", Math. Comput. 66 (1997) 1089-1099: 17 stages of order 8.
_KL8 = [
    0.13020248308889008087881763,
    0.56116298177510838456196441,
    -0.38947496264484728640807860,
    0.15884190655515560089621075,
    -0.39590389413323757733623154,
    0.18453964097831570709183254,
    0.25837438768632204729397911,
    0.29501172360931029887096624,
]
KAHAN_LI8 = verlet(8, [*_KL8, 1 - 2 * sum(_KL8), *_KL8[::-1]])
