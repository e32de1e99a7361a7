"""A step of a Rosenbrock method: that of ``eager.rosenbrock``, compiled.

With ``W = I - gamma h df/dy``: ``W u_i = gamma (h f_i + h^2 d_i df/dt + sum_j C_ij u_j)``, ``y1 = y + sum_i b_i u_i``.
"""

from __future__ import annotations

import math

from ..lang.words import Ints, Reals, Wide, apart, kernel, real
from . import layout as at

#: Entries of the state up to which a loop over them costs more than it does.
FEW = 4


@apart
def combine(n: int, stages: int, tab: Wide, first: int, h: float, k: Reals, row: int, out: Reals, o: int) -> None:
    """``out += h * sum_j tab[first + j] * k[row + j]``, one slope after the other; few entries one by one."""
    if n <= FEW:
        combine_few(n, stages, tab, first, h, k, row, out, o, out, o)
        return
    for j in range(stages):
        weight = tab[first + j]
        if weight != 0.0:
            scale = real(h * weight)
            at_k = row + j * n
            for m in range(n):
                out[o + m] += scale * k[at_k + m]


@apart
def combine_few(n: int, stages: int, tab: Wide, first: int, h: float, k: Reals, row: int, start: Reals, s: int,
                out: Reals, o: int) -> None:  # fmt: skip
    """``out = start + h * sum_j tab[first + j] * k[row + j]``, two entries at a time: no sum waits in memory."""
    pairs = n // 2 * 2
    for m in range(0, pairs, 2):
        one, two = start[s + m], start[s + m + 1]
        for j in range(stages):
            if tab[first + j] != 0.0:
                scale = real(h * tab[first + j])
                one += scale * k[row + j * n + m]
                two += scale * k[row + j * n + m + 1]
        out[o + m] = one
        out[o + m + 1] = two
    for m in range(pairs, n):
        total = start[s + m]
        for j in range(stages):
            if tab[first + j] != 0.0:
                total += real(h * tab[first + j]) * k[row + j * n + m]
        out[o + m] = total


def jacobian(ic: Ints, t: float, y: Reals, p: Reals, c: Reals, ci: Ints, w: Reals) -> None:
    """The Jacobian and df/dt into the work space."""
    n, space = ic[at.N], ic[at.SPACE]
    kernel(ic[at.JACOBIAN], real(t), y, p, c, ci, w, w[space:], w[space + 2 * n * n :])


def factorise(n: int, scale: float, jac: Reals, lu: Reals, swaps: Reals) -> bool:
    """``P (I - scale jac) = L U`` with pivots; False where a pivot is zero or not finite."""
    for i in range(n):
        for j in range(n):
            lu[i * n + j] = (1.0 if i == j else 0.0) - real(scale) * jac[i * n + j]
    for i in range(n):
        best = i
        for r in range(i + 1, n):
            if abs(lu[r * n + i]) > abs(lu[best * n + i]):
                best = r
        swaps[i] = real(best)
        if best != i:
            for j in range(n):
                kept = lu[i * n + j]
                lu[i * n + j] = lu[best * n + j]
                lu[best * n + j] = kept
        pivot = lu[i * n + i]
        if pivot == 0.0 or not math.isfinite(pivot):
            return False
        for r in range(i + 1, n):
            factor = lu[r * n + i] / pivot
            lu[r * n + i] = factor
            if factor != 0.0:
                for j in range(i + 1, n):
                    lu[r * n + j] -= factor * lu[i * n + j]
    return True


def solve(n: int, lu: Reals, swaps: Reals, x: Reals) -> None:
    """``x = W^-1 x``."""
    for i in range(n):
        other = int(swaps[i])
        kept = x[i]
        x[i] = x[other]
        x[other] = kept
    for i in range(n):
        total = x[i]
        for j in range(i):
            total -= lu[i * n + j] * x[j]
        x[i] = total
    for i in range(n - 1, -1, -1):
        total = x[i]
        for j in range(i + 1, n):
            total -= lu[i * n + j] * x[j]
        x[i] = total / lu[i * n + i]


def solve_transposed(n: int, lu: Reals, swaps: Reals, x: Reals) -> None:
    """``x = W^-T x``."""
    for i in range(n):
        total = x[i]
        for j in range(i):
            total -= lu[j * n + i] * x[j]
        x[i] = total / lu[i * n + i]
    for i in range(n - 1, -1, -1):
        total = x[i]
        for j in range(i + 1, n):
            total -= lu[j * n + i] * x[j]
        x[i] = total
    for i in range(n - 1, -1, -1):
        other = int(swaps[i])
        kept = x[i]
        x[i] = x[other]
        x[other] = kept


def couplings(ic: Ints) -> int:
    """Where the table's couplings begin."""
    every = ic[at.STAGES] + ic[at.EXTRA]
    return 4 * every + every * every + every * ic[at.DEGREE]


def rosenbrock_step(f: int, ic: Ints, tab: Wide, t: float, h: float, y: Reals, yr: int, y1r: int, k: Reals, kr: int,
                    k1r: int, p: Reals, c: Reals, ci: Ints, w: Reals, work: Reals) -> bool:  # fmt: skip
    """The stages of a step into ``k[kr:]`` and the new state into ``y[y1r:]``; False where W is singular.

    The slope at the start lies in the last slot of ``k[kr:]``; a method that evaluates f at the new point leaves it in
    that of the next step, ``k[k1r:]``.
    """
    n, s, every, space = ic[at.N], ic[at.STAGES], ic[at.STAGES] + ic[at.EXTRA], ic[at.SPACE]
    couple = couplings(ic)
    weights, gamma = couple + every * every, tab[couple + every * every + every]
    jac, lu, ft, swaps = w[space:], w[space + n * n :], w[space + 2 * n * n :], w[space + 2 * n * n + n :]
    if not factorise(n, gamma * h, jac, lu, swaps):
        return False
    for i in range(s):
        slope = kr + s * n
        if i > 0:
            for m in range(n):
                work[m] = y[yr + m]
            combine(n, i, tab, every + i * every, 1.0, k, kr, work, 0)
            node = t + h if tab[i] == 1.0 else t + tab[i] * h
            if i == s - 1 and ic[at.FSAL]:
                slope = k1r + s * n
                kernel(f, real(node), work, p, c, ci, w, k[slope:])
            else:
                kernel(f, real(node), work, p, c, ci, w, work[n:])
                slope = -1
        u, scale, moved = kr + i * n, real(gamma * h), real(gamma * tab[weights + i] * h * h)
        for m in range(n):
            value = work[n + m]
            if slope >= 0:
                value = k[slope + m]
            k[u + m] = value * scale + ft[m] * moved
        combine(n, i, tab, couple + i * every, 1.0, k, kr, k, u)
        solve(n, lu, swaps, k[u:])
    for m in range(n):
        work[m] = y[yr + m]
    combine(n, s, tab, every + every * every, 1.0, k, kr, work, 0)
    for m in range(n):
        y[y1r + m] = work[m]
    return True
