"""Fehlberg 2(1): three stages, with the solution of order 2 carried on.

E. Fehlberg, "Low-order classical Runge-Kutta formulas with stepsize control and their application to some heat
transfer problems", NASA Technical Report R-315 (1969). Fehlberg carried the solution of order 1 on, whose slope at
the new point is the third stage; with the other one the pair is not first same as last.
"""

from __future__ import annotations

from .tableau import ExplicitTableau

TABLEAU = ExplicitTableau(
    order=2,
    error_order=1,
    c=(0.0, 1 / 2, 1.0),
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    error=(-1 / 512, 0.0, 1 / 512),
)
