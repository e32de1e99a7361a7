"""The explicit Runge-Kutta loop with one step size for the whole state: that of ``eager.integrate``, compiled.

The arithmetic is the eager loop's operation for operation, so that both take the same steps to rounding. The loop
can be left when its buffers are full, or every so many steps, and entered again.
"""

from __future__ import annotations

import math

from ..lang.words import Ints, Reals, Wide, apart, bits, kernel, real, select, wide_from_bits
from . import layout as at
from .meeting import together
from .reading import evaluate, interpolate, polynomial
from .rosenbrock import FEW, combine, combine_few, jacobian, rosenbrock_step
from .watch import changed

_TINY_STEP = 1e-300
_EXPONENT = 0x7FF0000000000000
_EPSILON = 2.0**-52
#: Entries of the state up to which three and more save times in one step are read off a polynomial in theta.
SEVERAL = 16
#: The largest number below 1: times it, a number becomes its neighbour towards zero.
_JUST_BELOW = 1.0 - 2.0**-53


def smallest_step(t: float) -> float:
    """Four units in the last place of ``t``."""
    power = wide_from_bits(bits(t) & _EXPONENT)
    return max(4.0 * power * _EPSILON, _TINY_STEP)


def stages_of_step(f: int, ic: Ints, tab: Wide, t: float, h: float, y: Reals, yr: int, y1r: int, k: Reals, kr: int,
                   p: Reals, c: Reals, ci: Ints, w: Reals, work: Reals) -> None:  # fmt: skip
    """The slopes of a step from ``y[yr:]``, whose first is there, into ``k[kr:]``; the new state into ``y[y1r:]``.

    ``work`` holds the stage's state; the solution itself is summed up before it is added to ``y``, so that it is
    rounded once a step.
    """
    n, s, every = ic[at.N], ic[at.STAGES], ic[at.STAGES] + ic[at.EXTRA]
    for i in range(1, s):
        row = every + i * every
        if i == s - 1 and ic[at.FSAL]:
            break
        if n <= FEW:
            combine_few(n, i, tab, row, h, k, kr, y, yr, work, 0)
        else:
            for m in range(n):
                work[m] = y[yr + m]
            combine(n, i, tab, row, h, k, kr, work, 0)
        node = t + h if tab[i] == 1.0 else t + tab[i] * h
        kernel(f, real(node), work, p, c, ci, w, k[kr + i * n :])
    for m in range(n):
        work[m] = 0.0
    combine(n, s, tab, every + every * every, h, k, kr, work, 0)
    for m in range(n):
        y[y1r + m] = y[yr + m] + work[m]
    if ic[at.FSAL]:
        kernel(f, real(t + h), y[y1r:], p, c, ci, w, k[kr + (s - 1) * n :])


def extra_stages(f: int, ic: Ints, tab: Wide, t: float, h: float, y: Reals, yr: int, y1r: int, k: Reals, kr: int,
                 p: Reals, c: Reals, ci: Ints, w: Reals, work: Reals) -> None:  # fmt: skip
    """The slopes that only the interpolant needs."""
    n, s, every = ic[at.N], ic[at.STAGES], ic[at.STAGES] + ic[at.EXTRA]
    for i in range(s, every):
        node = t + h if tab[i] == 1.0 else t + tab[i] * h
        if i == ic[at.AT_END]:
            for m in range(n):
                work[m] = y[y1r + m]
        else:
            for m in range(n):
                work[m] = y[yr + m]
            combine(n, i, tab, every + i * every, h, k, kr, work, 0)
        kernel(f, real(node), work, p, c, ci, w, k[kr + i * n :])


