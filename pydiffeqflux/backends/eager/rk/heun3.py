"""Heun's method of order 3, for fixed steps.

K. Heun, "Neue Methoden zur approximativen Integration der Differentialgleichungen einer unabhaengigen
Veraenderlichen", Z. Math. Phys. 45 (1900) 23-38.
"""

from __future__ import annotations

from .tableau import ExplicitTableau

TABLEAU = ExplicitTableau(
    order=3,
    error_order=0,
    c=(0.0, 1 / 3, 2 / 3),
    a=((), (1 / 3,), (0.0, 2 / 3)),
    b=(1 / 4, 0.0, 3 / 4),
)
