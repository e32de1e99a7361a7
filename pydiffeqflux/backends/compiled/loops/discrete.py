"""The exact gradient of an explicit solve: backwards through its steps, their stages and their interpolants.

Steps and slopes were kept (``explicit.integrate``) or are taken again between two checkpoints (``replay``). A kept step
costs one vector-Jacobian product a stage and no other evaluation, since the kernel computes what it needs of f itself.
As in the eager loop, step sizes are constants, but for the last one, which is cut so as to end at ``t1``.
"""

from __future__ import annotations

from ..lang.words import Ints, Real, Reals, Wide, apart, kernel, real
from . import layout as at
from .explicit import extra_stages, stages_of_step
from .rosenbrock import combine


def replay(f: int, ic: Ints, tab: Wide, p: Reals, c: Reals, ci: Ints, w: Reals, first: int, count: int, ts: Wide,
           hs: Wide, extras: Ints, y: Reals, k: Reals, work: Reals) -> int:  # fmt: skip
    """Take ``count`` recorded steps again, from the state in ``y[0]`` with its slope in ``k[0]``.

    ``ts, hs, extras`` are those of the whole solve, ``y`` and ``k`` of these steps only.
    """
    n, s, every = ic[at.N], ic[at.STAGES], ic[at.STAGES] + ic[at.EXTRA]
    wide = every * n
    for i in range(count):
        t, h = ts[first + i], hs[first + i]
        stages_of_step(f, ic, tab, t, h, y, i * n, (i + 1) * n, k, i * wide, p, c, ci, w, work)
        if every > s and extras[first + i] != 0:
            extra_stages(f, ic, tab, t, h, y, i * n, (i + 1) * n, k, i * wide, p, c, ci, w, work)
        if i + 1 < count:
            if ic[at.FSAL]:
                for m in range(n):
                    k[(i + 1) * wide + m] = k[i * wide + (s - 1) * n + m]
            else:
                node = real(ts[first + i + 1])
                kernel(f, node, y[(i + 1) * n :], p, c, ci, w, k[(i + 1) * wide :])
    return 0


@apart
def nonzero(n: int, x: Reals) -> bool:
    """Whether any entry is not zero (NaN is not)."""
    for m in range(n):  # noqa: SIM110 (a word of the language)
        if x[m] != 0.0:
            return True
    return False


def product(v: int, ic: Ints, t: float, y: Reals, kbar: Reals, p: Reals, c: Reals, ci: Ints, w: Reals, gy: Reals,
            gp: Reals, gt: Reals, total: Reals) -> Real:  # fmt: skip
    """``gy = kbar df/dy`` at ``(t, y)``; adds ``kbar df/dp`` to ``total``; returns ``kbar df/dt``.

    Without parameters and time (``PARAMS`` is -1) ``v`` is the kernel of the state alone.
    """
    if ic[at.PARAMS] < 0:
        kernel(v, real(t), y, kbar, p, c, ci, w, gy)
        return real(0.0)
    kernel(v, real(t), y, kbar, p, c, ci, w, gy, gp, gt)
    for q in range(ic[at.PARAMS]):
        total[q] += gp[q]
    return gt[0]