def error_ratio(ic: Ints, tab: Wide, h: float, y: Reals, yr: int, y1r: int, k: Reals, kr: int, rtol: Reals,
                atol: Reals, work: Reals) -> float:  # fmt: skip
    """The root mean square of the estimated error in units of the tolerance."""
    n, s, every = ic[at.N], ic[at.STAGES], ic[at.STAGES] + ic[at.EXTRA]
    first = 2 * every + every * every
    if ic[at.FAMILY] == 1:
        h = 1.0
    for m in range(2 * n):
        work[m] = 0.0
    combine(n, s, tab, first, h, k, kr, work, 0)
    if ic[at.ERRORS] == 2:  # DOP853's blend of two estimates
        combine(n, s, tab, first + every, h, k, kr, work, n)
        for m in range(n):
            size = math.sqrt(float(work[m]) ** 2 + 0.01 * float(work[n + m]) ** 2)
            if size != 0.0:
                work[m] *= abs(work[m]) / size
    for m in range(n):
        work[m] /= max(abs(y[yr + m]), abs(y[y1r + m])) * rtol[m] + atol[m]
    return norm(ic, work)


def norm(ic: Ints, x: Reals) -> float:
    """The root mean square of all entries; of parts of the state, each with one of its own, the largest."""
    if ic[at.PART_END] == 0:
        return root(together(ic, squares(0, ic[at.N], x)), ic[at.N] * max(ic[at.SHARDS], 1))
    first, second = mean_square(0, ic[at.PART_1], x), mean_square(ic[at.PART_1], ic[at.PART_2], x)
    third = mean_square(ic[at.PART_2], ic[at.PART_END], x)
    if math.isnan(first + second + third):
        return math.nan
    return max(first, second, third)


@apart
def squares(start: int, end: int, x: Reals) -> float:
    """The sum of the squares of some entries."""
    total = 0.0
    for m in range(start, end):
        part = float(x[m])
        total += part * part
    return total


def root(total: float, count: int) -> float:
    """The root of the mean of so many squares."""
    return math.sqrt(total) * (1.0 / math.sqrt(float(count))) if count > 0 else 0.0


def mean_square(start: int, end: int, x: Reals) -> float:
    """The root of the mean square of some entries."""
    return root(squares(start, end, x), end - start)


def first_step(f: int, ic: Ints, fc: Wide, y: Reals, k: Reals, rtol: Reals, atol: Reals, p: Reals,
               c: Reals, ci: Ints, w: Reals, work: Reals) -> float:  # fmt: skip
    """``eager.control.initial_step``; NaN where the initial state is not finite."""
    n = ic[at.N]
    span = fc[at.T1] - fc[at.T0]
    for m in range(n):
        scale = abs(y[m]) * rtol[m] + atol[m]
        work[m] = y[m] / scale
        work[n + m] = k[m] / scale
    d0, d1 = norm(ic, work), norm(ic, work[n:])
    if not math.isfinite(d0):
        return math.nan
    h0 = 1e-6 if min(d0, d1) < 1e-5 or math.isinf(d1) else 0.01 * d0 / d1
    h0 = min(h0, abs(span))
    step = math.copysign(h0, span)
    for m in range(n):
        work[m] = y[m] + k[m] * real(step)
    kernel(f, real(fc[at.T0] + step), work, p, c, ci, w, work[n:])
    for m in range(n):
        work[m] = (work[n + m] - k[m]) / (abs(y[m]) * rtol[m] + atol[m])
    d2 = norm(ic, work) / h0
    steepest = max(d1, d2) if d2 == d2 else d1
    if steepest <= 1e-15:
        h1 = max(1e-6, h0 * 1e-3)
    else:
        h1 = (0.01 / steepest) ** fc[at.ORDER_UP]
    chosen = min(100 * h0, h1)
    return chosen if math.isfinite(chosen) and chosen > 0 else h0


def reach(t: float, target: float, sign: float) -> float:
    """The step to ``target``, such that ``t + dt`` is never a rounding error beyond it."""
    dt = target - t
    return dt * _JUST_BELOW if (t + dt - target) * sign > 0 else dt


