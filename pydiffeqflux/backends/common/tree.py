"""A Brownian motion as a function of a seed and of time alone, at any time, in the memory of some increments.

The time span is halved again and again (Levy's construction, with the motion's integral carried along); the noise
of each half comes from a random generator seeded by the seed and by the place in the tree, and is drawn anew
whenever it is not among those used last. ``W(t)`` and its integral are linear in the noise on the way from the whole
span down to ``t``: the weights are a few numbers, worked out from the bottom up in double precision, and the
increment of a step is one weighted sum, the weights of both ends subtracted before.

The idea is Li, Wong, Chen & Duvenaud's virtual Brownian tree (2020, "Scalable gradients for stochastic differential
equations"); how the integral splits is from Foster, Lyons & Oberhauser (2020), "An optimal polynomial approximation
of Brownian motion", theorem 2.2 on both halves.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidTimesError
from ...tracking import untransformed

#: The depth of the tree: times are resolved to this power of one half, times the span.
DEPTH = 26
#: How many places' noise is kept: that of two ways down, and of what lies near them.
KEPT = 4 * DEPTH
_ROOT = 0

Weights = dict[int, tuple[float, float]]


class Tree:
    """``tree(ta, tb)`` is ``W(tb) - W(ta)``; with ``return_U`` also the integral of ``W(s) - W(ta)`` over the step.

    With ``return_A`` also the Levy area ``(*shape, m)``, which (unlike the rest) is right in law only: that of a step
    is not made up of those of its parts.

    Args:
        seed: any integer.
        t0, t1: the ends of the span.
        shape, dtype, device: of an increment.

    Times are rounded to ``2 ** -DEPTH`` of the span. With one seed, the increments between any two times are the
    same whatever was asked before. Times outside the span are an ``InvalidTimesError``.
    """

    def __init__(
        self, seed: int, t0: float, t1: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ):
        self.seed, self.t0, self.span, self.shape = seed, t0, t1 - t0, shape
        self._generator = torch.Generator(device)
        # Two normal numbers a place: for the increment and for the integral.
        self._noise = torch.empty((KEPT, 2, *shape), dtype=dtype, device=device)
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._known: OrderedDict[int, tuple[Weights, Weights]] = OrderedDict()

    def __call__(self, ta: float, tb: float, return_U: bool = False, return_A: bool = False) -> Any:
        if return_A:
            return self._with_area(ta, tb)
        a, b = self._cell(ta), self._cell(tb)
        (w_a, u_a), (w_b, u_b) = self._weights(a), self._weights(b)
        root = math.sqrt(self.span)
        w = self._sum(_combined((w_b, root), (w_a, -root)))
        if not return_U:
            return w
        scale = root * self.span
        step = (b - a) / (1 << DEPTH)
        return w, self._sum(_combined((u_b, scale), (u_a, -scale), (w_a, -scale * step)))

    def _with_area(self, ta: float, tb: float) -> tuple[Tensor, Tensor]:
        """The increment, and Levy's area ``A_ij``, half the integral of ``W_i dW_j - W_j dW_i``, drawn given the path.

        Foster, Lyons & Oberhauser: given ``W`` and ``H`` its mean is ``H_i W_j - W_i H_j`` and its variance
        ``h^2 / 20 + h (H_i^2 + H_j^2) / 5``; a normal number takes the place of what is not known of its law.
        """
        w, u = self(ta, tb, return_U=True)
        h = tb - ta
        x = u / h - w / 2
        place = (self._cell(ta) << (DEPTH + 1)) + self._cell(tb)
        self._generator.manual_seed(_mixed(self.seed + 1, place))
        noise = torch.empty((*self.shape, self.shape[-1]), dtype=w.dtype, device=w.device)
        with untransformed():
            noise.normal_(generator=self._generator)
        squares = (x * x).unsqueeze(-1) + (x * x).unsqueeze(-2)
        deviation = (h * h / 20 + squares * (h / 5)).sqrt()
        mean = x.unsqueeze(-1) * w.unsqueeze(-2) - w.unsqueeze(-1) * x.unsqueeze(-2)
        return w, mean + deviation * (noise - noise.transpose(-1, -2)) / math.sqrt(2)

    def _cell(self, t: float) -> int:
        last = 1 << DEPTH
        cell = round((t - self.t0) / self.span * last)
        if not 0 <= cell <= last:
            raise InvalidTimesError(f"t={t} lies outside the Brownian path's span, [{self.t0}, {self.t0 + self.span}].")
        return cell

    # -- weights ----------------------------------------------------------------------------------

    def _weights(self, cell: int) -> tuple[Weights, Weights]:
        """Of ``W`` and of its integral at a time, on a span of 1: the noise's weights by place."""
        if cell not in self._known:
            self._known[cell] = _weights_at(cell)
            if len(self._known) > 8:
                self._known.popitem(last=False)
        return self._known[cell]

    # -- noise ------------------------------------------------------------------------------------

    def _sum(self, weights: Weights) -> Tensor:
        rows: list[int] = []
        factors: list[float] = []
        for place, pair in weights.items():
            rows.append(self._slot(place))
            factors.extend(pair)
        if not rows:
            return torch.zeros(self.shape, dtype=self._noise.dtype, device=self._noise.device)
        noise = self._noise[rows].reshape(len(factors), -1)
        factor = torch.tensor(factors, dtype=noise.dtype, device=noise.device)
        return (factor @ noise).reshape(self.shape)

    def _slot(self, place: int) -> int:
        """Where the noise of a place is kept; drawn where it is not, in the place of what was used longest ago."""
        if place in self._slots:
            self._slots.move_to_end(place)
            return self._slots[place]
        slot = len(self._slots) if len(self._slots) < KEPT else self._slots.popitem(last=False)[1]
        self._slots[place] = slot
        self._generator.manual_seed(_mixed(self.seed, place))
        with untransformed():  # noise is a constant to every transform, and the same to all samples of a vmap
            self._noise[slot].normal_(generator=self._generator)
        return slot


