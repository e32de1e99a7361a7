"""Heun 2(1): Heun's method, with the Euler step as its error estimate.

K. Heun, "Neue Methoden zur approximativen Integration der Differentialgleichungen einer unabhaengigen
Veraenderlichen", Z. Math. Phys. 45 (1900) 23-38.
"""

from __future__ import annotations

from .tableau import ExplicitTableau

TABLEAU = ExplicitTableau(
    order=2,
    error_order=1,
    c=(0.0, 1.0),
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    error=(-1 / 2, 1 / 2),
)