def sweep(v: int, ic: Ints, tab: Wide, p: Reals, c: Reals, ci: Ints, w: Reals, first: int, count: int, last: int,
          ts: Wide, hs: Wide, extras: Ints, y: Reals, k: Reals, seeds: Reals, where: Ints, thetas: Wide, row: Ints,
          lam: Reals, carry: Reals, gp: Reals, times: Wide, gsaves: Wide, kbar: Reals, work: Reals,
          piece: Reals) -> int:  # fmt: skip
    """Back through the steps ``first + count - 1, ..., first``.

    Args:
        v: the kernel of vector-Jacobian products (see ``product``).
        last: the index of the step that was cut to end at ``t1``, or -1.
        seeds, where, thetas: the loss's gradient at each observed state, and where that lies (see ``integrate``).
        row: the number of observations not yet taken in; counts down.
        lam, carry: gradients of the state at the end of these steps, and of its slope; become those at their start.
        gp: gradient of the parameters, added to.
        times, gsaves: gradients of ``t0`` and ``t1``, and of the times of observation, added to.
        kbar, work, piece: work space for the slopes' gradients, three states, and a gradient of the parameters.
    """
    n, s, every, degree = ic[at.N], ic[at.STAGES], ic[at.STAGES] + ic[at.EXTRA], ic[at.DEGREE]
    wide, dense, weights = every * n, 4 * every + every * every, every + every * every
    stage, gy, gt = work, work[n:], work[2 * n :]
    left, timed = row[0], ic[at.TIMED] != 0
    for back in range(count):
        i = count - 1 - back
        t, h = ts[first + i], hs[first + i]
        yi, ki = y[i * n :], k[i * wide :]
        while left > 0 and where[left - 1] < 0 and -1 - where[left - 1] == first + i + 1:
            left -= 1
            for m in range(n):
                lam[m] += seeds[left * n + m]
        for m in range(wide):
            kbar[m] = 0.0
        if ic[at.FSAL]:
            for m in range(n):
                kbar[(s - 1) * n + m] = carry[m]
        # What the step's own size and start are worth; both move only with the ends of the span.
        hbar, tbar = 0.0, 0.0
        for m in range(n):
            carry[m] = 0.0  # from here on the gradient of this step's start
        while left > 0 and where[left - 1] == first + i:
            left -= 1
            theta, slope = thetas[left], 0.0
            for j in range(every):
                weight, power, grows = 0.0, 1.0, 0.0
                for d in range(degree):
                    grows += tab[dense + j * degree + d] * power * (d + 1)
                    power *= theta
                    weight += tab[dense + j * degree + d] * power
                scale = real(weight * h)
                for m in range(n):
                    kbar[j * n + m] += scale * seeds[left * n + m]
                along = inner(n, seeds[left * n :], ki[j * n :]) if timed else 0.0
                hbar += weight * along
                slope += grows * h * along
            for m in range(n):
                carry[m] += seeds[left * n + m]
            # theta = (time - t) / h
            gsaves[left] += slope / h
            tbar -= slope / h
            hbar -= slope * theta / h
        for back_j in range(every - s):
            j = every - 1 - back_j
            if nonzero(n, kbar[j * n :]):
                if j == ic[at.AT_END]:
                    for m in range(n):
                        stage[m] = y[(i + 1) * n + m]
                else:
                    for m in range(n):
                        stage[m] = yi[m]
                    combine(n, j, tab, every + j * every, h, k, i * wide, stage, 0)
                node = t + h if tab[j] == 1.0 else t + tab[j] * h
                moved = float(product(v, ic, node, stage, kbar[j * n :], p, c, ci, w, gy, piece, gt, gp))
                tbar += moved
                hbar += moved * tab[j]
                if j == ic[at.AT_END]:
                    for m in range(n):
                        lam[m] += gy[m]
                else:
                    hbar += spread(n, j, tab, every + j * every, h, gy, ki, kbar, timed)
                    for m in range(n):
                        carry[m] += gy[m]
        if ic[at.FSAL] != 0 and nonzero(n, kbar[(s - 1) * n :]):
            end, bar = y[(i + 1) * n :], kbar[(s - 1) * n :]
            moved = float(product(v, ic, t + h, end, bar, p, c, ci, w, gy, piece, gt, gp))
            tbar += moved
            hbar += moved
            for m in range(n):
                lam[m] += gy[m]
        hbar += spread(n, s, tab, weights, h, lam, ki, kbar, timed)
        for m in range(n):
            carry[m] += lam[m]
        upto = s - 1 if ic[at.FSAL] else s
        for back_j in range(upto - 1):
            j = upto - 1 - back_j
            if nonzero(n, kbar[j * n :]):
                for m in range(n):
                    stage[m] = yi[m]
                combine(n, j, tab, every + j * every, h, k, i * wide, stage, 0)
                node = t + h if tab[j] == 1.0 else t + tab[j] * h
                moved = float(product(v, ic, node, stage, kbar[j * n :], p, c, ci, w, gy, piece, gt, gp))
                tbar += moved
                hbar += moved * tab[j]
                hbar += spread(n, j, tab, every + j * every, h, gy, ki, kbar, timed)
                for m in range(n):
                    carry[m] += gy[m]
        # The first slope belongs to the step before where methods share it, and to this step's start otherwise.
        for m in range(n):
            lam[m] = carry[m]
        if ic[at.FSAL] and first + i > 0:
            for m in range(n):
                carry[m] = kbar[m]
        else:
            if nonzero(n, kbar):
                tbar += float(product(v, ic, t, yi, kbar, p, c, ci, w, gy, piece, gt, gp))
                for m in range(n):
                    lam[m] += gy[m]
            for m in range(n):
                carry[m] = 0.0
        times[0] += tbar
        if first + i == last:  # h = t1 - t
            times[0] -= hbar
            times[1] += hbar
    if first == 0:
        while left > 0:
            left -= 1
            for m in range(n):
                lam[m] += seeds[left * n + m]
    row[0] = left
    return 0


@apart
def spread(n: int, stages: int, tab: Wide, first: int, h: float, bar: Reals, k: Reals, kbar: Reals,
           timed: bool) -> float:  # fmt: skip
    """The reverse of ``combine``: gradients of the slopes, and (returned, where ``timed``) that of ``h``."""
    moved = 0.0
    for j in range(stages):
        weight = tab[first + j]
        if weight != 0.0:
            scale = real(h * weight)
            for m in range(n):
                kbar[j * n + m] += scale * bar[m]
            if timed:
                moved += weight * inner(n, bar, k[j * n :])
    return moved


@apart
def inner(n: int, x: Reals, y: Reals) -> float:
    """The inner product, summed up in double precision."""
    total = 0.0
    for m in range(n):
        total += float(x[m]) * float(y[m])
    return total