def _combined(*parts: tuple[Weights, float]) -> Weights:
    total: Weights = {}
    for weights, factor in parts:
        for place, (x, y) in weights.items():
            before = total.get(place, (0.0, 0.0))
            total[place] = (before[0] + factor * x, before[1] + factor * y)
    return {place: pair for place, pair in total.items() if pair != (0.0, 0.0)}


def _weights_at(cell: int) -> tuple[Weights, Weights]:
    """The weights of ``W(t)`` and of its integral up to ``t = cell / 2 ** DEPTH``.

    An interval of length h has an increment ``W`` and ``H = (integral of W(s) - W(start)) / h - W / 2``. With normal
    numbers X and Y of its own, its halves have::

        W' = W / 2 + 3 H / 2 + sqrt(h) X / 4      H' = H / 4 - sqrt(h) X / 8 + sqrt(h / 48) Y
        W" = W / 2 - 3 H / 2 - sqrt(h) X / 4      H" = H / 4 - sqrt(h) X / 8 - sqrt(h / 48) Y

    From the bottom up, ``a W + b H`` is what the interval adds to ``W(t)``, and ``c W + d H`` to the integral.
    """
    on_w: Weights = {}
    on_u: Weights = {}
    if cell == 1 << DEPTH:
        a, b, c, d = 1.0, 0.0, 0.5, 1.0
    else:
        a = b = c = d = 0.0
        # Below the last bit that is set, t is the left end of its interval: nothing is added there.
        rest = (cell & -cell).bit_length() - 1 if cell else DEPTH
        for level in range(DEPTH - 1 - rest, -1, -1):
            h = 2.0**-level
            root = math.sqrt(h)
            index = cell >> (DEPTH - level)
            if (cell >> (DEPTH - 1 - level)) & 1:
                beyond = (cell & ((1 << (DEPTH - 1 - level)) - 1)) / (1 << DEPTH)  # t, from the middle on
                p, q = 0.25 * h + beyond, 0.5 * h
                x, y = root * (2 - 2 * a - b) / 8, -math.sqrt(h / 48) * b
                s, r = root * (2 * p - q - 2 * c - d) / 8, math.sqrt(h / 48) * (q - d)
                c, d = (p + c) / 2, 1.5 * (p - c) + (q + d) / 4
                a, b = (1 + a) / 2, 1.5 * (1 - a) + b / 4
            else:
                x, y = root * (2 * a - b) / 8, math.sqrt(h / 48) * b
                s, r = root * (2 * c - d) / 8, math.sqrt(h / 48) * d
                c, d = c / 2, 1.5 * c + d / 4
                a, b = a / 2, 1.5 * a + b / 4
            place = (1 << level) + index
            on_w[place], on_u[place] = (x, y), (s, r)
    twelfth = 1 / math.sqrt(12)  # H of the whole span has the variance 1 / 12
    on_w[_ROOT], on_u[_ROOT] = (a, b * twelfth), (c, d * twelfth)
    return on_w, on_u


def _mixed(seed: int, place: int) -> int:
    """A seed for one place (splitmix64's finaliser, so that neighbours have nothing in common)."""
    z = (seed * 0x9E3779B97F4A7C15 + place * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