def integrate(f: int, ic: Ints, fc: Wide, tab: Wide, saves: Wide, rtol: Reals, atol: Reals, p: Reals, c: Reals,
              ci: Ints, w: Reals, si: Ints, sf: Wide, ts: Wide, hs: Wide, y: Reals, k: Reals, extras: Ints,
              saved: Reals, where: Ints, thetas: Wide, work: Reals) -> int:  # fmt: skip
    """Solve on from where ``si`` and ``sf`` say; returns how it ended.

    Args:
        f: the kernel's address.
        ic, fc, tab, saves, rtol, atol: the solve (see ``layout``); tolerances one per entry of the state.
        p, c, ci, w: the kernel's parameters, constants, integers and work space.
        si, sf: where the loop stands.
        ts, hs, y, k, extras: times and sizes of the steps, the states at their starts (and the last one's end),
            their slopes, and whether the interpolant's own were evaluated. Without ``KEEP`` two rows in turn.
        saved, where, thetas: the states at the save times, the step that each lies in (one at an end of the span:
            minus 1 minus the number of steps before it), and where in it.
        work: two states, or as many as the interpolant's degree (see ``Table.scratch``).
    """
    n, s, every = ic[at.N], ic[at.STAGES], ic[at.STAGES] + ic[at.EXTRA]
    t0, t1 = fc[at.T0], fc[at.T1]
    sign = math.copysign(1.0, t1 - t0)
    count, keep, adaptive = ic[at.SAVES], ic[at.KEEP], ic[at.ERRORS] > 0
    wide, carry = every * n, ic[at.CARRY] * n
    if si[at.STARTED] == 0:
        si[at.STARTED] = 1
        sf[at.NOW] = ts[0] = t0
        kernel(f, real(t0), y, p, c, ci, w, k[carry:])
        si[at.EVALUATIONS] = 1
        sf[at.SIZE] = fc[at.DT]
        if adaptive and math.isnan(fc[at.DT]):
            bad = 0.0
            for m in range(n):
                bad += select(math.isfinite(k[carry + m]), 0.0, 1.0)
            if together(ic, bad) > 0.0:
                return at.NON_FINITE_SLOPE
            sf[at.SIZE] = first_step(f, ic, fc, y, k[carry:], rtol, atol, p, c, ci, w, work)
            si[at.EVALUATIONS] += 1
            if math.isnan(sf[at.SIZE]):
                return at.NON_FINITE_STATE
        if count > 0 and saves[0] == t0:
            for m in range(n):
                saved[m] = y[m]
            where[0] = -1
            si[at.NEXT_SAVE] = 1
    t, size, next_save, accepted = sf[at.NOW], sf[at.SIZE], si[at.NEXT_SAVE], si[at.ACCEPTED]
    code = at.DONE
    while True:
        if accepted + si[at.REJECTED] >= ic[at.MAX_STEPS]:
            code = at.OUT_OF_STEPS
            break
        if keep and accepted - ic[at.BASE] >= ic[at.CAPACITY]:
            code = at.FULL
            break
        row = accepted - ic[at.BASE] if keep else accepted & 1
        nxt = row + 1 if keep else row ^ 1
        # The next step: its size, whether it has to end somewhere, and where.
        target = t1
        if not adaptive and math.isnan(size):
            for i in range(next_save, count):
                if (saves[i] - t) * sign > 0:
                    target = saves[i]
                    break
            h, lands = reach(t, target, sign), True
        else:
            dt = min(max(size, fc[at.DT_MIN]), fc[at.DT_MAX]) if adaptive else size
            left = abs(target - t)
            lands = dt >= left * (1 - 1e-10)
            exact = not adaptive and abs(dt - left) <= 1e-9 * left
            h = reach(t, target, sign) if lands and not exact else math.copysign(dt, sign)
        if si[at.STUCK] or (abs(h) <= smallest_step(t) and not lands):
            code = at.NON_FINITE if si[at.WHY] else at.UNDERFLOW
            break
        regular = True
        if ic[at.FAMILY] == 0:
            stages_of_step(f, ic, tab, t, h, y, row * n, nxt * n, k, row * wide, p, c, ci, w, work)
        else:
            if si[at.JACOBIAN_OF] != 1 + accepted:  # a step that is tried again has the one it needs
                si[at.JACOBIAN_OF] = 1 + accepted
                si[at.JACOBIANS] += 1
                jacobian(ic, t, y[row * n :], p, c, ci, w)
            regular = rosenbrock_step(
                f, ic, tab, t, h, y, row * n, nxt * n, k, row * wide, nxt * wide, p, c, ci, w, work
            )
        si[at.EVALUATIONS] += s - 1
        if adaptive:
            ratio = error_ratio(ic, tab, h, y, row * n, nxt * n, k, row * wide, rtol, atol, work)
            if not regular:
                ratio = math.nan
            finite = math.isfinite(ratio)
            if not (ratio <= 1.0 or (abs(h) <= fc[at.DT_MIN] and finite)):
                si[at.REJECTED] += 1
                si[at.WHY] = 0 if finite else 1
                si[at.STUCK] = 1 if abs(h) <= fc[at.DT_MIN] else 0
                si[at.AFTER_REJECTION] = 1
                factor = fc[at.FACTOR_MIN]
                if finite:
                    factor = min(1.0, max(factor, fc[at.SAFETY] * ratio ** fc[at.POWER_REJECTED]))
                size = abs(h) * factor
                continue
            ratio = max(ratio, 1e-10)
            factor = fc[at.SAFETY] * ratio ** fc[at.POWER]
            if fc[at.POWER_1] != 0.0 or fc[at.POWER_2] != 0.0:
                factor *= sf[at.PREVIOUS] ** fc[at.POWER_1] * sf[at.BEFORE] ** fc[at.POWER_2]
            limit = 1.0 if si[at.AFTER_REJECTION] else fc[at.FACTOR_MAX]
            sf[at.BEFORE], sf[at.PREVIOUS] = sf[at.PREVIOUS], ratio
            si[at.AFTER_REJECTION] = 0
            grown = abs(h) * min(limit, max(fc[at.FACTOR_MIN], factor))
            # A step that was cut short says nothing against the size that had been planned.
            size = max(grown, size) if abs(h) < size * 0.999 else grown
        si[at.WHY] = 0
        t_next = target if lands else t + h
        inside = next_save < count and (t_next - saves[next_save]) * sign >= 0 and saves[next_save] != t1
        if every > s and ic[at.FAMILY] == 0:
            extras[row] = 1 if inside or ic[at.DENSE] else 0
            if extras[row]:
                extra_stages(f, ic, tab, t, h, y, row * n, nxt * n, k, row * wide, p, c, ci, w, work)
                si[at.EVALUATIONS] += every - s
        hit = False
        if ic[at.WATCH] != 0:
            hit = changed(ic, tab, t, h, t_next, y, row * n, nxt * n, k, row * wide)
            si[at.CHANGED] = 1 if hit else 0
        several = inside and n <= SEVERAL and next_save + 2 < count and (t_next - saves[next_save + 2]) * sign >= 0
        if several:
            polynomial(ic, tab, h, k, row * wide, work)
        while inside:
            theta = (saves[next_save] - t) / h
            if several:
                evaluate(n, ic[at.DEGREE], theta, work, y, row * n, saved, next_save * n)
            else:
                interpolate(ic, tab, theta, h, y, row * n, k, row * wide, saved, next_save * n)
            where[next_save] = accepted
            thetas[next_save] = theta
            next_save += 1
            inside = next_save < count and (t_next - saves[next_save]) * sign >= 0 and saves[next_save] != t1
        hs[row] = h
        ts[nxt] = t = t_next
        accepted += 1
        over = lands and target == t1
        if ic[at.FSAL]:
            if ic[at.FAMILY] == 0:
                for m in range(n):
                    k[nxt * wide + m] = k[row * wide + (s - 1) * n + m]
        elif not over:
            kernel(f, real(t), y[nxt * n :], p, c, ci, w, k[nxt * wide + carry :])
            si[at.EVALUATIONS] += 1
        if over:
            if next_save < count:
                for m in range(n):
                    saved[next_save * n + m] = y[nxt * n + m]
                where[next_save] = -1 - accepted
                next_save += 1
            break
        if hit:
            code = at.EVENT
            break
    sf[at.NOW], sf[at.SIZE], si[at.NEXT_SAVE], si[at.ACCEPTED] = t, size, next_save, accepted
    return code
