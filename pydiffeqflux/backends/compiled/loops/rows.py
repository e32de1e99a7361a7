"""Every row of a batch as a solve of its own, one after the other; nothing is kept but the saved states."""

from __future__ import annotations

import math

from ..lang.words import Ints, Reals, Wide
from . import layout as at
from .explicit import integrate

#: Rows whose saved states are put in their places together: these lie far from those of the next save time.
TOGETHER = 8


def integrate_rows(f: int, first: int, count: int, rows: int, ic: Ints, fc: Wide, tab: Wide, saves: Wide, rtol: Reals,
                   atol: Reals, p: Reals, c: Reals, ci: Ints, w: Reals, si: Ints, sf: Wide, y0: Reals, t: Wide,
                   saved: Reals, final: Reals, ends: Wide, found: Ints, codes: Ints, y: Reals, k: Reals, own: Wide,
                   marks: Ints, work: Reals) -> int:  # fmt: skip
    """Solve the rows ``first, ..., first + count - 1`` of ``rows``.

    Args:
        y0: the initial states, one after the other.
        saved: ``(saves, rows, n)``; final: the states that the rows ended with.
        ends: the time at which each row ended; codes: how; found: steps accepted, rejected, evaluations and saved
            states of each row.
        t, y, k, own, marks, work: room for two steps (see ``explicit.integrate``), and for the saved states of
            ``TOGETHER`` rows.
    """
    n, saving = ic[at.N], ic[at.SAVES]
    rooms = work[max(2, ic[at.DEGREE]) * n :]
    places, thetas = marks[4:], own[4 + saving :]
    for r in range(first, first + count):
        for m in range(at.STATE_INTS):
            si[m] = 0
        for m in range(n):
            y[m] = y0[r * n + m]
        sf[at.PREVIOUS] = 1.0
        sf[at.BEFORE] = 1.0
        beside = (r - first) % TOGETHER
        room = rooms[beside * saving * n :]
        codes[r] = integrate(
            f, ic, fc, tab, saves, rtol, atol, p, c, ci, w, si, sf, t, own, y, k, marks, room, places, thetas, work
        )
        for i in range(si[at.NEXT_SAVE], saving):
            for m in range(n):
                room[i * n + m] = math.nan
        if beside == TOGETHER - 1 or r == first + count - 1:
            start = r - beside
            for i in range(saving):
                for b in range(beside + 1):
                    for m in range(n):
                        saved[(i * rows + start + b) * n + m] = rooms[(b * saving + i) * n + m]
        last = (si[at.ACCEPTED] & 1) * n
        for m in range(n):
            final[r * n + m] = y[last + m]
        ends[r] = sf[at.NOW]
        found[4 * r] = si[at.ACCEPTED]
        found[4 * r + 1] = si[at.REJECTED]
        found[4 * r + 2] = si[at.EVALUATIONS]
        found[4 * r + 3] = si[at.NEXT_SAVE]
    return 0
