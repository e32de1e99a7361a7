"""The classical method of order 4.

W. Kutta, "Beitrag zur naeherungsweisen Integration totaler Differentialgleichungen", Z. Math. Phys. 46 (1901)
435-453.
"""

from __future__ import annotations

from .tableau import ExplicitTableau

TABLEAU = ExplicitTableau(
    order=4,
    error_order=0,
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)
