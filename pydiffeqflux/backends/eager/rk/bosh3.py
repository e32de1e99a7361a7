"""Bogacki-Shampine 3(2), with the cubic Hermite interpolant.

P. Bogacki, L. F. Shampine, "A 3(2) pair of Runge-Kutta formulas", Appl. Math. Lett. 2 (1989) 321-325.
"""

from __future__ import annotations

from .tableau import ExplicitTableau

_B = (2 / 9, 1 / 3, 4 / 9, 0.0)

TABLEAU = ExplicitTableau(
    order=3,
    error_order=2,
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((), (1 / 2,), (0.0, 3 / 4), _B[:-1]),
    b=_B,
    error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)
