"""Conditions of events, looked at after every step: where a sign changes, the loop is left, and others look closer."""

from __future__ import annotations

from ..lang.words import Ints, Reals, Wide, apart, ints_at, kernel, real, reals_at, wide_at
from . import layout as at
from .reading import interpolate

# What stands where in ``watch``; then, for each event, ``EACH`` numbers.
EVENTS, STATE, VALUES, SIGNS, AFTER, HEAD = 0, 1, 2, 3, 4, 5
KERNEL, COUNT, POINTS, FIRST, P, C, INTEGERS, WORK, EACH = 0, 1, 2, 3, 4, 5, 6, 7, 8


@apart
def changed(ic: Ints, tab: Wide, t: float, h: float, t_next: float, y: Reals, yr: int, y1r: int, k: Reals,
            kr: int) -> bool:  # fmt: skip
    """Whether a condition changes its sign within the step, as ``EventWatch`` looks for it; if not, takes note.

    ``watch`` has the signs at the start of the step; those at its end take their place only where none has changed.
    """
    watch = ints_at(ic[at.WATCH])
    n, events = ic[at.N], watch[EVENTS]
    state, values = reals_at(watch[STATE]), reals_at(watch[VALUES])
    signs, after = wide_at(watch[SIGNS]), wide_at(watch[AFTER])
    found, total = False, 0
    for e in range(events):
        event = watch[HEAD + EACH * e :]
        points, count, first = event[POINTS], event[COUNT], event[FIRST]
        total += count
        for q in range(count):
            after[first + q] = signs[first + q]
        for j in range(points + 1):
            when = t_next
            if j < points:
                theta = (j + 1) / (points + 1)
                when = t + theta * h
                interpolate(ic, tab, theta, h, y, yr, k, kr, state, 0)
            else:
                for m in range(n):
                    state[m] = y[y1r + m]
            kernel(
                event[KERNEL], real(when), state, reals_at(event[P]), reals_at(event[C]), ints_at(event[INTEGERS]),
                reals_at(event[WORK]), values,
            )  # fmt: skip
            for q in range(count):
                value, before = float(values[q]), after[first + q]
                sign = 1.0 if value > 0.0 else (-1.0 if value < 0.0 else value)
                if before != 0.0 and sign != before:
                    found = True
                after[first + q] = sign
    if not found:
        for q in range(total):
            signs[q] = after[q]
    return found
