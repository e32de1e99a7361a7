"""Roots of one scalar function a row, all rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: A bracket is halved at least every third evaluation, and 1e-16 is 53 halvings away.
MAX_EVALUATIONS = 160
TOLERANCE = 1e-15


@torch.no_grad()
def find_roots(function: Callable[[Tensor], Tensor], left: Tensor, right: Tensor, rows: Tensor) -> Tensor:
    """A root in ``[left, right]`` for each of the ``rows`` (a mask); other rows keep ``left``.

    Where the signs at the ends do not differ (rounding: the caller saw a change of sign with slightly other
    values) the end with the smaller value is taken.

    Source: T. R. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear
    function without using derivatives", Advances in Engineering Software 28 (1997) 145-149.
    """
    a, b = right, left
    fa, fb = function(a).to(a), function(b).to(b)
    root = torch.where(fa.abs() <= fb.abs(), a, b)
    open_ = rows & (fa * fb < 0)
    c, fc, part = b, fb, torch.full_like(a, 0.5)
    for _ in range(MAX_EVALUATIONS):
        if not bool(open_.any()):
            break
        x = torch.where(open_, a + part * (b - a), root)
        fx = function(x).to(x)
        same = fx.sign() == fa.sign()
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = x, fx
        best, smallest = torch.where(fa.abs() < fb.abs(), a, b), torch.minimum(fa.abs(), fb.abs())
        root = torch.where(open_, best, root)
        margin = TOLERANCE / (b - a).abs()
        open_ = open_ & (margin <= 0.5) & (smallest > 0)
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        quadratic = (phi * phi < xi) & ((1 - phi) ** 2 < 1 - xi)
        inverse = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        part = torch.where(quadratic & inverse.isfinite(), inverse, 0.5)
        part = torch.maximum(torch.minimum(part, 1 - margin), margin)
    return torch.where(rows, root, left)
