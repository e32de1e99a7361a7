"""The exact gradient of a Rosenbrock solve: backwards through its steps.

A step depends on the Jacobian, so its derivative needs second derivatives of f: one kernel gives the derivatives of
``v (df/dy u + df/dt tau)``, with u, tau and v among its constants.
"""

from __future__ import annotations

from ..lang.words import Ints, Reals, Wide, kernel, real
from . import layout as at
from .discrete import nonzero
from .rosenbrock import combine, couplings, factorise, jacobian, solve_transposed


def spread_back(n: int, stages: int, tab: Wide, first: int, bar: Reals, kbar: Reals) -> None:
    """The reverse of ``combine`` with h = 1."""
    for j in range(stages):
        if tab[first + j] != 0.0:
            scale = real(tab[first + j])
            for m in range(n):
                kbar[j * n + m] += scale * bar[m]


def sweep_rosenbrock(v: int, second: int, ic: Ints, tab: Wide, p: Reals, c: Reals, ci: Ints, w: Reals, c2: Reals,
                     ci2: Ints, places: Ints, first: int, count: int, ts: Wide, hs: Wide, y: Reals, k: Reals,
                     seeds: Reals, where: Ints, thetas: Wide, row: Ints, lam: Reals, gp: Reals, kbar: Reals,
                     work: Reals, piece: Reals) -> int:  # fmt: skip
    """Back through the steps ``first + count - 1, ..., first``; see ``discrete.sweep``.

    Args:
        second: the kernel of second derivatives, with ``c2`` and ``ci2`` for constants; ``places`` says where among
            them u, tau and v lie.
    """
    n, s, every, degree = ic[at.N], ic[at.STAGES], ic[at.STAGES] + ic[at.EXTRA], ic[at.DEGREE]
    wide, dense, space = every * n, 4 * every + every * every, ic[at.SPACE]
    couple = couplings(ic)
    weights, gamma = couple + every * every, tab[couple + every * every + every]
    jac, lu, swaps = w[space:], w[space + n * n :], w[space + 2 * n * n + n :]
    stage, gy, back, gt, one = work, work[n:], work[2 * n :], work[3 * n :], work[3 * n + 1 :]
    one[0] = 1.0
    left = row[0]
    for step in range(count):
        i = count - 1 - step
        t, h = ts[first + i], hs[first + i]
        yi, ki = y[i * n :], k[i * wide :]
        while left > 0 and where[left - 1] < 0 and -1 - where[left - 1] == first + i + 1:
            left -= 1
            for m in range(n):
                lam[m] += seeds[left * n + m]
        for m in range(wide):
            kbar[m] = 0.0
        spread_back(n, s, tab, every + every * every, lam, kbar)
        while left > 0 and where[left - 1] == first + i:
            left -= 1
            for j in range(s):
                weight, power = 0.0, 1.0
                for d in range(degree):
                    power *= thetas[left]
                    weight += tab[dense + j * degree + d] * power
                for m in range(n):
                    kbar[j * n + m] += real(weight) * seeds[left * n + m]
            for m in range(n):
                lam[m] += seeds[left * n + m]
        jacobian(ic, t, yi, p, c, ci, w)
        regular = factorise(n, gamma * h, jac, lu, swaps)
        for down in range(s):
            j = s - 1 - down
            bar = kbar[j * n :]
            if regular and nonzero(n, bar):
                solve_transposed(n, lu, swaps, bar)
                spread_back(n, j, tab, couple + j * every, bar, kbar)
                for m in range(n):
                    back[m] = bar[m] * real(gamma * h)
                    stage[m] = yi[m]
                    if places[0] >= 0:
                        c2[places[0] + m] = ki[j * n + m] * real(gamma * h)
                if places[1] >= 0:
                    c2[places[1]] = real(gamma * tab[weights + j] * h * h)
                if places[2] >= 0:
                    for m in range(n):
                        c2[places[2] + m] = bar[m]
                kernel(second, real(t), yi, one, p, c2, ci2, w, gy, piece, gt)
                for m in range(n):
                    lam[m] += gy[m]
                for q in range(ic[at.PARAMS]):
                    gp[q] += piece[q]
                combine(n, j, tab, every + j * every, 1.0, k, i * wide, stage, 0)
                node = t + h if tab[j] == 1.0 else t + tab[j] * h
                kernel(v, real(node), stage, back, p, c, ci, w, gy, piece, gt)
                for m in range(n):
                    lam[m] += gy[m]
                for q in range(ic[at.PARAMS]):
                    gp[q] += piece[q]
                spread_back(n, j, tab, every + j * every, gy, kbar)
    if first == 0:
        while left > 0:
            left -= 1
            for m in range(n):
                lam[m] += seeds[left * n + m]
    row[0] = left
    return 0
