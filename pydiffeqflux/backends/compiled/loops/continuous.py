"""Right-hand sides of adjoint equations, for the same loop that solved forwards; and Gauss quadrature on its steps.

Each is a kernel like a model's own. Where a model has its integers, these have numbers and addresses (``context``): of
the model's kernels, and of the forward solve, whose dense output they read.
"""

from __future__ import annotations

from ..lang.words import Ints, Real, Reals, Wide, ints_at, kernel, real, reals_at, wide_at
from . import layout as at
from .reading import interpolate

# What stands where in ``context``.
N, COUNT, F, VJP, VJP_Y, INTEGERS, LAYOUT, TABLE, TIMES, SIZES, STATES, SLOPES, FORWARDS = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
)  # fmt: skip
CONTEXT = 13


def state_at(time: float, context: Ints, y: Reals) -> None:
    """The forward solution; at a boundary between two steps, that of the later one."""
    times, sign, count = wide_at(context[TIMES]), float(context[FORWARDS]), context[COUNT]
    first, last = times[0] * sign, times[count] * sign
    signed = min(max(time * sign, first), last)
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if times[middle] * sign <= signed:
            low = middle
        else:
            high = middle
    ic, h = ints_at(context[LAYOUT]), wide_at(context[SIZES])[low]
    n, every = ic[at.N], ic[at.STAGES] + ic[at.EXTRA]
    theta = (signed * sign - times[low]) / (times[low + 1] - times[low])
    states, slopes = reals_at(context[STATES]), reals_at(context[SLOPES])
    interpolate(ic, wide_at(context[TABLE]), theta, h, states, low * n, slopes, low * every * n, y, 0)


def interpolating(t: Real, z: Reals, p: Reals, c: Reals, context: Ints, w: Reals, out: Reals) -> None:
    """d/dt (lambda, mu) = (-lambda df/dy, -lambda df/dp) along the forward solution."""
    n = context[N]
    y, back, gt, own = w, w[n:], w[2 * n :], w[2 * n + 1 :]
    state_at(float(t), context, y)
    for m in range(n):
        back[m] = -z[m]
    kernel(context[VJP], t, y, back, p, c, ints_at(context[INTEGERS]), own, out, out[n:], gt)


def backsolving(t: Real, z: Reals, p: Reals, c: Reals, context: Ints, w: Reals, out: Reals) -> None:
    """d/dt (y, lambda, mu) = (f, -lambda df/dy, -lambda df/dp)."""
    n, integers = context[N], ints_at(context[INTEGERS])
    back, gt, own = w[n:], w[2 * n :], w[2 * n + 1 :]
    for m in range(n):
        back[m] = -z[n + m]
    kernel(context[F], t, z, p, c, integers, own, out)
    kernel(context[VJP], t, z, back, p, c, integers, own, out[n:], out[2 * n :], gt)


def adjoint(t: Real, z: Reals, p: Reals, c: Reals, context: Ints, w: Reals, out: Reals) -> None:
    """d lambda/dt = -lambda df/dy along the forward solution."""
    n = context[N]
    y, back, own = w, w[n:], w[2 * n + 1 :]
    state_at(float(t), context, y)
    for m in range(n):
        back[m] = -z[m]
    kernel(context[VJP_Y], t, y, back, p, c, ints_at(context[INTEGERS]), own, out)


def quadrature(count: int, nodes: int, params: int, x: Wide, weights: Wide, ic: Ints, tab: Wide, ts: Wide, hs: Wide,
               lam: Reals, slopes: Reals, p: Reals, c: Reals, context: Ints, w: Reals, piece: Reals,
               total: Reals) -> int:  # fmt: skip
    """Subtract the integral of ``lambda df/dp`` over the ``count`` steps of a backward solve from ``total``."""
    n, every = context[N], ic[at.STAGES] + ic[at.EXTRA]
    y, at_node, gt, gy, own = w, w[n:], w[2 * n :], w[2 * n + 1 :], w[3 * n + 1 :]
    for i in range(count):
        size = ts[i + 1] - ts[i]
        for k in range(nodes):
            theta = 0.5 + 0.5 * x[k]
            time = ts[i] + size * theta
            state_at(time, context, y)
            interpolate(ic, tab, theta, hs[i], lam, i * n, slopes, i * every * n, at_node, 0)
            kernel(context[VJP], real(time), y, at_node, p, c, ints_at(context[INTEGERS]), own, gy, piece, gt)
            scale = real(-0.5 * size * weights[k])
            for q in range(params):
                total[q] += scale * piece[q]
    return 0
